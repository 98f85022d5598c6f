"""The header that an edge sends first: it never comes, or the worker dies with it still to be read."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from relay.envelope import proxyproto
from tests.conftest import Daemons
from tests.e2e.peers import accept, counted, next_worker
from tests.harness import HANG_S, Daemon, dial, eventually
from tests.ports import free_port

BUILDERS = {"v1": proxyproto.build_v1, "v2": proxyproto.build_v2}
EDGE, INSTANCE = "127.250.0.1", "127.1.0.1"


@contextmanager
def behind_an_edge(daemons: Daemons, listener: socket.socket, **keys: object) -> Iterator[tuple[Daemon, socket.socket]]:
    """An instance, and a connection to it from the edge's address that its worker waits for the header of."""
    port = free_port(INSTANCE)
    own = {"type": "input", "public_port": port, "target": f"127.0.0.1:{listener.getsockname()[1]}", **keys}
    roles = {"web": {"instances": [INSTANCE], "endpoints": {"in": own}}}
    file = {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": roles}
    daemon = daemons(file, {"workers": 1})
    with dial(port, host=INSTANCE, source=EDGE) as client:
        counted(daemon, accepted=1)
        yield daemon, client


def test_a_header_that_does_not_come(daemons: Daemons, listener: socket.socket) -> None:
    with behind_an_edge(daemons, listener, timeouts={"first_byte": "300ms"}) as (daemon, client):
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        counted(daemon, closed={"first_byte_timeout": 1})


@pytest.mark.parametrize("data", [b"", b"hello"])
def test_a_worker_that_dies_with_header_and_end_unread(daemons: Daemons, listener: socket.socket, data: bytes) -> None:
    """All that the connection will ever send stands in the socket, and the next worker takes the header out of it."""
    with behind_an_edge(daemons, listener) as (daemon, client):
        worker = daemon.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        header = proxyproto.build_v2(socket.inet_aton("192.0.2.7"), 4660, socket.inet_aton(EDGE), 80)
        client.sendall(header + data)
        client.shutdown(socket.SHUT_WR)
        os.kill(worker, signal.SIGKILL)
        next_worker(daemon, worker)
        listener.settimeout(HANG_S)
        with accept(listener) as served, served.makefile("rb") as stream:
            assert stream.read() == data
        assert client.recv(1) == b""
        counted(daemon, closed={"client_fin": 1})


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_application_hears_where_the_client_connected_to(
    daemons: Daemons, listener: socket.socket, version: str
) -> None:
    """At the edge, and not where the instance listens for it."""
    public, private = free_port(EDGE), free_port(INSTANCE)
    target = f"127.0.0.1:{listener.getsockname()[1]}"
    own = {"type": "input", "public_port": public, "port": private, "target": target, "protocol": "http"}
    own |= {"send_proxy": version, "probe": {"protocol": "tcp", "interval": "1h"}}
    roles = {"web": {"instances": [INSTANCE], "endpoints": {"in": own}}}
    file = {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": roles}
    daemons(file, {"workers": 1}, instance="web_IN_0")
    daemons(file, {"workers": 1}, instance="edge_IN_0")
    listener.settimeout(HANG_S)
    with dial(public, host=EDGE) as client:
        host, port = client.getsockname()
        client.sendall(b"GET / HTTP/1.1\r\n")
        told = BUILDERS[version](socket.inet_aton(host), port, socket.inet_aton(EDGE), public)
        accept_of(listener, told + b"GET / HTTP/1.1\r\n").close()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_next_worker_says_the_same(daemons: Daemons, listener: socket.socket, version: str) -> None:
    """The header was taken by a worker that died before it dialled."""
    with behind_an_edge(daemons, listener, protocol="http", send_proxy=version) as (daemon, client):
        known = (socket.inet_aton("192.0.2.7"), 4660, socket.inet_aton("192.0.2.80"), 443)
        client.sendall(proxyproto.build_v2(*known) + b"GET / ")
        peers = [("192.0.2.7:4660", "look")]
        eventually(lambda: open_now(daemon) == peers, "it is looked at")
        worker = daemon.worker_pid()
        os.kill(worker, signal.SIGKILL)
        next_worker(daemon, worker)
        assert open_now(daemon) == peers
        client.sendall(b"HTTP/1.1\r\n")
        listener.settimeout(HANG_S)
        accept_of(listener, BUILDERS[version](*known) + b"GET / HTTP/1.1\r\n").close()


def open_now(daemon: Daemon) -> list[tuple[str, str]]:
    """Whose connections are open, and where they stand."""
    return [(each["peer"], each["state"]) for each in daemon.ask("GET", "/v1/connections")[1]]


def accept_of(listener: socket.socket, told: bytes) -> socket.socket:
    """The next connection that begins with these bytes: an edge's own questions come as well."""
    while True:
        served = accept(listener)
        begins = b""
        while len(begins) < len(told) and (part := served.recv(len(told) - len(begins))):
            begins += part
        if begins == told:
            return served
        served.close()
