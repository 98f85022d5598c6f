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
from tests.harness import HANG_S, Daemon, dial
from tests.ports import free_port

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
