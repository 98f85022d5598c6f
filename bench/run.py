"""The bench: relay beside other forwarders, in one run, interleaved. See README.md.

    python bench/run.py [--mode forward|edge] [--seconds S] [--rounds N] [--only NAME...] [--axes NAME...]
                        [--pin auto|one|none] [--json FILE] [--gate]

Exit status: 0; 1 when the bench cannot run, or with --gate when relay does not pass; 2 for a wrong command line;
128 and the signal's number when interrupted.
"""

import argparse
import json
import os
import platform
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import edges
import forwarders
from forwarders import Adapter, Ports, Running, start, wait_ready
from process import BenchError, Process, pinned
from report import GIB, Axis, AxisResult, Run, gate, table

BENCH = Path(__file__).resolve().parent
LOAD = BENCH / "load"
COMPILE = ("cc", "-O2", "-Wall", "-Wextra", str(BENCH / "load.c"), "-o")

AXES = (
    Axis("bulk-down", "bulk from the target to the client, 1 stream", "source", "bulk", 1, ("down",), 1.0, ahead=True),
    Axis("bulk-up", "bulk from the client to the target, 1 stream", "sink", "bulk", 1, ("up",), 1.0, ahead=True),
    Axis("rr-1", "64-byte round trips, 1 connection", "echo", "rr", 1, ("64",)),
    Axis("rr-64", "64-byte round trips, 64 connections", "echo", "rr", 64, ("64",)),
    Axis("cps", "connections: connect, 1 byte there and back, close; 16 at a time", "echo", "cps", 16),
    Axis("denied", "denied connections: connect, be thrown out; 16 at a time", "echo", "denied", 16),
)

MODES = {"forward": forwarders.ADAPTERS, "edge": edges.ADAPTERS}
WARM_UP_S = 0.2  # not counted: connection pools, caches, an interpreter's first pass through its code
LOAD_GRACE_S = 10.0  # a client ends by itself at its deadline; one that does not is stuck
LOWEST_PORT = 10000


@dataclass(frozen=True, slots=True)
class Placement:
    """Which CPU each part runs on; None: wherever the kernel likes."""

    forwarder: int | None
    load: int | None
    server: int | None


def placement(pin: str) -> Placement:
    """Where everything runs, for a `--pin` of the command line.

    auto: the forwarder alone on one CPU; generator and server share another, or have one each from three CPUs on.
    one: everything on the same CPU, so no wake-up crosses CPUs and the rate follows the CPU time of all three.
    none, or auto on a machine with one CPU: nowhere in particular.
    """
    cpus = sorted(os.sched_getaffinity(0))
    if pin == "one":
        return Placement(cpus[0], cpus[0], cpus[0])
    if pin == "none" or len(cpus) < 2:
        return Placement(None, None, None)
    return Placement(cpus[0], cpus[1], cpus[2] if len(cpus) > 2 else cpus[1])


def build_load() -> None:
    """Compiles load.c unless the program is newer. Raises BenchError without a C compiler."""
    if LOAD.exists() and LOAD.stat().st_mtime > (BENCH / "load.c").stat().st_mtime:
        return
    if shutil.which("cc") is None:
        raise BenchError("no C compiler for bench/load.c (apt-get install gcc libc6-dev)")
    new = LOAD.with_suffix(f".{os.getpid()}")  # another bench may run the one that is there, or compile it too
    done = subprocess.run([*COMPILE, str(new)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"bench/load.c does not compile:\n{done.stderr}")
    new.replace(LOAD)


def free_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 nobody is bound to.

    They are below the range from which the kernel takes clients' ports (ip(7)), so no connection of the bench takes one
    of them before the forwarder does. In RELAY_BENCH_PORTS (`10000-10099`) whoever runs other programs as well can say
    which ports are the bench's.
    """
    if given := os.environ.get("RELAY_BENCH_PORTS"):
        if not re.fullmatch(r"\d+-\d+", given):
            raise BenchError(f"RELAY_BENCH_PORTS is `{given}`; write two ports, as in 10000-10099")
        lowest, highest = (int(port) for port in given.split("-"))
        highest += 1
    else:
        lowest, highest = LOWEST_PORT, int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
        if highest - lowest < 100 * count:
            raise BenchError(
                f"net.ipv4.ip_local_port_range starts at {highest}: start it at 32768, the kernel's default"
            )
    found: list[int] = []
    for port in random.sample(range(lowest, highest), highest - lowest):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise BenchError(f"fewer than {count} free ports between {lowest} and {highest}")


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


def machine_facts() -> dict[str, str]:
    """What the figures depend on, for the head of the report."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "kernel": platform.release(),
        "CPU": f"{model[0].partition(': ')[2] if model else platform.machine()}, {os.cpu_count()} of them",
        "governor": governor.read_text().strip() if governor.exists() else "not told (a virtual machine?)",
        "load before": " ".join(f"{value:.2f}" for value in os.getloadavg()),
        "Python": f"{platform.python_version()} ({sys.executable})",
    }


