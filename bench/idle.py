"""What a relay costs that has nothing to do: memory and CPU of each of its processes, and what each library takes.

    python bench/idle.py [--shape forward|edge|etcd] [--workers N] [--seconds S] [--json FILE]
    python bench/idle.py --connections N
    python bench/idle.py --libraries [MODULE...]

Exit status: 0; 1 when it cannot run; 2 for a wrong command line; 128 and the signal's number when interrupted.
"""

import argparse
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from etcd_server import EtcdServer
from forwarders import REPOSITORY
from generator import build_load, hold, start_server
from machine import descriptors, free_ports, machine_facts, warning_of_load
from network import LOOPBACK
from process import POLL_S, READY_S, BenchError, Process, ProcessStat, run_to_the_end, tree

SETTLE_S = 3.0  # after its start: what is done once, some time later (relay/dataplane/worker.py, SETTLE_S), is over
WARMED_BY = 200  # connections: what the first ones use for the first time is no cost of each
INSTANCES = ("127.1.0.1", "127.1.0.2")  # of an edge, which probes them

# What is imported alone, each in an interpreter of its own. The last ones are the whole of what two processes do.
LIBRARIES = (
    "asyncio",
    "uvloop",
    "ssl",
    "yaml",
    "pydantic",
    "prometheus_client",
    "aiohttp.web",
    "dns.asyncresolver",
    "relay.config.load",
    "relay.dataplane.worker",
    "relay.control.control",
    "relay.daemon",
)
IMPORT = """\
import sys, time
def kib():
    with open("/proc/self/smaps_rollup") as file:
        return {line.split()[0]: int(line.split()[1]) for line in file if line.split()[-1] == "kB"}
before, began_s = kib(), time.perf_counter()
__import__(sys.argv[1])
took_s, after = time.perf_counter() - began_s, kib()
print(after["Rss:"] - before["Rss:"], after["Anonymous:"] - before["Anonymous:"], took_s)
"""
IMPORTS = 5  # of each; the first one may have to compile, and the least time is the one without others' work in it


@dataclass(frozen=True, slots=True)
class Cost:
    """One process: its memory (smaps_rollup in proc(5)), and what it did while nothing was to be done."""

    role: str
    pid: int
    pss_mib: float
    private_dirty_mib: float
    cpu_percent: float = 0.0
    wakes_per_s: float = 0.0


