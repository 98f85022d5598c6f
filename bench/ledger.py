"""What the ledger costs: relay beside relay without it, in one run, interleaved. See README.md.

    python bench/ledger.py [--starts N] [--rounds N] [--seconds S] [--axes NAME...] [--pin auto|one|none] [--gate]

Exit status: 0; 1 when it cannot run, or with --gate when the ledger costs more than it may; 2 for a wrong command line;
128 and the signal's number when interrupted.
"""

import argparse
import os
import sys
from dataclasses import dataclass
from statistics import median

from axes import AXES, Axis
from forwarders import relay_adapter
from generator import build_load
from machine import machine_facts
from measure import Conditions, run_axis
from process import BenchError, run_to_the_end
from report import AxisResult

MOST = 0.03  # of any figure
MEASURED = ("bulk-down", "bulk-up", "rr-1", "rr-64", "cps", "denied")  # the others go the same ways
WITH = "relay"
WITHOUT = ("no-records", "no-ledger")
ADAPTERS = [relay_adapter(WITH), *(relay_adapter(name, name) for name in WITHOUT)]


@dataclass(frozen=True, slots=True)
class Cost:
    """What the ledger adds to the CPU time of a unit, and to the time that a unit takes; 0.01 is one per cent."""

    cpu: float
    time: float


def cost(result: AxisResult, without: str) -> Cost:
    """What the ledger adds in one start: the median of its rounds."""
    pairs = list(zip(result.runs[WITH], result.runs[without], strict=True))
    cpu = [(one.cpu_per_unit_s, two.cpu_per_unit_s) for one, two in pairs]
    return Cost(
        cpu=median(one / two - 1 for one, two in cpu if one and two),
        time=median(two.rate / one.rate - 1 for one, two in pairs),
    )


def run_starts(axis: Axis, options: argparse.Namespace) -> dict[str, list[Cost]]:
    """The cost beside each of WITHOUT, start by start. Raises BenchError when one of the three is not measured.

    Two processes of one program differ by a per cent or two for as long as they live (where their memory happens to be),
    so the three are started anew several times.
    """
    found: dict[str, list[Cost]] = {name: [] for name in WITHOUT}
    conditions = Conditions(pin=options.pin, seconds=options.seconds, rounds=options.rounds)
    for start in range(options.starts):
        result = run_axis(axis, ADAPTERS[start % 3 :] + ADAPTERS[: start % 3], conditions)
        for name, why in result.failures.items():
            raise BenchError(f"{axis.name}: {name}: {why}")
        for name in WITHOUT:
            found[name].append(cost(result, name))
    return found


def _spread(values: list[float]) -> str:
    low, middle, high = (100 * each for each in (min(values), median(values), max(values)))
    return f"{middle:+5.1f} % ({low:+.1f}..{high:+.1f})"


def run_bench(options: argparse.Namespace) -> int:
    """Measures, prints, judges where asked. Returns the exit status; raises BenchError when it cannot run."""
    os.environ["RELAY_ENGINE"] = "interpreted"  # as the others are, whose sources are altered
    build_load()
    print("\n".join(f"{key:12}  {value}" for key, value in machine_facts().items()))
    print(f"{options.starts} starts of {options.rounds} rounds of {options.seconds:g} s, pinned: {options.pin}")
    print("what the ledger adds: median (least..most) of the starts, each the median of its rounds\n")
    above: list[str] = []
    for axis in AXES:
        if axis.name not in options.axes:
            continue
        for without, costs in run_starts(axis, options).items():
            cpu, time = [each.cpu for each in costs], [each.time for each in costs]
            print(f"{axis.name:10} beside {without:10}  CPU {_spread(cpu):24}  time {_spread(time)}", flush=True)
            figures = {"CPU": median(cpu), "time": median(time)}
            above += [f"{axis.name} beside {without}: {what}" for what, more in figures.items() if more > MOST]
    if not options.gate:
        return 0
    print("\ngate: " + ("passed" if not above else f"NOT passed, more than {MOST:.0%}\n  " + "\n  ".join(above)))
    return 1 if above else 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with status 2 when it is wrong."""
    axes = list(MEASURED)
    parser = argparse.ArgumentParser(prog="bench/ledger.py", description="relay beside relay without its ledger")
    parser.add_argument("--starts", type=int, default=5, help="times that all three are started anew (default 5)")
    parser.add_argument("--rounds", type=int, default=20, help="measurements of each, each time (default 20)")
    parser.add_argument("--seconds", type=float, default=0.3, help="length of one measurement (default 0.3)")
    parser.add_argument("--axes", nargs="+", choices=axes, default=axes, metavar="NAME", help=", ".join(axes))
    parser.add_argument("--pin", choices=("auto", "one", "none"), default="auto", help="which CPUs; see README.md")
    parser.add_argument(
        "--gate", action="store_true", help=f"exit 1 when anything costs more than {MOST:.0%}".replace("%", "%%")
    )
    options = parser.parse_args(arguments)
    if not 0.05 <= options.seconds <= 600:
        parser.error("--seconds: write a length between 0.05 and 600")
    if not (1 <= options.starts <= 1000 and 1 <= options.rounds <= 1000):
        parser.error("--starts, --rounds: write a number between 1 and 1000")
    return options


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: run_bench(parse_arguments())))
