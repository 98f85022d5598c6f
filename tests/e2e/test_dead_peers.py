"""Machines that lose their cable, links that come back, and readers that stand still: who is dead, and who is told so."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import pytest

from tests.conftest import Daemons
from tests.e2e.netns import Network
from tests.harness import HANG_S, Daemon, eventually

pytestmark = [
    pytest.mark.real("ip"),
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

CLIENT, EDGE, WEB, STORE, FAR = (f"10.77.0.{n}" for n in range(1, 6))
HOSTS: Final = {"client": [CLIENT], "edge": [EDGE], "web": [WEB], "store": [STORE], "far": [FAR]}
DEAD_S: Final = 3.0
SOON: Final = {"idle": "off", "keepalive": "1s", "dead": f"{DEAD_S:.0f}s"}
LATE: Final = {"idle": "off", "keepalive": "1s", "dead": "10m"}  # nobody is dead in a test
PIECE: Final = b"x" * 65536
OUTAGE_S: Final = 3.0


class Way(NamedTuple):
    """Where a client is, and what it connects to. All ways end at the same target, on the machine `far`."""

    host: str
    address: tuple[str, int]


BY_EDGE: Final = Way("client", (EDGE, 8080))
BY_DOOR: Final = Way("web", ("127.0.0.1", 5000))
STRAIGHT: Final = Way("web", (STORE, 5001))
PATIENT: Final = Way("web", (STORE, 5002))


class Ends(NamedTuple):
    """A connection: the client's end of it, and the target's."""

    client: socket.socket
    service: socket.socket


@dataclass
class Site:
    """An edge, an instance behind it that has a door to another one, and the target of all on a machine of its own."""

    network: Network
    daemons: dict[str, Daemon]
    listener: socket.socket

    def dial(self, way: Way) -> Ends:
        """A connection that has carried a byte each way."""
        with self.network.inside(way.host):
            client = socket.create_connection(way.address, HANG_S)
        client.sendall(b"?")
        while True:
            service, _ = self.listener.accept()
            service.settimeout(HANG_S)
            if said := service.recv(1):
                break
            service.close()  # a look
        assert said == b"?"
        ends = Ends(client, service)
        talk(ends)
        return ends

    def settle(self) -> None:
        """Wait until no connection is open: then whatever ends is of the connections that are dialled from now on."""
        for daemon in self.daemons.values():
            eventually(lambda: self._is_idle(daemon), "all have ended")  # noqa: B023

    def _is_idle(self, daemon: Daemon) -> bool:
        self.listener.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:  # the edge looks at an instance whose line has broken
                self.listener.accept()[0].close()
        self.listener.settimeout(HANG_S)
        return not any(each["active"] for each in daemon.status()["endpoints"])

    def causes(self, instance: str, since: datetime) -> list[str]:
        """Why connections ended there that had begun after that.

        By when they began: the line of one that ended before may be written later than its end is counted.
        """
        ended = list(self.daemons[instance].events("connection"))
        began = [datetime.fromisoformat(each["time"]) - timedelta(seconds=each["duration_s"]) for each in ended]
        return [each["cause"] for each, at in zip(ended, began, strict=True) if at > since]


def just_now() -> datetime:
    """A moment ago, which is longer than what a line in the log is rounded by: before whatever begins now."""
    return datetime.now(UTC) - timedelta(milliseconds=10)


@contextlib.contextmanager
def site_of(network: Network, daemons: Daemons) -> Iterator[Site]:
    keys = {"target": f"{FAR}:7000", "unsafe_target": True}
    web = {"in": {"type": "input", "public_port": 8080, "probe": {"interval": "1h"}, "timeouts": {**SOON}, **keys}}
    store = {
        name: {"type": "internal", "port": port, "timeouts": {**waits}, **keys}
        for name, port, waits in (("pg", 5001, SOON), ("late", 5002, LATE))
    }
    uses = {"db": {"endpoint": "store/pg", "listen": f"{BY_DOOR.address[0]}:{BY_DOOR.address[1]}"}}
    roles = {
        "web": {"instances": [WEB], "endpoints": web, "uses": uses},
        "store": {"instances": [STORE], "endpoints": store},
    }
    service = {"version": 1, "service": "shop", "edge": {"instances": [EDGE]}, "roles": roles}
    with network.inside("far"):
        listener = socket.create_server((FAR, 7000))
    listener.settimeout(HANG_S)
    made = {}
    with listener:
        for host, instance in (("store", "store_IN_0"), ("web", "web_IN_0"), ("edge", "edge_IN_0")):
            wrapper = ("ip", "netns", "exec", network.namespace(host))
            made[instance] = daemons(service, {"workers": 1}, instance=instance, wrapper=wrapper)
        for _ in range(2):  # the edge asks once whether its instance is well, and so does the instance
            listener.accept()[0].close()
        yield Site(network, made, listener)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    daemons = Daemons(tmp_path_factory.mktemp("site"))
    with Network(HOSTS) as network:
        try:
            with site_of(network, daemons) as made:
                yield made
        finally:
            daemons.end()


@pytest.fixture
def site(service: Site) -> Site:
    service.settle()
    return service


def talk(ends: Ends) -> None:
    """A byte there and back."""
    ends.client.sendall(b"?")
    assert ends.service.recv(1) == b"?"
    ends.service.sendall(b"!")
    assert ends.client.recv(1) == b"!"


def flood(sender: socket.socket) -> int:
    """Send until nothing more is taken for a while: how many bytes."""
    sent_bytes = 0
    sender.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:
            sent_bytes += sender.send(PIECE)
    sender.settimeout(HANG_S)
    return sent_bytes


def read_to_end(reader: socket.socket) -> tuple[int, str]:
    """How many bytes come, and how that ends: `fin`, `reset`."""
    count = 0
    try:
        while data := reader.recv(1 << 20):
            count += len(data)
    except ConnectionResetError:
        return count, "reset"
    return count, "fin"


@contextlib.contextmanager
def unplugged(network: Network, host: str) -> Iterator[None]:
    network.cable(host, plugged=False)
    try:
        yield
    finally:
        network.cable(host, plugged=True)


@pytest.mark.parametrize(
    ("way", "host", "teller"),
    [
        pytest.param(BY_EDGE, "client", "edge_IN_0", id="an edge's client"),
        pytest.param(BY_EDGE, "web", "edge_IN_0", id="an instance behind an edge"),
        pytest.param(BY_EDGE, "far", "web_IN_0", id="a target behind an edge and an instance"),
        pytest.param(BY_DOOR, "store", "web_IN_0", id="an instance behind a door"),
        pytest.param(BY_DOOR, "web", "store_IN_0", id="an instance's client, which is a door"),
        pytest.param(STRAIGHT, "far", "store_IN_0", id="an instance's target"),
    ],
)
def test_who_is_left_is_told_by_a_reset(site: Site, way: Way, host: str, teller: str) -> None:
    """The kernel alone would wait for a quarter of an hour where bytes are under way, and for two hours where none are."""
    dead_is_client = host == way.host
    before = just_now()
    idle, asking, told = (site.dial(way) for _ in range(3))
    with contextlib.ExitStack() as stack:
        for sock in (*idle, *asking, *told):
            stack.enter_context(sock)
        dying, left = (told.client, told.service) if dead_is_client else (told.service, told.client)
        sent_bytes = flood(dying)
        with unplugged(site.network, host):
            began_s = time.monotonic()
            asker = asking.service if dead_is_client else asking.client
            asker.sendall(PIECE)
            waiting = idle.service if dead_is_client else idle.client
            assert read_to_end(waiting) == (0, "reset")
            assert time.monotonic() - began_s >= DEAD_S - 1, "an answer to the last question may be a second old"
            assert read_to_end(asker) == (0, "reset")
            arrived_bytes, end = read_to_end(left)
            assert end == "reset"
            assert 0 < arrived_bytes <= sent_bytes
            eventually(lambda: site.causes(teller, before) == ["peer_dead"] * 3, "all three have that cause")


def test_readers_that_stand_still_survive(site: Site) -> None:
    """On either side, and also those who have sent a lot themselves: nobody reads, four times as long as `dead`."""
    with contextlib.ExitStack() as stack:
        paused = []
        for way in (BY_EDGE, BY_DOOR, STRAIGHT):
            for reader_at in (0, 1):
                for both in (False, True):
                    ends = site.dial(way)
                    for sock in ends:
                        stack.enter_context(sock)
                    reader, sender = ends[reader_at], ends[1 - reader_at]
                    paused.append((reader, sender, flood(sender), flood(reader) if both else 0))
        time.sleep(4 * DEAD_S)
        for reader, sender, sent_bytes, back_bytes in paused:
            reader.shutdown(socket.SHUT_WR)
            sender.shutdown(socket.SHUT_WR)
            assert read_to_end(reader) == (sent_bytes, "fin")
            assert read_to_end(sender) == (back_bytes, "fin")


@pytest.mark.parametrize("paused", ["client", "service"])
def test_a_reader_that_stands_still_and_then_dies(site: Site, paused: str) -> None:
    """Its window is closed, so nothing of ours is in flight: the questions about the window are not answered any more."""
    way, host, teller = (BY_EDGE, "client", "edge_IN_0") if paused == "client" else (STRAIGHT, "far", "store_IN_0")
    before = just_now()
    with contextlib.ExitStack() as stack:
        ends = site.dial(way)
        for sock in ends:
            stack.enter_context(sock)
        sender = ends.service if paused == "client" else ends.client
        flood(sender)
        time.sleep(2 * DEAD_S)
        with unplugged(site.network, host):
            assert read_to_end(sender) == (0, "reset")
            eventually(lambda: site.causes(teller, before) == ["peer_dead"], "it has its cause")


def test_a_link_that_comes_back_in_time_costs_nothing(site: Site) -> None:
    idle, asking, streaming = (site.dial(PATIENT) for _ in range(3))
    with contextlib.ExitStack() as stack:
        for sock in (*idle, *asking, *streaming):
            stack.enter_context(sock)
        sent_bytes = flood(streaming.service)
        with unplugged(site.network, "web"):
            asking.service.sendall(b"?")
            time.sleep(OUTAGE_S)
        assert asking.client.recv(1) == b"?"
        talk(asking)
        talk(idle)
        streaming.service.shutdown(socket.SHUT_WR)
        assert read_to_end(streaming.client) == (sent_bytes, "fin")


def test_a_dead_workers_successor_tells_it_too(site: Site) -> None:
    before = just_now()
    ends = site.dial(STRAIGHT)
    daemon = site.daemons["store_IN_0"]
    with ends.client, ends.service, unplugged(site.network, "far"):
        ends.client.sendall(PIECE)
        os.kill(daemon.worker_pid(), 9)
        assert read_to_end(ends.client) == (0, "reset")
        eventually(lambda: site.causes("store_IN_0", before) == ["peer_dead"], "it has its cause")