def memory_mib(pid: int) -> dict[str, float]:
    """What /proc/PID/smaps_rollup says, by its names: `Pss`, `Private_Dirty` and others."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return {name: int(kib) / 1024 for name, kib in re.findall(r"^(\w+): +(\d+) kB$", text, re.MULTILINE)}


def wakes(pid: int) -> int:
    """How often the threads of a process have stopped to wait: each wait ends with a wake-up."""
    files = Path(f"/proc/{pid}/task").glob("*/status")
    found = (re.search(r"^voluntary_ctxt_switches:\s+(\d+)$", file.read_text(), re.MULTILINE) for file in files)
    return sum(int(each[1]) for each in found if each is not None)


def roles(root: int) -> dict[str, ProcessStat]:
    """The processes of a daemon by what they are. A holder has the name of its worker, and the keeper for a parent."""
    found = {}
    for stat in tree(root):
        name = Path(f"/proc/{stat.pid}/comm").read_text().strip().removeprefix("relay-")
        if stat.pid == root:
            name = "keeper"
        elif name.startswith("worker-") and stat.parent == root:
            name = name.replace("worker", "holder")
        found[name] = stat
    return dict(sorted(found.items(), key=lambda each: (("k", "c", "h", "w").index(each[0][0]), each[0])))


def costs(root: int, seconds: float) -> list[Cost]:
    """Of each process of the daemon, over so many seconds."""
    before = {name: (stat.cpu_s(), wakes(stat.pid)) for name, stat in roles(root).items()}
    began_s = time.monotonic()
    time.sleep(seconds)
    found = []
    for name, stat in roles(root).items():
        took_s, (cpu_s, woken) = time.monotonic() - began_s, before[name]
        cpu_percent, per_s = 100 * (stat.cpu_s() - cpu_s) / took_s, (wakes(stat.pid) - woken) / took_s
        memory = memory_mib(stat.pid)
        found.append(Cost(name, stat.pid, memory["Pss"], memory["Private_Dirty"], cpu_percent, per_s))
    return found


SUMMED = ("pss_mib", "private_dirty_mib", "cpu_percent", "wakes_per_s")


def table(found: list[Cost]) -> str:
    """A row for each process, and one for all of them together."""
    whole = Cost("whole", 0, *(sum(getattr(each, key) for each in found) for key in SUMMED))
    rows = (
        f"{each.role:10} {each.pss_mib:8.1f} {each.private_dirty_mib:14.1f} {each.cpu_percent:7.3f} {each.wakes_per_s:8.2f}"
        for each in (*found, whole)
    )
    return "\n".join((f"{'':10} {'PSS MiB':>8} {'private dirty':>14} {'CPU %':>7} {'wakes/s':>8}", *rows))


def library_costs(names: list[str]) -> list[str]:
    """A line for each of these: what its import costs in an interpreter that has imported nothing else."""
    # With compiled files, as in an installed one.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    lines = [f"{'imported alone':24} {'RSS MiB':>8} {'of it anonymous':>16} {'time ms':>8}"]
    for name in names:
        runs = []
        for _ in range(IMPORTS):
            command = [sys.executable, "-c", IMPORT, name]
            done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True, check=False)
            if done.returncode:
                break
            rss_kib, anonymous_kib, took_s = map(float, done.stdout.split())
            runs.append((took_s, rss_kib / 1024, anonymous_kib / 1024))
        if not runs:
            lines.append(f"{name:24} not installed")
            continue
        took_s, rss_mib, anonymous_mib = min(runs)
        lines.append(f"{name:24} {rss_mib:8.1f} {anonymous_mib:16.1f} {1000 * took_s:8.0f}")
    return lines


# --- a daemon -----------------------------------------------------------------------------------------------------------


class Idle:
    """A daemon that has metrics and the admin API on, and nobody who connects. It is ready when this is made."""

    def __init__(self, stack: ExitStack, shape: str, workers: int) -> None:
        """`stack`: what it ends with. Raises BenchError when it does not come up."""
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-bench-")))
        listen, metrics, target = free_ports(3)
        self.listen, self.target, self.folder = listen, target, folder
        self._metrics = f"http://127.0.0.1:{metrics}/metrics"
        settings: dict[str, Any] = {
            "workers": workers,
            "metrics": {"listen": f"127.0.0.1:{metrics}"},
            "admin": {"socket": str(folder / "admin.sock")},
            "log": {"format": "json"},
        }
        role: dict[str, Any] = {"instances": ["127.0.0.1"]}
        role["endpoints"] = {"in": {"type": "input", "public_port": listen, "target": f"127.0.0.1:{target}"}}
        service: dict[str, Any] = {"version": 1, "service": "bench", "roles": {"web": role}}
        self._id = "web_IN_0"
        getattr(self, f"_as_{shape}")(stack, folder, service, settings, target)
        self.process = self._started(folder, service, settings)
        stack.callback(self.process.stop)

    def _as_forward(self, *_: Any) -> None:
        """One input endpoint, and nothing else."""

    def _as_edge(
        self, stack: ExitStack, _folder: Path, service: dict[str, Any], _settings: dict[str, Any], target: int
    ) -> None:
        """The edge in front of two instances, which it probes every 15 s."""
        for address in INSTANCES:  # nobody accepts: the backlog has room for the probes
            stack.enter_context(socket.create_server((address, target), backlog=1024))
        service["edge"] = {"instances": ["127.0.0.1"]}
        role = service["roles"]["web"]
        role["instances"] = list(INSTANCES)
        role["endpoints"]["in"] |= {"port": target, "probe": {"interval": "15s"}}
        self._id = "edge_IN_0"

    def _as_etcd(
        self, stack: ExitStack, folder: Path, service: dict[str, Any], settings: dict[str, Any], _target: int
    ) -> None:
        """An instance that has its number from an etcd, and two more that it may know."""
        etcd = EtcdServer(folder)
        stack.callback(etcd.stop)
        (folder / "machine-id").write_text(secrets.token_hex(16))
        service["roles"]["web"]["instances"] = 3
        settings |= {"role": "web", "address": "127.0.0.1", "machine_id": str(folder / "machine-id")}
        settings["registry"] = {"etcd": [etcd.url], "ttl": "10s", "state": str(folder)}
        self._id = ""

    def _started(self, folder: Path, service: dict[str, Any], settings: dict[str, Any]) -> Process:
        files = folder / "service.yaml", folder / "instance.yaml"
        for file, value in zip(files, (service, settings), strict=True):
            file.write_text(json.dumps(value))  # JSON is YAML
        run = [sys.executable, "-m", "relay", "run", "--service", str(files[0]), "--settings", str(files[1])]
        run += ["--id", self._id] if self._id else []
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as notified:
            notified.bind(str(folder / "notify"))
            os.environ["NOTIFY_SOCKET"] = str(folder / "notify")
            process = Process("relay", run, cpus=None, log=folder / "output", cwd=REPOSITORY)
            try:
                process.wait_until(lambda: b"READY=1" in _received(notified), "ready")
            except BaseException:
                process.stop()
                raise
        return process

    def used(self) -> None:
        """Have it scraped once, as Prometheus would again and again. Raises BenchError."""
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(self._metrics, timeout=READY_S) as answer:
                answer.read()
        except OSError as error:
            raise BenchError(f"{self._metrics}: {error}") from error


def _received(sock: socket.socket) -> list[bytes]:
    try:
        return sock.recv(4096).split(b"\n")
    except BlockingIOError:
        return []


def connection_costs(stack: ExitStack, count: int) -> str:
    """What a worker has in memory for each of so many idle connections; the ledger's record, which all share, on top."""
    build_load()
    stack.enter_context(descriptors(4 * count + 1000))
    idle = Idle(stack, "forward", 1)
    start_server(stack, "echo", [f"127.0.0.1:{idle.target}"], None, idle.folder / "echo", LOOPBACK.near)
    [worker] = [stat for name, stat in roles(idle.process.pids()[0]).items() if name == "worker-0"]
    found_mib = []
    for more in (WARMED_BY, count):
        hold(stack, ("127.0.0.1", idle.listen), more, None, idle.folder / f"hold-{more}")
        time.sleep(SETTLE_S)  # what is made at the first sweep is there
        found_mib.append(memory_mib(worker.pid)["Anonymous"])
    return f"{(found_mib[1] - found_mib[0]) * 2**20 / count:.0f} bytes for each of {count} idle connections"


