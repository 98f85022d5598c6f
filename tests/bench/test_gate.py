"""Which limits hold."""

import pytest
from axes import AXES
from gate import ANY, LIMITS, Limit, judged, pins_for
from report import AxisResult, Run

from tests.bench.rig import result, run


def limit(axis: str, figure: str, other: str, pin: str) -> Limit:
    (found,) = (each for each in LIMITS if (each.axis, each.figure, each.other, each.pin) == (axis, figure, other, pin))
    return found


def holds(found: AxisResult, *which: str) -> bool:
    (verdict,) = (each for each in judged([found]) if each.limit == limit(found.axis.name, *which))
    return verdict.holds


def test_every_axis_has_its_limits() -> None:
    assert {each.axis for each in LIMITS} == {axis.name for axis in AXES}
    assert len({(each.axis, each.figure, each.other, each.pin) for each in LIMITS}) == len(LIMITS)


@pytest.mark.parametrize(
    ("axis", "figure", "other", "pin", "bound", "is_most"),
    [
        ("cps", "CPU", "haproxy", "one", 1.0, True),
        ("rr-1", "CPU", "haproxy", "one", 0.9, True),
        ("bulk-up-8", "CPU", "haproxy", "one", 0.5, True),
        ("bulk-up-8", "CPU", "haproxy", "auto", 0.8, True),
        ("denied", "CPU", "nginx", "one", 1.15, True),
        ("denied", "rate", "haproxy", "one", 1.2, False),
        ("bulk-down", "rate", "haproxy-splice", "auto", 1.0, False),
        ("proxy", "rate", "haproxy", "one", 1.0, False),
        ("idle", "rate", "itself", "one", 0.95, False),
        ("workers", "rate", "itself", ANY, 1.7, False),
        ("tail", "added p99.9", "haproxy", "auto", 0.0, True),
    ],
)
def test_a_limit(axis: str, figure: str, other: str, pin: str, bound: float, is_most: bool) -> None:
    found = limit(axis, figure, other, pin)
    assert (found.bound, found.is_most) == (bound, is_most)


@pytest.mark.parametrize(("cpu_us", "good"), [(9.99, True), (10.0, True), (10.01, False)])
def test_the_most_cpu_time(cpu_us: float, good: bool) -> None:
    assert holds(result("cps", relay=[run(cpu_us=cpu_us)], haproxy=[run(cpu_us=10)]), "CPU", "haproxy", "one") is good


@pytest.mark.parametrize(("rate", "good"), [(104, False), (105, True), (106, True)])
def test_the_least_rate(rate: float, good: bool) -> None:
    assert holds(result("rr-64", relay=[run(rate)], haproxy=[run(100)]), "rate", "haproxy", "one") is good


def test_the_median_of_the_rounds_decides() -> None:
    rounds = {"relay": [run(1), run(200), run(200)], "haproxy": [run(100)] * 3}
    assert holds(result("cps", **rounds), "rate", "haproxy", "one")


@pytest.mark.parametrize(("relay_us", "good"), [(50, True), (51, False)])
def test_the_tail_is_what_is_added(relay_us: float, good: bool) -> None:
    rows = {"relay": [run(p999_us=relay_us)], "haproxy": [run(p999_us=50)], "direct": [run(p999_us=20)]}
    assert holds(result("tail", "auto", **rows), "added p99.9", "haproxy", "auto") is good


@pytest.mark.parametrize(("rate", "good"), [(94, False), (95, True)])
def test_idle_connections_beside_none(rate: float, good: bool) -> None:
    assert holds(result("idle", relay=[run(100)], relay__idle=[run(rate)]), "rate", "itself", "one") is good


@pytest.mark.parametrize("pin", ["one", "auto", "none"])
def test_two_workers_with_any_pin(pin: str) -> None:
    found = result("workers", pin, relay=[run(100)], relay__workers=[run(170)])
    assert holds(found, "rate", "itself", ANY)


def test_what_was_not_measured_to_the_end_does_not_hold() -> None:
    found = result("cps", relay=[run()], haproxy=[run(1)])
    found.failures["haproxy"] = "round 2: it ended"
    verdicts = judged([found])
    assert [verdict.holds for verdict in verdicts] == [False] * 3
    assert {str(verdict).split("  ")[0] for verdict in verdicts} == {"NOT MEASURED"}


def test_another_pin_is_another_limit() -> None:
    rows: dict[str, list[Run]] = {"relay": [run()], "haproxy": [run()], "nginx": [run()]}
    assert judged([result("cps", "auto", **rows)]) == []
    assert {verdict.limit.pin for verdict in judged([result("bulk-up", "auto", **rows)])} == {"auto"}


def test_a_verdict_says_what_was_found() -> None:
    found = result("idle", relay=[run(100)], relay__idle=[run(80)])
    found.note = "300 idle connections"
    (verdict,) = judged([found])
    words = "DOES NOT HOLD  idle         one   rate ÷ itself          ≥ 0.95   0.80 (0.80..0.80)  300 idle connections"
    assert str(verdict) == words


def test_each_axis_is_measured_with_the_pins_of_its_limits() -> None:
    found = {axis.name: pins_for(axis.name, ["one", "auto"]) for axis in AXES}
    assert found["cps"] == ["one"]
    assert found["bulk-up"] == ["one", "auto"]
    assert found["tail"] == ["auto"]
    assert found["workers"] == ["one"]
    assert all(found.values())
