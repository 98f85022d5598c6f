"""What is told of relay's own processes when they are not well."""

import pytest

from relay.control.troubles import troubles, unserved
from relay.ledger.layout import Word
from relay.processes.child import CRASHES_SAID
from tests.ledger.rig import new_ledger


def test_nothing_is_wrong() -> None:
    with new_ledger(workers=2) as ledger:
        assert (troubles(ledger, 1, 0), unserved(ledger, 1)) == ([], "")


@pytest.mark.parametrize("count", [CRASHES_SAID - 1, CRASHES_SAID])
def test_ends_in_a_row_are_a_state_from_some_number_on(count: int) -> None:
    with new_ledger(workers=2) as ledger:
        ledger.worker(1)[Word.CRASHES] = count
        said = [each.split(",")[0] for each in troubles(ledger, 1, count)]
        assert said == (["worker-1 ends at its start", "control ends at its start"] if count == CRASHES_SAID else [])


def test_only_who_works_by_the_snapshot_can_lack_a_socket_of_it() -> None:
    with new_ledger(workers=2) as ledger:
        for n, generation in enumerate((4, 5)):
            ledger.worker(n)[Word.GENERATION], ledger.worker(n)[Word.UNSERVED] = generation, n + 1
        assert unserved(ledger, 5).startswith("there is no socket for a declared address: worker-1 for 2; ")
        assert unserved(ledger, 4).startswith(
            "there is no socket for a declared address: worker-0 for 1, worker-1 for 2;"
        )
        assert troubles(ledger, 5, 0) == [unserved(ledger, 5)]