def run_bench(options: argparse.Namespace) -> int:
    """Measures and prints. Returns the exit status; raises BenchError when it cannot run."""
    print("\n".join(f"{key:12}  {value}" for key, value in machine_facts().items()))
    print(warning_of_load(os.getloadavg()[0]))
    if options.libraries is not None:
        print("\n".join(library_costs(options.libraries or list(LIBRARIES))))
        return 0
    with ExitStack() as stack:
        if options.connections:
            print(connection_costs(stack, options.connections))
            return 0
        idle = Idle(stack, options.shape, options.workers)
        time.sleep(SETTLE_S)
        found = costs(idle.process.pids()[0], options.seconds)
        print(table(found), flush=True)
        idle.used()
        time.sleep(POLL_S)
        pss_mib = sum(memory_mib(pid)["Pss"] for pid in idle.process.pids())
        print(f"{'scraped':10} {pss_mib:8.1f}")
    if options.json is not None:
        Path(options.json).write_text(json.dumps([asdict(each) for each in found]))
    return 0


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line; ends the program with status 2 when it is wrong."""
    parser = argparse.ArgumentParser(prog="bench/idle.py", description="what a relay costs that has nothing to do")
    parser.add_argument("--shape", choices=("forward", "edge", "etcd"), default="forward", help="what it is (forward)")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="workers (2)")
    parser.add_argument("--seconds", type=float, default=60.0, metavar="S", help="how long its CPU is counted (60)")
    parser.add_argument(
        "--libraries", nargs="*", metavar="MODULE", help="instead: what the import of each costs (relay's libraries)"
    )
    parser.add_argument(
        "--connections", type=int, metavar="N", help="instead: the memory of each of N idle connections"
    )
    parser.add_argument("--json", metavar="FILE", help="write the table to this file too")
    options = parser.parse_args(arguments)
    if options.workers < 1 or options.seconds <= 0 or (options.connections or 1) < 1:
        parser.error("--workers, --seconds, --connections: write a number above 0")
    return options


if __name__ == "__main__":
    sys.exit(run_to_the_end(lambda: run_bench(parse_arguments())))
