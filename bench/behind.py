"""What clients lose when an application behind an edge dies, is taken out, or restarts: relay, and HAProxy. See README.md.

    python bench/behind.py [--requests N] [--rate N] [--events NAME...] [--only NAME...] [--single] [--json FILE]

Exit status: 0; 1 when it cannot run; 2 for a wrong command line; 128 and the signal's number when interrupted. An event that
one of them cannot do says so in the table.
"""

import argparse
import itertools
import json
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from forwarders import haproxy_version, relay_version
from machine import machine_facts
from process import BenchError, Process, run_to_the_end
from sites import CLIENT, EDGE, ENDPOINT, PUBLIC_PORT, NotYetError, Site, at_work
from steady import BEGIN, PATIENCE_S, REQUESTS_MAX, Request

BENCH = Path(__file__).resolve().parent
KINDS = {"relay": relay_version, "haproxy": haproxy_version}
AWAY_S = 2.0  # a restart takes so long
UNWELL_S = 6.0  # the application answers 503 for so long: three probes
BEGINS_AT = 1 / 3  # of the load: what comes of an event must be over before its end
END_S = 60.0  # a bound for hanging, after the last request has begun
HOLD = "20s"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that is done to a service under load; `hold` is what its endpoint has of that, in relay."""

    name: str
    title: str
    act: Callable[[Site], None]
    relay_only: bool = False
    instances: int = 2
    hold: str = ""


@dataclass(slots=True)
class Result:
    """What became of the requests while one event took place. `in_flight`: failed, and some target's kernel had taken them.

    `twice` are numbers of requests that were answered by more than one application. `trouble` says why there is no result.
    """

    requests: int = 0
    failed: int = 0
    in_flight: int = 0
    pause_s: float = 0.0
    twice: list[int] = field(default_factory=list)
    failures: dict[str, int] = field(default_factory=dict)
    lost: list[list[object]] = field(default_factory=list)
    trouble: str = ""


def _stop(site: Site) -> None:
    site.apps[0].stop_well()


def _kill(site: Site) -> None:
    site.apps[0].signal(signal.SIGKILL, to_all=True)


def _restart(site: Site) -> None:
    site.apps[0].stop_well()
    time.sleep(AWAY_S)
    site.apps[0].start()


def _be_unwell(site: Site) -> None:
    site.apps[0].be_well(False)
    time.sleep(UNWELL_S)
    site.apps[0].be_well(True)


def _stand_still(site: Site) -> None:
    site.apps[0].signal(signal.SIGSTOP, to_all=True)


def _pull_cable(site: Site) -> None:
    site.machines.pull_cable("web0")


def _drain_and_stop(site: Site) -> None:
    site.parts["web0"].command("drain", "--wait")
    site.apps[0].stop_well()


def _hold_and_restart(site: Site) -> None:
    site.parts["edge"].command("hold", ENDPOINT, "--for", HOLD)
    try:
        _restart(site)
    finally:
        site.parts["edge"].command("release", ENDPOINT)


EVENTS = (
    Event("stop", "nginx is stopped (SIGQUIT, as `systemctl stop` does)", _stop),
    Event("kill", "nginx is killed (SIGKILL to all its processes)", _kill),
    Event("restart", "nginx restarts, and is away for 2 s", _restart),
    Event("unwell", "nginx answers 503 to the probe for 6 s", _be_unwell),
    Event("still", "nginx stands still (SIGSTOP to all its processes)", _stand_still),
    Event("cable", "the machine is gone: its cable is pulled", _pull_cable),
    Event("drain", "`relay drain --wait`, then nginx is stopped", _drain_and_stop, relay_only=True),
    Event("edge-worker", "the edge's worker is killed", lambda site: site.parts["edge"].kill_worker(), relay_only=True),
    Event("worker", "an instance's worker is killed", lambda site: site.parts["web0"].kill_worker(), relay_only=True),
    Event("edge-upgrade", "the edge is upgraded", lambda site: site.parts["edge"].command("upgrade"), relay_only=True),
    Event("upgrade", "an instance is upgraded", lambda site: site.parts["web0"].command("upgrade"), relay_only=True),
    Event("single", f"the only nginx restarts, 2 s (relay: `hold: {HOLD}`)", _restart, instances=1, hold=HOLD),
    Event(
        "single-hand", "the same with `relay hold` and `release`", _hold_and_restart, relay_only=True, instances=1
    ),
)  # fmt: skip


def measure(event: Event, kind: str, requests: int, rate: float) -> Result:
    """One event, with one of the two in front of the applications."""
    with tempfile.TemporaryDirectory(prefix="relay-bench-") as name:
        folder = Path(name)
        try:
            with at_work(kind, event.instances, folder, hold=event.hold) as site:
                asked = _under_load(site, event, folder, requests, rate)
                site.end_parts()
                return _result(asked, site)
        except (BenchError, NotYetError) as error:
            return Result(trouble=str(error))


def _under_load(site: Site, event: Event, folder: Path, requests: int, rate: float) -> list[Request]:
    load = [sys.executable, str(BENCH / "steady.py"), CLIENT, f"{EDGE}:{PUBLIC_PORT}", str(requests), str(rate)]
    process = Process("load", site.machines.on("client", load), cpus=None, log=folder / "load", cwd=BENCH.parent)
    try:
        process.wait_until(lambda: process.output().startswith(BEGIN), "begun")
        deadline_s = time.monotonic() + requests / rate + END_S
        time.sleep(BEGINS_AT * requests / rate)
        event.act(site)
        while not process.has_ended():
            if time.monotonic() > deadline_s:
                raise BenchError("the load does not end")
            time.sleep(0.1)
    finally:
        process.stop()
    lines = process.output().removeprefix(BEGIN).splitlines()
    if len(lines) != requests:
        raise BenchError(f"the load failed: {' | '.join(lines[-2:])}")
    return [Request(*json.loads(line)) for line in lines]


def _result(asked: list[Request], site: Site) -> Result:
    failed = [each for each in asked if not each.answer]
    taken = site.taken()
    answered_s = sorted(each.ended_s for each in asked if each.answer)
    served = Counter(number for app in site.apps for number in app.served())
    return Result(
        requests=len(asked),
        failed=len(failed),
        in_flight=sum(each.number in taken for each in failed),
        pause_s=max((later - each for each, later in itertools.pairwise(answered_s)), default=0.0),
        twice=sorted(number for number, times in served.items() if times > 1),
        failures=dict(Counter(each.failure for each in failed)),
        lost=[[each.number, each.began_s, each.failure] for each in failed if each.number not in taken],
    )


HEAD = "| event | relay: failed | in flight | longest pause | HAProxy: failed | in flight | longest pause |"


def row(event: Event, results: dict[str, Result]) -> str:
    """One line of the table."""
    cells = [event.title]
    for kind in KINDS:
        result = results.get(kind)
        if result is None:
            cells += ["–", "–", "–"]
        elif result.trouble:
            cells += ["cannot", "–", "–"]
        else:
            cells += [f"{result.failed:,}", f"{result.in_flight:,}", f"{1000 * result.pause_s:,.0f} ms"]
    return f"| {' | '.join(cells)} |"


def remarks(event: Event, results: dict[str, Result]) -> list[str]:
    """What a reader of the table should know besides, one line each."""
    said = []
    for kind, result in results.items():
        if result.trouble:
            said.append(f"{event.name}, {kind}: {result.trouble}")
        if result.twice:
            said.append(f"{event.name}, {kind}: {len(result.twice)} requests were answered by two applications")
        said += [f"{event.name}, {kind}: {count:,} failed by: {why}" for why, count in result.failures.items()]
    return said


def run_bench(options: argparse.Namespace) -> int:
    """Measures and prints. Returns the exit status; raises BenchError when it cannot run."""
    facts = machine_facts()
    for kind in options.only:
        facts[kind] = KINDS[kind]()
    width = max(map(len, facts))
    print("\n".join(f"{key.ljust(width)}  {value}" for key, value in facts.items()))
    print(f"{options.requests:,} requests, {options.rate:g}/s; a client waits for {PATIENCE_S:.0f} s\n")
    print(HEAD + "\n|---|---|---|---|---|---|---|", flush=True)
    every: dict[str, dict[str, Result]] = {}
    for event in options.events:
        kinds = [kind for kind in options.only if kind == "relay" or not event.relay_only]
        every[event.name] = {kind: measure(event, kind, options.requests, options.rate) for kind in kinds}
        print(row(event, every[event.name]), flush=True)
    print("\n" + "\n".join(line for event in options.events for line in remarks(event, every[event.name])))
    if options.json:
        results = {name: {kind: asdict(each) for kind, each in found.items()} for name, found in every.items()}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"facts": facts, "events": results}, indent=1) + "\n")
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with status 2 when it is wrong."""
    names = {event.name: event for event in EVENTS}
    parser = argparse.ArgumentParser(prog="bench/behind.py", description="what is lost when an application dies")
    parser.add_argument("--requests", type=int, default=10_000, help="for each event (default 10000)")
    parser.add_argument("--rate", type=float, default=500.0, help="requests in a second (default 500)")
    parser.add_argument("--events", nargs="+", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME", help=", ".join(KINDS))
    parser.add_argument("--single", action="store_true", help="only the events of a service with one instance")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every result there")
    options = parser.parse_args(arguments)
    if not 1 <= options.requests <= REQUESTS_MAX:
        parser.error(f"--requests: write a number between 1 and {REQUESTS_MAX}")
    if not 1 <= options.rate <= 10_000:
        parser.error("--rate: write a number between 1 and 10000")
    wanted = [names[name] for name in options.events] if options.events else EVENTS
    options.events = [event for event in wanted if event.instances == 1 or not options.single]
    return options


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: run_bench(parse_arguments())))
