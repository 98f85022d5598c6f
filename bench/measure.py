"""How an axis is measured: everything is started, the forwarders take turns, round by round, everything is stopped."""

import tempfile
from array import array
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median

import edges
from axes import IDLE, WORKERS, Axis
from configs import MAX_CONNECTIONS, Address, Setting
from forwarders import REPOSITORY, Adapter
from generator import hold, run_clients, start_server, together
from greetings import EDGES, GREETINGS
from machine import Placement, descriptors, free_ports, placement, side_by_side
from network import LOOPBACK, Network
from process import BenchError, Cpus, Process, accepts, throws_out
from report import GIB, REFERENCE, AxisResult, Run, percentile, row_beside

WARM_UP_S = 0.2  # not counted: connection pools, caches, an interpreter's first pass through its code
KNEE_S = 0.5  # length of a measurement of the knee
KNEE_ROUNDS = 3
DESCRIPTORS_PER_CONNECTION = 6  # two sockets, and a pipe each way
OTHER_DESCRIPTORS = 640  # the busy connections', and what a forwarder has besides
SPARE_CONNECTIONS = 1024  # beside the idle ones


@dataclass(frozen=True, slots=True)
class Conditions:
    """How axes are measured: `--mode`, `--pin`, `--seconds`, `--rounds`; `idle` connections; over which network."""

    mode: str = "forward"
    pin: str = "auto"
    seconds: float = 1.0
    rounds: int = 10
    idle: int = 20_000
    network: Network = LOOPBACK


@dataclass(frozen=True, slots=True)
class Running:
    """A forwarder ready to be measured; `process` is None for no forwarder at all. `loads` are the generators' CPUs."""

    name: str
    entrance: Address
    process: Process | None
    loads: tuple[Cpus, ...]

    def cpu_s(self) -> float | None:
        """CPU seconds of its process tree so far; None for no forwarder at all."""
        return self.process.cpu_s() if self.process else None


def start(adapter: Adapter, folder: Path, setting: Setting, cpus: Cpus, network: Network = LOOPBACK) -> Process:
    """Starts the forwarder on `cpus`, its files in the folder. `wait_ready` comes next. Raises BenchError if it cannot."""
    assert adapter.command is not None  # it is a forwarder
    command = network.far.command(adapter.command(folder, setting))
    return Process(adapter.name, command, cpus=cpus, log=folder / "output", cwd=REPOSITORY)


def wait_ready(process: Process, setting: Setting, network: Network = LOOPBACK) -> None:
    """Returns once it listens or, where it denies, denies. Raises BenchError when that does not come."""
    ask, what = (throws_out, "denying") if setting.kind == "denied" else (accepts, "listening")

    def is_ready() -> bool:
        with network.near.inside():
            return ask(setting.listen)

    process.wait_until(is_ready, f"{what} on {setting.listen}")


class Stage:
    """What is started for one axis; all of it is stopped when the stack ends."""

    def __init__(self, stack: ExitStack, axis: Axis, conditions: Conditions) -> None:
        self._stack, self._axis, self._conditions = stack, axis, conditions
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        self._samples = self._folder / "samples"
        if axis.kind in GREETINGS:
            (self._folder / "greeting").write_bytes(GREETINGS[axis.kind]())

    def start(self, adapter: Adapter, *, other: bool, ports: Sequence[int]) -> Running:
        """A server and, before it, the forwarder. `other`: with what `axis.versus` says. BenchError where it fails."""
        axis, network = self._axis, self._conditions.network
        name = row_beside(axis, adapter.name) if other else adapter.name
        folder = self._folder / name.replace(", ", "-")
        places, idle = self._places(other), self._conditions.idle if other and axis.versus == IDLE else 0
        # No hop at all would be loopback again, where there is a network.
        side = network.far if adapter.command is None else network.near
        target = Address(side.host, ports[0])
        folder.mkdir()
        for number, cpus in enumerate(places.servers):
            log = folder / f"server-{number}"
            start_server(self._stack, self._server(), self._where(target), cpus, log, side)
        if adapter.command is None:
            running = Running(name, target, None, places.loads)
        else:
            connections = SPARE_CONNECTIONS + idle if idle else MAX_CONNECTIONS
            setting = Setting(Address(network.far.host, ports[1]), target, axis.kind, len(places.servers), connections)
            process = start(adapter, folder, setting, places.forwarder, network)
            self._stack.callback(process.stop)
            wait_ready(process, setting, network)
            running = Running(name, setting.listen, process, places.loads)
        if idle:
            hold(self._stack, running.entrance, idle, places.loads[0], folder / "held")
        return running

    def _places(self, other: bool) -> Placement:
        return side_by_side(1 + other) if self._axis.versus == WORKERS else placement(self._conditions.pin)

    def _server(self) -> str:
        """In edge mode it takes a PROXY header."""
        is_behind = self._conditions.mode == "edge" and self._axis.server == "echo"
        return "edge-echo" if is_behind else self._axis.server

    def _where(self, target: Address) -> list[str]:
        """In edge mode also at the instances' addresses."""
        hosts = [target.host, *(edges.INSTANCES if self._conditions.mode == "edge" else ())]
        return [str(Address(host, target.port)) for host in hosts]

    def measure(self, running: Running, seconds: float, rate: int = 0) -> Run:
        """One turn; `rate` is an open axis'. Raises BenchError when it measures nothing."""
        axis = self._axis
        extra = axis.extra
        if axis.kind in GREETINGS:
            # The header comes from an edge, of which there are few.
            extra = (str(self._folder / "greeting"), *([str(len(EDGES))] if axis.kind == "proxy" else ()))
        elif axis.is_open:
            extra = (*extra, str(rate), str(self._samples))
        before = running.cpu_s()
        got = self._load(axis.mode, running, seconds, extra)
        after = running.cpu_s()
        if axis.is_open:
            got |= self._percentiles_us()
        return Run(
            units=got["bytes"] / GIB if axis.is_bulk else got["ops"],
            seconds=got["seconds"],
            errors=int(got["errors"]),
            p50_us=got.get("p50_us"),
            p99_us=got.get("p99_us"),
            p999_us=got.get("p999_us"),
            cpu_s=None if before is None or after is None else after - before,
        )

    def _load(self, mode: str, running: Running, seconds: float, extra: Sequence[str]) -> dict[str, float]:
        host, port = running.entrance
        arguments = [mode, host, str(port), str(self._axis.count), f"{seconds:.3f}", *extra]
        try:
            return together(run_clients(arguments, seconds, running.loads, self._conditions.network.near))
        finally:
            # Its end explains any failure of the generator, and without it the CPU time of its tree is gone.
            if running.process:
                running.process.check_alive()

    def _percentiles_us(self) -> dict[str, float]:
        samples_ns = array("Q")
        samples_ns.frombytes(self._samples.read_bytes())
        ascending = sorted(samples_ns)
        parts = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
        return {name: percentile(ascending, part) / 1000 for name, part in parts.items()}

    def half_of_the_knee(self, started: Sequence[Running]) -> int:
        """Half of the rate that HAProxy has in a closed loop. Above that rate an open loop's queue only grows.

        Raises BenchError where HAProxy is not there.
        """
        reference = [running for running in started if running.name == REFERENCE]
        if not reference:
            raise BenchError(f"its rate is half of what {REFERENCE} can do, and that does not run")
        runs = [self._load("rr", reference[0], KNEE_S, self._axis.extra) for _ in range(KNEE_ROUNDS)]
        return max(1, int(median(run["ops"] / run["seconds"] for run in runs) / 2))


