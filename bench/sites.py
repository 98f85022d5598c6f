"""What bench/behind.py compares: relay and HAProxy as the edge of a service of nginx, each part on a machine of its own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forwarders import REPOSITORY, find_program
from machines import Machines
from process import POLL_S, READY_S, BenchError, Process
from steady import FIRST_PORT
from survival import Relay

CLIENT, EDGE = "10.78.1.1", "10.78.0.1"
INSTANCES = ("10.78.0.11", "10.78.0.12")
PUBLIC_PORT, PRIVATE_PORT, APP_PORT = 80, 8000, 8080
PATIENCE_S = 90.0  # a bound for hanging: longer than any command here waits by itself
ENDPOINT = "web/http"


class NotYetError(Exception):
    """The relay under test has nothing of this kind. The message is what it says itself."""


class App:
    """nginx on one instance: on loopback for relay, and on the instance's own address for HAProxy."""

    def __init__(self, machines: Machines, number: int, folder: Path) -> None:
        self._machines, self._number, self._folder = machines, number, folder
        folder.mkdir()
        folder.chmod(0o755)
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = " ".join(f"{kind}_temp_path {folder}/{kind};" for kind in kinds)
        (folder / "nginx.conf").write_text(f"""
            user root; daemon off; pid {folder}/pid; worker_processes 1;
            events {{ worker_connections 4096; }}
            http {{
                {temporary}
                log_format number "$request_uri";
                server {{
                    listen 127.0.0.1:{APP_PORT}; listen {INSTANCES[number]}:{APP_PORT};
                    access_log {folder}/access number;
                    location / {{ return 200 "web{number}\\n"; }}
                    location = /healthz {{
                        access_log off;
                        if (-e {folder}/unwell) {{ return 503; }}
                        return 200 "well\\n";
                    }}
                }}
            }}
        """)
        self._process: Process | None = None

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [find_program("nginx", "nginx"), "-e", str(self._folder / "error"), "-c"]
        command = self._machines.on(f"web{self._number}", [*command, str(self._folder / "nginx.conf")])
        log = self._folder / "output"
        self._process = Process(f"nginx {self._number}", command, cpus=None, log=log, cwd=self._folder)
        self._process.wait_until(lambda: len(self._process_pids()) > 1, "at work")

    def _process_pids(self) -> list[int]:
        return self._process.pids() if self._process is not None else []

    def signal(self, number: signal.Signals, *, to_all: bool) -> None:
        """Send it a signal: to all its processes, the master first, or to the master alone."""
        pids = self._process_pids()
        for pid in pids if to_all else pids[:1]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def wait_gone(self) -> None:
        """Until its master has ended."""
        process = self._process
        wait_until(lambda: process is None or process.has_ended(), f"nginx {self._number} ends")

    def stop_well(self) -> None:
        """As `systemctl stop nginx` does: no new connections, and those that it has taken are served."""
        self.signal(signal.SIGQUIT, to_all=False)
        self.wait_gone()

    def be_well(self, well: bool) -> None:
        """What it answers to the probe from now on: 200 or 503. It serves all the same."""
        mark = self._folder / "unwell"
        mark.unlink(missing_ok=True) if well else mark.touch()

    def served(self) -> list[int]:
        """The numbers of the requests that it has answered."""
        log = self._folder / "access"
        lines = log.read_text().splitlines() if log.exists() else []
        return [int(line[1:]) for line in lines if line[1:].isdigit()]

    def end(self) -> None:
        """Stop it in any state."""
        if self._process is not None:
            self.signal(signal.SIGCONT, to_all=True)
            self._process.stop()


@dataclass(slots=True)
class Part:
    """One relay of the service: its process and its files."""

    process: Process
    settings: Path
    api: Relay

    def status(self) -> dict[str, Any]:
        """What `relay status` says; nothing where nobody answers."""
        try:
            code, found = self.api.ask("GET", "/v1/status")
        except OSError:
            return {}
        return dict(found) if code == 200 else {}

    def command(self, *arguments: str) -> None:
        """Run a relay command to its end. Raises NotYetError where there is none like that, BenchError where it fails."""
        command = [sys.executable, "-m", "relay", *arguments, "--settings", str(self.settings)]
        done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        said = " | ".join((done.stderr or done.stdout).strip().splitlines()[-1:])
        if done.returncode == 2:  # misuse of the command line
            raise NotYetError(said)
        if done.returncode:
            raise BenchError(f"relay {' '.join(arguments)}: status {done.returncode}: {said}")

    def kill_worker(self) -> None:
        """SIGKILL to its worker."""
        os.kill(self.api.worker_pid(), signal.SIGKILL)


@dataclass(slots=True)
class Site:
    """A service at work. `parts` are relay's, by machine; none where HAProxy is the edge."""

    machines: Machines
    apps: list[App]
    parts: dict[str, Part] = field(default_factory=dict)
    edge: Process | None = None

    def end_parts(self) -> None:
        """Stop what is in front of the applications, so that each connection has its line in the log."""
        for process in [part.process for part in self.parts.values()] + ([self.edge] if self.edge else []):
            process.stop()

    def taken(self) -> set[int]:
        """The numbers of the requests whose connection some application's kernel has taken, by the logs of all."""
        found = {number for app in self.apps for number in app.served()}
        if self.edge is not None:
            return found | _taken_by_haproxy(self.edge.output())
        instances = [part for name, part in self.parts.items() if name != "edge"]
        return found.union(*(_taken_by_relay(part.process.output()) for part in instances))


def _number_of(port: str) -> int:
    return int(port) - FIRST_PORT


