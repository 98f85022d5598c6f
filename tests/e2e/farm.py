"""A service on machines of its own, in network namespaces: clients, two edges, four instances, nginx behind each."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.conftest import Daemons
from tests.e2e.netns import Network
from tests.e2e.programs import RUN_S, answers, program, serving
from tests.harness import HANG_S, Daemon, eventually

CLIENTS: Final = tuple(f"10.77.1.{n}" for n in range(1, 251))
CLIENT_V6: Final = "fd77::1:1"
EDGES: Final = ("10.77.0.1", "10.77.0.2")
INSTANCES: Final = tuple(f"10.77.0.{n}" for n in range(11, 15))
INSTANCE_V6: Final = "fd77::11"
NAMES: Final = tuple(f"web_IN_{n}" for n in range(len(INSTANCES)))
# nginx on each instance: it says its name and whom it takes the client for.
PLAIN, PROXIED = 8080, 8081  # the second one by a PROXY header, which it demands

# A quarter of it is longer than every wait: a client that waits so long for an instance that is not there is noticed.
LATE: Final = {"connect": "10m"}
SELDOM: Final = {"interval": "10m", "timeout": "20m"}  # a probe finds nothing out within a test: failover alone must do
OFTEN: Final = {"interval": "500ms", "timeout": "2m"}  # that nobody is there is told by a refusal, and that at once


def hosts() -> dict[str, Sequence[str]]:
    """The machines and their addresses."""
    instances = {f"web{n}": [address] for n, address in enumerate(INSTANCES)}
    instances["web0"].append(INSTANCE_V6)
    edges = {f"edge{n}": [address] for n, address in enumerate(EDGES)}
    return {"client": [*CLIENTS, CLIENT_V6], **edges, **instances}


@contextlib.contextmanager
def nginx(network: Network, ordinal: int, directory: Path) -> Iterator[None]:
    """nginx on an instance: on its loopback, and on its own addresses as well."""
    listen_on = ["127.0.0.1", "[::1]", INSTANCES[ordinal], *([f"[{INSTANCE_V6}]"] if ordinal == 0 else [])]

    def server(port: int, options: str, client: str) -> str:
        listens = " ".join(f"listen {address}:{port}{options};" for address in listen_on)
        return f'server {{ {listens} return 200 "{NAMES[ordinal]} {client}\\n"; }}'

    temporary = " ".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(f"""
        user root; daemon off; pid {directory}/pid; worker_processes 1;
        events {{}}
        http {{
            access_log off; default_type text/plain; {temporary}
            {server(PLAIN, "", "$remote_addr")}
            {server(PROXIED, " proxy_protocol", "$proxy_protocol_addr")}
        }}
    """)
    command = [program("nginx"), "-e", str(directory / "error.log"), "-c", str(config)]
    with network.inside(f"web{ordinal}"), serving(command, directory, lambda: answers(PLAIN)):
        yield


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back to one connection of a client."""

    instance: str
    client: str  # as the application knows it
    took_s: float


def ask(network: Network, source: str, *, to: str = EDGES[0], port: int = 80) -> Answer:
    """One new connection with one request."""
    began_s = time.monotonic()
    with network.inside("client"):
        connection = http.client.HTTPConnection(to, port, timeout=HANG_S, source_address=(source, 0))
        with contextlib.closing(connection):
            connection.request("GET", "/")
            instance, client = connection.getresponse().read().decode().split()
    return Answer(instance, client, time.monotonic() - began_s)


@dataclass(frozen=True, slots=True)
class Measured:
    """What wrk says. A failure is an error on a socket or an answer other than 2xx and 3xx."""

    requests: int
    connect: int  # connections that could not be made
    read: int  # that ended or were reset before the answer was whole
    write: int
    timeout: int  # requests that took longer than a minute: they were answered late, or not
    status: int  # answers that are none

    @property
    def failed(self) -> int:
        """All that went wrong."""
        return self.connect + self.read + self.write + self.timeout + self.status


class Load:
    """wrk meanwhile, with a new connection for each request. Use as a context manager; afterwards it is `measured`."""

    def __init__(self, network: Network, *, connections: int = 8, to: str = EDGES[0]) -> None:
        load = ["-t", "1", "-c", str(connections), "-d", f"{RUN_S:.0f}s", "--timeout", "60s", "-H", "Connection: close"]
        self._network = network
        self._command = [program("wrk"), *load, f"http://{to}/"]

    def __enter__(self) -> "Load":
        with self._network.inside("client"):
            self._wrk = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            self._wrk.send_signal(signal.SIGINT)  # it ends, and says what it has measured
            said = self._wrk.communicate(timeout=RUN_S)[0]
        finally:
            self._wrk.kill()
            self._wrk.wait()
        if kind is None:
            self.measured = _measured(said)


