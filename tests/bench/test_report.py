"""What the bench's figures mean."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report import Run, cpu, number, p999_us, percentile, rate, spread, table

from tests.bench.rig import result, run


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=300), st.sampled_from([0.5, 0.99, 0.999, 1.0]))
def test_a_percentile_is_the_least_value_that_so_many_do_not_exceed(values: list[int], part: float) -> None:
    found = percentile(sorted(values), part)
    assert sum(value <= found for value in values) >= part * len(values)
    assert sum(value < found for value in values) < part * len(values)


@pytest.mark.parametrize(("part", "found"), [(0.5, 500), (0.99, 990), (0.999, 999), (1.0, 1000)])
def test_percentiles_of_a_thousand(part: float, found: int) -> None:
    assert percentile(range(1, 1001), part) == found


def test_ratios_are_those_of_a_round() -> None:
    found = result("cps", relay=[run(50, 20), run(80, 30), run(1)], haproxy=[run(100, 10), run(40, 10)])
    assert found.ratios(rate, "relay", "haproxy") == [0.5, 2.0]
    assert found.ratios(cpu, "relay", "haproxy") == pytest.approx([2, 3])
    assert found.ratios(rate, "relay", "nginx") == []


def test_what_has_no_cpu_time_has_no_ratio_of_it() -> None:
    found = result("cps", relay=[run()], direct=[run(cpu_us=None)])
    assert found.ratios(cpu, "relay", "direct") == []
    assert found.ratios(cpu, "direct", "relay") == []


def test_differences_are_those_of_a_round() -> None:
    found = result("tail", relay=[run(p999_us=9), run(p999_us=5)], direct=[run(p999_us=4), run(p999_us=7)])
    assert found.differences(p999_us, "relay", "direct") == [5, -2]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "-"), (0, "0.00"), (0.012345, "0.0123"), (12.345, "12.3"), (123456.7, "123,457")]
)
def test_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


def test_the_median_with_the_least_and_the_most() -> None:
    assert spread([3, 1, 2]) == "2.00 (1.00..3.00)"
    assert spread([]) == "-"


def cells(text: str, row: str) -> list[str]:
    (line,) = (line for line in text.splitlines() if line.startswith(f"  {row}  "))
    return [cell.strip() for cell in line.strip().split("  ") if cell.strip()]


def test_a_table_of_an_ordinary_axis() -> None:
    found = result("rr-64", relay=[run(50, 20), run(50, 20)], haproxy=[run(100, 10)] * 2, direct=[run(400, None)] * 2)
    found.failures["nginx"] = "not installed"
    text = table(found)
    assert text.splitlines()[0] == "64-byte round trips, 64 connections (op/s, CPU us/op)"
    assert cells(text, "relay") == [
        "relay", "50.0", "1.00", "2.00", "20.0", "0 %", "0.50 (0.50..0.50)", "0.12 (0.12..0.12)"
    ]  # fmt: skip
    assert cells(text, "direct")[4:] == ["-", "-", "4.00 (4.00..4.00)", "-"]
    assert text.splitlines()[-1] == "  nginx: not installed"


def test_bulk_counts_cpu_seconds_for_a_gib() -> None:
    found = result("bulk-up", relay=[Run(2.0, 1.0, 0, None, None, 0.5)])
    assert "GiB/s, CPU s/GiB" in table(found)
    assert cells(table(found), "relay")[:6] == ["relay", "2.00", "-", "-", "0.250", "50 %"]


def test_the_tail_says_what_each_adds() -> None:
    rows = {"relay": [run(p50_us=7, p999_us=30)], "direct": [run(p50_us=2, p999_us=10, cpu_us=None)]}
    found = result("tail", **rows)
    found.note = "100 op/s"
    assert table(found).splitlines()[0].endswith("64 connections: 100 op/s (op/s, CPU us/op)")
    assert cells(table(found), "relay")[2:8] == ["7.00", "2.00", "30.0", "5.00", "0.00", "20.0"]
    assert cells(table(found), "direct")[5:8] == ["-", "-", "-"]


def test_what_is_measured_beside_itself() -> None:
    found = result("idle", relay=[run(100)], relay__idle=[run(90)])
    assert cells(table(found), "relay, idle")[-1] == "0.90 (0.90..0.90)"
    assert cells(table(found), "relay")[-1] == "-"


def test_errors_are_named() -> None:
    found = result("cps", relay=[Run(10, 1.0, 3, 1.0, 2.0, 0.1)])
    assert table(found).endswith("relay: 3 connections failed, which no rate above counts")
