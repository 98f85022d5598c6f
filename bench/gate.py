"""What relay has to reach beside HAProxy, nginx and itself: the limits, and which of them hold. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median

from axes import IDLE, WORKERS
from report import REFERENCE, SUBJECT, AxisResult, cpu, p999_us, rate, row_beside, spread

CPU, RATE, TAIL = "CPU", "rate", "added p99.9"
ITSELF = "itself"
ANY = "any"  # of `--pin`
_BULK = ("bulk-down", "bulk-up", "bulk-down-8", "bulk-up-8")
_LOOKS = ("https", "http", "proxy")

AT_MOST: dict[tuple[str, str, str], dict[str, float]] = {
    (CPU, REFERENCE, "one"): {
        "cps": 1.0,
        "rr-64": 0.95,
        "rr-1": 0.9,
        "rr-4k": 0.95,
        "rr-16k": 0.95,
        "denied": 1.0,
        **dict.fromkeys(_BULK, 0.5),
        **dict.fromkeys(_LOOKS, 1.05),
    },
    (CPU, REFERENCE, "auto"): dict.fromkeys(_BULK, 0.8),
    (CPU, "nginx", "one"): {
        "cps": 1.1,
        "rr-64": 1.0,
        "rr-1": 1.05,
        "rr-4k": 1.0,
        "rr-16k": 1.0,
        "denied": 1.15,
        **dict.fromkeys(_BULK, 0.8),
    },
    (TAIL, REFERENCE, "auto"): {"tail": 0.0},
}
"""By figure, whom relay is compared with, and `--pin`: the most that relay's may be of the other's, axis by axis.

The tail's is a difference, in microseconds: what relay adds over `direct`, less what HAProxy adds.
"""

AT_LEAST: dict[tuple[str, str, str], dict[str, float]] = {
    (RATE, REFERENCE, "one"): {
        "cps": 1.0,
        "rr-64": 1.05,
        "rr-1": 1.05,
        "rr-4k": 1.05,
        "rr-16k": 1.05,
        "denied": 1.2,
        **dict.fromkeys(_BULK, 0.97),
        **dict.fromkeys(_LOOKS, 1.0),
    },
    (RATE, REFERENCE, "auto"): dict.fromkeys(_BULK, 0.97),
    (RATE, "haproxy-splice", "one"): dict.fromkeys(_BULK, 1.0),
    (RATE, "haproxy-splice", "auto"): dict.fromkeys(_BULK, 1.0),
    (RATE, ITSELF, "one"): {IDLE: 0.95},
    (RATE, ITSELF, ANY): {WORKERS: 1.7},
}
"""The least that relay's may be of the other's; of ITSELF: with 20,000 idle connections, and with two workers."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One line of the tables above."""

    axis: str
    figure: str
    other: str
    pin: str
    bound: float
    is_most: bool

    def __str__(self) -> str:
        measure = f"{self.figure} {'−' if self.figure == TAIL else '÷'} {self.other}"
        return f"{self.axis:12} {self.pin:5} {measure:22} {'≤' if self.is_most else '≥'} {self.bound:<5g}"

    def is_for(self, result: AxisResult) -> bool:
        """Whether this result is what the limit judges."""
        return result.axis.name == self.axis and self.pin in (result.pin, ANY)

    def values(self, result: AxisResult) -> list[float]:
        """What is judged, round by round; empty where one of the two was not measured to the end."""
        row, other = SUBJECT, self.other
        if other == ITSELF:
            row, other = row_beside(result.axis, SUBJECT), SUBJECT
        if {row, other} & result.failures.keys():
            return []
        if self.figure == TAIL:
            return result.differences(p999_us, row, other)
        return result.ratios(cpu if self.figure == CPU else rate, row, other)


LIMITS = tuple(
    Limit(axis, figure, other, pin, bound, is_most)
    for is_most, tables in ((True, AT_MOST), (False, AT_LEAST))
    for (figure, other, pin), bounds in tables.items()
    for axis, bound in bounds.items()
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """A limit, and what was found: the value of each round, none where it was not measured; and the result's note."""

    limit: Limit
    values: tuple[float, ...]
    note: str = ""

    @property
    def holds(self) -> bool:
        """Whether the median keeps to the limit. What was not measured does not."""
        if not self.values:
            return False
        middle = median(self.values)
        return middle <= self.limit.bound if self.limit.is_most else middle >= self.limit.bound

    def __str__(self) -> str:
        state = "NOT MEASURED" if not self.values else "holds" if self.holds else "DOES NOT HOLD"
        return f"{state:13}  {self.limit}  {spread(self.values)}{self.note and f'  {self.note}'}"


def judged(results: Sequence[AxisResult]) -> list[Verdict]:
    """A verdict for each limit on what was measured: an axis that was left out is not judged, one that failed is."""
    found = ((limit, next(filter(limit.is_for, results), None)) for limit in LIMITS)
    return [Verdict(limit, tuple(limit.values(result)), result.note) for limit, result in found if result]


def pins_for(axis: str, pins: Collection[str]) -> list[str]:
    """With which of these `--pin` the axis has to be measured so that every limit on it is judged."""
    wanted = {limit.pin for limit in LIMITS if limit.axis == axis}
    return [pin for number, pin in enumerate(pins) if pin in wanted or (ANY in wanted and number == 0)]
