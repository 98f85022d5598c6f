"""Doors out: a loopback port that leads to a healthy instance of another role, for programs that know no other machine."""

import os
import signal
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from relay.targets.pool import EJECT_S
from tests.e2e.peers import shut
from tests.harness import HANG_S, Daemon, Echo, Scrape, denied, dial, echoed, eventually, stop_all, web_and_store
from tests.ports import free_port

WEB = "127.0.0.1"
STORES = ("127.3.0.1", "127.3.0.2", "127.3.0.3")
NOWHERE = "127.0.0.1:9"  # the web instance has no store's target


def shop(door: int, port: int, target: str = NOWHERE, stores: tuple[str, ...] = STORES) -> dict[str, Any]:
    """A web instance with a door to the stores. Every store has the same file but for its own target."""
    pg = {"type": "internal", "port": port, "target": target, "from": ["web"]}
    return web_and_store([WEB], list(stores), f"127.0.0.1:{door}", {"pg": pg})


def reset(client: socket.socket) -> bool:
    """Whether the connection ends with a reset and not with a byte."""
    try:
        client.recv(1)
    except ConnectionResetError:
        return True
    return False


class Stores:
    """The stores, each a daemon of its own with a service of its own. Those that a test ends are there again for the next."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port("0.0.0.0")  # private, on each store's own address
        self.daemons: dict[str, Daemon] = {}
        self.echoes: dict[str, Echo] = {}
        self._targets = {address: free_port() for address in STORES}
        for n, (address, target) in enumerate(self._targets.items()):
            place = directory / f"store{n}"
            place.mkdir()
            file = shop(free_port(), self.port, f"127.0.0.1:{target}")
            self.daemons[address] = Daemon(place, file, {"workers": 1}, instance=f"store_IN_{n}")

    def start(self) -> None:
        """Start all that do not run; nobody has been served yet."""
        for address in STORES:
            if address not in self.echoes:
                self.echoes[address] = Echo(("127.0.0.1", self._targets[address])).__enter__()
            self.echoes[address].accepted = 0
        ended = [each for each in self.daemons.values() if each.process is None or each.process.poll() is not None]
        with ThreadPoolExecutor() as together:  # each takes a second to start
            list(together.map(Daemon.start, ended))

    def end(self) -> None:
        """Stop all that run."""
        with ExitStack() as each:
            for echo in self.echoes.values():
                each.callback(echo.__exit__)
            each.callback(stop_all, self.daemons.values())

    def reached(self) -> dict[str, int]:
        """Connections that each store's service got so far."""
        return {address: echo.accepted for address, echo in self.echoes.items()}


class Shop:
    """The web instance, and its stores."""

    def __init__(self, directory: Path, stores: Stores) -> None:
        self.door, self.metrics = free_port(), free_port()
        self.stores = stores
        settings = {"workers": 1, "metrics": {"listen": f"127.0.0.1:{self.metrics}"}}
        self.web = Daemon(directory, self.file(), settings)

    def file(self, stores: tuple[str, ...] = STORES) -> dict[str, Any]:
        """The web instance's service file."""
        return shop(self.door, self.stores.port, stores=stores)


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    made = Stores(tmp_path_factory.mktemp("stores"))
    try:
        yield made
    finally:
        made.end()


@pytest.fixture
def there(tmp_path: Path, stores: Stores) -> Iterator[Shop]:
    stores.start()
    made = Shop(tmp_path, stores)
    with made.web:
        yield made


def test_a_program_reaches_every_store_by_one_local_port(there: Shop) -> None:
    with ExitStack() as held:
        for _ in range(6):
            assert echoed(held.enter_context(dial(there.door))) == b"ping"
        assert there.stores.reached() == dict.fromkeys(STORES, 2)  # to the one that has the fewest
    status = there.web.endpoint("web/db")
    assert (status["type"], status["leads_to"], status["accepted"]) == ("door", "store/pg", 6)
    assert [each["instance"] for each in status["target_set"]] == ["store_IN_0", "store_IN_1", "store_IN_2"]
    text = there.web.relay("status").stdout
    assert f"127.0.0.1:{there.door}" in text
    assert "store/pg: 3 instances" in text
    scrape = Scrape(there.metrics)
    labels = {"role": "web", "endpoint": "db", "type": "door"}
    assert scrape.value("relay_connections_accepted_total", **labels) == 6
    assert scrape.value("relay_target_connections_total", **labels, target=f"{STORES[0]}:{there.stores.port}") == 2


def test_a_store_that_is_gone_costs_nobody_a_connection(there: Shop) -> None:
    there.stores.daemons[STORES[0]].stop()
    with ExitStack() as held:  # the one that has no connection is tried before another has its second
        for _ in range(6):
            assert echoed(held.enter_context(dial(there.door))) == b"ping"
    assert there.stores.reached()[STORES[0]] == 0
    failed = {each["instance"]: each["failures"] for each in there.web.endpoint("web/db")["target_set"]}
    assert failed["store_IN_0"] >= 1
    assert failed["store_IN_1"] == failed["store_IN_2"] == 0