_MOVED = ("client_fin", "target_fin", "client_reset", "target_reset", "idle", "peer_dead")


def _taken_by_relay(log: str) -> set[int]:
    """An instance's log: `connect_s` is 0 unless the application took the connection, and after a worker's death.

    Then the cause tells it: with a target, these are of a connection that had reached it.
    """
    found = set()
    for line in log.splitlines():
        if '"event":"connection"' not in line:
            continue
        said = json.loads(line)
        if said["target"] and (said["connect_s"] > 0 or said["cause"] in _MOVED):
            found.add(_number_of(said["peer"].rpartition(":")[2]))
    return found


def _taken_by_haproxy(log: str) -> set[int]:
    """The edge's log: the client's port, and how long connecting took, which is -1 where no server took it."""
    lines = [line.split() for line in log.splitlines() if line.startswith("client ")]
    return {_number_of(port) for _, port, connect_ms, *_ in lines if int(connect_ms) >= 0}


def wait_until(check: Callable[[], object], what: str) -> None:
    """Returns once `check()` is true. BenchError when that does not come."""
    deadline_s = time.monotonic() + READY_S
    while not check():
        if time.monotonic() > deadline_s:
            raise BenchError(f"not within {READY_S:.0f} s: {what}")
        time.sleep(POLL_S)


def _haproxy(stack: ExitStack, site: Site, folder: Path) -> None:
    servers = "\n".join(f"    server web{n} {INSTANCES[n]}:{APP_PORT} check inter 2s" for n in range(len(site.apps)))
    config = folder / "haproxy.cfg"
    config.write_text(f"""\
global
    nbthread 1
    maxconn 8192
    log stdout format raw local0

defaults
    mode tcp
    log global
    log-format "client %cp %Tc %s %ts"
    timeout connect 5s
    timeout client 1m
    timeout server 1m

frontend http
    bind {EDGE}:{PUBLIC_PORT}
    default_backend web

backend web
    balance roundrobin
    option redispatch
    retries 3
    option httpchk GET /healthz
{servers}
""")
    command = site.machines.on("edge", [find_program("haproxy", "haproxy"), "-db", "-f", str(config)])
    site.edge = process = Process("haproxy", command, cpus=None, log=folder / "haproxy.log", cwd=folder)
    stack.callback(process.stop)
    process.wait_until(lambda: _listens(process.pids()[0], PUBLIC_PORT), "listening")


def _relay(stack: ExitStack, site: Site, folder: Path, hold: str) -> None:
    timeouts = f"\n        timeouts: {{hold: {hold}}}" if hold else ""
    service = folder / "service.yaml"
    service.write_text(f"""\
version: 1
service: bench
edge:
  instances: [{EDGE}]
roles:
  web:
    instances: [{", ".join(INSTANCES[: len(site.apps)])}]
    endpoints:
      http:
        type: input
        protocol: http
        public_port: {PUBLIC_PORT}
        port: {PRIVATE_PORT}
        target: 127.0.0.1:{APP_PORT}
        probe: {{protocol: http, path: /healthz}}{timeouts}
""")
    checked = subprocess.run(
        [sys.executable, "-m", "relay", "check", str(service)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    if checked.returncode:
        raise NotYetError(checked.stdout.strip().splitlines()[0].removeprefix(f"{service}:"))
    for name in [*(f"web{n}" for n in range(len(site.apps))), "edge"]:
        own = folder / name
        own.mkdir()
        settings = own / "instance.yaml"
        settings.write_text(
            f"workers: 1\nmetrics: false\nadmin: {{socket: {own}/admin.sock}}\nlog: {{level: info, format: json}}\n"
        )
        run = [sys.executable, "-m", "relay", "run", "--service", str(service), "--settings", str(settings)]
        run += ["--id", "edge_IN_0" if name == "edge" else f"web_IN_{name[-1]}"]
        command = site.machines.on(name, run)
        process = Process(f"relay {name}", command, cpus=None, log=own / "log", cwd=REPOSITORY)
        stack.callback(process.stop)
        site.parts[name] = Part(process, settings, Relay(process, own))
        process.wait_until(lambda part=site.parts[name]: part.status(), "at work")  # type: ignore[misc]


def _listens(pid: int, port: int) -> bool:
    """Whether somebody listens on the port, on the machine where this process is (proc(5), /proc/net/tcp)."""
    lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return any(int(local.rpartition(":")[2], 16) == port and state == "0A" for _, local, _, state, *_ in lines)


@contextlib.contextmanager
def at_work(kind: str, instances: int, folder: Path, *, hold: str = "") -> Iterator[Site]:
    """A service with `relay` or `haproxy` at its edge; `hold` is what relay's endpoint has of it.

    Raises BenchError where it does not come to work, and NotYetError where this relay does not know what it is told.
    """
    with ExitStack() as stack:
        addresses = {f"web{n}": INSTANCES[n] for n in range(instances)}
        machines = stack.enter_context(Machines({"client": CLIENT, "edge": EDGE, **addresses}))
        site = Site(machines, [App(machines, n, folder / f"nginx{n}") for n in range(instances)])
        for app in site.apps:
            stack.callback(app.end)
            app.start()
        if kind == "haproxy":
            _haproxy(stack, site, folder)
        else:
            _relay(stack, site, folder, hold)
            edge = site.parts["edge"]
            wait_until(lambda: _all_up(edge), "every instance is up")
        yield site


def _all_up(edge: Part) -> bool:
    endpoints = edge.status().get("endpoints", [])
    return bool(endpoints) and all(each["health"] == "up" for each in endpoints[0]["target_set"])
