"""Results of axes for tests, without a measurement."""

from axes import AXES, Axis
from report import AxisResult, Run


def axis(name: str) -> Axis:
    """The axis of that name."""
    (found,) = (each for each in AXES if each.name == name)
    return found


def run(rate: float = 100.0, cpu_us: float | None = 10.0, *, p50_us: float = 1.0, p999_us: float | None = None) -> Run:
    """A second at this rate, with this CPU time for each operation."""
    return Run(rate, 1.0, 0, p50_us, 2.0, None if cpu_us is None else cpu_us * rate / 1e6, p999_us)


def result(name: str, pin: str = "one", /, **runs: list[Run]) -> AxisResult:
    """What was measured on the axis; a row's name has `__` for `, `, and `_` for `-`."""
    rows = {row.replace("__", ", ").replace("_", "-"): each for row, each in runs.items()}
    return AxisResult(axis(name), pin, rows)
