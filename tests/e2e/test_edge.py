"""An edge: the same daemon, in front of instances that are relays too, on loopback addresses of their own."""

import contextlib
import os
import re
import signal
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import counted, next_worker, typed
from tests.harness import Daemon, Scrape, dial, eventually
from tests.ports import free_port, free_ports

EDGE = "127.250.0.1"
INSTANCES = tuple(f"127.1.0.{n}" for n in range(1, 5))


class Backend:
    """A service of one instance: says its name to each line, or after a PROXY header who the client is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()  # which nobody else takes when this one is closed
        self.listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self.seen: list[str] = []
        self.open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, address = self.listener.accept()
                self.open.add(peer)
                threading.Thread(target=self._serve, args=(peer, address[0]), daemon=True).start()

    def _serve(self, peer: socket.socket, address: str) -> None:
        with peer, contextlib.suppress(OSError), peer.makefile("rb") as lines:
            for line in lines:
                if line.startswith(b"PROXY "):
                    if b"UNKNOWN" not in line:  # relay's own question
                        address = line.split()[2].decode()
                    continue
                self.seen.append(address)
                peer.sendall(f"{self.name} {address}\n".encode())
        self.open.discard(peer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for peer in list(self.open):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)


def line(client: socket.socket, said: bytes = b"hello\n") -> str:
    """Say something; the line that comes back, "" where none does."""
    client.sendall(said)
    answer = b""
    while not answer.endswith(b"\n") and (part := client.recv(1)):
        answer += part
    return answer.decode().strip()


def is_reset(port: int, *, host: str, source: str | None = None, data: bytes = b"") -> bool:
    """Whether a connection that sends `data` is reset without an answer."""
    try:
        with dial(port, host=host, source=source) as client:
            client.sendall(data)
            return client.recv(1) == b"?"
    except ConnectionResetError:
        return True


def kill_worker(daemon: Daemon) -> None:
    """Kill it, and wait for the next one."""
    before = daemon.worker_pid()
    os.kill(before, signal.SIGKILL)
    next_worker(daemon, before)


class Site:
    """An edge, or several, and instances with a backend each."""

    def __init__(
        self,
        daemons: Daemons,
        backends: list[Backend],
        *,
        edges: int = 1,
        edge_settings: dict[str, Any] | None = None,
        **keys: Any,
    ) -> None:
        self.daemons = daemons
        self.backends = backends
        self.public, self.private = free_port("0.0.0.0"), free_port("0.0.0.0")  # edges and instances have them
        self.direct = free_ports(len(backends), EDGE)
        self.keys = keys
        self.edge_settings = edge_settings or {}
        self.clients: set[str] = set()
        self.edge_addresses = [f"127.250.0.{1 + n}" for n in range(edges)]
        self.instances = self._start("web", len(backends))
        self.edges = self._start("edge", edges)
        self.edge = self.edges[0]

    def service(self, ordinal: int | None, count: int | None = None, **changes: Any) -> dict[str, Any]:
        """The file of one machine: each has its own target here, because all of them are on one."""
        target = f"127.0.0.1:{self.backends[ordinal].port}" if ordinal is not None else "127.0.0.1:1"
        endpoint = {
            "type": "input",
            "public_port": self.public,
            "instance_ports": f"{self.direct}-{self.direct + len(self.backends) - 1}",
            "port": self.private,
            "target": target,
            "send_proxy": "v1",
            "probe": {"interval": "1s", "timeout": "2m"},  # whoever is down refuses or resets, and that tells at once
            **self.keys,
            **changes,
        }
        addresses = list(INSTANCES[: count or len(self.backends)])
        roles = {"web": {"instances": addresses, "endpoints": {"in": endpoint}}}
        return {"version": 1, "service": "test", "edge": {"instances": self.edge_addresses}, "roles": roles}

    def _start(self, role: str, count: int) -> list[Daemon]:
        files = [self.service(n if role == "web" else None) for n in range(count)]
        settings = {"workers": 1, **(self.edge_settings if role == "edge" else {})}
        made = [self.daemons.make(file, settings, instance=f"{role}_IN_{n}") for n, file in enumerate(files)]
        with ThreadPoolExecutor() as together:
            return list(together.map(Daemon.start, made))

    def ask(self, *, source: str = "127.0.0.9", host: str = EDGE, port: int | None = None) -> str:
        """One connection: what answered."""
        self.clients.add(source)
        with dial(port or self.public, host=host, source=source) as client:
            return line(client)

    def health(self, edge: Daemon | None = None) -> list[str]:
        """What the edge thinks of its targets."""
        return [each["health"] for each in (edge or self.edge).endpoint("web/in")["target_set"]]

    def wait_health(self, *expected: str) -> None:
        eventually(lambda: self.health() == list(expected), f"health is {expected}")


@contextlib.contextmanager
def four() -> Iterator[list[Backend]]:
    """Backends for four instances."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Backend(f"web_IN_{n}"))) for n in range(4)]


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    with four() as made:
        yield made


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """For tests that change nothing: four instances, all up."""
    daemons = Daemons(tmp_path_factory.mktemp("site"))
    with four() as made, contextlib.ExitStack() as stack:
        stack.callback(daemons.end)
        shared = Site(daemons, made)
        shared.wait_health("up", "up", "up", "up")
        yield shared