def run_load(axis: Axis, port: int, seconds: float, cpu: int | None) -> dict[str, float]:
    """One run of the load generator. Raises BenchError when it measures nothing."""
    command = [str(LOAD), axis.mode, "127.0.0.1", str(port), str(axis.count), f"{seconds:.3f}", *axis.extra]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds + LOAD_GRACE_S,
            start_new_session=True,
            preexec_fn=pinned(cpu),
        )
    except subprocess.TimeoutExpired:
        raise BenchError(f"stuck {LOAD_GRACE_S:.0f} s after the end of the measurement") from None
    if done.returncode:
        raise BenchError(done.stderr.strip().removeprefix("load: "))
    return {key: float(value) for key, value in json.loads(done.stdout).items()}


def measure(axis: Axis, running: Running, seconds: float, cpu: int | None) -> Run:
    """One forwarder's turn. Raises BenchError when it measures nothing."""
    before = running.cpu_s()
    port = running.ports.denied if axis.mode == "denied" else running.ports.forward
    try:
        got = run_load(axis, port, seconds, cpu)
    finally:
        # Its end explains any failure of the generator, and without it the CPU time of its tree is gone.
        if running.process:
            running.process.check_alive()
    after = running.cpu_s()
    return Run(
        units=got["bytes"] / GIB if axis.is_bulk else got["ops"],
        seconds=got["seconds"],
        errors=int(got["errors"]),
        p50_us=got.get("p50_us"),
        p99_us=got.get("p99_us"),
        cpu_s=None if before is None or after is None else after - before,
    )


def start_server(stack: ExitStack, axis: Axis, mode: str, folder: Path, ports: list[int], cpu: int | None) -> None:
    """The axis' server on these ports; in edge mode also at the instances' addresses, and it takes a PROXY header."""
    kind, addresses = axis.server, ["127.0.0.1"]
    if mode == "edge":
        kind, addresses = "edge-echo" if kind == "echo" else kind, [*addresses, *edges.INSTANCES]
    where = [f"{address}:{port}" for address in addresses for port in ports]
    server = Process("server", [str(LOAD), kind, *where], cpu=cpu, log=folder / "server", cwd=BENCH)
    stack.callback(server.stop)
    server.wait_until(lambda: server.output().endswith("]}\n"), "listening")


def start_all(
    stack: ExitStack, axis: Axis, adapters: list[Adapter], mode: str, places: Placement
) -> tuple[list[Running], AxisResult]:
    """The axis' server and every forwarder, each stopped when the stack ends; those that do not start are failures."""
    result = AxisResult(axis)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
    ports = free_ports(3 * len(adapters))
    # A target port of its own for each: what one leaves in TIME_WAIT must not use up the next one's client ports.
    start_server(stack, axis, mode, folder, ports[: len(adapters)], places.server)
    started: list[Running] = []
    for index, adapter in enumerate(adapters):
        own = Ports(ports[len(adapters) + index], ports[2 * len(adapters) + index], ports[index])
        try:
            running = start(adapter, folder / adapter.name, own, places.forwarder)
            if running.process:
                stack.callback(running.process.stop)
            wait_ready(running)
            started.append(running)
        except BenchError as error:
            result.failures[adapter.name] = str(error)
    return started, result


