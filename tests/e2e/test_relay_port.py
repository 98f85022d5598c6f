"""`relay_port`: where the relays of a service talk to each other, so that doors out lose nothing either."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relay.envelope import asking, proxyproto
from tests.e2e.peers import next_worker, settled
from tests.harness import Daemon, Echo, Scrape, denied, dial, echoed, eventually, stop_all, web_and_store
from tests.ports import free_port

WEB = "127.0.0.1"
STORES = ("127.3.0.1", "127.3.0.2")
STRANGER = "127.9.9.9"
NOWHERE = "127.0.0.1:9"  # the web instance has no store's target


class Shop:
    """A web instance with a door to two stores, each a daemon and a service of its own."""

    def __init__(self, directory: Path, *, web: bool = True, store: bool = True, **keys: Any) -> None:
        """Which of them have been told of `relay_port`; `keys` are the stores' endpoint's."""
        self.keys = keys
        self.door, self.metrics = free_port(), free_port()
        self.pg, self.relays = free_port("0.0.0.0"), free_port("0.0.0.0")
        self.echoes = [Echo().__enter__() for _ in STORES]
        self.stores = [
            self._daemon(directory / f"store{n}", f"store_IN_{n}", self.file(echo.target, told=store))
            for n, echo in enumerate(self.echoes)
        ]
        metrics = {"metrics": {"listen": f"127.0.0.1:{self.metrics}"}}
        self.web = self._daemon(directory / "web", "web_IN_0", self.file(told=web), **metrics)

    def __enter__(self) -> "Shop":
        try:
            with ThreadPoolExecutor() as together:
                list(together.map(Daemon.start, [*self.stores, self.web]))
        except BaseException:
            self.__exit__()
            raise
        return self

    @staticmethod
    def _daemon(directory: Path, instance: str, file: dict[str, Any], **settings: Any) -> Daemon:
        directory.mkdir()
        return Daemon(directory, file, {"workers": 1, **settings}, instance=instance)

    def file(self, target: str = NOWHERE, *, told: bool = True) -> dict[str, Any]:
        pg = {"type": "internal", "port": self.pg, "target": target, "from": ["web"], **self.keys}
        file = web_and_store([WEB], list(STORES), f"127.0.0.1:{self.door}", {"pg": pg})
        return {**file, "relay_port": self.relays} if told else file

    def __exit__(self, *_: object) -> None:
        with ExitStack() as each:
            for echo in self.echoes:
                each.callback(echo.__exit__)
            each.callback(stop_all, [*self.stores, self.web])

    def by_name(self, n: int) -> int:
        """Connections that have come to this store by its endpoint's name, and were no question."""
        if not (relay := [each for each in self.stores[n].status()["endpoints"] if each["type"] == "relay"]):
            return 0
        return int(relay[0]["closed"].get("passed", 0) - self.stores[n].endpoint("store/pg")["closed"].get("told", 0))

    def served(self) -> bool:
        """Whether a connection through the door is answered."""
        with dial(self.door) as client:
            return echoed(client) == b"ping"

    def await_names(self) -> None:
        """Until the door has found out that both stores' relays are there."""

        def all_by_name() -> bool:
            with ExitStack() as held:  # to the one that has the fewest
                before = [self.by_name(n) for n in range(len(STORES))]
                for _ in STORES:
                    assert echoed(held.enter_context(dial(self.door))) == b"ping"
                return all(self.by_name(n) > before[n] for n in range(len(STORES)))

        eventually(all_by_name, "connections name their endpoint")

    def targets(self) -> list[dict[str, Any]]:
        return list(self.web.endpoint("web/db")["target_set"])


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with Shop(tmp_path) as made:
        yield made


def test_a_service_that_is_gone_behind_one_of_two_relays_costs_nobody_a_connection(shop: Shop) -> None:
    shop.await_names()
    shop.echoes.pop(0).__exit__()
    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(lambda _: shop.served(), range(100)))
    gone, other = shop.targets()
    assert (gone["reason"], other["failures"]) == ("connection refused", 0)
    assert min(gone["failures"], gone["ejections"], gone["retries"]) >= 1
    again = [line for line in shop.web.events("connection") if line.get("attempts", 1) > 1]
    assert {line["cause"] for line in again} <= {"client_fin", "target_fin"}
    assert len(again) == gone["retries"]
    labels = {"role": "web", "endpoint": "db", "type": "door", "target": f"{STORES[0]}:{shop.pg}"}
    assert Scrape(shop.metrics).value("relay_target_retries_total", **labels) == gone["retries"]


