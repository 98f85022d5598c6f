"""What the bench's figures mean: medians, ratios between forwarders of the same round, tables, the gate. Pure."""

import math
from dataclasses import dataclass, field
from statistics import median

GIB = 1 << 30
REFERENCE = "haproxy"
BASELINE = "direct"
GATED = "relay"


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that is measured.

    `mode`, `count` and `extra` are the load generator's arguments, `server` its server mode. `least_ratio` is what the
    gate asks of relay's rate against HAProxy's; with `ahead` it must be more than that, not just as much.
    """

    name: str
    title: str
    server: str
    mode: str
    count: int
    extra: tuple[str, ...] = ()
    least_ratio: float = 0.7
    ahead: bool = False

    @property
    def is_bulk(self) -> bool:
        """Whether the unit is a GiB, not an operation."""
        return self.mode == "bulk"


@dataclass(frozen=True, slots=True)
class Run:
    """One forwarder in one round of one axis.

    `units` are operations, or GiB in bulk. `cpu_s` is the forwarder's user and system time (None: no forwarder).
    Latencies are in microseconds; None in bulk.
    """

    units: float
    seconds: float
    errors: int
    p50_us: float | None
    p99_us: float | None
    cpu_s: float | None

    @property
    def rate(self) -> float:
        """Units per second."""
        return self.units / self.seconds


@dataclass(slots=True)
class AxisResult:
    """All rounds of one axis: `runs[name][round]`; `failures[name]` says why a forwarder has none, or stopped early."""

    axis: Axis
    runs: dict[str, list[Run]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def ratios(self, name: str, other: str) -> list[float]:
        """Rate of `name` over that of `other`, for every round that both have."""
        pairs = zip(self.runs.get(name, []), self.runs.get(other, []), strict=False)
        return [one.rate / two.rate for one, two in pairs]


def cpu_per_unit(axis: Axis, run: Run) -> float | None:
    """CPU seconds per GiB in bulk, CPU microseconds per operation elsewhere; None without a forwarder."""
    if run.cpu_s is None:
        return None
    return run.cpu_s / run.units * (1 if axis.is_bulk else 1e6)


def _median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _number(value: float | None) -> str:
    """Three significant digits, or all those before the point; a dash for what does not apply."""
    if value is None:
        return "-"
    digits = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:,.{max(0, digits)}f}"


def _ratio(ratios: list[float]) -> str:
    if not ratios:
        return "-"
    return f"{median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f})"


_HEAD = ("", "rate", "p50 us", "p99 us", "CPU", "busy", f"of {REFERENCE}", f"of {BASELINE}")


def _row(result: AxisResult, name: str) -> tuple[str, ...]:
    runs = result.runs[name]
    busy = _median([None if run.cpu_s is None else 100 * run.cpu_s / run.seconds for run in runs])
    return (
        name,
        _number(_median([run.rate for run in runs])),
        _number(_median([run.p50_us for run in runs])),
        _number(_median([run.p99_us for run in runs])),
        _number(_median([cpu_per_unit(result.axis, run) for run in runs])),
        "-" if busy is None else f"{busy:.0f} %",
        "-" if name == REFERENCE else _ratio(result.ratios(name, REFERENCE)),
        "-" if name == BASELINE else _ratio(result.ratios(name, BASELINE)),
    )


def table(result: AxisResult) -> str:
    """The axis as lines of text: a title with the units, one row a forwarder, then failures and errors by name."""
    units = "GiB/s, CPU s/GiB" if result.axis.is_bulk else "op/s, CPU us/op"
    rows = [_HEAD, *(_row(result, name) for name, runs in result.runs.items() if runs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [f"{result.axis.title} ({units})"]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        lines.append("  " + "  ".join(cells).rstrip())
    lines += [f"  {name}: {why}" for name, why in result.failures.items()]
    for name, runs in result.runs.items():
        if errors := sum(run.errors for run in runs):
            lines.append(f"  {name}: {errors} connections failed, which no rate above counts")
    return "\n".join(lines)


def gate(results: list[AxisResult]) -> list[str]:
    """Why relay does not pass, one line a reason; empty when it does. What was not measured does not pass."""
    reasons = [] if results else ["nothing was measured"]
    for result in results:
        axis = result.axis
        ratios = result.ratios(GATED, REFERENCE)
        if not ratios or GATED in result.failures or REFERENCE in result.failures:
            reasons.append(f"{axis.name}: {GATED} and {REFERENCE} were not both measured to the end")
            continue
        middle = median(ratios)
        if middle < axis.least_ratio or (axis.ahead and middle == axis.least_ratio):
            wanted = f"more than {axis.least_ratio}" if axis.ahead else f"at least {axis.least_ratio}"
            reasons.append(f"{axis.name}: {GATED} has {middle:.3f} of {REFERENCE}, {wanted} is wanted")
    return reasons
