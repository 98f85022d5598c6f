"""What the bench's figures mean: medians, ratios between forwarders of the same round, tables. Pure."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import median

from axes import Axis

GIB = 1 << 30
REFERENCE = "haproxy"
BASELINE = "direct"
SUBJECT = "relay"


@dataclass(frozen=True, slots=True)
class Run:
    """One forwarder in one round of one axis.

    `units` are operations, or GiB in bulk. `cpu_s` is the forwarder's user and system time (None: no forwarder).
    Latencies are in microseconds; None in bulk, `p999_us` everywhere but at a fixed rate.
    """

    units: float
    seconds: float
    errors: int
    p50_us: float | None
    p99_us: float | None
    cpu_s: float | None
    p999_us: float | None = None

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds

    @property
    def cpu_per_unit_s(self) -> float | None:
        """CPU seconds per unit; None without a forwarder."""
        return None if self.cpu_s is None else self.cpu_s / self.units


Value = Callable[[Run], float | None]
"""One figure of a run; None where it has none."""


def rate(run: Run) -> float | None:
    """Units per second."""
    return run.rate


def cpu(run: Run) -> float | None:
    """CPU seconds per unit."""
    return run.cpu_per_unit_s


def p999_us(run: Run) -> float | None:
    """The latency that one in 1,000 exceeds."""
    return run.p999_us


@dataclass(slots=True)
class AxisResult:
    """All rounds of one axis with one `--pin`: `runs[row][round]`.

    A row is a forwarder, or one with what `axis.versus` says (`row_beside`). `failures[row]` says why it has no rounds,
    or stopped early; `note`, what the axis came to be on this machine.
    """

    axis: Axis
    pin: str
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    note: str = ""

    def pairs(self, value: Value, row: str, other: str) -> list[tuple[float, float]]:
        """A figure of two rows, for every round in which both have it."""
        rounds = zip(self.runs.get(row, []), self.runs.get(other, []), strict=False)
        both = ((value(one), value(two)) for one, two in rounds)
        return [(one, two) for one, two in both if one is not None and two is not None]

    def ratios(self, value: Value, row: str, other: str) -> list[float]:
        """The one over the other, round by round."""
        return [one / two for one, two in self.pairs(value, row, other) if two]

    def differences(self, value: Value, row: str, other: str) -> list[float]:
        """The one less the other, round by round."""
        return [one - two for one, two in self.pairs(value, row, other)]


def row_beside(axis: Axis, name: str) -> str:
    """The row of a forwarder with what `axis.versus` says; without that it is called by its name alone."""
    return f"{name}, {axis.versus}"


def percentile(ascending: Sequence[float], part: float) -> float:
    """The least of the values that at least this part of them does not exceed (nearest rank); exact."""
    return ascending[max(0, math.ceil(part * len(ascending) - 1e-9) - 1)]


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def number(value: float | None) -> str:
    """Three significant digits, or all those before the point; a dash for what does not apply."""
    if value is None:
        return "-"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:,.{max(0, digits)}f}"


def spread(values: Sequence[float]) -> str:
    """The median, and the least and the most; a dash where there are none."""
    return f"{median(values):.2f} ({min(values):.2f}..{max(values):.2f})" if values else "-"


Column = tuple[str, Callable[[AxisResult, str], str]]
"""Its head, and the cell of a row."""


def _middle(head: str, value: Value) -> Column:
    return head, lambda result, row: number(_median([value(run) for run in result.runs[row]]))


def _of(other: str) -> Column:
    return f"of {other}", lambda result, row: "-" if row == other else spread(result.ratios(rate, row, other))


def _added(head: str, value: Value) -> Column:
    def cell(result: AxisResult, row: str) -> str:
        return "-" if row == BASELINE else number(_median(result.differences(value, row, BASELINE)))

    return head, cell


def _busy(result: AxisResult, row: str) -> str:
    busy = _median([None if run.cpu_s is None else 100 * run.cpu_s / run.seconds for run in result.runs[row]])
    return "-" if busy is None else f"{busy:.0f} %"


def _of_itself(result: AxisResult, row: str) -> str:
    name = row.removesuffix(row_beside(result.axis, ""))
    return "-" if row == name else spread(result.ratios(rate, row, name))


def _columns(axis: Axis) -> list[Column]:
    p50, p99 = _middle("p50 us", lambda run: run.p50_us), _middle("p99 us", lambda run: run.p99_us)
    scale = 1 if axis.is_bulk else 1e6
    spent = _middle("CPU", lambda run: None if run.cpu_per_unit_s is None else scale * run.cpu_per_unit_s)
    columns = [_middle("rate", rate), p50, p99, spent, ("busy", _busy)]
    if axis.is_open:
        added = [
            _added("+p50", lambda run: run.p50_us),
            _added("+p99", lambda run: run.p99_us),
            _added("+p99.9", p999_us),
        ]
        return [*columns[:3], _middle("p99.9 us", p999_us), *added, *columns[3:]]
    return [*columns, ("of itself", _of_itself)] if axis.versus else [*columns, _of(REFERENCE), _of(BASELINE)]


def table(result: AxisResult) -> str:
    """The axis as lines of text: a title with the units, one row a forwarder, then failures and errors by name."""
    units = "GiB/s, CPU s/GiB" if result.axis.is_bulk else "op/s, CPU us/op"
    columns = _columns(result.axis)
    rows = [["", *(head for head, _ in columns)]]
    rows += [[row, *(cell(result, row) for _, cell in columns)] for row, runs in result.runs.items() if runs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{result.axis.title}{result.note and f': {result.note}'} ({units})"]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    lines += [f"  {name}: {why}" for name, why in result.failures.items()]
    for name, runs in result.runs.items():
        if errors := sum(run.errors for run in runs):
            lines.append(f"  {name}: {errors} connections failed, which no rate above counts")
    return "\n".join(lines)
