"""What a flow sees when a worker dies, and when relay is upgraded. See README.md.

    python bench/survival.py [--flows N...] [--kills N] [--upgrades N] [--gate]

Exit status: 0; 1 when it cannot run, when a connection was lost, or with --gate when an aim is missed; 2 for a wrong
command line; 128 and the signal's number when interrupted.
"""

import argparse
import http.client
import json
import os
import resource
import signal
import socket
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from configs import Address, Setting
from forwarders import relay_adapter
from generator import build_load, start_server
from machine import free_ports, machine_facts
from measure import start
from network import LOOPBACK
from process import POLL_S, BenchError, Process, run_to_the_end

ADOPTION_S = 1.0  # the aims: a worker with so many flows is replaced in that time,
ADOPTION_FLOWS = 10_000
PAUSE_S = 0.3  # and no flow of a smaller one stands still for longer than this
SMALL_FLOWS = 1_000

PATIENCE_S = 30.0  # a bound for hanging
SOURCES = 200  # client addresses 127.0.1.1 and on: the ports of one would not do for all connections (ip(7))
DESCRIPTORS_PER_FLOW = 4  # what relay counts for one, see docs/operations.md
DESCRIPTORS_RESERVED = 100
CALM_ROUND_TRIPS = 50  # after an event: by then everything that it brought is over


@dataclass(frozen=True, slots=True)
class Event:
    """One kill or upgrade: the longest round trip that met it, and how long the log says that adopting took."""

    pause_s: float
    adoption_s: float | None


@dataclass(slots=True)
class Row:
    """All events of one kind with so many flows open."""

    kind: str
    flows: int
    events: list[Event] = field(default_factory=list)

    @property
    def pauses_s(self) -> list[float]:
        """What each event made the flow wait."""
        return [event.pause_s for event in self.events]

    @property
    def adoptions_s(self) -> list[float]:
        """What the log says of each event, where it says anything."""
        return [event.adoption_s for event in self.events if event.adoption_s is not None]

    def __str__(self) -> str:
        cells = [f"{self.kind:8} {self.flows:>7,} {len(self.events):>7}"]
        for values_s in (self.pauses_s, self.adoptions_s):
            times = f"{1000 * median(values_s):9.1f} {1000 * max(values_s):9.1f}" if values_s else f"{'-':>9} {'-':>9}"
            cells.append(times)
        return "  ".join(cells)


HEAD = f"{'':8} {'flows':>7} {'times':>7}  {'pause ms':>9} {'max':>9}  {'adoption':>9} {'max':>9}"


