"""Several local services behind one endpoint: spread, retried, probed, and kept over kills and reloads."""

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.restarts import Application
from tests.harness import Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint
from tests.ports import free_port


@pytest.fixture
def three(tmp_path: Path) -> Iterator[list[Echo]]:
    """Two services at TCP ports, and one at a Unix path."""
    with Echo() as one, Echo() as two, Echo(str(tmp_path / "app.sock")) as three:
        yield [one, two, three]


def file_for(port: int, targets: list[Any], **keys: Any) -> dict[str, Any]:
    file = one_endpoint(port, "", **keys)
    file["roles"]["web"]["endpoints"]["in"]["target"] = targets
    return file


def by_target(daemon: Daemon, what: str) -> dict[str, Any]:
    return {each["target"]: each[what] for each in daemon.endpoint("web/in")["target_set"]}


def ask_http(port: int, name: str) -> bool:
    """One request, to its answer."""
    with dial(port) as client:
        client.sendall(f"GET /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return client.recv(64).startswith(b"HTTP/1.1 200")


def ask(port: int) -> None:
    """One connection, to its end."""
    with dial(port) as client:
        assert echoed(client) == b"ping"


def test_connections_are_spread_by_weight(daemons: Daemons, three: list[Echo]) -> None:
    port = free_port()
    one, two, unix = (each.target for each in three)
    targets = [one, {"address": two, "weight": 2}, {"address": unix, "weight": 3}]
    daemon = daemons(file_for(port, targets, target_distribution="round-robin"), {"workers": 1})
    for _ in range(12):
        ask(port)
    assert by_target(daemon, "connected") == {one: 2, two: 4, unix: 6}
    assert [each.accepted for each in three] == [2, 4, 6]
    assert daemon.endpoint("web/in")["distribution"] == "round-robin"
    listed = daemon.relay("status").stdout
    assert "3 targets" in listed
    assert unix in listed


def test_one_that_dies_costs_nobody_a_connection(daemons: Daemons, three: list[Echo], tmp_path: Path) -> None:
    """Who was refused there is sent to another one; it is asked until it is back, and gets connections again."""
    port, metrics = free_port(), free_port()
    stays, unix = three[0], three[2]
    goes = Echo()
    targets = [stays.target, goes.target, unix.target]
    settings = {"workers": 2, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
    daemon = daemons(file_for(port, targets, target_distribution="round-robin"), settings)
    with goes:
        for _ in range(6):
            ask(port)
    for _ in range(30):
        ask(port)
    assert by_target(daemon, "health")[goes.target] == "down"
    assert daemon.endpoint("web/in")["target_up"] is True
    assert daemon.endpoint("web/in")["connect_failures"] >= 1
    assert set(daemon.endpoint("web/in")["closed"]) == {"client_fin"}
    assert Scrape(metrics).value("relay_target_up", target=goes.target) == 0
    assert Scrape(metrics).value("relay_target_up", target=unix.target) == 1
    with Echo(("127.0.0.1", goes.port)) as back:
        eventually(lambda: by_target(daemon, "health")[goes.target] == "up", "it is back")

        def gets_some() -> bool:
            ask(port)
            return back.accepted > 1  # the first one was relay's own look

        eventually(gets_some, "it gets connections")
    found = eventually(
        lambda: [each for each in daemon.events("target up") if each["target"] == goes.target], "it is told"
    )
    assert "instance" not in found[0]


def test_when_none_is_left_that_is_said(daemons: Daemons) -> None:
    port = free_port()
    nobody = [f"127.0.0.1:{free_port()}" for _ in range(2)]
    daemon = daemons(file_for(port, nobody), {"workers": 1})
    with dial(port) as client, pytest.raises(ConnectionResetError):
        client.recv(1)
    eventually(lambda: daemon.endpoint("web/in")["closed"] == {"connect_failed": 1}, "it has its cause")
    [event] = eventually(lambda: list(daemon.events("connection")), "it has its line")
    assert (event["attempts"], event["reason"]) == (2, "connection refused")
    assert daemon.endpoint("web/in")["target_up"] is False


def test_one_that_is_down_gets_nobody_and_with_hold_clients_wait_for_the_first(daemons: Daemons) -> None:
    """By the code that does it for an edge's instances."""
    port = free_port()
    with Application(free_port()) as one, Application(free_port()) as two:
        keys = {"probe": {"protocol": "http", "path": "/healthz", "interval": "100ms"}, "timeouts": {"hold": "60s"}}
        daemon = daemons(file_for(port, [one.target, two.target], **keys), {"workers": 1})
        eventually(lambda: set(by_target(daemon, "health").values()) == {"up"}, "both are up")
        one.stop()
        eventually(lambda: by_target(daemon, "health")[one.target] == "down", "it is out")
        before = by_target(daemon, "failures")[one.target]
        for n in range(10):
            assert ask_http(port, f"n{n}")
        assert by_target(daemon, "failures")[one.target] == before, "nobody was sent there"
        two.stop()
        eventually(lambda: by_target(daemon, "health")[two.target] == "down", "it is out too")
        with dial(port) as client:
            client.sendall(b"GET /waits HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            eventually(lambda: daemon.endpoint("web/in")["held"] == 1, "it waits")
            one.start()
            assert client.recv(64).startswith(b"HTTP/1.1 200")
        eventually(lambda: daemon.endpoint("web/in")["active"] == 0, "it has ended")
        assert set(daemon.endpoint("web/in")["closed"]) <= {"client_fin", "target_fin"}


@pytest.mark.parametrize("how", ["kill", "reload and kill"])
def test_connections_stay_where_they_are(how: str, daemons: Daemons, three: list[Echo]) -> None:
    """A worker's death, and a reload that takes their target away, do not end them; and each is counted where it is."""
    port = free_port()
    targets = [each.target for each in three]
    daemon = daemons(file_for(port, targets, target_distribution="round-robin"), {"workers": 1})
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(6)]
        for client in clients:
            assert echoed(client) == b"ping"
        if how != "kill":
            daemon.write_service(file_for(port, targets[:1]))
            assert daemon.ask("POST", "/v1/reload")[0] == 200
        restarts = daemon.status()["worker_restarts"]
        os.kill(daemon.worker_pid(), signal.SIGKILL)
        eventually(lambda: daemon.status()["worker_restarts"] > restarts, "another one works")
        for client in clients:
            assert echoed(client, b"still here") == b"still here"
        expected = dict.fromkeys(targets, 2) if how == "kill" else {}
        assert by_target(daemon, "active") == expected
    eventually(lambda: daemon.endpoint("web/in")["active"] == 0, "all have ended")
    assert daemon.endpoint("web/in")["closed"] == {"client_fin": 6}
    # Who was connected where is known, even of one that has left.
    eventually(lambda: sum(1 for _ in daemon.events("connection")) == 6, "each has its line")
    ended = Counter(event["target"] for event in daemon.events("connection"))
    assert ended == dict.fromkeys(targets, 2)
    assert set(by_target(daemon, "active").values()) <= {0}


def test_a_target_more_moves_nobody(daemons: Daemons, three: list[Echo]) -> None:
    port = free_port()
    targets = [each.target for each in three]
    daemon = daemons(file_for(port, targets[:2]), {"workers": 1})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        before = by_target(daemon, "connected")
        daemon.write_service(file_for(port, targets))
        assert daemon.ask("POST", "/v1/reload")[0] == 200
        assert by_target(daemon, "connected") == before | {targets[2]: 0}, "who stays keeps its counters"
        assert echoed(client) == b"ping"


def test_behind_an_edge_the_instance_says_when_none_is_up(daemons: Daemons) -> None:
    """Then the edge has another instance: no client is refused."""
    edge, one, two = "127.250.0.1", "127.1.0.1", "127.1.0.2"
    public, private = free_port(edge), free_port(one)
    with Echo() as service_of_two:
        nobody = [f"127.0.0.1:{free_port()}" for _ in range(2)]

        def file(targets: list[str]) -> dict[str, Any]:
            own = {"type": "input", "public_port": public, "port": private, "target": targets}
            roles = {"web": {"instances": [one, two], "endpoints": {"in": own}}}
            return {"version": 1, "service": "test", "edge": {"instances": [edge]}, "roles": roles}

        down = daemons(file(nobody), instance="web_IN_0")
        daemons(file([service_of_two.target, nobody[0]]), instance="web_IN_1")
        front = daemons(file(nobody), instance="edge_IN_0")
        eventually(lambda: "unknown" not in by_target(front, "health").values(), "it has asked both relays")
        for n in range(12):
            with socket.create_connection((edge, public), source_address=(f"127.0.0.{n + 1}", 0)) as client:
                assert echoed(client) == b"ping"
        assert down.endpoint("web/in")["target_up"] is False
        assert set(front.endpoint("web/in")["closed"]) == {"client_fin"}
