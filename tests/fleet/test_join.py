"""Taking this machine's number at the start: by a real etcd, by the roster on disk, or not at all and with a reason."""

import asyncio
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.config.roster import Member
from relay.config.settings import Registry
from relay.errors import IdentityError, RegistryError
from relay.fleet import join as joining
from relay.fleet.identity import Vacancy
from relay.fleet.join import join, own_address
from relay.fleet.last_roster import Remembered, save
from relay.fleet.machine_id import machine_hash
from tests.fleet.etcds import START_S, EtcdServer, certificates, service, settings, shared
from tests.ports import free_port

pytestmark = pytest.mark.real("etcd", "etcdctl", "openssl")

WEB = Vacancy("web")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    yield from shared(tmp_path_factory)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """An etcd that is not there is waited for a tenth of a second."""
    monkeypatch.setattr(joining, "REACH_S", 0.1)
    monkeypatch.setattr(joining, "REACH_REMEMBERED_S", 0.1)


def test_machines_join(server: EtcdServer, tmp_path: Path) -> None:
    shop, ttl = service("join"), "60s"  # a presence outlasts the test
    threads, before_ns = threading.active_count(), time.monotonic_ns()
    first = join(shop, settings(tmp_path / "a", [server.url], address="10.0.0.4", ttl=ttl), WEB)
    assert (first.instance, first.address) == ("web_IN_0", "10.0.0.4")
    assert (first.remembered, first.warning) == (False, "")
    assert before_ns <= first.confirmed_ns <= time.monotonic_ns()
    second = join(shop, settings(tmp_path / "b", [server.url], address="10.0.0.5", ttl=ttl), WEB)
    assert second.instance == "web_IN_1"
    # Busy as yet: there is nobody behind it who takes connections.
    assert second.members == (Member("web", 0, "10.0.0.4", busy=True), Member("web", 1, "10.0.0.5", busy=True))
    again = join(shop, settings(tmp_path / "a", [server.url], address="10.0.0.6", ttl=ttl), Vacancy("web", 0))
    assert (again.instance, again.members[0].address) == ("web_IN_0", "10.0.0.6")
    assert threading.active_count() == threads
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()
    with pytest.raises(IdentityError, match=r"web_IN_1 \(10\.0\.0\.5\) is held by that machine"):
        join(shop, settings(tmp_path / "a", [server.url]), Vacancy("web", 1))


def test_one_endpoint_is_dead(server: EtcdServer, tmp_path: Path) -> None:
    urls = [f"http://127.0.0.1:{free_port()}", server.url]
    assert join(service("dead"), settings(tmp_path / "a", urls), WEB).instance == "web_IN_0"


def test_by_tls(tmp_path: Path) -> None:
    made = certificates(tmp_path / "tls")
    options = ("--cert-file", made["server.pem"], "--key-file", made["server.key"])
    tls = ssl.create_default_context(cafile=made["ca.pem"])
    with EtcdServer(tmp_path / "etcd", options=options, tls=tls) as guarded:
        found = join(service("tls"), settings(tmp_path / "a", [guarded.url], ca=made["ca.pem"]), WEB)
        assert found.instance == "web_IN_0"


def test_etcd_that_comes_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "REACH_S", START_S)
    with EtcdServer(tmp_path / "etcd") as late:
        late.kill()
        starting = threading.Timer(0.5, late.start, kwargs={"wait": False})
        starting.start()
        try:
            assert join(service("late"), settings(tmp_path / "a", [late.url]), WEB).instance == "web_IN_0"
        finally:
            starting.cancel()
            starting.join()