class Relay:
    """The daemon under test: its admin API, its log, its worker."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self._admin_socket = str(folder / "admin.sock")

    def ask(self, method: str, path: str) -> tuple[int, Any]:
        """One request to the admin API: (HTTP status, JSON value; None where the answer is none)."""
        with closing(http.client.HTTPConnection("localhost", timeout=PATIENCE_S)) as connection:
            connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.sock.settimeout(PATIENCE_S)
            connection.sock.connect(self._admin_socket)
            connection.request(method, path)
            response = connection.getresponse()
            text = response.read()
        try:
            return response.status, json.loads(text)
        except ValueError:
            return response.status, None

    def worker_pid(self) -> int:
        """The pid of its one worker; 0 while nobody answers, or while it is being upgraded."""
        try:
            code, status = self.ask("GET", "/v1/status")
        except (OSError, http.client.HTTPException):
            return 0
        return int(status["workers"][0]["pid"]) if code == 200 and not status["upgrading"] else 0

    def adoptions(self) -> list[dict[str, Any]]:
        """What the log says of take-overs so far."""
        lines = [line for line in self.process.output().splitlines() if '"adopted"' in line]
        return [json.loads(line) for line in lines]


class Flows:
    """Open connections through relay, each of them proved by a byte there and back: one talks, the others are idle."""

    def __init__(self, port: int, stack: ExitStack) -> None:
        self._port = port
        self._stack = stack
        self._all: list[socket.socket] = []

    def open(self, count: int) -> None:
        """Open as many as are missing."""
        while len(self._all) < count:
            sock = self._stack.enter_context(socket.socket())
            sock.settimeout(PATIENCE_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            # A reset at the end: 10,000 ports in TIME_WAIT would be missing for the next run.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.bind((f"127.0.1.{1 + len(self._all) % SOURCES}", 0))
            sock.connect(("127.0.0.1", self._port))
            self._all.append(sock)
            round_trip_s(sock)

    def check(self) -> None:
        """Raises BenchError unless each one still answers."""
        for sock in self._all:
            round_trip_s(sock)

    def longest_round_trip_s(self, event: Callable[[], None], over: Callable[[], bool]) -> float:
        """Let one flow talk without a pause, do `event` meanwhile, and go on until it is `over`.

        That is asked beside it: while the asking waits, the flow could not be seen to wait.
        """
        sock = self._all[0]
        for _ in range(CALM_ROUND_TRIPS):
            round_trip_s(sock)
        with ThreadPoolExecutor(1) as beside:
            waiting = beside.submit(do_and_wait, event, over)
            longest_s = round_trip_s(sock)
            while not waiting.done():
                longest_s = max(longest_s, round_trip_s(sock))
            waiting.result()
        return max(longest_s, *(round_trip_s(sock) for _ in range(CALM_ROUND_TRIPS)))


def do_and_wait(event: Callable[[], None], over: Callable[[], bool]) -> None:
    """Do it and wait until it is over. Raises BenchError when that takes too long."""
    event()
    deadline_s = time.monotonic() + PATIENCE_S
    while not over():
        if time.monotonic() > deadline_s:
            raise BenchError(f"not over after {PATIENCE_S:.0f} s")
        time.sleep(POLL_S)


def round_trip_s(sock: socket.socket) -> float:
    """How long one byte takes there and back. Raises BenchError where it does not come back."""
    began_s = time.perf_counter()
    try:
        sock.sendall(b"?")
        answer = sock.recv(16)
    except OSError as error:
        raise BenchError(f"a connection was lost: {error}") from error
    if answer != b"?":
        raise BenchError(f"a connection was lost: {answer!r} came for one byte")
    return time.perf_counter() - began_s


def kill(relay: Relay, flows: Flows, count: int) -> Event:
    """SIGKILL to the worker. Raises BenchError where its successor does not take over all of `count` flows."""
    before, pid = len(relay.adoptions()), relay.worker_pid()
    # Control may hear of the successor after the log has it, and the next kill needs its pid.
    pause_s = flows.longest_round_trip_s(
        lambda: os.kill(pid, signal.SIGKILL),
        lambda: len(relay.adoptions()) == before + 1 and relay.worker_pid() not in (0, pid),
    )
    adopted = relay.adoptions()[-1]
    if adopted["flows"] != count:
        raise BenchError(f"{adopted['flows']} flows were adopted, and {count} are open")
    return Event(pause_s, adopted["took_s"])


def upgrade(relay: Relay, flows: Flows, _count: int) -> Event:
    """`POST /v1/upgrade`, until another worker is at work. Raises BenchError where it is refused."""
    before, pid = len(relay.adoptions()), relay.worker_pid()

    def ask() -> None:
        try:
            code, answer = relay.ask("POST", "/v1/upgrade")
        except (OSError, http.client.HTTPException):
            return  # who was asked is replaced as well
        if code >= 400:
            raise BenchError(f"upgrade refused: {code} {answer}")

    pause_s = flows.longest_round_trip_s(ask, lambda: relay.worker_pid() not in (0, pid))
    told = relay.adoptions()[before:]
    return Event(pause_s, told[-1]["took_s"] if told else None)


def can_upgrade(relay: Relay) -> bool:
    """Whether this relay has live upgrades: another method than POST is then refused (405), and not unknown (404)."""
    return relay.ask("GET", "/v1/upgrade")[0] == 405


def most_flows() -> tuple[int, int]:
    """How many flows one worker can hold on this machine: as relay counts descriptors, and as idle flows need them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = int(Path("/proc/sys/fs/nr_open").read_text())
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    usable = hard - DESCRIPTORS_RESERVED
    return usable // DESCRIPTORS_PER_FLOW, usable // 2


