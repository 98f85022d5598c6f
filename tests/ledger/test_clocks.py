"""Durations by the one clock, instants by the other, also when somebody sets that; and what a program before wrote."""

import time
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from relay.ledger import clocks
from relay.ledger.layout import DaemonWord
from tests.ledger.rig import new_ledger

S: Final = 10**9
HOUR: Final = 3600 * S
ROSTER: Final = DaemonWord.ROSTER_AT_MONOTONIC_NS


class Clocks:
    """Both clocks, which stand still until a test moves them: 100 s after the boot, in 2023."""

    def __init__(self) -> None:
        self.monotonic_ns, self.wall_ns = 100 * S, 1_700_000_000 * S

    def go_on(self, for_ns: int) -> None:
        self.monotonic_ns += for_ns
        self.wall_ns += for_ns

    def step(self, by_ns: int) -> None:
        """Somebody sets the machine's clock."""
        self.wall_ns += by_ns


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clocks:
    made = Clocks()
    monkeypatch.setattr(time, "monotonic_ns", lambda: made.monotonic_ns)
    monkeypatch.setattr(time, "time_ns", lambda: made.wall_ns)
    return made


@pytest.fixture
def words() -> Iterator[memoryview]:
    with new_ledger() as ledger:
        yield ledger.words


def left_ns(words: memoryview) -> int:
    return clocks.busy_left_ns(words, time.monotonic_ns())


def test_a_drain_lasts_as_long_as_it_was_asked_to_whoever_sets_the_clock(words: memoryview, clock: Clocks) -> None:
    assert left_ns(words) == 0
    clocks.put_busy(words, HOUR)
    for by_ns in (2 * HOUR, -5 * HOUR):
        clock.step(by_ns)
        clock.go_on(60 * S)
    assert left_ns(words) == HOUR - 120 * S
    clocks.take_over(words)  # as a control does that is started again
    assert left_ns(words) == HOUR - 120 * S
    clock.go_on(HOUR)
    assert left_ns(words) == 0
    clocks.put_busy(words, HOUR)
    clocks.put_busy(words, 0)
    assert (left_ns(words), words[DaemonWord.BUSY_UNTIL_NS]) == (0, 0)


def test_a_worker_of_the_program_before_sees_the_drain(words: memoryview, clock: Clocks) -> None:
    clocks.put_busy(words, HOUR)
    assert words[DaemonWord.BUSY_UNTIL_NS] == clock.wall_ns + HOUR


def test_an_age_is_never_negative_and_never_jumps(words: memoryview, clock: Clocks) -> None:
    assert clocks.age_ns(words, ROSTER) is None
    assert clocks.instant_ns(words, ROSTER) == 0
    clocks.put_now(words, ROSTER)
    for by_ns in (9 * HOUR, -20 * HOUR):
        clock.step(by_ns)
        clock.go_on(3 * S)
    assert clocks.age_ns(words, ROSTER) == 6 * S
    assert clocks.instant_ns(words, ROSTER) == 100 * S
    clocks.put_instant(words, ROSTER, clock.monotonic_ns + S)
    assert clocks.age_ns(words, ROSTER) == 0


def test_what_was_before_this_boot_has_its_age(words: memoryview, clock: Clocks) -> None:
    at_ns = clocks.of_wall_ns(clock.wall_ns - HOUR)
    assert at_ns == 100 * S - HOUR
    clocks.put_instant(words, ROSTER, at_ns)
    clock.go_on(S)
    assert clocks.age_ns(words, ROSTER) == HOUR + S
    assert clocks.instant_ns(words, ROSTER) == at_ns
    assert words[DaemonWord.ROSTER_AT_NS] == clock.wall_ns - HOUR - S


def test_what_the_clock_has_yet_to_reach_is_now(clock: Clocks) -> None:
    assert clocks.of_wall_ns(clock.wall_ns + HOUR) == clock.monotonic_ns
    assert clocks.of_wall_ns(clock.wall_ns - clock.monotonic_ns) == 1, "0 is no instant"


def test_what_the_program_before_wrote_is_taken_over_once(words: memoryview, clock: Clocks) -> None:
    words[DaemonWord.STARTED_NS] = clock.wall_ns - 60 * S
    words[DaemonWord.ROSTER_AT_NS] = clock.wall_ns + S
    words[DaemonWord.RELOAD_OK_AT_NS] = 0
    words[DaemonWord.BUSY_UNTIL_NS] = clock.wall_ns + HOUR
    clocks.take_over(words)
    clock.step(-HOUR)
    clocks.take_over(words)
    assert clocks.age_ns(words, DaemonWord.STARTED_MONOTONIC_NS) == 60 * S
    assert clocks.age_ns(words, ROSTER) == 0
    assert clocks.age_ns(words, DaemonWord.RELOAD_OK_AT_MONOTONIC_NS) is None
    assert left_ns(words) == HOUR


def test_a_drain_of_the_program_before_that_is_over_is_over(words: memoryview, clock: Clocks) -> None:
    words[DaemonWord.BUSY_UNTIL_NS] = clock.wall_ns - S
    clocks.take_over(words)
    clock.step(-HOUR)
    clocks.take_over(words)
    assert left_ns(words) == 0


def by_wall_alone(words: memoryview, until_ns: int) -> None:
    """What `relay drain` writes in the program before."""
    words[DaemonWord.BUSY_UNTIL_NS] = until_ns


@pytest.mark.parametrize(
    ("change", "found_ns"),
    [
        (lambda words, clock: by_wall_alone(words, clock.wall_ns + 2 * HOUR), 2 * HOUR),
        (lambda words, _: by_wall_alone(words, 0), 0),
    ],
    ids=["for longer", "off"],
)
def test_a_control_of_the_program_before_changes_a_drain(
    words: memoryview, clock: Clocks, change: Callable[[memoryview, Clocks], None], found_ns: int
) -> None:
    """In the midst of an upgrade, or after one back to it; also what a control that was killed has written of a change."""
    clocks.put_busy(words, HOUR)
    change(words, clock)
    clocks.take_over(words)
    assert left_ns(words) == found_ns
