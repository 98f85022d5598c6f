"""How a target is, computed from what dials and looks found."""

import errno
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.snapshot import ProbeRow, TargetRow
from relay.ledger.layout import Count, Health, TargetCount, health_at
from relay.ledger.ledger import Ledger
from relay.targets import why
from relay.targets.health import (
    TargetHealth,
    failed_dial,
    failed_port,
    latest,
    of_endpoint,
    of_target,
    packed,
    state_in,
)
from tests.config.rig import endpoint_row
from tests.ledger.rig import new_ledger

S_NS = 1_000_000_000
UP, DOWN, UNKNOWN = Health.UP, Health.DOWN, Health.UNKNOWN
REFUSED, BUSY_APP = why.of_error(errno.ECONNREFUSED), why.http_status(503)


def dial(at_s: int, *, answered: bool) -> int:
    return at_s * S_NS << 1 | answered


@pytest.mark.parametrize(
    ("found", "looked_s", "last_dial", "proves", "expected"),
    [
        ((UNKNOWN, 0, 0), 0, 0, True, TargetHealth()),
        ((UNKNOWN, 0, 0), 5, dial(4, answered=False), True, TargetHealth()),
        ((UNKNOWN, 0, 0), 0, dial(4, answered=True), True, TargetHealth(UP, 0, 4 * S_NS, 4 * S_NS, True)),
        ((UNKNOWN, 0, 0), 0, dial(4, answered=True), False, TargetHealth()),
        ((UNKNOWN, 0, 0), 0, dial(4, answered=False), False, TargetHealth(DOWN, REFUSED, 4 * S_NS, 4 * S_NS, True)),
        ((UP, 0, 2), 5, 0, True, TargetHealth(UP, 0, 2 * S_NS, 5 * S_NS)),
        ((UP, 0, 2), 5, dial(4, answered=False), True, TargetHealth(UP, 0, 2 * S_NS, 5 * S_NS)),
        ((UP, 0, 2), 5, dial(5, answered=True), True, TargetHealth(UP, 0, 2 * S_NS, 5 * S_NS, True)),
        ((UP, 0, 2), 5, dial(6, answered=False), True, TargetHealth(DOWN, REFUSED, 6 * S_NS, 6 * S_NS, True)),
        ((UP, 0, 2), 5, dial(6, answered=True), True, TargetHealth(UP, 0, 2 * S_NS, 6 * S_NS, True)),
        ((UP, 0, 2), 5, dial(6, answered=True), False, TargetHealth(UP, 0, 2 * S_NS, 5 * S_NS)),
        ((DOWN, BUSY_APP, 2), 5, 0, False, TargetHealth(DOWN, BUSY_APP, 2 * S_NS, 5 * S_NS)),
        ((DOWN, BUSY_APP, 2), 5, dial(6, answered=True), False, TargetHealth(DOWN, BUSY_APP, 2 * S_NS, 5 * S_NS)),
        ((DOWN, BUSY_APP, 2), 5, dial(6, answered=True), True, TargetHealth(UP, 0, 6 * S_NS, 6 * S_NS, True)),
        (
            (DOWN, BUSY_APP, 2),
            5,
            dial(6, answered=False),
            True,
            TargetHealth(DOWN, REFUSED, 2 * S_NS, 6 * S_NS, True),
        ),
    ],
)
def test_what_was_found_last_holds(
    found: tuple[int, int, int], looked_s: int, last_dial: int, proves: bool, expected: TargetHealth
) -> None:
    state, fault, since_s = found
    word = packed(state, fault, since_s * S_NS)
    assert latest(word, looked_s * S_NS, last_dial, failed_dial(REFUSED, 9000), proves=proves) == expected


