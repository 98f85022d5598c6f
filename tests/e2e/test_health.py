"""How a target is, asked everywhere: of the instance, of its edge, as a table, as JSON, as a metric. All say the same."""

import contextlib
import os
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.harness import Daemon, Echo, Scrape, dial, echoed, eventually
from tests.ports import free_port

EDGE, INSTANCES = "127.250.0.1", ("127.1.0.1", "127.1.0.2")
NAME = "web/in"


@dataclass
class Web:
    """An HTTP application with a status of its own choice; `asked` are the requests that came."""

    port: int
    status: int = 200
    asked: list[bytes] = field(default_factory=list)

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        with socket.create_server(("127.0.0.1", self.port)) as listener:
            thread = threading.Thread(target=self._serve, args=(listener,), daemon=True)
            thread.start()
            yield
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()

    def _serve(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, contextlib.suppress(OSError):
                    self.asked.append(client.recv(4096))
                    client.sendall(
                        b"HTTP/1.1 %d x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % self.next_status()
                    )

    def next_status(self) -> int:
        """Of the request that has just come."""
        return self.status


@dataclass
class Site:
    edge: Daemon
    instance: Daemon
    metrics: int
    public: int

    def told(self) -> dict[str, Any]:
        """What each says: up, and why not."""
        own, behind = self.instance.endpoint(NAME), self.edge.endpoint(NAME)
        (target,) = behind["target_set"]
        members: dict[str, Any] = {each["id"]: each for each in self.instance.ask("GET", "/v1/instances")[1]}
        seen: dict[str, Any] = {each["id"]: each for each in self.edge.ask("GET", "/v1/instances")[1]}
        return {
            "instance": (own["target_up"], own["target_reason"]),
            "edge": ({"up": True, "down": False, "unknown": None}[target["health"]], target["reason"]),
            "row": behind["target_up"],
            "metric": self.metric(),
            "itself": (members["web_IN_0"]["healthy"], members["web_IN_0"]["reasons"].get("in", "")),
            "from the edge": seen["web_IN_0"]["healthy"],
        }

    def metric(self) -> float | None:
        """relay_target_up of the instance; None: not yet known."""
        with contextlib.suppress(KeyError):
            return Scrape(self.metrics).value("relay_target_up", endpoint="in")
        return None

    def is_told(self, up: bool, reason: str = "") -> Callable[[], bool]:
        expected = {
            "instance": (up, reason),
            "edge": (up, reason),
            "row": up,
            "metric": float(up),
            "itself": (up, reason),
            "from the edge": up,
        }
        return lambda: self.told() == expected


def site(daemons: Daemons, target: str, **keys: Any) -> Site:
    public, private, metrics = (free_port("0.0.0.0") for _ in range(3))
    declared = {"type": "input", "public_port": public, "port": private, "target": target, **keys}
    file = {
        "version": 1,
        "service": "test",
        "edge": {"instances": [EDGE]},
        "roles": {"web": {"instances": [INSTANCES[0]], "endpoints": {"in": declared}}},
    }
    instance = daemons(file, {"metrics": {"listen": f"127.0.0.1:{metrics}"}}, instance="web_IN_0")
    return Site(daemons(file, instance="edge_IN_0"), instance, metrics, public)


PROBE: dict[str, Any] = {"protocol": "http", "path": "/healthz", "interval": "100ms", "timeout": "2s"}


def test_with_a_probe_everybody_says_how_the_application_is(daemons: Daemons) -> None:
    web = Web(free_port())
    made = site(daemons, f"127.0.0.1:{web.port}", probe=PROBE)
    eventually(made.is_told(False, "connection refused"), "nobody listens")
    with web.serving():
        eventually(made.is_told(True), "it serves")
        web.status = 503
        eventually(made.is_told(False, "HTTP 503"), "it is not well")
        for daemon in (made.edge, made.instance):
            (line,) = (each for each in daemon.events("target down") if each["reason"] == "HTTP 503")
            assert line["endpoint"] == NAME
        text = made.edge.relay("status").stdout
        assert "  0 of 1 up  " in text
        assert ": HTTP 503  " in text
        assert "DOWN: in (HTTP 503)" in made.instance.relay("instances").stdout
        web.status = 200
        eventually(made.is_told(True), "it is well again")
    assert {each.split(b"\r\n")[0] for each in web.asked} == {b"GET /healthz HTTP/1.1"}


def test_without_a_probe_the_first_connection_that_is_lost_says_it_and_nobody_else_is_bothered(
    daemons: Daemons,
) -> None:
    port = free_port()
    made = site(daemons, f"127.0.0.1:{port}")
    with Echo(("127.0.0.1", port)) as echo:
        with dial(made.public, host=EDGE) as client:
            assert echoed(client) == b"ping"
        eventually(lambda: made.told()["edge"] == (True, ""), "the edge knows it")
        assert made.told()["instance"] == (True, "")
        assert made.instance.endpoint(NAME)["target_looked"] == "dialled"
        asked = made.edge.endpoint(NAME)["target_set"][0]["looked_s"]
        eventually(lambda: made.edge.endpoint(NAME)["target_set"][0]["looked_s"] < asked, "the edge asks again")
        assert echo.accepted == 1, "and not the application"
    with dial(made.public, host=EDGE) as client, pytest.raises(ConnectionError):
        echoed(client)
    eventually(made.is_told(False, "connection refused"), "everybody knows why")
    with Echo(("127.0.0.1", port)):
        eventually(made.is_told(True), "it is back, without a client")


def test_an_application_that_is_let_be_is_asked_by_clients_alone(daemons: Daemons, tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    made = site(daemons, f"unix:{path}", probe=False)
    eventually(lambda: made.told()["edge"] == (True, ""), "the instance's relay is there")
    with dial(made.public, host=EDGE) as client, pytest.raises(ConnectionError):
        echoed(client)
    lost = f"no such file or directory: {path}"
    eventually(lambda: made.told()["instance"] == (False, lost), "the instance knows it")
    (line,) = (each for each in made.instance.events("connection") if each["cause"] == "connect_failed")
    assert line["reason"] == lost
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        eventually(lambda: made.told()["edge"] == (True, ""), "the edge goes on sending: who else would find out")
        with dial(made.public, host=EDGE) as client:
            listener.settimeout(10.0)
            served, _ = listener.accept()
            with served:
                served.sendall(b"hello")
                assert client.recv(5) == b"hello"
        assert made.told()["instance"] == (True, "")
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_a_drained_instance_says_so_to_its_edge(daemons: Daemons, echo: Echo) -> None:
    made = site(daemons, echo.target)
    eventually(lambda: made.told()["edge"] == (True, ""), "the edge knows it")
    assert made.instance.relay("drain").returncode == 0
    busy = "asks for no new connections (`relay drain`)"
    eventually(lambda: made.told()["edge"] == (False, busy), "the edge knows why")
    assert made.instance.relay("drain", "off").returncode == 0
    eventually(lambda: made.told()["edge"] == (True, ""), "it is back")


def test_a_relay_that_is_not_there_is_told_from_an_application_that_is_not(daemons: Daemons, echo: Echo) -> None:
    made = site(daemons, echo.target)
    eventually(lambda: made.told()["edge"] == (True, ""), "the edge knows it")
    made.instance.stop()
    lost = (False, "its relay: connection refused")

    def seen() -> tuple[Any, str]:
        (target,) = made.edge.endpoint(NAME)["target_set"]
        return {"up": True, "down": False, "unknown": None}[target["health"]], target["reason"]

    eventually(lambda: seen() == lost, "the edge knows whose fault it is")


def test_what_control_knew_is_known_after_its_end(daemons: Daemons) -> None:
    made = site(daemons, f"127.0.0.1:{free_port()}", probe=PROBE)
    eventually(made.is_told(False, "connection refused"), "nobody listens")
    before = [daemon.status()["control"]["pid"] for daemon in (made.edge, made.instance)]
    for pid in before:
        os.kill(pid, 9)

    def told() -> bool:
        with contextlib.suppress(OSError, ValueError):
            after = [daemon.status()["control"]["pid"] for daemon in (made.edge, made.instance)]
            return not set(after) & set(before) and made.is_told(False, "connection refused")()
        return False

    eventually(told, "the next control process says the same")
    since_s = made.instance.endpoint(NAME)["target_since_s"]
    uptime_s = made.instance.status()["uptime_s"]
    assert 0 < since_s <= uptime_s, "and since when"
    for daemon in (made.edge, made.instance):
        assert len(list(daemon.events("target down"))) == 1, "that is no news"


@pytest.mark.parametrize("workers", [1, 2])
def test_an_internal_endpoint_is_probed_too_and_a_door_knows_its_instances(workers: int, daemons: Daemons) -> None:
    web, port, local = Web(free_port()), free_port(), free_port()
    file = {
        "version": 1,
        "service": "test",
        "roles": {
            "web": {
                "instances": [INSTANCES[0]],
                "uses": {"db": {"endpoint": "store/db", "listen": f"127.0.0.1:{local}"}},
            },
            "store": {
                "instances": [INSTANCES[1]],
                "endpoints": {
                    "db": {"type": "internal", "port": port, "target": f"127.0.0.1:{web.port}", "probe": PROBE}
                },
            },
        },
    }
    settings = {"workers": workers}
    store, door = daemons(file, settings, instance="store_IN_0"), daemons(file, settings, instance="web_IN_0")

    def own() -> tuple[Any, str]:
        found = store.endpoint("store/db")
        return found["target_up"], found["target_reason"]

    def seen() -> tuple[str, str]:
        (target,) = door.endpoint("web/db")["target_set"]
        return target["health"], target["reason"]

    eventually(lambda: own() == (False, "connection refused"), "it is probed")
    assert seen() == ("unknown", "")
    with dial(local) as client, pytest.raises(ConnectionError):
        echoed(client)
    eventually(lambda: seen() == ("down", "connection reset by peer"), "the door has met it")
    assert "DOWN: db (connection reset by peer)" in door.relay("instances").stdout
    with web.serving():
        eventually(lambda: own() == (True, ""), "it is back")
        eventually(lambda: seen()[0] == "up", "for the door as well, without a client")
