"""Machines of namespaces: one that dies without a word, one that is stopped politely, and who was connected to it."""

import contextlib
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e.fleets import SHORT_TTL_S, TTL_S, is_applied, roster_of
from tests.e2e.netns import Network
from tests.e2e.peers import counted
from tests.fleet.etcds import EtcdServer
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, eventually, patched

pytestmark = [
    pytest.mark.real("ip", "etcd", "etcdctl"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

REGISTRY: Final = "10.77.9.1"
EDGE, WEB, STORE = "10.77.0.1", "10.77.0.11", "10.77.0.21"
HOSTS: Final = {"registry": [REGISTRY], "edge": [EDGE], "web": [WEB], "store": [STORE]}
EVERYBODY: Final = {"web_IN_0", "store_IN_0", "edge_IN_0"}
# relay that believes each lease that runs out: on a busy machine etcd may be late, and after that no lease is.
CREDULOUS: Final = patched("relay.fleet.registry._AWAY_LEASES", "relay.fleet.registry._RETRIED_LEASES", value=1e9)
METRICS, SERVICE, DOOR, PUBLIC, PG, HTTP = 9464, 3000, 5432, 80, 15432, 8080
CONNECTIONS: Final = {"edge": "store/in", "web": "web/db"}  # to store, by which endpoint


class Site:
    """An edge, a role `web` with a door out to `store`, and `store`, which is reached by both."""

    def __init__(self, network: Network, daemons: Daemons, etcd: EtcdServer, directory: Path) -> None:
        self._network, self._daemons, self._etcd, self._directory = network, daemons, etcd, directory
        self.daemons: dict[str, Daemon] = {}
        self.service: dict[str, Any] = {
            "version": 1,
            "service": f"s{secrets.token_hex(4)}",  # so that one etcd does for many tests
            "edge": {"instances": [EDGE]},
            "roles": {
                "web": {"instances": 1, "uses": {"db": {"endpoint": "store/pg", "listen": f"127.0.0.1:{DOOR}"}}},
                "store": {
                    "instances": 1,
                    "endpoints": {
                        "pg": {"type": "internal", "port": PG, "target": f"127.0.0.1:{SERVICE}", "from": ["web"]},
                        "in": {
                            "type": "input",
                            "public_port": PUBLIC,
                            "port": HTTP,
                            "target": f"127.0.0.1:{SERVICE}",
                        },
                    },
                },
            },
        }

    def start(self, host: str, ttl_s: int) -> Daemon:
        """relay on this machine."""
        place = self._directory / host
        place.mkdir()
        (place / "machine-id").write_text(secrets.token_hex(16))
        own = {
            "workers": 1,
            "address": HOSTS[host][0],
            "machine_id": str(place / "machine-id"),
            "metrics": {"listen": f"127.0.0.1:{METRICS}"},
            "registry": {"etcd": [self._etcd.url], "ttl": f"{ttl_s}s", "state": str(place)},
            **({} if host == "edge" else {"role": host}),
        }
        with self._network.inside(host):
            which = "edge_IN_0" if host == "edge" else ""
            daemon = self._daemons(self.service, own, instance=which, program=CREDULOUS)
        self.daemons[host] = daemon
        return daemon

    def start_all(self, ttl_s: int) -> None:
        """All of them, who know each other then; and the edge has found out that `store` listens, which it may do late."""
        for host in ("edge", "web", "store"):
            self.start(host, ttl_s)
        for daemon in self.daemons.values():
            self.knows(daemon, EVERYBODY)
        edge = self.daemons["edge"]
        eventually(lambda: [each["health"] for each in edge.endpoint("store/in")["target_set"]] == ["up"], "it is up")

    @staticmethod
    def knows(daemon: Daemon, ids: set[str]) -> None:
        """Wait until it knows exactly these, and goes by that."""
        eventually(lambda: roster_of(daemon) == ids and is_applied(daemon), f"it knows {ids}")

    def connect(self, host: str) -> socket.socket:
        """A connection to store, from that machine: by the edge's public port, or by the door out."""
        with self._network.inside(host):
            client = dial(PUBLIC, host=EDGE) if host == "edge" else dial(DOOR)
        client.settimeout(HANG_S)
        return client

    def die(self, host: str) -> None:
        """A power cut: all its processes end at once, and nobody hears of it."""
        self._network.cable(host, plugged=False)
        self.daemons[host].kill()

    def closed_as(self, host: str, cause: str) -> float:
        """How many connections the metrics say ended for this cause, of the endpoint that leads to store."""
        role, endpoint = CONNECTIONS[host].split("/")
        with self._network.inside(host):
            found = Scrape(METRICS)
        return found.value("relay_connections_closed_total", cause=cause, role=role, endpoint=endpoint)


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network(HOSTS) as made:
        yield made


@pytest.fixture(scope="module")
def etcd(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with ExitStack() as stack:
        with network.inside("registry"):
            server = stack.enter_context(EtcdServer(tmp_path_factory.mktemp("etcd"), host=REGISTRY))
        yield server


@pytest.fixture
def site(network: Network, etcd: EtcdServer, daemons: Daemons, tmp_path: Path) -> Iterator[Site]:
    """All machines with their cables, and a service on store that echoes."""
    made = Site(network, daemons, etcd, tmp_path)
    with ExitStack() as stack:
        with network.inside("store"):
            echo = Echo(("127.0.0.1", SERVICE))
        stack.enter_context(echo)
        for host in ("web", "store"):
            stack.callback(network.cable, host, plugged=True)
        yield made


def is_reset(client: socket.socket) -> bool:
    with contextlib.suppress(ConnectionResetError):
        client.recv(1)
        return False
    return True


def test_a_machine_that_dies_takes_its_connections_with_it(site: Site) -> None:
    """On the edge, and at a door out: no FIN and no reset comes from it, and nobody says a word."""
    site.start_all(SHORT_TTL_S)
    with site.connect("edge") as outside, site.connect("web") as program:
        assert echoed(outside) == echoed(program) == b"ping"
        site.die("store")
        assert is_reset(outside)
        assert is_reset(program)
    for host, endpoint in CONNECTIONS.items():
        daemon = site.daemons[host]
        counted(daemon, endpoint, active=0, closed={"gone": 1})
        assert site.closed_as(host, "gone") == 1
        [record] = eventually(lambda: list(daemon.events("connection")), "it is logged")  # noqa: B023
        assert (record["cause"], record["endpoint"]) == ("gone", endpoint)
        assert record["target"] == f"{STORE}:{HTTP if host == 'edge' else PG}"
        (*_, told) = eventually(lambda: list(daemon.events("roster")), "the roster is logged")  # noqa: B023
        assert (told["left"], told["gone"]) == (["store_IN_0"], ["store_IN_0"])


def test_what_comes_from_a_machine_that_died_is_cut_where_it_came_in(site: Site) -> None:
    site.start_all(SHORT_TTL_S)
    with site.connect("edge") as outside, site.connect("web") as program:
        assert echoed(outside) == echoed(program) == b"ping"
        site.die("web")
        counted(site.daemons["store"], "store/pg", active=0, closed={"gone": 1})
        assert echoed(outside) == b"ping", "who came by the edge has nothing to do with it"
    counted(site.daemons["edge"], "store/in", active=0, closed={"client_fin": 1})


def test_who_is_stopped_keeps_its_connections_until_they_end(site: Site) -> None:
    site.start_all(TTL_S)
    store = site.daemons["store"]
    assert store.process is not None
    with site.connect("edge") as outside, site.connect("web") as program:
        assert echoed(outside) == echoed(program) == b"ping"
        store.process.terminate()
        eventually(lambda: store.status()["draining"], "it drains")
        assert echoed(outside) == echoed(program) == b"ping"
        assert roster_of(site.daemons["edge"]) == EVERYBODY, "it is there as long as it has connections"
        for client in (outside, program):
            client.shutdown(socket.SHUT_WR)
            assert client.recv(1) == b""
    assert store.process.wait(HANG_S) == 0
    for host, endpoint in CONNECTIONS.items():
        daemon = site.daemons[host]
        site.knows(daemon, EVERYBODY - {"store_IN_0"})
        counted(daemon, endpoint, active=0, closed={"client_fin": 1})
        assert site.closed_as(host, "gone") == 0
        (told,) = eventually(lambda: [each for each in daemon.events("roster") if each["left"]], "it left")  # noqa: B023
        assert (told["left"], told["gone"]) == (["store_IN_0"], [])
