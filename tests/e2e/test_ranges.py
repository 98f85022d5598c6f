"""A range of ports is one endpoint: each port leads to its own of the target's, over reloads and workers' deaths too."""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import counted, endpoint, next_worker, refused, shut
from tests.harness import HANG_S, Daemon, Echo, denied, dial, echoed, eventually, service
from tests.ports import free_port, free_ports

PATIENT = {"first_byte": "1m"}  # a slow machine's upgrade is not what its clients are cut for


@pytest.fixture
def echoes() -> Iterator[list[Echo]]:
    """Four targets on ports in a row."""
    first = free_ports(4)
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Echo(("127.0.0.1", first + n))) for n in range(4)]


def behind(echoes: list[Echo]) -> str:
    """The range of these targets, as a file has it."""
    return f"127.0.0.1:{echoes[0].port}-{echoes[-1].port}"


def ranged(first: int, count: int, target: str, **keys: Any) -> dict[str, Any]:
    """An internal endpoint on so many ports, that admits 127.0.0.1."""
    return {"type": "internal", "port": f"{first}-{first + count - 1}", "target": target, **keys}


def reload(daemon: Daemon) -> list[str]:
    """Reload what is right; what changed."""
    code, answer = daemon.ask("POST", "/v1/reload")
    assert code == 200, answer
    return list(answer["changes"])


def test_port_for_port(daemons: Daemons, echoes: list[Echo]) -> None:
    first = free_ports(6) + 1
    daemon = daemons(service({"in": ranged(first, 4, behind(echoes))}))
    for n in (2, 0, 3, 1):
        with dial(first + n) as client:
            assert echoed(client) == b"ping"
        assert [echo.accepted for echo in echoes] == [
            int(m in (2, 0, 3, 1)[: (2, 0, 3, 1).index(n) + 1]) for m in range(4)
        ]
    counted(daemon, accepted=4, active=0, listen=f"127.0.0.1:{first}-{first + 3}")
    assert refused(first - 1)
    assert refused(first + 4)
    done = daemon.relay("status")
    assert f"127.0.0.1:{first}-{first + 3}" in done.stdout
    assert behind(echoes) in done.stdout
    dialled = {f"127.0.0.1:{echo.port}" for echo in echoes}
    eventually(lambda: {record["target"] for record in daemon.events("connection")} == dialled, "each has its own line")


def test_many_ports_to_one_target_with_one_set_of_limits(daemons: Daemons, echo: Echo) -> None:
    first = free_ports(300)  # more than fit into one message to a worker
    daemon = daemons(service({"in": ranged(first, 300, echo.target, limits={"connections": 2})}))
    with dial(first) as one, dial(first + 299) as two:
        assert (echoed(one), echoed(two)) == (b"ping", b"ping")
        assert denied(first + 150)
        counted(daemon, accepted=2, denied={"connections": 1})


def test_a_worker_that_dies_takes_no_port_for_another(daemons: Daemons, echoes: list[Echo]) -> None:
    """One connection whose bytes move, and one that has not said enough to be dialled for."""
    first = free_ports(4)
    daemon = daemons(service({"in": ranged(first, 4, behind(echoes), protocol="http", timeouts=PATIENT)}))
    hello = b"GET / HTTP/1.1\r\n"
    with dial(first + 1) as moving, dial(first + 3) as looked_at:
        assert echoed(moving, hello) == hello
        looked_at.sendall(hello[:2])
        eventually(lambda: daemon.endpoint("web/in")["active"] == 2, "both were let in")
        os.kill(killed := daemon.worker_pid(), signal.SIGKILL)
        next_worker(daemon, killed)
        assert echoed(moving) == b"ping"
        looked_at.sendall(hello[2:])
        assert looked_at.recv(100)[:2] == hello[:2]
    assert [echo.accepted for echo in echoes] == [0, 1, 0, 1]


def test_an_upgrade_keeps_every_port(daemons: Daemons, echoes: list[Echo]) -> None:
    first = free_ports(4)
    daemon = daemons(service({"in": ranged(first, 4, behind(echoes), protocol="http", timeouts=PATIENT)}))
    hello = b"GET / HTTP/1.1\r\n"
    with dial(first + 2) as moving, dial(first + 1) as looked_at:
        assert echoed(moving, hello) == hello
        looked_at.sendall(hello[:3])
        eventually(lambda: daemon.endpoint("web/in")["active"] == 2, "both were let in")
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        assert echoed(moving) == b"ping"
        looked_at.sendall(hello[3:])
        assert looked_at.recv(100)[:3] == hello[:3]
        for n in range(4):
            with dial(first + n) as new:
                assert echoed(new, hello) == hello
    assert [echo.accepted for echo in echoes] == [1, 2, 2, 1]


def test_a_reload_moves_a_range_under_its_connections(daemons: Daemons, echoes: list[Echo]) -> None:
    first = free_ports(5)
    daemon = daemons(service({"in": ranged(first, 4, behind(echoes))}))
    with dial(first) as going, dial(first + 2) as staying:
        assert (echoed(going), echoed(staying)) == (b"ping", b"ping")
        daemon.write_service(service({"in": ranged(first + 1, 4, behind(echoes))}))
        assert reload(daemon) == [f"change web/in on 127.0.0.1:{first + 1}-{first + 4} (listen_port)"]
        shut(first)
        with dial(first + 4) as new:
            assert echoed(new) == b"ping"
        assert (echoed(going), echoed(staying)) == (b"ping", b"ping"), "the endpoint is the same one"
        os.kill(killed := daemon.worker_pid(), signal.SIGKILL)
        next_worker(daemon, killed)
        assert (echoed(going), echoed(staying)) == (b"ping", b"ping")
    assert [echo.accepted for echo in echoes] == [1, 0, 1, 1]


def test_an_access_list_that_two_endpoints_share(daemons: Daemons, echo: Echo) -> None:
    one, two = free_port(), free_port()
    declared = service({name: endpoint(port, echo.target, access="office") for name, port in (("a", one), ("b", two))})
    declared["access_lists"] = {"office": [{"deny": "127.0.0.2"}]}
    daemon = daemons(declared)
    for port in (one, two):
        assert denied(port, source="127.0.0.2")
        with dial(port, source="127.0.0.3") as client:
            assert echoed(client) == b"ping"
    with dial(one, source="127.0.0.3") as client:
        assert echoed(client) == b"ping"
        declared["access_lists"] = {"office": [{"deny": "127.0.0.3"}]}
        daemon.write_service(declared)
        assert len(reload(daemon)) == 2, "both endpoints changed with their list"
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b"?"
    counted(daemon, "web/a", closed={"revoked": 1, "client_fin": 1})


def test_a_target_on_another_machine_is_refused(daemons: Daemons) -> None:
    declared = service({"in": endpoint(free_port(), "192.0.2.9:80")})
    daemon = daemons.make(declared)
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 1
    assert "`192.0.2.9:80` is on another machine" in daemon.log_text()
    declared["roles"]["web"]["endpoints"]["in"]["unsafe_target"] = True
    daemons(declared)
