"""A picture of one run: bars with their spread, for relay, HAProxy and nginx. Needs matplotlib (the group `bench`)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import FancyBboxPatch
from report import REFERENCE, SUBJECT, AxisResult, Value, cpu, rate, row_beside

FORWARDERS = {SUBJECT: "#1565c0", REFERENCE: "#9e9e9e", "nginx": "#ef8c00"}
WIDTH_IN, DPI = 9.0, 100  # 900 px: what a README has room for
BAR = 0.26  # of the room of an axis
ROW_IN = 0.52
CARD, EDGE, INK = "#ffffff", "#d0d7de", "#1f2328"
STYLE: dict[Any, Any] = {
    "font.size": 11.0,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "svg.hashsalt": "relay",  # the same figures give the same file
}

Bars = Mapping[str, Mapping[str, Sequence[float]]]
"""By axis and forwarder: the values of the rounds."""


def beside_reference(results: Sequence[AxisResult], value: Value) -> Bars:
    """Each forwarder's figure over HAProxy's of the same round; HAProxy's own over its median, for its spread.

    A rate that was given says nothing, and has no bars.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for result in results:
        own = [each for run in result.runs.get(REFERENCE, []) if (each := value(run))]
        bars = {name: result.ratios(value, name, REFERENCE) for name in FORWARDERS if name != REFERENCE}
        bars[REFERENCE] = [each / median(own) for each in own]
        found[result.axis.name] = {} if result.axis.is_open and value is rate else bars
    return found


def beside_itself(results: Sequence[AxisResult]) -> Bars:
    """The rate of each with what the axis says, over its rate without."""
    return {
        result.axis.name: {name: result.ratios(rate, row_beside(result.axis, name), name) for name in FORWARDERS}
        for result in results
    }


def _draw(panel: Axes, bars: Bars, label: str) -> None:
    for number, by_name in enumerate(bars.values()):
        for place, (name, colour) in enumerate(FORWARDERS.items()):
            if values := by_name.get(name):
                middle, at = median(values), number + (place - 1) * BAR
                reach = [[middle - min(values)], [max(values) - middle]]
                panel.barh(at, middle, BAR, color=colour, xerr=reach, error_kw={"lw": 1, "capsize": 2, "ecolor": INK})
    panel.axvline(1, color=INK, linewidth=0.8)
    panel.set_yticks(range(len(bars)), list(bars))
    panel.set_ylim(len(bars) - 0.5, -0.5)
    panel.set_xlim(left=0)
    panel.set_xlabel(label)
    panel.grid(axis="x", color=EDGE, linewidth=0.6)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def _card(figure: Figure) -> None:
    """Readable on a dark page as on a light one."""
    figure.patch.set_alpha(0)
    shape = FancyBboxPatch(
        (0.008, 0.008), 0.984, 0.984, boxstyle="round,pad=0,rounding_size=0.012", transform=figure.transFigure
    )
    shape.set(facecolor=CARD, edgecolor=EDGE, linewidth=1, zorder=-1)
    figure.add_artist(shape)


def draw(results: Sequence[AxisResult], pin: str, folder: Path) -> list[Path]:
    """Writes bench-PIN.svg and bench-PIN.png of the results with that `--pin` into the folder; their paths.

    What has no comparison (no HAProxy, or nothing measured) is left out.
    """
    own = [result for result in results if result.pin == pin]
    beside = [each for each in own if not each.axis.versus and each.runs.get(REFERENCE)]
    below = [each for each in own if each.axis.versus]
    rows: list[list[tuple[Bars, str]]] = [
        [
            (beside_reference(beside, cpu), "CPU of an operation ÷ HAProxy\n(less is better)"),
            (beside_reference(beside, rate), "rate ÷ HAProxy\n(more is better)"),
        ],
        [(beside_itself(below), "rate with idle connections ÷ without; rate of 2 workers ÷ 1")],
    ]
    shown = [row for row, measured in zip(rows, (beside, below), strict=True) if measured]
    if not shown:
        return []
    with matplotlib.rc_context(STYLE):
        figure = _figure(shown, pin)
        folder.mkdir(parents=True, exist_ok=True)
        files = [folder / f"bench-{pin}.{kind}" for kind in ("svg", "png")]
        figure.savefig(files[0], metadata={"Date": None})
        figure.savefig(files[1], dpi=DPI)
    return files


def _figure(rows: Sequence[Sequence[tuple[Bars, str]]], pin: str) -> Figure:
    """The panels of a row beside each other, and the rows below each other."""
    heights = [len(row[0][0]) + 1.5 for row in rows]
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * (sum(heights) + 1.5)), dpi=DPI)
    figure.set_layout_engine(ConstrainedLayoutEngine(rect=(0.02, 0.015, 0.96, 0.97), hspace=0.05))
    grid = figure.add_gridspec(len(rows), 1, height_ratios=heights)
    for number, row in enumerate(rows):
        inner = grid[number].subgridspec(1, len(row))
        for column, (bars, label) in enumerate(row):
            _draw(figure.add_subplot(inner[column]), bars, label)
    _card(figure)
    figure.legend(
        [FancyBboxPatch((0, 0), 1, 1, color=colour) for colour in FORWARDERS.values()],
        list(FORWARDERS),
        title=f"median, least and most of the rounds; --pin {pin}",
        loc="outside upper center",
        ncols=len(FORWARDERS),
        frameon=False,
    )
    return figure
