"""Who is down, and why, as this machine knows it."""

import errno
import time
from collections.abc import Iterator
from typing import Any

import pytest

from relay.config.snapshot import ProbeRow, TargetRow
from relay.control.faults import avoided, own_faults, reason_of
from relay.ledger.layout import Count, Health, TargetCount, health_at
from relay.ledger.ledger import Ledger
from relay.targets import why
from relay.targets.health import TargetHealth, packed
from tests.config.rig import endpoint_row, snapshot_of
from tests.ledger.rig import new_ledger

REFUSED = why.of_error(errno.ECONNREFUSED)
BESIDE = ProbeRow("", 1.0, 1.0, port=8008)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Two workers."""
    with new_ledger(workers=2) as made:
        yield made


def test_own_endpoints_with_their_reasons(ledger: Ledger) -> None:
    unix = endpoint_row("web/a", slot=1, targets=(TargetRow("unix:/run/a", path="/run/a"),))
    other = endpoint_row("web/b", slot=2)
    never = endpoint_row("web/c", slot=3, probe=ProbeRow("", 1.0, 1.0, "never"))
    door = endpoint_row("web/d", slot=4, type="door", distribution="least-connections")
    snapshot = snapshot_of(unix, other, never, door)
    assert own_faults(ledger, snapshot) == {}
    part = ledger.worker(1)
    for slot in (1, 3, 4):
        at = part.counts_at(slot)
        part.words[at + Count.DIAL_WHY] = REFUSED
        part.words[at + Count.TARGET_UP] = time.monotonic_ns() << 1
    assert own_faults(ledger, snapshot) == {"a": "connection refused: /run/a", "c": "connection refused"}
    assert own_faults(ledger, snapshot, telling=True) == {"a": "connection refused: /run/a"}


def test_other_machines_that_are_down(ledger: Ledger) -> None:
    """By a probe, or by a dial that failed in any worker since; not for what a local target does."""
    targets = tuple(TargetRow(f"10.0.0.{n}:1", slot=n, instance=f"web_IN_{n}") for n in range(4))
    local = endpoint_row("web/in", slot=5, targets=(TargetRow("local"),))
    row = endpoint_row("web/out", targets=targets, distribution="five-tuple", path_behind="/run/app")
    snapshot = snapshot_of(row, local)
    assert avoided(ledger, snapshot) == {}
    part, now_ns = ledger.worker(0), time.monotonic_ns()
    ledger.words[health_at(0)] = packed(Health.UP, 0, 1)
    ledger.words[health_at(1)] = packed(Health.DOWN, why.of_error(errno.EACCES), 1)
    _, second = part.target_counts_at(2)
    words = ledger.words
    words[second + TargetCount.DIALLED], words[second + TargetCount.DIAL_WHY] = now_ns << 1, why.of_relay(REFUSED)
    first, _ = part.target_counts_at(3)
    ledger.words[first + TargetCount.DIALLED], ledger.words[first + TargetCount.DIAL_WHY] = now_ns << 1, REFUSED
    ledger.words[first + TargetCount.LOOKED_NS], ledger.words[health_at(3)] = now_ns + 1, packed(Health.UP, 0, 1)
    ledger.words[part.counts_at(5) + Count.TARGET_UP] = now_ns << 1
    door = endpoint_row(
        "app/db", type="door", leads_to="web/pg", distribution="least-connections", targets=targets[2:3]
    )
    assert avoided(ledger, snapshot_of(door)) == {"web_IN_2": "pg (its relay: connection refused)"}
    assert avoided(ledger, snapshot) == {
        "web_IN_1": "out (permission denied: /run/app)",
        "web_IN_2": "out (its relay: connection refused)",
    }


@pytest.mark.parametrize(
    ("target", "keys", "expected"),
    [
        (TargetRow("unix:/run/a", path="/run/a"), {"direct": True}, "connection refused: /run/a"),
        (TargetRow("10.0.0.4:1", instance="web_IN_0"), {"path_behind": "/run/b"}, "connection refused: /run/b"),
        (TargetRow("127.0.0.1:1"), {"direct": True}, "connection refused"),
        (TargetRow("unix:/run/a", path="/run/a"), {"direct": True, "probe": BESIDE}, "connection refused"),
    ],
)
def test_the_path_is_of_who_was_asked(target: TargetRow, keys: dict[str, Any], expected: str) -> None:
    """One of several, or the only one, unless a port beside it is asked."""
    found, row = TargetHealth(Health.DOWN, REFUSED), endpoint_row(targets=(target,), **keys)
    assert reason_of(row, target, found) == expected
    if row.direct:
        assert reason_of(row, None, found) == expected
