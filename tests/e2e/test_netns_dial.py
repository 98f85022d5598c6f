"""What a machine of its own cannot dial, and what it can although its ports are taken."""

import contextlib
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e.netns import Network
from tests.e2e.peers import counted
from tests.harness import HANG_S, Daemon, Echo, echoed, eventually

pytestmark = [
    pytest.mark.real("ip"),
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

HERE: Final = "10.77.0.1"
PORT, PORTS = 8080, 20


@pytest.fixture
def machine() -> Iterator[Network]:
    """A machine with few ports to dial from, and without a way to any other network."""
    with Network({"web": [HERE]}) as network:
        with network.inside("web"):
            Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(f"40000 {40000 + PORTS - 1}")
        yield network


def started(daemons: Daemons, machine: Network, target: str, **keys: Any) -> Daemon:
    own = {"type": "internal", "port": PORT, "target": target, "unsafe_target": True, **keys}
    role = {"instances": [HERE], "endpoints": {"in": own}}
    file = {"version": 1, "service": "test", "roles": {"web": role}}
    return daemons(file, {"workers": 2}, wrapper=("ip", "netns", "exec", machine.namespace("web")))


def clients(machine: Network, stack: ExitStack, count: int) -> Iterator[socket.socket]:
    """So many connections, of ports that no dial is given."""
    for n in range(count):
        with machine.inside("web"):
            client = stack.enter_context(socket.socket())
            client.settimeout(HANG_S)
            client.bind((HERE, 20_000 + n))
            with contextlib.suppress(ConnectionResetError):  # already: its use will tell
                client.connect((HERE, PORT))
        yield client


def echo_on(machine: Network, stack: ExitStack) -> Echo:
    with machine.inside("web"):
        return stack.enter_context(Echo(("127.0.0.1", 9000)))


def test_more_connections_than_one_address_has_ports(machine: Network, daemons: Daemons) -> None:
    with ExitStack() as stack:
        echo = echo_on(machine, stack)
        daemon = started(daemons, machine, echo.target)
        for client in clients(machine, stack, 3 * PORTS):
            assert echoed(client) == b"ping"
        counted(daemon, active=3 * PORTS, closed={}, target_up=True, connect_failures=0)
    (said,) = eventually(lambda: list(daemon.events("source addresses")), "it says so")
    assert f"no local port is free towards {echo.target}" in said["message"]


def test_where_one_address_must_do_that_is_this_machines_trouble(machine: Network, daemons: Daemons) -> None:
    with ExitStack() as stack:
        echo = echo_on(machine, stack)
        daemon = started(daemons, machine, echo.target, source_addresses="off")
        refused = 0
        for client in clients(machine, stack, PORTS + 1):
            try:
                assert echoed(client) == b"ping"
            except ConnectionError:
                refused += 1
        assert refused == 1
        counted(daemon, closed={"error": 1}, target_up=True, connect_failures=0)
    (said,) = eventually(lambda: list(daemon.events("dial")), "it says so")
    assert said["reason"].startswith(f"{echo.target}: no local port is free towards it")


def test_no_way_there(machine: Network, daemons: Daemons) -> None:
    daemon = started(daemons, machine, "192.0.2.1:80")
    with ExitStack() as stack:
        (client,) = clients(machine, stack, 1)
        with pytest.raises(ConnectionError):
            echoed(client)
    (line,) = eventually(lambda: list(daemon.events("connection")), "it ends")
    assert (line["cause"], line["reason"]) == ("error", "192.0.2.1:80: this machine has no route to it")
    (said,) = eventually(lambda: list(daemon.events("dial")), "it says so")
    assert (said["level"], said["reason"]) == ("error", line["reason"])
    assert daemon.endpoint("web/in")["target_up"] is None