def run_bench(options: argparse.Namespace) -> int:
    """Measures, prints, judges where asked. Returns the exit status; raises BenchError when it cannot run."""
    build_load()
    counted, most = most_flows()
    alteration = ("two-descriptors",) if max(options.flows) > counted else ()
    print("\n".join(f"{key:12}  {value}" for key, value in machine_facts().items()))
    if alteration:
        print("the limit of descriptors is low: for the kills relay counts two for a flow, which do for idle ones")
    print(f"\n{HEAD}")
    rows = run_rows("kill", sorted({min(count, most) for count in options.flows}), options.kills, alteration)
    # What relay execs at an upgrade is not altered.
    rows += run_rows("upgrade", sorted({min(count, counted) for count in options.flows}), options.upgrades, ())
    missed = missed_aims(rows)
    print("\n" + ("aims met" if not missed else "aims missed\n  " + "\n  ".join(missed)))
    return 1 if missed and options.gate else 0


def run_rows(kind: str, counts: list[int], times: int, alteration: tuple[str, ...]) -> list[Row]:
    """A row for each number of open flows, printed as it comes; none for upgrades where relay has none."""
    rows: list[Row] = []
    with ExitStack() as stack:
        relay, port = start_relay(stack, alteration)
        if kind == "upgrade" and not can_upgrade(relay):
            print("upgrade   not available in this relay")
            return []
        event = kill if kind == "kill" else upgrade
        flows = Flows(port, stack)
        for count in counts:
            flows.open(count)
            rows.append(Row(kind, count, [event(relay, flows, count) for _ in range(times)]))
            print(rows[-1], flush=True)
        flows.check()
    return rows


def start_relay(stack: ExitStack, alteration: tuple[str, ...]) -> tuple[Relay, int]:
    """relay with one worker before an echo server, and the port to reach it by; the stack's end stops both."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
    listen, target = (Address("127.0.0.1", port) for port in free_ports(2))
    start_server(stack, "echo", [str(target)], None, folder / "server", LOOPBACK.near)
    own, setting = folder / "relay", Setting(listen, target)
    own.mkdir()
    process = start(relay_adapter("relay", *alteration, log_level="info"), own, setting, None)
    stack.callback(process.stop)
    relay = Relay(process, own)
    process.wait_until(lambda: relay.worker_pid() != 0, "at work")  # its port is open before anybody answers for it
    return relay, listen.port


def missed_aims(rows: list[Row]) -> list[str]:
    """Which of the aims are not met, one line each."""
    missed = []
    for row in rows:
        aim_s = PAUSE_S if row.flows <= SMALL_FLOWS else ADOPTION_S
        longest_s = max(row.pauses_s) if row.flows <= SMALL_FLOWS else median(row.pauses_s)
        if longest_s > aim_s:
            missed.append(f"{row.kind} with {row.flows:,} flows: {longest_s:.2f} s, and {aim_s} s is the aim")
    return missed


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with status 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="bench/survival.py", description="what a flow sees when a worker dies")
    flows = [1, 100, SMALL_FLOWS, ADOPTION_FLOWS]
    parser.add_argument(
        "--flows", type=int, nargs="+", default=flows, metavar="N", help="open flows (1 100 1000 10000)"
    )
    parser.add_argument("--kills", type=int, default=50, help="kills with each number of flows (default 50)")
    parser.add_argument("--upgrades", type=int, default=10, help="upgrades with each number of flows (default 10)")
    parser.add_argument("--gate", action="store_true", help="exit 1 when an aim is missed")
    options = parser.parse_args(arguments)
    if not all(1 <= each <= 100_000 for each in (*options.flows, options.kills, options.upgrades)):
        parser.error("--flows, --kills, --upgrades: write a number between 1 and 100000")
    return options


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: run_bench(parse_arguments())))
