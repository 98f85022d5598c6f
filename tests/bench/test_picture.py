"""The picture of a run."""

import struct
from pathlib import Path
from xml.etree import ElementTree

import pytest
from picture import beside_itself, beside_reference, draw
from report import AxisResult, cpu, rate

from tests.bench.rig import result, run

ROWS = {"relay": [run(50, 20), run(60, 20)], "haproxy": [run(100, 10), run(300, 10)], "nginx": [run(80, 9)] * 2}


def results() -> list[AxisResult]:
    tail = {name: [run(100, 10, p999_us=5)] for name in ("relay", "haproxy")}
    beside = {"relay": [run(100)], "relay__idle": [run(98)], "haproxy": [run(100)], "haproxy__idle": [run(97)]}
    return [result("cps", **ROWS), result("rr-64", **ROWS), result("tail", **tail), result("idle", **beside)]


def test_bars_are_ratios_of_a_round_and_haproxys_its_own_spread() -> None:
    bars = beside_reference([result("cps", **ROWS)], rate)["cps"]
    assert bars == {"relay": [0.5, 0.2], "nginx": pytest.approx([0.8, 80 / 300]), "haproxy": [0.5, 1.5]}


def test_a_given_rate_has_no_bars() -> None:
    tail = results()[2]
    assert beside_reference([tail], rate) == {"tail": {}}
    assert beside_reference([tail], cpu)["tail"]["relay"] == pytest.approx([1.0])


def test_bars_of_what_is_measured_beside_itself() -> None:
    assert beside_itself([results()[3]]) == {"idle": {"relay": [0.98], "haproxy": [0.97], "nginx": []}}


def test_both_files_are_pictures_that_fit_a_page(tmp_path: Path) -> None:
    vector, raster = draw(results(), "one", tmp_path / "new")
    assert (vector.name, raster.name) == ("bench-one.svg", "bench-one.png")
    width_px, _ = struct.unpack("!II", raster.read_bytes()[16:24])
    assert 600 <= width_px <= 900
    root = ElementTree.parse(vector).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert float(root.get("width", "").removesuffix("pt")) * 96 / 72 <= 900


def test_the_same_figures_are_the_same_picture(tmp_path: Path) -> None:
    one, two = (draw(results(), "one", tmp_path / name)[0].read_bytes() for name in "ab")
    assert one == two


@pytest.mark.parametrize("found", [[], [result("cps", relay=[run()])], [result("cps", "auto", **ROWS)]])
def test_nothing_to_compare_is_no_picture(found: list[AxisResult], tmp_path: Path) -> None:
    assert draw(found, "one", tmp_path) == []
    assert list(tmp_path.iterdir()) == []
