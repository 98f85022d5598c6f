"""A fleet of many instances against one real etcd: how fast all of them agree, and what it costs. See README.md.

    python bench/fleet.py [--instances N] [--roles N] [--processes N] [--ttl S] [--over S] [--steady S] [--down S]
                          [--json FILE]

Exit status: 0; 1 when it cannot run, when the instances do not come to agree, or when etcd's restart cost a view anybody;
2 for a wrong command line; 128 and the signal's number when interrupted.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import instances
from etcd_server import EtcdServer
from generator import build_load, start_server
from instances import Plan, Report, View
from machine import free_ports, machine_facts
from network import LOOPBACK
from process import BenchError, read_stat, run_to_the_end
from whole_relay import Observed, Waits, write_files

from relay.config.roster import Member
from relay.fleet.entries import EntryKeys, read_entry
from relay.fleet.etcd import EtcdClient

LOOK_S = 0.5  # from one look at all views to the next
LEAVING = 0.1  # of the instances
AFTER_RESTART_LEASES = (
    1.5  # for so long after an etcd's restart the views are watched: who were to drop out would by then
)
PATIENCE_S = 270.0  # a bound for hanging
FEW = 2  # instances beside the daemon under test before the others come


@dataclass(slots=True)
class Phase:
    """What one phase gave. Times are in seconds from its beginning, unless said otherwise."""

    name: str
    instances: int
    seconds: float = 0.0
    converged_s: list[float] = field(default_factory=list)  # each instance, ascending
    notes: dict[str, Any] = field(default_factory=dict)
    etcd_cpu_s: float = 0.0
    etcd_rss_mib: float = 0.0
    clients_cpu_s: float = 0.0
    messages: int = 0
    events: int = 0
    watch_mib: float = 0.0
    requests: dict[str, int] = field(default_factory=dict)
    relay: dict[str, Any] = field(default_factory=dict)


async def members(etcd: EtcdServer, service: str) -> tuple[Member, ...]:
    """Who is there, by what etcd has."""
    keys = EntryKeys(service)
    async with EtcdClient([etcd.url], timeout_s=30) as client:
        (found,) = (await client.range(keys.all_members)).found
    places = [(keys.place_of(each.key), each.value or b"") for each in found]
    entries = [read_entry(place, value) for place, value in places if place is not None]
    return tuple(sorted(entry.member for entry in entries if entry is not None))


class Crowd:
    """The processes with the instances."""

    def __init__(self, plan: Plan, count: int, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self._ends: list[Connection] = []
        self._pids: list[int] = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=instances.main, args=(plan, theirs), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.terminate)
            self._ends.append(ours)
            self._pids.append(process.pid or 0)

    def ask(self, name: str, *arguments: Any) -> list[Any]:
        """Ask all for the same, and wait for what each says."""
        for end in self._ends:
            end.send((name, *arguments))
        return [self._answer(end) for end in self._ends]

    def join(self, numbers: list[int], over_s: float = 0.0) -> None:
        """Start these instances, evenly over so long a time, in all processes alike."""
        for n, end in enumerate(self._ends):
            end.send(("join", numbers[n :: len(self._ends)], over_s))
        for end in self._ends:
            self._answer(end)

    def _answer(self, end: Connection) -> Any:
        if not end.poll(PATIENCE_S):
            raise BenchError(f"a process with instances says nothing for {PATIENCE_S:g} s")
        try:
            return end.recv()
        except (EOFError, OSError):
            raise BenchError("a process with instances has died") from None

    def report(self, truth: tuple[Member, ...]) -> Report:
        """How all see the fleet. Raises BenchError where an instance has failed."""
        parts: list[Report] = self.ask("report", truth)
        errors = [error for part in parts for error in part.errors]
        if errors:
            raise BenchError(f"{len(errors)} instances failed; {errors[0]}")
        views = [view for part in parts for view in part.views]
        came = ((part.messages, part.events, part.received_bytes) for part in parts)
        return Report(views, [], *map(sum, zip(*came, strict=True)))

    def cpu_s(self) -> float:
        """CPU seconds of all so far."""
        return sum(stat.cpu_s() for pid in self._pids if (stat := read_stat(pid)) is not None)


class Bench:
    """The fleet: etcd, its instances, and one whole relay among them, with a connection through it that is watched."""

    def __init__(self, options: argparse.Namespace, stack: ExitStack) -> None:
        self.options = options
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        self.etcd = EtcdServer(folder)
        stack.callback(lambda: self.etcd.stop())
        echo, port, door = free_ports(3)
        start_server(stack, "echo", [str(echo)], None, folder / "echo", LOOPBACK.near)
        roles = [f"role{n:02}" for n in range(options.roles)]
        # Two more of each than there are: for the daemon under test, and for the one that joins later.
        counts = dict.fromkeys(roles, -(-options.instances // options.roles) + 2)
        self.plan = Plan(self.etcd.url, "bench", counts, options.ttl)
        self.crowd = Crowd(self.plan, options.processes, stack)
        write_files(folder, self.plan, port, door, echo)
        self.relay = Observed(folder)
        stack.callback(self.relay.stop)
        self.relay.wait_ready()
        self.crowd.join(list(range(FEW)))
        self.settle(Phase("few", FEW), FEW)
        self.waits = Waits(instances.Instance(self.plan, 0, roles[0]).address, self.relay.address, port, echo, stack)
        self.size = FEW

    def settle(self, phase: Phase, size: int) -> list[View]:
        """Look until all see the fleet as etcd has it, with so many instances and the daemon. Raises BenchError."""
        deadline_s = time.monotonic() + PATIENCE_S
        while True:
            truth = asyncio.run(members(self.etcd, self.plan.service))
            report = self.crowd.report(truth)
            places = {(each.there.role, each.there.ordinal, each.there.address) for each in report.views}
            places.add(self.relay.place())
            there = {(each.role, each.ordinal, each.address) for each in truth}
            right = sum(view.right for view in report.views)
            if len(places) == size + 1 and there == places and right == size and not any(each.busy for each in truth):
                return report.views
            if time.monotonic() > deadline_s:
                what = f"{len(there)} are there, {len(places)} should be, {right} see it so; {_troubles(report.views)}"
                raise BenchError(f"{phase.name}: no agreement after {PATIENCE_S:g} s: {what}")
            time.sleep(LOOK_S)

    def run(self, name: str, act: Any, *, size: int, enough: int = 0, linger_s: float = 0.0) -> Phase:
        """One phase: `act`, then until all agree upon `size` instances, and so long after that."""
        phase, self.size = Phase(name, size), size
        report = self.crowd.report(())
        spent = [self.etcd.cpu_s(), self.crowd.cpu_s()]
        asked, relay = self.etcd.requests(), self.relay.begin()
        self.crowd.ask("mark", enough)
        self.waits.take()
        began_s = time.monotonic()
        phase.notes |= act(began_s) or {}
        views = self.settle(phase, size)
        if linger_s:
            time.sleep(linger_s)
            views = self.settle(phase, size)
        phase.seconds = time.monotonic() - began_s
        after = self.crowd.report(())
        phase.converged_s = sorted(max(0.0, view.since_s - began_s) for view in views)
        phase.etcd_cpu_s, phase.clients_cpu_s = self.etcd.cpu_s() - spent[0], self.crowd.cpu_s() - spent[1]
        phase.etcd_rss_mib = self.etcd.rss_mib()
        phase.messages, phase.events = after.messages - report.messages, after.events - report.events
        phase.watch_mib = (after.received_bytes - report.received_bytes) / 2**20
        now = self.etcd.requests()
        before = {} if "etcd_back_s" in phase.notes else asked  # another process counts from 0
        phase.requests = {method: count - before.get(method, 0) for method, count in now.items()}
        phase.notes |= {"least": min(view.least for view in views)}
        claims = sorted(view.claimed_s - began_s for view in views if view.claimed_s > began_s)
        if claims:
            phase.notes |= {"last_claim_s": round(claims[-1], 2), "claims_again": sum(v.tries - 1 for v in views)}
        if enough and (fewer := sorted(view.fewer_s - began_s for view in views if view.fewer_s is not None)):
            phase.notes |= {"clean_gone_s": [round(median(fewer), 3), round(fewer[-1], 3)]}
        phase.relay = self.relay.end(relay) | self.waits.take()
        print(told(phase), flush=True)
        return phase


def _troubles(views: list[View]) -> str:
    """What is wrong with the instances, by their own words."""
    found = sorted({view.trouble for view in views if view.trouble})
    return f"{sum(bool(view.trouble) for view in views)} in trouble: {'; '.join(found[:3]) or 'none'}"


def told(phase: Phase) -> str:
    """A phase for people."""
    s, count = max(phase.seconds, 1e-9), phase.instances
    lines = [f"\n{phase.name}: {count:,} instances, {phase.seconds:.1f} s"]
    if phase.name != "steady":
        times = phase.converged_s
        p99 = times[min(len(times) - 1, int(0.99 * len(times)))]
        lines.append(f"  agreed after     {median(times):.2f} s median, {p99:.2f} s 99 %, {times[-1]:.2f} s last")
    cpu_s = phase.etcd_cpu_s
    lines.append(f"  etcd             {cpu_s:.2f} s CPU ({cpu_s / s:.0%}), {phase.etcd_rss_mib:.0f} MiB")
    cpu_s = phase.clients_cpu_s
    lines.append(f"  all clients      {cpu_s:.2f} s CPU ({cpu_s / s:.0%}), {1000 * cpu_s / count:.1f} ms each")
    each_kib = 1024 * phase.watch_mib / count
    lines.append(
        f"  watches, all     {phase.events:,} events, {phase.watch_mib:.1f} MiB; {phase.events / s:,.0f} events/s"
    )
    lines.append(f"  watches, each    {phase.events / count:,.0f} events, {each_kib:.1f} KiB; {each_kib / s:.2f} KiB/s")
    asked = sorted(phase.requests.items(), key=lambda item: -item[1])
    rates = ", ".join(f"{method} {number / s:.1f}" for method, number in asked if number > 0)
    lines.append(f"  requests/s       {sum(number for _, number in asked) / s:.1f}: {rates}")
    lines += [f"  {name:16} {value}" for name, value in (phase.notes | phase.relay).items()]
    return "\n".join(lines)


def restarted(bench: Bench, began_s: float) -> dict[str, Any]:
    """Kill etcd, and start it again with its data."""
    bench.etcd.kill()
    time.sleep(bench.options.down)
    bench.etcd.start()
    return {"etcd_back_s": round(time.monotonic() - began_s, 2)}


def run_bench(options: argparse.Namespace) -> int:
    """Measures and prints. Returns the exit status; raises BenchError when it cannot run."""
    build_load()
    print("\n".join(f"{key:12}  {value}" for key, value in machine_facts().items()))
    print(
        f"{options.instances} instances of {options.roles} roles in {options.processes} processes, ttl {options.ttl:g} s"
    )
    count = options.instances
    with ExitStack() as stack:
        bench = Bench(options, stack)
        crowd = bench.crowd
        print(f"one relay among {FEW} others, MiB: {bench.relay.memory()}", flush=True)

        def leave(gone: list[int], _began_s: float) -> None:
            crowd.ask("leave", gone[::2], gone[1::2])

        gone = random.sample(range(FEW, count), max(2, int(LEAVING * count)))
        left = count + 1 - len(gone)
        phases = [
            bench.run("join storm", lambda _: crowd.join(list(range(FEW, count)), options.over), size=count),
            bench.run("steady", lambda _: time.sleep(options.steady), size=count),
            bench.run("one joins", lambda _: crowd.join([count]), size=count + 1),
            bench.run("leave", partial(leave, gone), size=left, enough=left + 1 + len(gone[1::2])),
            bench.run(
                "etcd restart", partial(restarted, bench), size=left, linger_s=AFTER_RESTART_LEASES * options.ttl
            ),
        ]
        dropped = left + 1 - phases[-1].notes["least"]
    print(f"\nafter etcd's restart {dropped or 'nobody'} was missing in the view that had the fewest")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps([asdict(phase) for phase in phases], indent=1) + "\n")
    return 1 if dropped else 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with status 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="bench/fleet.py", description="a fleet of many instances against one etcd")
    parser.add_argument("--instances", type=int, default=1000, metavar="N", help="instances (default 1000)")
    parser.add_argument("--roles", type=int, default=20, metavar="N", help="roles that they share out (default 20)")
    parser.add_argument("--processes", type=int, default=4, metavar="N", help="processes that they run in (default 4)")
    parser.add_argument("--ttl", type=float, default=10.0, metavar="S", help="registry.ttl (default 10)")
    parser.add_argument("--over", type=float, default=0.0, metavar="S", help="length of the start (0: all at once)")
    parser.add_argument(
        "--steady", type=float, default=30.0, metavar="S", help="length of the steady state (default 30)"
    )
    parser.add_argument("--down", type=float, default=3.0, metavar="S", help="how long etcd is away (default 3)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    options = parser.parse_args(arguments)
    if not 2 <= options.roles <= 100 or not 10 <= options.instances <= 10_000 or not 1 <= options.processes <= 64:
        parser.error("write 10 to 10000 instances, 2 to 100 roles, 1 to 64 processes")
    if (
        not 2 <= options.ttl <= 600
        or options.ttl % 1
        or not 0 <= options.down <= 600
        or not all(0 <= each <= 600 for each in (options.steady, options.over))
    ):
        parser.error("write whole seconds from 2 for --ttl, and at most 600 for each time")
    return options


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: run_bench(parse_arguments())))
