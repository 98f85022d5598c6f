"""What `relay status` says, against a ledger that was written by hand."""

import json
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from relay import __version__
from relay.cli.tables import connections_text, status_text
from relay.config.snapshot import TargetRow
from relay.control.status import busy, connections, status, target_status, unguarded_text
from relay.engine import Engine
from relay.ledger import clocks
from relay.ledger.layout import (
    CAUSES,
    ENVELOPE_REASONS,
    REASONS,
    Count,
    DaemonWord,
    Health,
    State,
    TargetCount,
    Word,
    health_at,
)
from relay.ledger.ledger import Ledger
from relay.targets import why
from relay.targets.health import packed
from tests.config.rig import endpoint_row, snapshot_of
from tests.ledger.rig import add, new_ledger

SNAPSHOT = snapshot_of(
    endpoint_row("web/in", slot=4, listen_port=80, targets=(TargetRow("a"), TargetRow("b"))),
    endpoint_row("web/api", slot=2, listen_port=81, type="internal", protocol="https", listen_host="::1"),
    generation=9,
)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Two workers."""
    with new_ledger(workers=2) as made:
        yield made


class Since:
    """The time that passes in a test. Of what is told, to the millisecond."""

    def __init__(self) -> None:
        self._began_s = time.monotonic()

    def has_grown(self, told_s: float, from_s: float) -> bool:
        """Whether it was so long at a moment since then, and has grown no more than time has passed."""
        return from_s <= told_s <= from_s + time.monotonic() - self._began_s + 0.001

    def has_shrunk(self, told_s: float, from_s: float) -> bool:
        """Whether it was so long, and has shrunk no more than time has passed."""
        return from_s - (time.monotonic() - self._began_s) - 0.001 <= told_s <= from_s


def test_an_idle_daemon(ledger: Ledger) -> None:
    found: Any = status(ledger, SNAPSHOT, keeper_pid=1234, program=0)
    assert (found["version"], found["service"], found["instance"]) == (__version__, "test", "web_IN_0")
    assert (found["generation"], found["keeper"], found["control"]["pid"]) == (9, {"pid": 1234}, os.getpid())
    assert [worker["pid"] for worker in found["workers"]] == [0, 0]
    assert [endpoint["name"] for endpoint in found["endpoints"]] == ["web/in", "web/api"]
    assert found["endpoints"][0] == {
        "name": "web/in", "type": "input", "protocol": "tcp", "listen": "127.0.0.1:80", "targets": ["a", "b"],
        "target_up": None, "target_reason": "", "target_since_s": None, "target_looked_s": None, "target_looked": None,
        "active": 0, "held": 0, "hold_for_s": 0.0, "accepted": 0, "denied": {}, "closed": {}, "received_bytes": 0,
        "enforce": "strict", "deny": "reset", "would_deny": {}, "sent_bytes": 0, "connect_failures": 0,
        "target_set": [], "distribution": None, "leads_to": "",
    }  # fmt: skip
    assert found["endpoints"][1]["listen"] == "[::1]:81"
    assert connections(ledger, SNAPSHOT) == []
    json.dumps(found)


@pytest.mark.parametrize(("reason", "form"), [("", "compiled"), ("not compiled", "interpreted")])
def test_the_form_of_the_engine(reason: str, form: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.control.status.ENGINE", Engine(reason))
    found = status(ledger, SNAPSHOT, keeper_pid=1, program=0)
    assert (found["engine"], found["engine_reason"]) == (form, reason)


def test_counts_are_of_all_workers_and_of_the_endpoints_own_slot(ledger: Ledger) -> None:
    for n, part in enumerate((ledger.worker(0), ledger.worker(1)), 1):
        add(part, 4, Count.ACCEPTED, 10 * n)
        add(part, 4, Count.ACTIVE, 9 * n)
        add(part, 4, Count.HELD, 2 * n)
        add(part, 4, Count.RECEIVED, 100 * n)
        add(part, 4, Count.SENT, 1000 * n)
        add(part, 4, Count.DENIED + REASONS.index("rate"), n)
        add(part, 4, Count.WOULD_DENY + ENVELOPE_REASONS.index("roster"), n)
        add(part, 4, Count.CLOSED + CAUSES.index("idle"), n)
        add(part, 4, Count.CONNECT_FAILURES, n)
    first, second = status(ledger, SNAPSHOT, 1, 0)["endpoints"]
    assert (first["accepted"], first["active"], first["received_bytes"], first["sent_bytes"]) == (30, 27, 300, 3000)
    assert (first["held"], second["held"]) == (6, 0)
    assert (first["denied"], first["closed"], first["connect_failures"]) == ({"rate": 3}, {"idle": 3}, 3)
    assert (first["would_deny"], second["would_deny"]) == ({"roster": 3}, {})
    assert (second["accepted"], second["denied"], second["closed"]) == (0, {}, {})


@pytest.mark.parametrize(
    ("said", "up"),
    [
        ((0, 0), None),
        ((100 << 1, 0), False),
        ((0, 100 << 1 | 1), True),
        ((100 << 1, 101 << 1 | 1), True),
        ((102 << 1, 101 << 1 | 1), False),
    ],
)
def test_the_last_dial_says_whether_the_target_answers(said: tuple[int, int], up: bool | None, ledger: Ledger) -> None:
    for n, value in enumerate(said):
        add(ledger.worker(n), 4, Count.TARGET_UP, value)
    assert status(ledger, SNAPSHOT, 1, 0)["endpoints"][0]["target_up"] is up


def test_workers_and_reloads(ledger: Ledger) -> None:
    part, since = ledger.worker(1), Since()
    values = {Word.PID: 77, Word.GENERATION: 9, Word.ACCEPT_PAUSES: 1, Word.PIPES: 2, Word.PIPES_DEGRADED: 3}
    for word, value in {**values, Word.PIPES_REFUSED: 4, Word.LOG_DROPPED: 5}.items():
        part[word] = value
    part[Word.HEARTBEAT_NS] = time.monotonic_ns() - 2_000_000_000
    words = ledger.words
    clocks.put_instant(words, DaemonWord.STARTED_MONOTONIC_NS, time.monotonic_ns() - 60_000_000_000)
    words[DaemonWord.HOLDER_RESTARTS], words[DaemonWord.CONTROL_RESTARTS], words[DaemonWord.RELOADS_FAILED] = 1, 7, 8
    ledger.worker(0)[Word.RESTARTS] = 3
    part[Word.RESTARTS], part[Word.HOLDER_PID], part[Word.FLOWS_ADOPTED] = 2, 76, 9
    words[DaemonWord.RELOAD_OK_AT_NS] = 1_700_000_000_500_000_000
    part[Word.CRASHES], part[Word.HUNG], part[Word.UNSERVED], words[DaemonWord.HUNG] = 3, 1, 2, 4
    for slot, active in ((4, 2), (2, 3)):
        add(part, slot, Count.ACTIVE, active)
    found: Any = status(ledger, SNAPSHOT, 1, 0)
    worker = found["workers"][1]
    assert since.has_grown(worker.pop("heartbeat_age_s"), 2.0)
    assert worker == {
        "pid": 77, "holder_pid": 76, "survives_crash": True, "restarts": 2, "flows_adopted": 9, "generation": 9,
        "connections": 5, "crashes_in_a_row": 3, "hung": 1, "unserved": 2,
        "accept_pauses": 1, "pipes": 2, "pipes_degraded": 3, "pipes_refused": 4, "log_lines_dropped": 5,
    }  # fmt: skip
    assert since.has_grown(found["uptime_s"], 60.0)
    assert (found["worker_restarts"], found["control"]["restarts"], found["hung"]) == (6, 7, 4)
    assert [each.split(",")[0] for each in found["troubles"]] == [
        "worker-1 ends at its start",
        "there is no socket for a declared address: worker-1 for 2; the log says which (`no socket for`); raise LimitNOFILE= "
        "of the unit if descriptors ran out",
    ]
    assert found["reload"] == {"last_successful": False, "last_success_timestamp": 1_700_000_000.5, "failed": 8}


@pytest.mark.parametrize(
    ("pid", "holder_pid", "unshared", "survives"),
    [(77, 76, 0, True), (77, 0, 0, False), (77, 76, 1, False), (0, 0, 0, True)],
)
def test_whose_connections_would_outlive_it(
    pid: int, holder_pid: int, unshared: int, survives: bool, ledger: Ledger
) -> None:
    """Not where the holder is dead, nor where the kernel shares no descriptors. Before the start there are none."""
    part = ledger.worker(0)
    part[Word.PID], part[Word.HOLDER_PID], part[Word.UNSHARED] = pid, holder_pid, unshared
    found: Any = status(ledger, SNAPSHOT, 1, 0)
    assert found["workers"][0]["survives_crash"] is survives
    told = "; if worker 0 dies, its connections will: see `relay status`"
    assert unguarded_text(ledger) == (told if pid and not holder_pid else "")


TARGET = TargetRow("10.0.0.4:80", host="10.0.0.4", port=80, slot=7, instance="web_IN_0")


def test_a_target_that_nobody_has_asked(ledger: Ledger) -> None:
    assert target_status(ledger, endpoint_row(), TARGET) == {
        "target": "10.0.0.4:80", "instance": "web_IN_0", "health": "unknown", "reason": "", "since_s": None,
        "looked_s": None, "looked": None, "active": 0, "connected": 0,
        "failures": 0, "ejections": 0, "retries": 0, "ejected_for_s": 0, "mean_connect_s": None,
        "weight": 1, "declared_weight": None, "share": 1.0, "backup": False,
      }  # fmt: skip


def test_an_edge_whose_instances_are_all_away(ledger: Ledger) -> None:
    snapshot = snapshot_of(endpoint_row("web/in", distribution="source-ip", targets=()))
    [found] = status(ledger, snapshot, 1, 0)["endpoints"]
    assert (found["target_up"], found["target_reason"], found["target_set"]) == (None, "", [])


@pytest.mark.parametrize(
    ("states", "up"),
    [
        ((Health.DOWN, Health.UP), True),
        ((Health.DOWN, Health.DOWN), False),
        ((Health.DOWN, Health.UNKNOWN), None),
        ((Health.UNKNOWN, Health.UNKNOWN), None),
    ],
)
def test_of_several_targets_one_is_enough(states: tuple[int, int], up: bool | None, ledger: Ledger) -> None:
    for n, state in enumerate(states):
        ledger.words[health_at(n)] = packed(state, why.NOTHING, 0)
    targets = tuple(TargetRow(f"t{n}", slot=n, instance=f"web_IN_{n}") for n in range(2))
    snapshot = snapshot_of(endpoint_row("web/in", distribution="source-ip", targets=targets))
    assert status(ledger, snapshot, 1, 0)["endpoints"][0]["target_up"] is up


def test_an_edges_target_over_all_workers(ledger: Ledger) -> None:
    since = Since()
    ledger.words[health_at(7)] = packed(Health.DOWN, why.http_status(503), 0)
    for n, row in enumerate(ledger.worker(0).target_counts_at(7), 1):
        ledger.words[row + TargetCount.ACTIVE] = n
        ledger.words[row + TargetCount.CONNECTED] = 2 * n
        ledger.words[row + TargetCount.CONNECT_SUM_NS] = 3_000_000 * n
        ledger.words[row + TargetCount.FAILURES] = 10 * n
        ledger.words[row + TargetCount.EJECTIONS] = 5 * n
    ledger.words[row + TargetCount.EJECTED_UNTIL_NS] = time.monotonic_ns() + 60_000_000_000
    rows = (endpoint_row("web/in", distribution="source-ip", targets=(TARGET,)), *SNAPSHOT.endpoints)
    found: Any = status(ledger, snapshot_of(*rows), 1, 0)["endpoints"]
    assert [len(each["target_set"]) for each in found] == [1, 0, 0]
    target: Any = found[0]["target_set"][0]
    assert since.has_shrunk(target.pop("ejected_for_s"), 60.0)
    assert target == {
        "target": "10.0.0.4:80", "instance": "web_IN_0", "health": "down", "reason": "HTTP 503", "since_s": None,
        "looked_s": None, "looked": None, "active": 3, "connected": 6,
        "failures": 30, "ejections": 15, "retries": 0, "mean_connect_s": 0.0015,
        "weight": 1, "declared_weight": None, "share": 1.0, "backup": False,
      }  # fmt: skip


def test_how_long_edges_send_nobody(ledger: Ledger) -> None:
    behind = endpoint_row("web/in", slot=4, edges=("10.0.9.1",))
    snapshot = snapshot_of(behind, SNAPSHOT.endpoints[1])
    assert status(ledger, snapshot, 1, 0)["busy_for_s"] == 0
    add(ledger.worker(0), 4, Count.ACTIVE, 2)
    add(ledger.worker(1), 2, Count.ACTIVE, 3)
    assert busy(ledger, snapshot, told=True) == {
        "busy_for_s": 0, "behind_edge": ["web/in"], "active": 5, "told": True, "senders": [], "untold_s": 0.0,
    }  # fmt: skip
    since = Since()
    clocks.put_busy(ledger.words, 600 * 10**9)
    assert since.has_shrunk(busy(ledger, snapshot, told=False)["busy_for_s"], 600.0)
    clocks.put_busy(ledger.words, -1)
    assert status(ledger, snapshot, 1, 0)["busy_for_s"] == 0, "the lease has ended by itself"


def test_it_is_upgrading_until_control_and_every_worker_are_of_the_new_program(ledger: Ledger) -> None:
    def upgrading(program: int) -> bool:
        return bool(status(ledger, SNAPSHOT, 1, program)["upgrading"])

    assert not upgrading(0)
    ledger.words[DaemonWord.PROGRAM] = 1
    assert upgrading(1), "the workers are not"
    for n in range(ledger.workers):
        ledger.worker(n)[Word.PROGRAM] = 1
    assert not upgrading(1)
    assert upgrading(0), "this control is not: its version is not the daemon's"


def test_open_connections(ledger: Ledger) -> None:
    part, since = ledger.worker(1), Since()
    started_ns = time.monotonic_ns() - 5_000_000_000
    part.begin(0, State.LOOK, 2, 10, -1, started_ns, "[::1]:5")
    part.begin(1, State.SPLICE, 4, 11, -1, started_ns, "192.0.2.1:6")
    part.begin(2, State.SPLICE, 900, 12, -1, started_ns, "192.0.2.1:7")
    part.begin(3, State.LINE, 4, 13, -1, started_ns, "192.0.2.1:8")  # which is no connection
    part.moved(1, 12, 34)
    found: list[Any] = list(connections(ledger, SNAPSHOT))
    assert all(since.has_grown(each.pop("age_s"), 5.0) for each in found)
    assert found[:2] == [
        {"endpoint": "web/api", "peer": "[::1]:5", "state": "look", "received_bytes": 0, "sent_bytes": 0, "worker": 1},
        {"endpoint": "web/in", "peer": "192.0.2.1:6", "state": "splice", "received_bytes": 12, "sent_bytes": 34, "worker": 1},
    ]  # fmt: skip
    assert [each["endpoint"] for each in found[2:]] == ["?"]


def test_people_can_read_all_of_it(ledger: Ledger) -> None:
    """The text is made of what the status has."""
    ledger.worker(0).begin(0, State.DIAL, 4, 10, -1, time.monotonic_ns(), "192.0.2.1:6")
    found = json.loads(json.dumps(status(ledger, SNAPSHOT, 1, 0)))
    assert "web/api" in status_text(found)
    assert "192.0.2.1:6" in connections_text(connections(ledger, SNAPSHOT))
