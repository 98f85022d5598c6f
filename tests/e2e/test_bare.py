"""Machines without relay, behind an edge and behind a door: reached directly, and all that can hold does."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from relay.envelope import proxyproto
from tests.conftest import Daemons
from tests.e2e.restarts import Application
from tests.harness import Daemon, Echo, Scrape, denied, dial, echoed, eventually
from tests.ports import free_port

EDGE: Final = "127.250.0.1"
ONE: Final = "127.2.0.1"
TWO: Final = "127.2.0.2"
WEB: Final = "127.1.0.1"


class Machine(Echo):
    """A machine without relay, with a service that may go before the test ends."""

    def stop(self) -> None:
        """The service is gone."""
        super().__exit__()
        self.stop = lambda: None  # type: ignore[method-assign]

    def __exit__(self, *_: object) -> None:
        self.stop()


@contextmanager
def two() -> Iterator[tuple[int, list[Machine]]]:
    """Two of them, at the same port."""
    port = free_port("0.0.0.0")
    made = [Machine((host, port)) for host in (ONE, TWO)]
    with made[0], made[1]:
        yield port, made


def file_for(private: int, *, public: int = 0, door: int = 0, instances: Any = (ONE, TWO), **keys: Any) -> Any:
    """A service whose role `old` is bare: behind an edge at `public`, or behind the door of `web`."""
    kind = {"type": "input", "public_port": public} if public else {"type": "internal"}
    old = {"bare": True, "instances": list(instances), "endpoints": {"in": {**kind, "port": private, **keys}}}
    web: dict[str, Any] = {"instances": [WEB]}
    if door:
        web["uses"] = {"old": {"endpoint": "old/in", "listen": f"127.0.0.1:{door}"}}
    file: dict[str, Any] = {"version": 1, "service": "test", "roles": {"web": web, "old": old}}
    return file | ({"edge": {"instances": [EDGE]}} if public else {})


def ask(port: int, host: str = "127.0.0.1", **keys: Any) -> None:
    with dial(port, host=host, **keys) as client:
        assert echoed(client) == b"ping"


def by_target(daemon: Daemon, endpoint: str, what: str) -> dict[str, Any]:
    return {each["instance"]: each[what] for each in daemon.endpoint(endpoint)["target_set"]}


def test_an_edge_spreads_and_goes_round_one_that_is_gone(daemons: Daemons) -> None:
    public = free_port(EDGE)
    with two() as (private, (one, _)):
        edge = daemons(
            file_for(private, public=public, distribution="round-robin"), {"workers": 1}, instance="edge_IN_0"
        )
        for _ in range(4):
            ask(public, EDGE)
        assert by_target(edge, "old/in", "connected") == {"old_IN_0": 2, "old_IN_1": 2}
        one.stop()
        for _ in range(4):
            ask(public, EDGE)
        assert by_target(edge, "old/in", "health")["old_IN_0"] == "down"
        assert "connection refused" in by_target(edge, "old/in", "reason")["old_IN_0"]
        assert set(edge.endpoint("old/in")["closed"]) == {"client_fin"}
        told = {each["id"]: each for each in edge.ask("GET", "/v1/instances")[1]}
        assert (told["old_IN_0"]["healthy"], told["old_IN_1"]["healthy"]) == (False, True)
        assert edge.relay("resolve", "old/in").stdout == f"{EDGE}:{public}\n", "clients come by the edge"


def test_an_edge_holds_the_envelope_and_the_limits(daemons: Daemons) -> None:
    """Nobody else does: it counts the clients itself."""
    public = free_port(EDGE)
    keys: dict[str, Any] = {"access": [{"deny": "127.0.0.9/32"}], "limits": {"per_source": 1, "connections": 2}}
    with two() as (private, _):
        edge = daemons(file_for(private, public=public, **keys), {"workers": 2}, instance="edge_IN_0")
        assert denied(public, host=EDGE, source="127.0.0.9")
        with dial(public, host=EDGE) as first:
            assert echoed(first) == b"ping"
            assert denied(public, host=EDGE), "one for each source"
            with dial(public, host=EDGE, source="127.0.0.2") as second:
                assert echoed(second) == b"ping"
                assert denied(public, host=EDGE, source="127.0.0.3"), "and two in all"
        counted = {"access": 1, "per_source": 1, "connections": 1}
        eventually(lambda: edge.endpoint("old/in")["denied"] == counted, "each is counted")


def test_what_does_not_begin_like_http_is_refused_at_the_edge(daemons: Daemons) -> None:
    public = free_port(EDGE)
    with two() as (private, echoes):
        daemons(file_for(private, public=public, protocol="http"), instance="edge_IN_0")
        with dial(public, host=EDGE) as client:
            client.sendall(b"\x16\x03\x01 no HTTP at all")
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert [each.accepted for each in echoes] == [0, 0]


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_header_only_where_it_is_asked_for(version: str, daemons: Daemons) -> None:
    """By the edge it names the client; by a door this machine, which is who asks."""
    public, door = free_port(EDGE), free_port()
    with two() as (private, _):
        edge = daemons(file_for(private, public=public, send_proxy=version), instance="edge_IN_0")
        with dial(public, host=EDGE, source="127.0.0.7") as client:
            port = client.getsockname()[1]
            header = told(client, version)
            assert header == f"127.0.0.7:{port} {EDGE}:{public}"
        edge.stop()
        daemons(file_for(private, door=door, send_proxy=version), instance="web_IN_0")
        with dial(door) as client:
            source, there = told(client, version).split()
            assert source.rpartition(":")[0] == "127.0.0.1"
            assert there in (f"{ONE}:{private}", f"{TWO}:{private}")


def told(client: socket.socket, version: str) -> str:
    """The header that an echo sent back, in words."""
    client.sendall(b"x")
    data = b""
    while not data.endswith(b"x") and (more := client.recv(4096)):
        data += more
    if version == "v1":
        _, _, source, there, source_port, port = data.removesuffix(b"\r\nx").decode().split()
        return f"{source}:{source_port} {there}:{port}"
    head = proxyproto.parse(data)
    assert isinstance(head, proxyproto.Header)
    assert head.src is not None
    assert head.dst is not None
    return f"{socket.inet_ntoa(head.src)}:{head.src_port} {socket.inet_ntoa(head.dst)}:{head.dst_port}"


def test_a_door_leads_there(daemons: Daemons) -> None:
    door, metrics = free_port(), free_port()
    with two() as (private, (one, _)):
        settings = {"workers": 1, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
        web = daemons(file_for(private, door=door), settings, instance="web_IN_0")
        for _ in range(4):
            ask(door)
        one.stop()
        for _ in range(4):
            ask(door)
        assert set(web.endpoint("web/old")["closed"]) == {"client_fin"}
        assert Scrape(metrics).value("relay_target_up", target=f"{ONE}:{private}", type="door") == 0
        with Echo((ONE, private)):
            eventually(lambda: by_target(web, "web/old", "health")["old_IN_0"] == "up", "it is found to be back")


def test_a_probe_by_a_door_decides_who_gets_connections(daemons: Daemons) -> None:
    """And `on_down: cut` ends those that are there, within a second or two."""
    door, asked = free_port(), free_port("0.0.0.0")
    probe = {"protocol": "http", "path": "/primary", "port": asked, "interval": "100ms", "on_down": "cut"}
    with two() as (private, _), Application(asked, ONE) as api_of_one, Application(asked, TWO) as api_of_two:
        api_of_two.stop()
        web = daemons(file_for(private, door=door, probe=probe), {"workers": 2}, instance="web_IN_0")
        states = {"old_IN_0": "up", "old_IN_1": "down"}
        eventually(lambda: by_target(web, "web/old", "health") == states, "one is the primary")
        for _ in range(6):
            ask(door)
        assert by_target(web, "web/old", "connected")["old_IN_1"] == 0
        with dial(door) as client:
            assert echoed(client) == b"ping"
            api_of_one.stop()
            api_of_two.start()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        eventually(lambda: by_target(web, "web/old", "health")["old_IN_1"] == "up", "the other is the primary")
        ask(door)
        assert web.endpoint("web/old")["closed"]["target_down"] == 1
        assert by_target(web, "web/old", "connected")["old_IN_1"] == 1


def test_an_edge_of_the_other_ip_version(daemons: Daemons) -> None:
    public, private = free_port(EDGE), free_port("::1")
    with Echo(("::1", private)):
        edge = daemons(file_for(private, public=public, instances=["::1"]), instance="edge_IN_0")
        ask(public, EDGE)
        assert edge.endpoint("old/in")["targets"] == [f"[::1]:{private}"]


def test_a_bare_machine_is_nobodys_daemon(daemons: Daemons) -> None:
    with two() as (private, _):
        daemon = daemons.make(file_for(private, public=free_port(EDGE)), instance="old_IN_0")
        daemon.start(wait=False)
        assert daemon.process is not None
        assert daemon.process.wait() == 1
        assert "role `old` is bare, and there is no relay on its machines" in daemon.log_text()