def test_a_service_that_is_back_is_sent_connections_again(shop: Shop) -> None:
    shop.await_names()
    echo = shop.echoes.pop(0)
    echo.__exit__()
    eventually(lambda: shop.served() and shop.targets()[0]["health"] == "down", "it is found to be down")
    shop.echoes.append(Echo(("127.0.0.1", echo.port)).__enter__())
    eventually(lambda: shop.targets()[0]["health"] == "up", "it is found to be up")
    shop.await_names()


def test_it_is_a_declared_port_like_any_other(shop: Shop) -> None:
    shop.await_names()
    store = shop.stores[0]
    counted, seen = settled(store, "store/pg"), store.endpoint("store/@relay")
    assert (seen["type"], seen["listen"], seen["targets"]) == ("relay", f"{STORES[0]}:{shop.relays}", [])
    # The first of all may have come to the endpoint's own port, when nobody knew better.
    assert 0 < seen["closed"]["passed"] <= counted["accepted"]
    assert "store/@relay" in store.relay("status").stdout
    assert "relay" not in store.relay("env").stdout.replace("RELAY_", "")
    answer = store.relay("explain", "--to", "store/@relay", "--from", WEB).stdout
    assert f"{WEB} may connect to store/@relay on {STORES[0]}:{shop.relays}" in answer
    answer = store.relay("explain", "--to", "store/@relay", "--from", STRANGER).stdout
    assert f"{STRANGER} is denied (roster) to store/@relay" in answer
    assert "the machines of this service and nobody else" in answer
    assert {line["peer"].split(":")[0] for line in store.events("connection")} == {WEB}
    assert list(store.events("bug")) == list(shop.web.events("bug")) == []


def asked(shop: Shop, data: bytes, source: str = WEB) -> bytes:
    """All that comes back from the first store's relay port, up to the end."""
    with dial(shop.relays, host=STORES[0], source=source) as client:
        client.sendall(data)
        answer = b""
        while part := client.recv(4096):
            answer += part
            if answer in (asking.TOOK, asking.WELL):
                break
        return answer


def header(client: str, name: str = "store/pg") -> bytes:
    """A header that asks whether this client's connection was taken."""
    packed = socket.inet_aton(client)
    tlvs = asking.tlv(asking.TAKEN) + (asking.endpoint_tlv(name) if name else b"")
    return proxyproto.build_v2(packed, 4711, packed, 80, tlvs)


def test_who_may_connect_and_for_whom(shop: Shop) -> None:
    store = shop.stores[0]
    assert denied(shop.relays, host=STORES[0], source=STRANGER)
    assert asked(shop, header(WEB)) == asking.TOOK
    assert asked(shop, header("192.0.2.7")).startswith(b"\0relay: "), "it speaks for somebody else"
    assert asked(shop, header(STORES[1]), source=STORES[1]).startswith(b"\0relay: "), "its role is not admitted"
    for name in ("store/redis", "web/db", "store/@relay", ""):
        assert b"connection refused" in asked(shop, header(WEB, name))
    assert asked(shop, asking.header(asking.RELAY, endpoint="store/pg")) == asking.WELL
    assert asked(shop, asking.header(asking.TAKEN, endpoint="store/pg")).startswith(b"\0relay: "), (
        "that would be a dial"
    )
    assert asked(shop, asking.header(asking.RELAY, endpoint="store/pg"), source=STORES[1]).startswith(b"\0relay: ")
    with pytest.raises(ConnectionResetError):
        asked(shop, b"GET / HTTP/1.1\r\n\r\n")
    eventually(lambda: not store.endpoint("store/pg")["active"], "all have ended")
    assert store.endpoint("store/@relay")["denied"] == {"roster": 3, "protocol": 6}
    assert store.endpoint("store/pg")["denied"] == {"roster": 1}