def test_a_service_that_is_gone_behind_its_relay_is_tried_once_and_then_last(there: Shop) -> None:
    there.stores.echoes.pop(STORES[0]).__exit__()
    answers = []
    began_s = time.monotonic()
    with ExitStack() as held:
        for _ in range(6):
            client = held.enter_context(dial(there.door))
            try:
                answers.append(echoed(client))
            except ConnectionResetError:
                answers.append(b"")
    took_s = time.monotonic() - began_s
    resets = answers.count(b"")
    assert answers.count(b"ping") == len(answers) - resets

    def ejections() -> list[int]:
        return [each["ejections"] for each in there.web.endpoint("web/db")["target_set"]]

    # A reset that comes while relay still dials is a dial that failed: another store is tried, and no client is reset.
    eventually(lambda: ejections()[0] >= max(resets, 1), "each reset is one")
    tries, *others = ejections()
    assert others == [0, 0]
    assert sum(EJECT_S[: tries - 1]) <= took_s, "it is tried again after a rest, longer each time"


def test_all_stores_gone(there: Shop) -> None:
    for daemon in there.stores.daemons.values():
        daemon.stop()
    assert denied(there.door)
    eventually(lambda: there.web.endpoint("web/db")["closed"].get("connect_failed") == 1, "the end is counted")

    # A loopback address is this machine, whichever it is.
    answer = there.web.relay("explain", "--to", "web/db", "--from", "10.0.0.9").stdout
    assert "10.0.0.9 is denied (roster) to web/db" in answer
    assert "a door out is for this machine alone" in answer


def test_established_connections_survive_a_kill_and_a_reload_that_removes_the_door_cuts_them(there: Shop) -> None:
    with dial(there.door) as client:
        assert echoed(client) == b"ping"
        os.kill(there.web.worker_pid(), signal.SIGKILL)
        assert echoed(client, b"again") == b"again"
        file = there.file()
        del file["roles"]["web"]["uses"]
        there.web.write_service(file)
        answer = there.web.relay("reload")
        assert f"close web/db on 127.0.0.1:{there.door}" in answer.stdout
        assert reset(client)


def test_a_store_that_leaves_the_file_gets_no_new_connection_and_keeps_the_old(there: Shop) -> None:
    with dial(there.door) as client:
        assert echoed(client) == b"ping"
        (held,) = (address for address, count in there.stores.reached().items() if count)
        left = tuple(address for address in STORES if address != held)
        there.web.write_service(there.file(left))
        there.web.relay("reload")
        for _ in range(4):
            with dial(there.door) as other:
                assert echoed(other) == b"ping"
        assert there.stores.reached()[held] == 1
        assert echoed(client, b"still") == b"still"


def serve(there: Shop, echo: Echo) -> int:
    """Have the web instance take connections from outside as well: the port."""
    file = there.file()
    own = {"type": "input", "public_port": 80, "port": (port := free_port()), "target": echo.target}
    file["roles"]["web"]["endpoints"] = {"in": own}
    there.web.write_service(file)
    done = there.web.relay("reload")
    assert done.returncode == 0, done
    return port


def test_a_door_stays_open_for_those_who_serve_the_last_connections(there: Shop, echo: Echo) -> None:
    """Who is served by a program that asks its database for each request gets an answer, though relay is told to stop."""
    port = serve(there, echo)
    with dial(port) as served:
        assert echoed(served) == b"ping"
        os.kill(there.web.pid, signal.SIGTERM)
        shut(port)
        with dial(there.door) as client:
            assert echoed(client) == b"ping"
        os.kill(there.web.worker_pid(), signal.SIGKILL)
        with dial(there.door) as client:
            assert echoed(client) == b"ping", "the next worker knows what its predecessor had still open"
            served.close()
            shut(there.door)
            assert echoed(client, b"pong") == b"pong", "an open one may end in its own time"
    assert there.web.process is not None
    assert there.web.process.wait(HANG_S) == 0
    assert list(there.web.events("bug")) == []


def test_a_stop_without_anybody_served_closes_the_door(there: Shop) -> None:
    with dial(there.door) as client:
        assert echoed(client) == b"ping"
        os.kill(there.web.pid, signal.SIGTERM)
        shut(there.door)
        assert echoed(client) == b"ping"
    assert there.web.process is not None
    assert there.web.process.wait(HANG_S) == 0


def test_the_next_relay_finds_the_doors_port_free_when_the_keeper_was_killed(there: Shop, echo: Echo) -> None:
    port = serve(there, echo)
    with dial(port) as served:
        assert echoed(served) == b"ping"
        os.kill(there.web.pid, signal.SIGKILL)
        assert there.web.process is not None
        there.web.process.wait(HANG_S)
        shut(port, there.door, there.metrics)
        there.web.start()
        with dial(there.door) as client:
            assert echoed(client) == b"ping"
        assert echoed(served) == b"ping"
