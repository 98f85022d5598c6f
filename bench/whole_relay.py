"""The one whole relay in a simulated fleet: what it costs, when a roster is in force, and what a connection notices."""

import json
import multiprocessing
import secrets
import socket
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from forwarders import REPOSITORY
from instances import Plan
from process import POLL_S, BenchError, Process, read_stat, rss_mib
from survival import Relay, round_trip_s

ADDRESS = "127.77.0.1"
ROUND_TRIP_EACH_S = 0.002  # far shorter than a pause that matters, and a small part of a CPU
PATIENCE_S = 30.0  # a bound for hanging
LOST_S = 300.0  # the same, for an instance that etcd has forgotten to be there again


def write_files(folder: Path, plan: Plan, port: int, door: int, echo: int) -> None:
    """The files of a relay of the first role: an internal endpoint that admits all roles, and a door out to the second."""
    first, second = list(plan.counts)[:2]
    target = f"127.0.0.1:{echo}"
    roles: dict[str, Any] = {role: {"instances": count} for role, count in plan.counts.items()}
    roles[first]["endpoints"] = {"in": {"type": "internal", "port": port, "target": target}}
    roles[first]["uses"] = {"out": {"endpoint": f"{second}/in", "listen": f"127.0.0.1:{door}"}}
    roles[second]["endpoints"] = {"in": {"type": "internal", "port": port, "target": target}}
    settings = {
        "role": first,
        "address": ADDRESS,
        "workers": 1,
        "metrics": False,
        "admin": {"socket": str(folder / "admin.sock")},
        "machine_id": str(folder / "machine-id"),
        "registry": {"etcd": [plan.url], "ttl": f"{plan.ttl_s:g}s", "state": str(folder)},
        "log": {"format": "json"},
    }
    (folder / "machine-id").write_text(secrets.token_hex(16))
    service = {"version": 1, "service": plan.service, "roles": roles}
    (folder / "service.yaml").write_text(json.dumps(service))  # JSON is YAML
    (folder / "instance.yaml").write_text(json.dumps(settings))


@dataclass(frozen=True, slots=True)
class Moment:
    """What a phase is counted from: CPU seconds by process, the length of the log, and the time (time.time)."""

    cpu_s: dict[str, float]
    log_chars: int
    at_s: float


class Observed:
    """A daemon with the files in the folder."""

    address = ADDRESS

    def __init__(self, folder: Path) -> None:
        run = [sys.executable, "-m", "relay", "run", "--service", str(folder / "service.yaml")]
        run += ["--settings", str(folder / "instance.yaml")]
        self.process = Process("relay", run, cpus=None, log=folder / "relay.log", cwd=REPOSITORY)
        self._relay = Relay(self.process, folder)

    def stop(self) -> None:
        """End it."""
        self.process.stop()

    def wait_ready(self) -> None:
        """Until it forwards. Raises BenchError when that does not come."""
        self.process.wait_until(lambda: self._relay.worker_pid() != 0, "at work")

    def status(self) -> dict[str, Any]:
        """What `relay status` says. Raises BenchError where it says nothing."""
        try:
            code, found = self._relay.ask("GET", "/v1/status")
        except OSError as error:
            raise BenchError(f"relay's admin socket: {error}") from error
        if code != 200:
            raise BenchError(f"relay's admin socket: status {code}")
        return dict(found)

    def place(self) -> tuple[str, int, str]:
        """Its role, its number, and its address."""
        role, _, number = str(self.status()["instance"]).rpartition("_IN_")
        return role, int(number), ADDRESS

    def _pids(self) -> dict[str, int]:
        found = self.status()
        workers = {f"worker{n}": int(each["pid"]) for n, each in enumerate(found["workers"])}
        return {"keeper": int(found["keeper"]["pid"]), "control": int(found["control"]["pid"])} | workers

    def memory(self) -> dict[str, float]:
        """The resident memory of each process, in MiB."""
        return {name: round(rss_mib(pid), 1) for name, pid in self._pids().items()}

    def _cpu_s(self) -> dict[str, float]:
        stats = {name: read_stat(pid) for name, pid in self._pids().items()}
        return {name: stat.cpu_s() for name, stat in stats.items() if stat is not None}

    def begin(self) -> Moment:
        """A phase begins."""
        return Moment(self._cpu_s(), len(self.process.output()), time.time())

    def end(self, begin: Moment) -> dict[str, Any]:
        """What it cost since then: CPU by process, memory; how many rosters came into force, and when the last one did."""
        lines = [line for line in self.process.output()[begin.log_chars :].splitlines() if '"roster"' in line]
        rosters = [json.loads(line) for line in lines]
        cpu_s = {name: round(spent - begin.cpu_s.get(name, 0.0), 3) for name, spent in self._cpu_s().items()}
        found: dict[str, Any] = {"relay_cpu_s": cpu_s, "relay_mib": self.memory(), "rosters": len(rosters)}
        if rosters:
            last_s = datetime.fromisoformat(rosters[-1]["time"]).timestamp()
            found["in_force_s"] = round(last_s - begin.at_s, 3)
        return found


class Waits:
    """A process of its own that talks by two connections, through relay and past it, and measures how long it waits."""

    def __init__(self, source: str, address: str, port: int, echo: int, stack: ExitStack) -> None:
        context = multiprocessing.get_context("spawn")
        self._end, theirs = context.Pipe()
        process = context.Process(target=_talk, args=(source, address, port, echo, theirs), daemon=True)
        process.start()
        stack.callback(process.join)
        stack.callback(process.terminate)
        self.take()

    def take(self) -> dict[str, Any]:
        """Milliseconds that a byte took there and back since the last time: median, 99 % and longest, of each."""
        self._end.send(None)
        if not self._end.poll(LOST_S):
            raise BenchError("who talks through relay says nothing")
        try:
            found: dict[str, Any] = self._end.recv()
        except (EOFError, OSError):
            raise BenchError("the connection through relay was cut") from None
        return found


def _talk(source: str, address: str, port: int, echo: int, questions: Connection) -> None:
    places = {"through_relay_ms": (address, port), "past_relay_ms": ("127.0.0.1", echo)}
    deadline_s = time.monotonic() + PATIENCE_S
    talking = {name: _dial(source, place, deadline_s) for name, place in places.items()}
    waits_s: dict[str, list[float]] = {name: [] for name in places}
    cuts = 0
    while True:
        for name, sock in talking.items():
            try:
                waits_s[name].append(round_trip_s(sock))
            except BenchError:  # the source is not in the roster any more
                cuts += 1
                sock.close()
                talking[name] = _dial(source, places[name], time.monotonic() + LOST_S)
        time.sleep(ROUND_TRIP_EACH_S)
        if questions.poll():
            questions.recv()
            found = {name: _summary(sorted(each)) for name, each in waits_s.items()}
            questions.send({**found, "cuts": cuts})
            waits_s, cuts = {name: [] for name in places}, 0


def _dial(source: str, place: tuple[str, int], deadline_s: float) -> socket.socket:
    """A connection that answers; tried again while relay does not admit the source yet."""
    while True:
        sock = socket.socket()
        try:
            sock.settimeout(PATIENCE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.bind((source, 0))
            sock.connect(place)
            round_trip_s(sock)
        except (BenchError, OSError):
            sock.close()
            if time.monotonic() > deadline_s:
                raise
            time.sleep(POLL_S)
        else:
            return sock


def _summary(waits_s: list[float]) -> list[float]:
    if not waits_s:
        return []
    at = (len(waits_s) // 2, int(0.99 * len(waits_s)), -1)
    return [round(1000 * waits_s[n], 2) for n in at]