def test_a_relay_that_was_told_later(tmp_path: Path) -> None:
    """The door's machine knows of the port first; then a store does, and goes back."""
    with Shop(tmp_path, store=False) as shop:
        assert all(shop.served() for _ in range(10))
        for n, store in enumerate(shop.stores):
            store.write_service(shop.file(shop.echoes[n].target))
            assert store.relay("reload").returncode == 0
        shop.await_names()
        shop.stores[0].write_service(shop.file(shop.echoes[0].target, told=False))
        assert shop.stores[0].relay("reload").returncode == 0
        with ThreadPoolExecutor(8) as clients:
            assert all(clients.map(lambda _: shop.served(), range(40)))
        assert [each["failures"] for each in shop.targets()] == [0, 0]
        assert shop.echoes[0].accepted > 10


def test_a_door_that_was_told_later(tmp_path: Path) -> None:
    with Shop(tmp_path, web=False) as shop:
        assert all(shop.served() for _ in range(10))
        assert [shop.by_name(n) for n in range(len(STORES))] == [0, 0]
        shop.web.write_service(shop.file())
        assert shop.web.relay("reload").returncode == 0
        shop.await_names()


REQUEST = b"GET / HTTP/1.1\r\n\r\n"


def test_a_program_may_take_its_time_before_it_speaks(tmp_path: Path) -> None:
    """No instance is taken for one that does not answer, only because a program says nothing yet."""
    with Shop(tmp_path, protocol="http") as shop, dial(shop.door) as client:

        def states() -> list[str]:
            return [each["state"] for each in shop.web.ask("GET", "/v1/connections")[1]]

        eventually(lambda: states() == ["look"], "the door waits for what is declared")
        assert shop.web.endpoint("web/db")["protocol"] == "http"
        assert echoed(client, REQUEST) == REQUEST
        with dial(shop.door) as other:
            other.sendall(b"\x16\x03\x01 no HTTP")
            with pytest.raises(ConnectionResetError):
                other.recv(1)
        assert [each["failures"] for each in shop.targets()] == [0, 0]


def test_a_store_that_is_drained_is_sent_nobody(shop: Shop) -> None:
    shop.await_names()
    assert shop.stores[0].relay("drain").returncode == 0
    with ThreadPoolExecutor(8) as clients:
        assert all(clients.map(lambda _: shop.served(), range(40)))
    drained, other = shop.targets()
    assert (drained["health"], drained["failures"], other["failures"]) == ("down", 0, 0)
    assert "drain" in drained["reason"]
    assert shop.stores[0].relay("drain", "off").returncode == 0
    eventually(lambda: shop.targets()[0]["health"] == "up", "it says that it takes connections again")
    shop.await_names()


def test_workers_of_both_machines_are_killed_under_load(shop: Shop) -> None:
    shop.await_names()
    stop = threading.Event()

    def load() -> tuple[int, list[str]]:
        done, failures = 0, []
        while not stop.is_set():
            try:
                assert shop.served()
                done += 1
            except (OSError, AssertionError) as error:
                failures.append(repr(error))
        return done, failures

    with ThreadPoolExecutor(6) as clients:
        loads = [clients.submit(load) for _ in range(6)]
        try:
            for turn in range(12):
                daemon = (shop.web, *shop.stores)[turn % 3]
                os.kill(before := daemon.worker_pid(), signal.SIGKILL)
                next_worker(daemon, before)
        finally:
            stop.set()
        results = [each.result() for each in loads]
    assert [failures for _, failures in results if failures] == []
    assert sum(done for done, _ in results) > 12
    for daemon, name in ((shop.web, "web/db"), *((store, "store/pg") for store in shop.stores)):
        settled(daemon, name)
    for store in shop.stores:
        settled(store, "store/@relay")
        assert list(store.events("bug")) == []
    assert list(shop.web.events("bug")) == []


def test_open_connections_go_on_when_workers_die_and_when_the_port_is_closed(shop: Shop) -> None:
    shop.await_names()
    with ExitStack() as held:
        clients = [held.enter_context(dial(shop.door)) for _ in range(4)]
        assert [echoed(client) for client in clients] == [b"ping"] * 4
        for daemon in (shop.web, *shop.stores):
            os.kill(before := daemon.worker_pid(), signal.SIGKILL)
            next_worker(daemon, before)
            assert [echoed(client, b"again") for client in clients] == [b"again"] * 4
        for n, store in enumerate(shop.stores):
            store.write_service(shop.file(shop.echoes[n].target, told=False))
            assert "close store/@relay" in store.relay("reload").stdout
        assert [echoed(client, b"still") for client in clients] == [b"still"] * 4
    for store in shop.stores:
        settled(store, "store/pg")
