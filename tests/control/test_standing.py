"""What systemd is told of how things stand."""

from relay.control.standing import standing
from relay.ledger.layout import DaemonWord, Word
from tests.config.rig import endpoint_row, snapshot_of
from tests.ledger.rig import new_ledger


def test_all_is_well() -> None:
    with new_ledger() as ledger:
        ledger.words[DaemonWord.RELOAD_OK] = 1
        text = "web_IN_0: 1 endpoints open, generation 1"
        said = standing(ledger, snapshot_of(endpoint_row()), 0, "", starting=False)
        assert said == {"op": "ready", "status": text, "unserved": ""}


def test_a_start_says_what_holds_it_up_and_else_nothing() -> None:
    with new_ledger() as ledger:
        assert standing(ledger, snapshot_of(), 0, "", starting=True) == {"op": "status", "status": ""}
        ledger.worker(0)[Word.CRASHES] = 5
        said = standing(ledger, snapshot_of(), 0, "", starting=True)
        assert (said["op"], said["status"].split(",")[:2]) == (
            "status",
            ["worker-0 ends at its start", " 5 times in a row"],
        )


def test_what_is_wrong_stands_behind_what_is_open() -> None:
    with new_ledger() as ledger:
        part = ledger.worker(0)
        part[Word.GENERATION], part[Word.UNSERVED], part[Word.CRASHES] = 1, 1, 3
        said = standing(ledger, snapshot_of(), 0, "", starting=False)
        assert "; the last reload failed, the former configuration stands; worker-0 ends at its start" in said["status"]
        assert said["unserved"].startswith("there is no socket")
