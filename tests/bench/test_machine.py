"""Where the parts of the bench run, and with how many descriptors."""

import os
import resource

import pytest
from machine import Placement, descriptors, free_ports, machine_facts, placement, side_by_side, warning_of_load
from process import BenchError, Cpus


def only(*cpus: int) -> Cpus:
    return frozenset(cpus)


@pytest.fixture
def with_cpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(request.param))


@pytest.mark.parametrize(
    ("with_cpus", "pin", "places"),
    [
        ([4, 7], "auto", Placement(only(4), (only(7),), (only(7),))),
        ([0, 1, 2, 3], "auto", Placement(only(0), (only(1),), (only(2),))),
        ([3], "auto", Placement(None, (None,), (None,))),
        ([0, 1], "one", Placement(only(0), (only(0),), (only(0),))),
        ([0, 1], "none", Placement(None, (None,), (None,))),
    ],
    indirect=["with_cpus"],
)
@pytest.mark.usefixtures("with_cpus")
def test_where_everything_runs(pin: str, places: Placement) -> None:
    assert placement(pin) == places


@pytest.mark.parametrize("with_cpus", [[2, 5, 6]], indirect=True)
@pytest.mark.usefixtures("with_cpus")
def test_a_generator_and_a_server_beside_each_worker() -> None:
    assert side_by_side(1) == Placement(only(2), (only(2),), (only(2),))
    assert side_by_side(2) == Placement(only(2, 5), (only(2), only(5)), (only(2), only(5)))
    assert str(side_by_side(2)) == "forwarder 2 and 5, generator 2 and 5, server 2 and 5"
    with pytest.raises(BenchError, match="takes 4 CPUs"):
        side_by_side(4)


def test_a_load_that_others_make_is_warned_of() -> None:
    assert warning_of_load(0.3) == ""
    assert warning_of_load(0.31).startswith("WARNING: the load is 0.31, above 0.3")


def test_the_machine_is_named() -> None:
    assert {"kernel", "CPU", "load before", "Python"} <= machine_facts().keys()


def test_descriptors_are_raised_and_lowered_again() -> None:
    before = soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 1000), hard))
    try:
        lowered = resource.getrlimit(resource.RLIMIT_NOFILE)
        with descriptors(1010) as allowed:
            assert allowed == 1010
            assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 1010
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == lowered
        with descriptors(1 << 40) as allowed:
            assert allowed == resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= hard
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == lowered
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_ports_are_those_that_were_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_BENCH_PORTS", "x")
    with pytest.raises(BenchError, match="write two ports"):
        free_ports(1)
    monkeypatch.setenv("RELAY_BENCH_PORTS", "31000-31001")
    with pytest.raises(BenchError, match="fewer than 3 free ports between 31000 and 31002"):
        free_ports(3)