@given(
    st.sampled_from([UNKNOWN, UP, DOWN]), st.integers(0, (1 << why.BITS) - 1), st.integers(0, 34 * 365 * 86400 * 1000)
)
def test_a_word_says_all_of_it(state: int, fault: int, since_ms: int) -> None:
    word = packed(state, fault, since_ms * 1_000_000)
    assert word < 1 << 64
    assert state_in(word) == state
    found = latest(word, 1, 0, 0, proves=True)
    assert (found.health, found.why, found.since_ns) == (state, fault, since_ms * 1_000_000)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Two workers."""
    with new_ledger(workers=2) as made:
        yield made


def test_an_endpoints_own_by_the_last_dial_of_any_worker(ledger: Ledger) -> None:
    row = endpoint_row(slot=4)
    assert of_endpoint(ledger, row) == TargetHealth()
    words, (first, second) = ledger.words, ledger.worker(0).all_counts_at(4)
    words[first + Count.TARGET_UP] = dial(3, answered=True)
    words[second + Count.TARGET_UP] = dial(4, answered=False)
    words[second + Count.DIAL_WHY] = failed_dial(REFUSED, 9001)
    assert of_endpoint(ledger, row) == TargetHealth(DOWN, REFUSED, 4 * S_NS, 4 * S_NS, True)
    assert failed_port(ledger, row) == 9001
    words[first + Count.HEALTH], words[first + Count.LOOKED_NS] = packed(UP, 0, 5 * S_NS), 5 * S_NS
    assert of_endpoint(ledger, row) == TargetHealth(UP, 0, 5 * S_NS, 5 * S_NS)
    words[first + Count.TARGET_UP] = dial(6, answered=True)
    assert of_endpoint(ledger, row).dialled
    asked = endpoint_row(slot=4, probe=ProbeRow("/healthz", 1.0, 1.0))
    assert not of_endpoint(ledger, asked).dialled, "that it takes a connection does not say that it is well"


def test_where_probes_alone_decide_a_dial_does_not(ledger: Ledger) -> None:
    words, (first, _) = ledger.words, ledger.worker(0).all_counts_at(4)
    words[first + Count.HEALTH], words[first + Count.LOOKED_NS] = packed(UP, 0, 2 * S_NS), 2 * S_NS
    words[first + Count.TARGET_UP], words[first + Count.DIAL_WHY] = dial(3, answered=False), REFUSED
    plain = ProbeRow("", 1.0, 1.0)
    assert of_endpoint(ledger, endpoint_row(slot=4, probe=plain)).health == DOWN
    for probe in (replace(plain, fall=2), replace(plain, rise=2), replace(plain, on_down="cut")):
        row = endpoint_row(slot=4, probe=probe)
        assert of_endpoint(ledger, row) == TargetHealth(UP, 0, 2 * S_NS, 2 * S_NS)
        assert of_endpoint(ledger, row, by_dials=True) == TargetHealth(DOWN, REFUSED, 3 * S_NS, 3 * S_NS, True)
        words[first + Count.HEALTH], words[first + Count.TARGET_UP] = packed(DOWN, REFUSED, 1), dial(3, answered=True)
        assert of_endpoint(ledger, row, by_dials=True).health == DOWN, "nor does it prove that it is back"
        words[first + Count.HEALTH], words[first + Count.TARGET_UP] = packed(UP, 0, 2 * S_NS), dial(3, answered=False)


def test_one_of_several(ledger: Ledger) -> None:
    target = TargetRow("10.0.0.4:80", host="10.0.0.4", port=80, slot=7, instance="web_IN_0")
    edge = endpoint_row(distribution="five-tuple", targets=(target,))
    door = endpoint_row(type="door", distribution="least-connections", targets=(target,))
    words, (first, second) = ledger.words, ledger.worker(0).target_counts_at(7)
    words[second + TargetCount.DIALLED] = dial(3, answered=True)
    assert of_target(ledger, edge, target) == TargetHealth(), "its relay takes every connection"
    assert of_target(ledger, door, target).health == UP
    alone = replace(door, direct=True)
    assert of_target(ledger, alone, target).health == UP
    assert of_target(ledger, replace(alone, probe=ProbeRow("", 1.0, 1.0)), target) == TargetHealth(), "a probe decides"
    assert of_target(ledger, replace(alone, probe=ProbeRow("", 1.0, 1.0, "never")), target).health == UP
    words[first + TargetCount.DIALLED], words[first + TargetCount.DIAL_WHY] = dial(4, answered=False), REFUSED
    assert of_target(ledger, door, target).why == of_target(ledger, edge, target).why == REFUSED
    words[health_at(7)], words[first + TargetCount.LOOKED_NS] = packed(UP, 0, 5 * S_NS), time.monotonic_ns()
    assert of_target(ledger, edge, target).health == UP