def test_connections_are_spread_and_the_client_is_known(site: Site) -> None:
    answers = Counter(site.ask(source=f"127.0.0.{n}") for n in range(10, 110))
    names = Counter(answer.split()[0] for answer in answers.elements())
    assert set(names) == {"web_IN_0", "web_IN_1", "web_IN_2", "web_IN_3"}
    assert {answer.split()[1] for answer in answers} == {f"127.0.0.{n}" for n in range(10, 110)}
    logged = {record["peer"].rpartition(":")[0] for record in site.instances[0].events("connection")}
    assert logged <= site.clients, "the log names clients, and no probe"


def test_an_instance_takes_no_one_but_its_edge(site: Site) -> None:
    assert is_reset(site.private, host=INSTANCES[0], data=b"hello\n")
    counted(site.instances[0], denied={"roster": 1})
    assert is_reset(site.private, host=INSTANCES[0], source=EDGE, data=b"no header, from an address of the edge\n")
    counted(site.instances[0], denied={"roster": 1, "protocol": 1})


def test_access_is_by_the_client_on_the_edge_and_on_the_instance(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:1], access=[{"deny": "127.0.0.66"}])
    site.wait_health("up")
    assert site.ask(source="127.0.0.65") == "web_IN_0 127.0.0.65"
    assert is_reset(site.public, host=EDGE, source="127.0.0.66")
    counted(site.edge, denied={"access": 1})
    # An edge with an older file lets it through; the instance does not.
    header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + socket.inet_aton("127.0.0.66") + socket.inet_aton(EDGE)
    assert is_reset(site.private, host=INSTANCES[0], source=EDGE, data=header + b"\x12\x34\x00\x50")
    counted(site.instances[0], denied={"access": 1})
    eventually(lambda: site.instances[0].endpoint("web/in")["closed"].get("denied") == 1, "it had been let in before")


def test_a_header_may_come_in_pieces_and_with_data_behind_it(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:1])
    header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + socket.inet_aton("192.0.2.7") + socket.inet_aton(EDGE)
    whole = header + b"\x12\x34\x00\x50" + b"hello\nagain\n"
    with dial(site.private, host=INSTANCES[0], source=EDGE) as client:
        for n in range(len(whole)):
            client.sendall(whole[n : n + 1])
            if n in (3, 15, 20):
                kill_worker(site.instances[0])
        assert [line(client, b""), line(client, b"")] == ["web_IN_0 192.0.2.7"] * 2


def test_one_port_for_each_instance(site: Site) -> None:
    assert [site.ask(port=site.direct + n).split()[0] for n in range(4)] == [f"web_IN_{n}" for n in range(4)]


def test_a_source_goes_to_one_instance_by_every_edge(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends, edges=2, distribution="source-ip")
    for edge in site.edges:
        eventually(lambda edge=edge: site.health(edge) == ["up"] * 4, "all are up")  # type: ignore[misc]
    for n in range(20):
        source = f"127.0.2.{n + 1}"
        met = {site.ask(source=source, host=host) for host in site.edge_addresses for _ in range(2)}
        assert len(met) == 1
        told = typed("explain", "--to", "web/in", "--client", source, "--settings", str(site.edges[1].settings_file))
        assert told.returncode == 0, told
        assert f"goes to {met.pop().split()[0]} " in told.stdout


def test_an_instance_that_dies_costs_nobody_a_connection(daemons: Daemons, backends: list[Backend]) -> None:
    """Its relay is gone, so a dial is refused and the next instance tried; then its probe says so."""
    site = Site(daemons, backends)
    site.wait_health("up", "up", "up", "up")
    site.instances[1].stop()
    answers = Counter(site.ask(source=f"127.0.3.{n}").split()[0] for n in range(1, 60))
    assert set(answers) == {"web_IN_0", "web_IN_2", "web_IN_3"}
    site.wait_health("up", "down", "up", "up")
    assert site.edge.endpoint("web/in")["closed"].get("connect_failed", 0) == 0
    site.instances[1].start()
    site.wait_health("up", "up", "up", "up")


