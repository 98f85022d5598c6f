"""Who hangs, by times and states alone."""

import pytest

from relay.processes.watch import (
    CONTROL_HUNG_S,
    EVERY_S,
    HUNG_S,
    LATE_S,
    STARTING_S,
    Remedy,
    Watch,
    control_hangs,
    remedy,
)

BEGAN_S = 1000.0


def looked(watch: Watch, *times_s: float) -> list[bool]:
    return [watch.look(BEGAN_S + each) for each in times_s]


def test_it_looks_once_a_second_whoever_wakes_it_meanwhile() -> None:
    watch = Watch(1, BEGAN_S)
    assert looked(watch, 0.5, 0.99, 1.0, 1.1, 1.9, 2.01, 2.9) == [False, False, True, False, False, True, False]
    assert watch.due_s == pytest.approx(BEGAN_S + 2.01 + EVERY_S)


def test_silence_counts_from_the_last_beat() -> None:
    watch = Watch(2, BEGAN_S)
    assert watch.silent_s(0, 0, BEGAN_S + 3) == 3
    assert watch.silent_s(0, int((BEGAN_S + 1) * 1e9), BEGAN_S + 3) == 2
    watch.anew(1, BEGAN_S + 2)
    assert [watch.silent_s(n, 0, BEGAN_S + 3) for n in range(2)] == [3, 1]


def test_a_machine_that_stood_still_stopped_everybody() -> None:
    watch = Watch(2, BEGAN_S)
    assert looked(watch, 1.0, 2.0 + LATE_S) == [True, True]
    assert watch.silent_s(0, 0, BEGAN_S + 3) == 3, "on time, or nearly"
    late_s = 3.0 + LATE_S + LATE_S + 60
    assert looked(watch, late_s) == [True]
    assert [watch.silent_s(n, 0, BEGAN_S + late_s) for n in range(2)] == [0, 0]
    assert watch.silent_s(0, 0, BEGAN_S + late_s + HUNG_S) == HUNG_S, "and from then on it counts"


@pytest.mark.parametrize("worker", ["", "Z", "R", "S", "T", "D"])
@pytest.mark.parametrize("holder", ["", "Z", "S", "T"])
def test_who_is_heard_is_let_be(worker: str, holder: str) -> None:
    assert remedy(HUNG_S - 0.01, worker, holder, woken=True) is Remedy.NOTHING


@pytest.mark.parametrize("worker", ["R", "S", "T", "t", "D"])
@pytest.mark.parametrize("holder", ["", "S", "T"])
def test_a_worker_that_is_there_and_silent_is_killed(worker: str, holder: str) -> None:
    """Also where its holder has died, or is stopped as well."""
    assert remedy(HUNG_S, worker, holder, woken=False) is Remedy.KILL_WORKER


@pytest.mark.parametrize(("worker", "holder"), [("Z", "S"), ("Z", "T"), ("", "T"), ("", "t")])
def test_a_holder_that_does_not_go_on_is_woken_and_then_killed(worker: str, holder: str) -> None:
    assert remedy(HUNG_S, worker, holder, woken=False) is Remedy.WAKE_HOLDER
    assert remedy(HUNG_S, worker, holder, woken=True) is Remedy.KILL_HOLDER


@pytest.mark.parametrize(("worker", "holder"), [("", "S"), ("", "R"), ("", ""), ("Z", ""), ("Z", "Z")])
def test_a_holder_that_waits_is_let_be(worker: str, holder: str) -> None:
    """It has seen its worker's end: for the next one's time, or for room for a process. What is open waits with it."""
    assert remedy(1000 * HUNG_S, worker, holder, woken=True) is Remedy.NOTHING


def test_control_has_more_time_and_most_of_all_at_its_start() -> None:
    assert [control_hangs(at, heard=True) for at in (CONTROL_HUNG_S - 0.01, CONTROL_HUNG_S)] == [False, True]
    assert [control_hangs(at, heard=False) for at in (STARTING_S - 0.01, STARTING_S)] == [False, True]
