"""A fleet on machines of its own: names by the system's resolver, a door out for psql, and a registry out of reach."""

import contextlib
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e import programs
from tests.e2e.fleets import SHORT_TTL_S, TTL_S, is_applied
from tests.e2e.netns import Network
from tests.e2e.programs import RUN_S, program
from tests.fleet.etcds import EtcdServer
from tests.harness import HANG_S, Daemon, eventually

pytestmark = [
    pytest.mark.real("ip", "etcd", "etcdctl", "getent", "dig", "psql", "postgres", "initdb", "pg_isready", "unshare"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

REGISTRY: Final = "10.77.9.1"
WEBS: Final = ("10.77.0.11", "10.77.0.12")
STORES: Final = ("10.77.0.21", "10.77.0.22")
RESOLVER: Final = "127.0.0.153"
# PostgreSQL answers each with one letter, and waits for more (its protocol's SSLRequest and GSSENCRequest).
TLS_REQUEST: Final = b"\0\0\0\x08\x04\xd2\x16\x2f"
GSS_REQUEST: Final = b"\0\0\0\x08\x04\xd2\x16\x30"


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    hosts = {"registry": [REGISTRY], "web0": [WEBS[0]], "web1": [WEBS[1]], "store0": [STORES[0]], "store1": [STORES[1]]}
    with Network(hosts) as made:
        yield made


@pytest.fixture
def etcd(network: Network, tmp_path: Path) -> Iterator[EtcdServer]:
    with ExitStack() as stack:
        with network.inside("registry"):
            server = stack.enter_context(EtcdServer(tmp_path / "etcd", host=REGISTRY))
        yield server


class Site:
    """The fleet's machines: each with its own address, no id, and the same file."""

    def __init__(self, network: Network, daemons: Daemons, etcd: EtcdServer, directory: Path, target: str) -> None:
        self.ttl_s = TTL_S
        self._network, self._daemons, self._etcd, self._directory = network, daemons, etcd, directory
        pg = {"type": "internal", "port": 5432, "target": target, "from": ["web"]}
        self.service = {
            "version": 1,
            "service": "shop",
            "roles": {
                "web": {
                    "instances": 2,
                    "uses": {"db": {"endpoint": "store/postgres", "listen": "127.0.0.1:5432", "connect": "2s"}},
                },
                "store": {"instances": 2, "endpoints": {"postgres": pg}},
            },
        }

    def start(self, host: str, **settings: Any) -> Daemon:
        """relay on this machine, which takes the number that is free: it is told its role and no address."""
        machine_id = self._directory / f"{host}.machine-id"
        machine_id.write_text(f"{abs(hash(host)):032x}")
        own = {
            "role": host[:-1],
            "workers": 1,
            "machine_id": str(machine_id),
            "registry": {"etcd": [self._etcd.url], "ttl": f"{self.ttl_s}s", "state": str(self._directory)},
            **settings,
        }
        own["registry"]["state"] = str(self._directory / host)
        (self._directory / host).mkdir(exist_ok=True)
        with self._network.inside(host):
            return self._daemons(self.service, own, instance="")

    def run(self, host: str, *command: str, resolver: str = RESOLVER) -> subprocess.CompletedProcess[str]:
        """A program on this machine, whose resolv.conf names relay: in a mount namespace, so that nobody else's does."""
        resolv = self._directory / "resolv.conf"
        resolv.write_text(f"nameserver {resolver}\n")
        script = 'mount --bind "$0" /etc/resolv.conf && exec "$@"'
        wrapped = [program("unshare"), "--mount", "sh", "-c", script, str(resolv), program(command[0]), *command[1:]]
        with self._network.inside(host):
            return subprocess.run(wrapped, capture_output=True, text=True, timeout=RUN_S, check=False)


@pytest.fixture
def site(network: Network, daemons: Daemons, etcd: EtcdServer, tmp_path: Path, postgres: programs.Postgres) -> Site:
    return Site(network, daemons, etcd, tmp_path, postgres.unix)


def roster(daemon: Daemon) -> dict[str, str]:
    return {each["id"]: each["address"] for each in daemon.ask("GET", "/v1/instances")[1]}


def knows(daemon: Daemon, *addresses: str) -> None:
    eventually(lambda: set(roster(daemon).values()) == set(addresses) and is_applied(daemon), f"it knows {addresses}")


def test_psql_by_a_door_out_and_by_name(site: Site, postgres: programs.Postgres, tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n")
    store = site.start("store0")
    web = site.start("web0", names={"listen": f"{RESOLVER}:53", "hosts": str(hosts), "ttl": "1s"})
    knows(web, WEBS[0], STORES[0])
    assert roster(web) == {"web_IN_0": WEBS[0], "store_IN_0": STORES[0]}, "it found its own address"

    knows(store, WEBS[0], STORES[0])

    def found() -> list[str]:
        return site.run("web0", "getent", "ahosts", "store.shop.internal").stdout.split()[:2]

    eventually(lambda: found() == [STORES[0], "STREAM"], "a store that is not busy any more has a name")
    assert site.run("web0", "getent", "hosts", "web-0.web.shop.internal").stdout.split()[0] == WEBS[0]
    assert site.run("web0", "getent", "hosts", STORES[0]).stdout.split()[1] == "store-0.store.shop.internal"
    assert site.run("web0", "getent", "hosts", "store-1.store.shop.internal").returncode == 2  # getent(1): no such key
    service = site.run("web0", "dig", "+short", "_postgres._tcp.store.shop.internal", "SRV").stdout
    assert service == "0 0 5432 store-0.store.shop.internal.\n"
    eventually(lambda: "store-0.store.shop.internal" in hosts.read_text(), "the hosts file is written")

    query = ("-U", postgres.user, "-d", "postgres", "-Atc", "select 6 * 7")
    for where in ("localhost", "store.shop.internal", "store-0.store.shop.internal"):
        done = site.run("web0", "psql", "-h", where, "-p", "5432", *query)
        assert (done.returncode, done.stdout) == (0, "42\n"), (where, done.stderr)
    assert web.endpoint("web/db")["accepted"] == 1, "one of them came by the door"


def test_a_registry_out_of_reach_costs_nobody_anything(network: Network, site: Site) -> None:
    site.ttl_s = SHORT_TTL_S
    store = site.start("store0")
    web = site.start("web0")
    knows(web, WEBS[0], STORES[0])
    knows(store, WEBS[0], STORES[0])
    with network.inside("web0"):
        client = socket.create_connection(("127.0.0.1", 5432), HANG_S)
    with contextlib.closing(client):
        client.sendall(TLS_REQUEST)
        assert client.recv(1) == b"N"
        network.cable("registry", plugged=False)
        try:
            eventually(lambda: store.status()["registry"]["trouble"], "it is noticed without a word from there")
            eventually(lambda: store.status()["registry"]["age_s"] > 2 * SHORT_TTL_S, "longer than a lease")
            done = site.run("web0", "psql", "-h", "localhost", "-U", "relay", "-d", "postgres", "-Atc", "select 1")
            assert done.stdout == "1\n", done.stderr
        finally:
            network.cable("registry", plugged=True)
        eventually(lambda: not store.status()["registry"]["trouble"], "it is back")
        knows(store, WEBS[0], STORES[0])
        client.sendall(GSS_REQUEST)
        assert client.recv(1) == b"N", "the connection has lived through all of it"
        assert not [event for event in store.events("roster") if event["left"]]


def test_an_instance_out_of_reach_is_gone_after_its_lease_and_comes_back(network: Network, site: Site) -> None:
    site.ttl_s = SHORT_TTL_S
    web = site.start("web0")
    with network.inside("store0"):
        site.start("store0")
    site.start("store1")
    knows(web, WEBS[0], *STORES)
    network.cable("store0", plugged=False)
    try:
        knows(web, WEBS[0], STORES[1])
        done = site.run("web0", "psql", "-h", "localhost", "-U", "relay", "-d", "postgres", "-Atc", "select 1")
        assert done.stdout == "1\n", done.stderr
    finally:
        network.cable("store0", plugged=True)
    knows(web, WEBS[0], *STORES)
    assert roster(web)["store_IN_0"] == STORES[0], "with the same number"