def test_a_probe_reaches_the_application(daemons: Daemons, backends: list[Backend]) -> None:
    """The instance's relay is there, and what is behind it is not."""
    site = Site(daemons, backends[:2])
    site.wait_health("up", "up")
    with dial(site.public, host=EDGE, source="127.0.0.9") as client:
        mine = line(client).split()[0]
        gone = backends[0] if mine == "web_IN_1" else backends[1]
        gone.close()
        eventually(lambda: "down" in site.health(), "its probe finds out")
        assert {site.ask(source=f"127.0.4.{n}").split()[0] for n in range(1, 30)} == {mine}
        assert line(client).split()[0] == mine, "an established connection goes on"


def test_all_down_is_refused_at_once_and_counted(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:2])
    site.wait_health("up", "up")
    for each in backends[:2]:
        each.close()
    site.wait_health("down", "down")
    assert is_reset(site.public, host=EDGE)
    counted(site.edge, closed={"connect_failed": 1})  # their relays say so: an application may be back at any moment
    for instance in site.instances:
        instance.stop()
    eventually(
        lambda: all("relay" in each["reason"] for each in site.edge.endpoint("web/in")["target_set"]), "it is seen"
    )
    assert is_reset(site.public, host=EDGE)
    counted(site.edge, denied={"no_target": 1})


def test_drain_takes_an_instance_out_and_its_connections_go_on(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:2])
    site.wait_health("up", "up")
    with dial(site.public, host=EDGE, source="127.0.0.9") as client:
        name = line(client).split()[0]
        place = int(name[-1])
        instance = site.instances[place]
        drained = instance.relay("drain", "--for", "1h")
        assert drained.returncode == 0, drained
        assert re.search(r"1 connection goes on|[1-9]\d* connections go on", drained.stdout), "this one, and probes"
        peers = [each["peer"] for each in instance.ask("GET", "/v1/connections")[1]]
        assert [peer for peer in peers if peer.startswith("127.0.0.9:")] == [f"127.0.0.9:{client.getsockname()[1]}"]
        eventually(lambda: site.health()[place] == "down", "the edge learns it by its probe")
        assert name not in {site.ask(source=f"127.0.5.{n}").split()[0] for n in range(1, 30)}
        assert line(client).split()[0] == name
        assert instance.status()["busy_for_s"] > 3000
    waited = instance.relay("drain", "--for", "1h", "--wait")
    assert (waited.returncode, "no connection is open" in waited.stdout) == (0, True), waited
    assert instance.relay("drain", "off").returncode == 0
    site.wait_health("up", "up")
    assert instance.relay("drain", "--for", "1s").returncode == 0
    eventually(lambda: instance.status()["busy_for_s"] == 0, "the lease ends by itself")
    site.wait_health("up", "up")


def test_least_connections(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends, distribution="least-connections")
    site.wait_health("up", "up", "up", "up")
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(site.public, host=EDGE)) for _ in range(40)]
        names = Counter(line(client).split()[0] for client in clients)
        assert names == Counter({f"web_IN_{n}": 10 for n in range(4)})
        assert [each["active"] for each in site.edge.endpoint("web/in")["target_set"]] == [10] * 4
        kill_worker(site.edge)
        assert Counter(line(client).split()[0] for client in clients) == names
        assert [each["active"] for each in site.edge.endpoint("web/in")["target_set"]] == [10] * 4
    eventually(lambda: [each["active"] for each in site.edge.endpoint("web/in")["target_set"]] == [0] * 4, "all ended")


def test_metrics_and_status_tell_of_each_target(daemons: Daemons, backends: list[Backend]) -> None:
    metrics = free_port()
    site = Site(daemons, backends[:2], edge_settings={"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    site.wait_health("up", "up")
    for n in range(1, 20):
        site.ask(source=f"127.0.6.{n}")
    scrape, targets = Scrape(metrics), [f"{address}:{site.private}" for address in INSTANCES[:2]]
    counts = [scrape.value("relay_target_connections_total", target=target, endpoint="in") for target in targets]
    assert sum(counts) == 19
    assert all(count > 0 for count in counts)
    assert [scrape.value("relay_target_up", target=target, endpoint="in") for target in targets] == [1, 1]
    status = site.edge.relay("status").stdout
    assert "2 instances" in status
    assert f"web_IN_1  {targets[1]}  up" in status
