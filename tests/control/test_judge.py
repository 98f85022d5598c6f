"""What is made of the answers to probes."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.snapshot import ProbeRow
from relay.control.judge import Judge
from relay.ledger.layout import Health
from relay.targets import why

PROBE: Final = ProbeRow("", 15.0, 31.0)
GOOD, BAD, NONE = why.NOTHING, why.http_status(503), why.no_answer(31.0)
UNKNOWN, UP, DOWN = Health.UNKNOWN, Health.UP, Health.DOWN


@pytest.mark.parametrize(
    "steps",
    [
        [(0, GOOD, UP)],
        [(0, BAD, DOWN)],
        [(0, NONE, DOWN), (46, GOOD, UP)],
        [(0, GOOD, UP), (31, NONE, DOWN)],
        [(0, GOOD, UP), (15, BAD, DOWN), (30, NONE, DOWN), (45, BAD, DOWN), (60, GOOD, UP)],
        [(0, BAD, DOWN), (1, NONE, DOWN), (2, GOOD, UP)],
    ],
    ids=["good", "bad", "none-from-the-start", "none-after-good", "bad-and-back", "never-up"],
)
def test_answers_and_what_they_make(steps: list[tuple[float, int, int]]) -> None:
    """(when, what came, what the target is then)."""
    judge = Judge(PROBE)
    assert judge.health == UNKNOWN
    for at_s, answer, expected in steps:
        assert judge.hear(answer, 1000.0 + at_s) == judge.health == expected, f"{answer} at {at_s}"


def test_what_an_earlier_control_process_found_stands_until_the_first_answer() -> None:
    assert Judge(PROBE, UP).health == UP
    assert Judge(PROBE, DOWN).hear(NONE, 1001.0) == DOWN


def test_a_relays_word_counts_at_once_and_its_silence_as_the_probe_says() -> None:
    """It has counted the answers of its application itself; a probe that is lost on its way to the relay it has not."""
    probe = replace(PROBE, kind="relay", fall=3)
    judge, silent = Judge(probe, UP), why.of_relay(NONE)
    assert [judge.hear(silent, now_s) for now_s in (1.0, 2.0)] == [UP, UP]
    assert judge.hear(BAD, 3.0) == DOWN
    judge = Judge(probe, UP)
    assert [judge.hear(silent, now_s) for now_s in (1.0, 2.0, 3.0)] == [UP, UP, DOWN]
    assert Judge(probe, UP).hear(BAD, 1.0) == DOWN


def fallen(times: int, every_s: float = 30.0, by: int = BAD) -> tuple[Judge, float]:
    """A judge of a target that was up and fell so many times, and when it fell last."""
    judge, now_s = Judge(PROBE), 0.0
    for _ in range(times):
        while judge.hear(GOOD, now_s) != UP:
            now_s += 1.0
        now_s += every_s
        assert judge.hear(by, now_s) == DOWN
    return judge, now_s


@pytest.mark.parametrize("by", [BAD, NONE])
def test_one_that_flaps_is_believed_at_its_third_good_answer(by: int) -> None:
    judge, now_s = fallen(2, 31.0, by)
    assert judge.hear(GOOD, now_s + 1) == UP, "twice is not flapping"
    judge, now_s = fallen(3, 31.0, by)
    assert [judge.hear(GOOD, now_s + n) for n in (1, 2, 3)] == [DOWN, DOWN, UP]


@pytest.mark.parametrize("other", [BAD, NONE])
def test_the_good_answers_are_in_a_row(other: int) -> None:
    judge, now_s = fallen(3)
    answers = [GOOD, GOOD, other, GOOD, GOOD, GOOD]
    assert [judge.hear(answer, now_s + n) for n, answer in enumerate(answers, 1)] == [*[DOWN] * 5, UP]


def test_flapping_is_forgotten_after_twenty_intervals() -> None:
    judge, now_s = fallen(3, every_s=30.0)
    first_fall_s = now_s - 60.0
    assert judge.hear(GOOD, first_fall_s + 20 * 15.0 - 1.0) == DOWN
    judge, now_s = fallen(3, every_s=30.0)
    assert judge.hear(GOOD, first_fall_s + 20 * 15.0) == UP
    judge, now_s = fallen(5, every_s=200.0)
    assert judge.hear(GOOD, now_s + 1) == UP, "three falls in ten minutes are not many"


def test_no_answer_while_down_is_no_fall() -> None:
    judge, now_s = fallen(1)
    for n in range(10):
        assert judge.hear(BAD, now_s + n) == DOWN
    assert judge.hear(GOOD, now_s + 11) == UP


@pytest.mark.parametrize("asked_for", [why.BUSY, why.HELD])
def test_who_asked_for_nobody_has_not_fallen(asked_for: int) -> None:
    judge = Judge(PROBE, UP)
    for n in range(10):
        assert [judge.hear(asked_for, 2.0 * n), judge.hear(GOOD, 2.0 * n + 1)] == [DOWN, UP]
    assert Judge(replace(PROBE, fall=5), UP).hear(asked_for, 1.0) == DOWN, "and is not counted"


@pytest.mark.parametrize("first", [GOOD, BAD])
def test_the_first_answer_decides_whatever_is_counted(first: int) -> None:
    assert Judge(replace(PROBE, rise=9, fall=9)).hear(first, 0.0) == (UP if first == GOOD else DOWN)


def test_answers_in_a_row_are_counted() -> None:
    judge = Judge(replace(PROBE, rise=3, fall=2), UP)
    answers = [BAD, GOOD, BAD, NONE, GOOD, GOOD, BAD, GOOD, GOOD, GOOD, BAD, BAD]
    expected = [UP, UP, UP, DOWN, DOWN, DOWN, DOWN, DOWN, DOWN, UP, UP, DOWN]
    assert [judge.hear(answer, 1000.0 * n) for n, answer in enumerate(answers)] == expected


@pytest.mark.parametrize(("rise", "needed"), [(1, 3), (2, 3), (5, 5)])
def test_of_one_that_flaps_the_larger_number_counts(rise: int, needed: int) -> None:
    judge, now_s = fallen(3)
    judge.probe = replace(PROBE, rise=rise)
    found = [judge.hear(GOOD, now_s + n) for n in range(needed)]
    assert found == [*[DOWN] * (needed - 1), UP]


@given(
    st.integers(1, 5),
    st.integers(1, 5),
    st.lists(st.tuples(st.sampled_from([GOOD, BAD, NONE, why.BUSY]), st.floats(0.01, 40.0)), max_size=60),
)
def test_what_holds_whatever_is_counted(rise: int, fall: int, steps: list[tuple[int, float]]) -> None:
    """It goes down by `fall` in a row and no less, and up by `rise` and no less; three more than suffice where it flaps."""
    judge, now_s, good, bad = Judge(replace(PROBE, rise=rise, fall=fall)), 0.0, 0, 0
    for answer, step_s in steps:
        now_s += step_s
        before, after = judge.health, judge.hear(answer, now_s)
        good, bad = (good + 1, 0) if answer == GOOD else (0, bad + 1)
        if before == UP:
            assert (after == DOWN) is (answer == why.BUSY or bad >= fall)
        elif before == DOWN and after == UP:
            assert good >= rise
        elif before == DOWN:
            assert good < max(rise, 3)
        else:
            assert after == (UP if answer == GOOD else DOWN)


@given(st.lists(st.tuples(st.sampled_from([GOOD, BAD, NONE]), st.floats(0.01, 40.0)), max_size=60))
def test_what_holds_whatever_comes(steps: list[tuple[int, float]]) -> None:
    """Bad is down at once; up only by a good answer; three good ones in a row are up whatever was before."""
    judge, now_s, in_a_row = Judge(PROBE), 0.0, 0
    for answer, step_s in steps:
        now_s += step_s
        before, after = judge.health, judge.hear(answer, now_s)
        in_a_row = in_a_row + 1 if answer == GOOD else 0
        if answer != GOOD:
            assert after == DOWN
        elif in_a_row >= 3 or before == UP:
            assert after == UP
        assert after != UNKNOWN or before == UNKNOWN