@pytest.mark.usefixtures("hasty")
def test_by_memory(tmp_path: Path) -> None:
    shop, url = service("memory"), f"http://127.0.0.1:{free_port()}"
    mine = settings(tmp_path / "a", [url])
    machine, state = machine_hash(mine.machine_id, "memory"), str(tmp_path / "a")
    with pytest.raises(RegistryError, match=rf"etcd does not answer: {url}: nobody listens there"):
        join(shop, mine, WEB)
    members = (Member("web", 1, "10.0.0.4"), Member("web", 2, "10.0.0.5"))
    kept = Remembered("web_IN_1", members, 1_700_000_000_000_000_000)
    save(state, "memory", machine, kept)
    for vacancy in (WEB, Vacancy("web", 1)):
        found = join(shop, mine, vacancy)
        assert (found.instance, found.members, found.remembered) == ("web_IN_1", members, True)
        assert found.address == "10.0.0.4"
        age_ns = time.monotonic_ns() - found.confirmed_ns
        assert age_ns == pytest.approx(time.time_ns() - kept.saved_ns, abs=60 * 10**9), "as old as its file says"
        assert found.warning == (
            f"etcd does not answer: {url}: nobody listens there; this is `web_IN_1` by the roster of "
            "2023-11-14 22:13:20 UTC, until the registry answers"
        )
    # Another number is asked for, there are fewer, another role, another machine.
    with pytest.raises(RegistryError):
        join(shop, mine, Vacancy("web", 2))
    with pytest.raises(RegistryError):
        join(service("memory", 1), mine, WEB)
    save(state, "memory", machine, Remembered("cache_IN_1", members, 1))
    with pytest.raises(RegistryError):
        join(shop, mine, WEB)
    save(state, "memory", "0" * 32, kept)
    with pytest.raises(RegistryError):
        join(shop, mine, WEB)


def test_no_machine_id(server: EtcdServer, tmp_path: Path) -> None:
    mine = settings(tmp_path / "a", [server.url])
    Path(mine.machine_id).write_text("\n")
    with pytest.raises(
        IdentityError, match="has no machine id; run `rm -f /etc/machine-id /var/lib/dbus/machine-id && "
    ):
        join(service("empty"), mine, WEB)


def address_of(tmp_path: Path, *urls: str, **keys: Any) -> str:
    mine = settings(tmp_path / "a", list(urls), **keys)
    assert isinstance(mine.registry, Registry)
    return own_address(mine, mine.registry)


def test_the_address_that_is_written(tmp_path: Path) -> None:
    assert address_of(tmp_path, "http://127.0.0.1:1", address="10.0.0.4") == "10.0.0.4"


class _Routes:
    """A datagram socket on a machine with these routes: from where a datagram to there would come."""

    def __init__(self, *_: object) -> None:
        self.local = ""

    table: dict[str, str]

    def __enter__(self) -> "_Routes":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def connect(self, there: tuple[Any, ...]) -> None:
        if there[0] not in self.table:
            raise OSError(101, "Network is unreachable")
        self.local = self.table[there[0]]

    def getsockname(self) -> tuple[str, int]:
        return self.local, 1


@pytest.mark.parametrize(
    ("table", "found"),
    [
        ({"10.0.9.1": "10.0.0.4", "198.51.100.1": "192.0.2.7"}, "10.0.0.4"),
        ({"10.0.9.1": "127.0.0.1", "198.51.100.1": "192.0.2.7"}, "192.0.2.7"),
        ({"198.51.100.1": "192.0.2.7"}, "192.0.2.7"),
        ({"2001:db8::1": "2001:db8::7"}, "2001:db8::7"),
        ({"10.0.9.1": "169.254.7.7", "2001:db8::1": "fe80::1"}, None),
        ({}, None),
    ],
)
def test_the_address_by_the_routes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: dict[str, str], found: str | None
) -> None:
    monkeypatch.setattr(_Routes, "table", table, raising=False)
    monkeypatch.setattr(socket, "socket", _Routes)
    if found is not None:
        assert address_of(tmp_path, "http://10.0.9.1:2379", address=None) == found
    else:
        with pytest.raises(IdentityError, match=r"write `address` into instance\.yaml"):
            address_of(tmp_path, "http://10.0.9.1:2379", address=None)