def run_axis(axis: Axis, adapters: Sequence[Adapter], conditions: Conditions) -> AxisResult:
    """All rounds of one axis. Who cannot be measured is among the failures.

    A forwarder that is measured beside itself has the machine for itself: there is no room for 20,000 connections to
    each of them at once.
    """
    result = AxisResult(axis, conditions.pin)
    if not axis.versus:
        _take_turns(axis, [(adapter, False) for adapter in adapters], conditions, result)
        return result
    for adapter in adapters:
        beside = [(adapter, False), (adapter, True)]
        if axis.versus != IDLE:
            _take_turns(axis, beside, conditions, result)
            continue
        with descriptors(DESCRIPTORS_PER_CONNECTION * conditions.idle + OTHER_DESCRIPTORS) as allowed:
            idle = min(conditions.idle, max(1, (allowed - OTHER_DESCRIPTORS) // DESCRIPTORS_PER_CONNECTION))
            result.note = f"{idle:,} idle connections" + (
                f": the limit of descriptors is {allowed:,}" if idle < conditions.idle else ""
            )
            _take_turns(axis, beside, replace(conditions, idle=idle), result)
    return result


def _take_turns(
    axis: Axis, adapters: Sequence[tuple[Adapter, bool]], conditions: Conditions, result: AxisResult
) -> None:
    """All rounds; the order moves on by one each round, so that nobody always comes after the same one."""
    with ExitStack() as stack:
        stage = Stage(stack, axis, conditions)
        ports = free_ports(2 * len(adapters))
        started: list[Running] = []
        for index, (adapter, other) in enumerate(adapters):
            try:
                # A target port of its own: what one leaves in TIME_WAIT must not use up the next one's client ports.
                started.append(stage.start(adapter, other=other, ports=ports[2 * index : 2 * index + 2]))
            except BenchError as error:
                name = row_beside(axis, adapter.name) if other else adapter.name
                result.failures[name] = str(error)
        result.runs |= {running.name: [] for running in started}
        rate = 0
        if axis.is_open:
            try:
                rate = stage.half_of_the_knee(started)
                result.note = f"{rate:,} op/s"
            except BenchError as error:
                result.failures |= {running.name: str(error) for running in started}
        for number in range(-1, conditions.rounds):  # round -1 is the warm-up
            shift = number % len(started) if started else 0
            for running in started[shift:] + started[:shift]:
                if running.name not in result.failures:
                    turn = partial(stage.measure, running, WARM_UP_S if number < 0 else conditions.seconds, rate)
                    _take_turn(turn, running.name, number, result)


def _take_turn(turn: partial[Run], name: str, number: int, result: AxisResult) -> None:
    try:
        run = turn()
    except BenchError as error:
        result.failures[name] = f"round {number + 1}: {error}"
    else:
        if number >= 0:
            result.runs[name].append(run)
