"""The bench: relay beside other forwarders, in one run, interleaved. See README.md.

    python bench/run.py [--mode forward|edge] [--veth] [--seconds S] [--rounds N] [--only NAME...] [--axes NAME...]
                        [--pin one|auto|none...] [--idle N] [--json FILE] [--picture DIR] [--gate]

Exit status: 0; 1 when the bench cannot run, or with --gate when a limit does not hold; 2 for a wrong command line;
128 and the signal's number when interrupted.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import edges
import forwarders
from axes import AXES, WORKERS, Axis
from forwarders import Adapter
from gate import LIMITS, judged, pins_for
from generator import build_load
from machine import machine_facts, placement, warning_of_load
from measure import Conditions, run_axis
from network import LOOPBACK, veth_pair
from process import BenchError, run_to_the_end
from report import AxisResult, table

MODES = {"forward": forwarders.ADAPTERS, "edge": edges.ADAPTERS}
PINS = ("one", "auto", "none")
GATE_PINS = ("one", "auto")


def find_forwarders(mode: str, wanted: list[str]) -> tuple[list[Adapter], dict[str, str], dict[str, str]]:
    """The adapters that can run, the version of each, and why each of the others cannot."""
    found: list[Adapter] = []
    versions: dict[str, str] = {}
    missing: dict[str, str] = {}
    for adapter in MODES[mode]:
        if adapter.name not in wanted:
            continue
        try:
            versions[adapter.name] = adapter.version() if adapter.version else "no forwarder"
            found.append(adapter)
        except BenchError as error:
            missing[adapter.name] = str(error)
    return found, versions, missing


def axes_for(mode: str, veth: bool) -> list[Axis]:
    """The axes that can be measured: edges lead to anything that is plain TCP, and so do those over a network."""
    if veth:
        return [axis for axis in AXES if axis.crosses_a_network]
    return [axis for axis in AXES if mode == "forward" or (axis.kind == "tcp" and not axis.versus)]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with status 2 when it is wrong."""
    names = [adapter.name for adapter in forwarders.ADAPTERS]
    every = [axis.name for axis in AXES]
    parser = argparse.ArgumentParser(prog="bench/run.py", description="relay beside other forwarders, interleaved")
    parser.add_argument(
        "--mode", choices=MODES, default="forward", help="edge: in front of two instances; see README.md"
    )
    parser.add_argument("--veth", action="store_true", help="over a veth pair without segmentation offload, as root")
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement (default 1)")
    parser.add_argument("--rounds", type=int, default=10, help="measurements of each forwarder and axis (default 10)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--axes", nargs="+", choices=every, metavar="NAME", help=", ".join(every))
    parser.add_argument("--pin", nargs="+", choices=PINS, metavar="PIN", help="which CPUs: one, auto (default), none")
    parser.add_argument("--idle", type=int, default=20_000, help="idle connections of the axis idle (default 20000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
    parser.add_argument("--picture", type=Path, metavar="DIR", help="draw bench-PIN.svg and bench-PIN.png there")
    parser.add_argument("--gate", action="store_true", help="exit 1 unless relay keeps to the limits of gate.py")
    options = parser.parse_args(arguments)
    _check(parser, options)
    return options


def _check(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    if options.mode == "edge" and (options.veth or options.gate):
        parser.error("--mode edge has neither --veth nor --gate")
    if options.veth and options.gate:
        parser.error("--gate: its limits are for loopback, so leave --veth out")
    own = [adapter.name for adapter in MODES[options.mode]]
    options.only = options.only or own
    if strangers := [name for name in options.only if name not in own]:
        parser.error(f"--only: {strangers[0]} has no {options.mode} mode here: write {', '.join(own)}")
    possible = [axis.name for axis in axes_for(options.mode, options.veth)]
    if strangers := [name for name in options.axes or () if name not in possible]:
        parser.error(f"--axes: {strangers[0]} is not measured like this: write {', '.join(possible)}")
    options.axes = options.axes or possible
    options.every_pin = options.pin is not None or not options.gate
    options.pin = options.pin or (GATE_PINS if options.gate else ("auto",))
    if not 0.05 <= options.seconds <= 600:
        parser.error("--seconds: write a length between 0.05 and 600")
    if not 1 <= options.rounds <= 1000:
        parser.error("--rounds: write a number between 1 and 1000")
    if not 1 <= options.idle <= 100_000:
        parser.error("--idle: write a number between 1 and 100000")
    if options.picture and importlib.util.find_spec("matplotlib") is None:
        parser.error("--picture takes matplotlib: scripts/bootstrap bench, and .venv/bin/python")


def chosen(options: argparse.Namespace) -> Iterator[tuple[str, list[Axis]]]:
    """Each `--pin` with its axes. For the gate alone each axis is measured with the pins that its limits name."""
    for number, pin in enumerate(options.pin):
        axes = [axis for axis in AXES if axis.name in options.axes]
        if not options.every_pin:
            axes = [axis for axis in axes if pin in pins_for(axis.name, options.pin)]
        # Two workers have a place of their own, the same with every pin.
        yield pin, [axis for axis in axes if number == 0 or axis.versus != WORKERS]


def measure_all(
    stack: ExitStack, adapters: list[Adapter], missing: dict[str, str], options: argparse.Namespace
) -> list[AxisResult]:
    """Every axis with every pin, each printed as it is done."""
    network = LOOPBACK
    if options.veth:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        network = stack.enter_context(veth_pair(folder))
        print("over a veth pair between two network namespaces, segmentation offload off")
    results: list[AxisResult] = []
    for pin, axes in chosen(options):
        print(f"\npinned: {pin} ({placement(pin)})")
        conditions = Conditions(options.mode, pin, options.seconds, options.rounds, options.idle, network)
        for axis in axes:
            able = [adapter for adapter in adapters if adapter.can(axis)]
            if not able:
                continue
            result = run_axis(axis, able, conditions)
            result.failures |= {name: f"missing: {why}" for name, why in missing.items()}
            results.append(result)
            print(f"\n{table(result)}", flush=True)
    return results


def print_head(facts: dict[str, str], options: argparse.Namespace) -> None:
    """What the figures depend on."""
    width = max(map(len, facts))
    print("\n".join(f"{key.ljust(width)}  {value}" for key, value in facts.items()))
    if warning := warning_of_load(os.getloadavg()[0]):
        print(warning)
    print(f"{options.rounds} rounds of {options.seconds:g} s; medians, ratios are median (least..most) of the rounds'")


def run_bench(options: argparse.Namespace) -> int:
    """Measures, prints, draws and judges where asked. Returns the exit status; BenchError when it cannot run."""
    build_load()
    adapters, versions, missing = find_forwarders(options.mode, options.only)
    facts = machine_facts() | versions | {name: f"MISSING: {why}" for name, why in missing.items()}
    print_head(facts, options)
    with ExitStack() as stack:
        results = measure_all(stack, adapters, missing, options)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        found = {"facts": facts, "axes": [asdict(each) for each in results]}
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    if options.picture:
        from picture import draw  # only who asks for a picture needs what draws it

        files = [file for pin in options.pin for file in draw(results, pin, options.picture)]
        print("\n" + ("\n".join(f"picture: {file}" for file in files) or "picture: nothing to draw"))
    return judge(results) if options.gate else 0


def judge(results: list[AxisResult]) -> int:
    """Prints a verdict for each limit. Returns the exit status."""
    verdicts = judged(results)
    missed = [verdict for verdict in verdicts if not verdict.holds]
    print("\ngate: the limits (axis, --pin, what), and relay's median (least..most) of the rounds\n")
    print("\n".join(f"  {verdict}" for verdict in verdicts))
    passed = verdicts and not missed
    left_out = f"; {len(LIMITS) - len(verdicts)} were not asked for" if len(verdicts) < len(LIMITS) else ""
    print(f"\ngate: {'passed' if passed else 'NOT passed'}: {len(missed)} of {len(verdicts)} do not hold{left_out}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: run_bench(parse_arguments())))