def run_axis(axis: Axis, adapters: list[Adapter], options: argparse.Namespace, places: Placement) -> AxisResult:
    """All rounds of one axis; the order moves on by one each round, so that nobody always comes after the same one."""
    if axis.mode == "denied":
        adapters = [adapter for adapter in adapters if adapter.denies]
    with ExitStack() as stack:
        started, result = start_all(stack, axis, adapters, options.mode, places)
        result.runs = {running.adapter.name: [] for running in started}
        for number in range(-1, options.rounds):  # round -1 is the warm-up
            shift = number % len(started) if started else 0
            for running in started[shift:] + started[:shift]:
                name = running.adapter.name
                if name in result.failures:
                    continue
                try:
                    run = measure(axis, running, WARM_UP_S if number < 0 else options.seconds, places.load)
                except BenchError as error:
                    result.failures[name] = f"round {number + 1}: {error}"
                else:
                    if number >= 0:
                        result.runs[name].append(run)
    return result


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with status 2 when it is wrong."""
    names = [adapter.name for adapter in forwarders.ADAPTERS]
    axes = [axis.name for axis in AXES]
    parser = argparse.ArgumentParser(prog="bench/run.py", description="relay beside other forwarders, interleaved")
    parser.add_argument(
        "--mode", choices=MODES, default="forward", help="edge: in front of two instances; see README.md"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="length of one measurement (default 1)")
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each forwarder and axis (default 5)")
    parser.add_argument("--only", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--axes", nargs="+", choices=axes, default=axes, metavar="NAME", help=", ".join(axes))
    parser.add_argument("--pin", choices=("auto", "one", "none"), default="auto", help="which CPUs; see README.md")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every single measurement there")
    parser.add_argument("--gate", action="store_true", help="exit 1 unless relay keeps up with HAProxy")
    options = parser.parse_args(arguments)
    own = [adapter.name for adapter in MODES[options.mode]]
    options.only = options.only or own
    if strangers := [name for name in options.only if name not in own]:
        parser.error(f"--only: {strangers[0]} has no {options.mode} mode here: write {', '.join(own)}")
    if not 0.05 <= options.seconds <= 600:
        parser.error("--seconds: write a length between 0.05 and 600")
    if not 1 <= options.rounds <= 1000:
        parser.error("--rounds: write a number between 1 and 1000")
    return options


def run_bench(options: argparse.Namespace) -> int:
    """Measures, prints and, where asked, judges. Returns the exit status; raises BenchError when it cannot run."""
    build_load()
    places = placement(options.pin)
    facts = machine_facts()
    adapters, versions, missing = find_forwarders(options.mode, options.only)
    pins = f"forwarder {places.forwarder}, generator {places.load}, server {places.server}"
    facts |= {"pinned to CPU": pins if places.forwarder is not None else "none"} | versions
    facts |= {name: f"MISSING: {why}" for name, why in missing.items()}
    width = max(map(len, facts))
    print("\n".join(f"{key.ljust(width)}  {value}" for key, value in facts.items()))
    print(f"{options.rounds} rounds of {options.seconds:g} s; medians, ratios are median (least..most) of the rounds'")
    results: list[AxisResult] = []
    for axis in AXES:
        if axis.name in options.axes and any(adapter.denies or axis.mode != "denied" for adapter in adapters):
            result = run_axis(axis, adapters, options, places)
            result.failures |= {name: f"missing: {why}" for name, why in missing.items()}
            results.append(result)
            print(f"\n{table(result)}", flush=True)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(
            json.dumps({"facts": facts, "axes": [asdict(each) for each in results]}, indent=1) + "\n"
        )
    if not options.gate:
        return 0
    reasons = gate(results)
    print("\ngate: " + ("passed" if not reasons else "NOT passed\n  " + "\n  ".join(reasons)))
    return 1 if reasons else 0


def leave(number: int, _frame: FrameType | None) -> None:
    """The first signal ends the bench by way of its cleanup, which a second one must not cut short."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def run_to_the_end(bench: Callable[[], int]) -> int:
    """Runs a bench; its exit status. Whatever ends it, what it started is stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        return bench()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: run_bench(parse_arguments())))
