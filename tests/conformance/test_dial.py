"""Targets that refuse, do not answer, or vanish."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.conformance.paths import DataPath
from tests.conformance.peers import (
    Kind,
    Site,
    Target,
    await_broken,
    connect,
    fin,
    full_backlog,
    refused,
    reset,
    sending_fails,
)
from tests.conformance.streams import MIB, receive, receive_exactly, stream, whole
from tests.harness import HANG_S, eventually
from tests.ports import free_port

# Takes one connection from the listener it inherits as standard input, sends what it gets back until it is killed.
VICTIM = """
import socket
listener = socket.socket(fileno=0)
listener.setblocking(True)
connection, _ = listener.accept()
listener.close()
while data := connection.recv(65536):
    connection.sendall(data)
"""


def test_a_target_that_refuses(forwarder: DataPath) -> None:
    with forwarder.open(("127.0.0.1", free_port()), {"connect_failed": 1}) as door:
        assert refused(door.address)


def test_a_target_that_refuses_a_client_that_has_sent(forwarder: DataPath) -> None:
    """Its bytes stay unread in the forwarder, and what it gets is a reset all the same."""
    with forwarder.open(("127.0.0.1", free_port()), {"connect_failed": 20}) as door:
        for _ in range(20):
            with contextlib.suppress(ConnectionResetError), connect(door.address) as client:
                assert sending_fails(client)


def test_a_unix_target_that_is_not_there(forwarder: DataPath, site: Site) -> None:
    with forwarder.open(f"{site.path}.nobody", {"connect_failed": 1}) as door:
        assert refused(door.address)


def test_a_unix_target_whose_process_is_gone(forwarder: DataPath, unix_target: Target) -> None:
    """The socket's file is still there, and nobody listens on it."""
    unix_target.listener.close()
    with forwarder.open(unix_target.address, {"connect_failed": 1}) as door:
        assert refused(door.address)


def test_a_target_that_starts_later(forwarder: DataPath) -> None:
    """A refusal is of one connection; the next one is tried anew."""
    port = free_port()
    with forwarder.open(("127.0.0.1", port), {"connect_failed": 1, "client_fin": 1}) as door:
        assert refused(door.address)
        with socket.create_server(("127.0.0.1", port)) as listener, connect(door.address) as client:
            listener.settimeout(HANG_S)
            fin(client)
            served, _ = listener.accept()
            with served:
                assert served.recv(1) == b""


def test_a_target_that_does_not_answer(forwarder: DataPath, site: Site) -> None:
    with (
        Target(site, "tcp", backlog=0) as target,
        full_backlog(target.listener),
        forwarder.open(target.address, {"connect_timeout": 1}, timeouts={"connect": "500ms"}) as door,
    ):
        begun_s = time.monotonic()
        assert refused(door.address)
        assert 0.5 <= time.monotonic() - begun_s < HANG_S


def test_a_unix_target_that_does_not_answer(forwarder: DataPath, site: Site) -> None:
    """connect(2) gives EAGAIN for a Unix socket whose backlog is full, and no event tells when there is room."""
    with (
        Target(site, "unix", backlog=0) as target,
        full_backlog(target.listener),
        forwarder.open(target.address, {"connect_timeout": 1}, timeouts={"connect": "500ms"}) as door,
    ):
        begun_s = time.monotonic()
        assert refused(door.address)
        assert 0.5 <= time.monotonic() - begun_s < HANG_S


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_a_target_that_answers_late(forwarder: DataPath, site: Site, kind: Kind) -> None:
    """Room in the backlog comes before the timeout: the client has noticed nothing, and what it sent meanwhile is there."""
    size = 64 * 1024
    with (
        Target(site, kind, backlog=0) as target,
        full_backlog(target.listener) as waiting,
        forwarder.open(target.address, {"client_fin": 1}, timeouts={"connect": "60s"}) as door,
        connect(door.address) as client,
    ):
        stream(60).send(client, size)
        fin(client)
        for _ in range(waiting):
            target.accept().close()
        with target.accept() as served:
            assert receive(served) == whole(60, size)


def test_a_client_that_leaves_while_a_unix_target_is_dialled(forwarder: DataPath, site: Site) -> None:
    """The flow ends, at the latest with the dial, and for the target it is as if nobody had come."""
    ends = {"connect_timeout|client_gone|client_reset": 2}
    with (
        Target(site, "unix", backlog=0) as target,
        full_backlog(target.listener),
        forwarder.open(target.address, ends, timeouts={"connect": "500ms"}) as door,
    ):
        reset(connect(door.address))
        connect(door.address).close()


@pytest.mark.parametrize("signal_name", ["SIGKILL", "SIGTERM"])
def test_a_target_that_is_killed_in_mid_stream(path: DataPath, tcp_target: Target, signal_name: str) -> None:
    """What it had sent arrives; then the client learns that it is gone, whether it sends or waits."""
    with (
        victim(tcp_target) as process,
        path.open(tcp_target.address, {"target_reset": 1}) as door,
        connect(door.address) as client,
    ):
        stream(61).send(client, MIB // 2)
        assert receive_exactly(client, MIB // 2) == stream(61).head(MIB // 2)
        # Nobody reads what it sends back, so it is killed with data unread.
        stream(62).fill(client, 256 * MIB, (*door.pids, process.pid))
        process.kill() if signal_name == "SIGKILL" else process.terminate()
        process.wait(HANG_S)
        got = receive(client)
        assert got == whole(62, got.size_bytes, fin=False)


def test_an_idle_target_that_is_killed(path: DataPath, tcp_target: Target) -> None:
    """With nothing on the way the kernel ends its connections in an orderly manner: the client sees a FIN."""
    with (
        victim(tcp_target) as process,
        path.open(tcp_target.address, {"target_fin": 1}) as door,
        connect(door.address) as client,
    ):
        client.sendall(b"ping")
        assert receive_exactly(client, 4) == b"ping"
        process.kill()
        process.wait(HANG_S)
        assert client.recv(1) == b""


def test_a_client_that_is_gone_while_the_target_sends(path: DataPath, tcp_target: Target) -> None:
    with path.open(tcp_target.address, {"client_reset": 1}) as door:
        client = connect(door.address)
        with tcp_target.accept() as served:
            taken = stream(63).fill(served, 256 * MIB, door.pids)
            assert taken
            receive_exactly(client, 1000)
            client.close()  # with unread data, so the kernel resets
            await_broken(served)
            eventually(lambda: sending_fails(served), "the target is told")


@contextlib.contextmanager
def victim(target: Target) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that serves one connection to `target`; this one serves none."""
    process = subprocess.Popen([sys.executable, "-c", VICTIM], stdin=target.listener.fileno())
    target.listener.close()
    try:
        yield process
    finally:
        process.kill()
        process.wait(HANG_S)