def _measured(said: str) -> Measured:
    requests = re.search(r"(\d+) requests in", said)
    assert requests, said
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)  # a line that may be missing
    status = re.search(r"Non-2xx or 3xx responses: (\d+)", said)
    connect, read, write, timeout = map(int, errors.groups() if errors else (0, 0, 0, 0))
    return Measured(int(requests[1]), connect, read, write, timeout, int(status[1]) if status else 0)


class Farm:
    """The daemons of the service, each on its machine."""

    def __init__(
        self,
        network: Network,
        daemons: Daemons,
        *,
        edges: int = 1,
        instances: int = len(INSTANCES),
        known: int | None = None,
        **keys: Any,
    ) -> None:
        """Started, with every instance up. `known`: how many of them the edges know of; `keys` are the endpoint's."""
        self.network = network
        self._keys = keys

        def started(hosts: list[str], file: dict[str, Any]) -> list[Daemon]:
            made = [daemons.make(file, {"workers": 1}, instance=f"{host[:-1]}_IN_{host[-1]}") for host in hosts]
            with ThreadPoolExecutor(len(made)) as pool:
                list(pool.map(self.start, made, hosts))
            return made

        self.instances = started([f"web{n}" for n in range(instances)], self.service(len(INSTANCES)))
        # Afterwards: an edge that probes an instance before it is there believes it down until the next probe.
        self.edges = started([f"edge{n}" for n in range(edges)], self.service(known or instances))
        for n in range(edges):  # the first probe comes within a second, and must not come in the middle of a test
            self.wait_health(*["up"] * (known or instances), edge=n)

    def service(self, count: int) -> dict[str, Any]:
        """The service file of one that knows so many instances."""
        endpoint = {
            "type": "input",
            "public_port": 80,
            "port": 8000,
            "target": f"127.0.0.1:{PLAIN}",
            "probe": OFTEN,
            **self._keys,
        }
        roles = {"web": {"instances": list(INSTANCES[:count]), "endpoints": {"in": endpoint}}}
        return {"version": 1, "service": "test", "edge": {"instances": list(EDGES)}, "roles": roles}

    def start(self, daemon: Daemon, host: str) -> None:
        """Start a daemon on its machine."""
        with self.network.inside(host):
            daemon.start()

    def ask(self, source: str = CLIENTS[0], *, edge: int = 0) -> Answer:
        """One new connection by an edge."""
        return ask(self.network, source, to=EDGES[edge])

    def serve(self, count: int = 100) -> None:
        """Wait until the first edge has accepted so many more connections."""

        def accepted() -> int:
            return int(self.edges[0].endpoint("web/in")["accepted"])

        before = accepted()
        eventually(lambda: accepted() >= before + count, f"{count} connections more")

    def none_held_up(self) -> None:
        """Wait until none of those is open any more that the first edge has open now."""

        def now() -> set[str]:
            code, found = self.edges[0].ask("GET", "/v1/connections")
            assert code == 200, found
            return {each["peer"] for each in found}

        held = now()

        def ended() -> bool:
            held.intersection_update(now())
            return not held

        eventually(ended, "each connection is served")

    def targets(self, edge: int = 0) -> list[dict[str, Any]]:
        """The instances as the edge knows them."""
        return list(self.edges[edge].endpoint("web/in")["target_set"])

    def wait_health(self, *expected: str, edge: int = 0) -> None:
        """Wait until the edge thinks so of its instances."""
        eventually(
            lambda: [each["health"] for each in self.targets(edge)] == list(expected),
            f"health of the instances is {expected}",
        )


@contextlib.contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """All its processes stand still meanwhile. The kernel still takes connections in their name."""
    os.killpg(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(daemon.pid, signal.SIGCONT)


@contextlib.contextmanager
def slowed(daemon: Daemon) -> Iterator[None]:
    """It gets to run for a fifth of the time meanwhile, in pieces."""
    over = threading.Event()

    def hold_up() -> None:
        while not over.is_set():
            with stopped(daemon):
                over.wait(0.04)
            over.wait(0.01)

    thread = threading.Thread(target=hold_up)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
