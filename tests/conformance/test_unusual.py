"""What a peer may do and few ever do."""

import contextlib
import os
import signal
import socket
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.conformance.paths import DataPath
from tests.conformance.peers import Target, await_acknowledged, connect, fin, together
from tests.conformance.proc import cpu_s_over
from tests.conformance.streams import KIB, MIB, receive, receive_exactly, stream, whole


@pytest.mark.parametrize("sender", ["client", "target"])
def test_urgent_data(path: DataPath, tcp_target: Target, sender: str) -> None:
    """tcp(7), MSG_OOB: splice(2) stops at the urgent byte, though the socket stays readable.

    One byte from a hostile peer must not keep a worker busy, nor hold back or lose what comes after it. A forwarder may
    pass the urgent byte on in the stream, leave it out as recv(2) does, or reset; a FIN after half of the stream is a lie.
    """
    before, after = b"before", bytes(stream(70).part(0, 60 * KIB))
    with (
        path.open(tcp_target.address, {f"{sender}_fin|{sender}_reset": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        source.sendall(before)
        source.send(b"!", socket.MSG_OOB)
        source.sendall(after)
        assert cpu_s_over(1.0, *door.pids) < 0.3
        fin(source)
        got, ended = bytearray(), "fin"
        try:
            while part := reader.recv(MIB):
                got += part
        except ConnectionResetError:
            ended = "reset"
        if ended == "fin":
            assert bytes(got) in (before + after, before + b"!" + after)


def test_a_unix_target_that_shuts_its_reading_down(path: DataPath, unix_target: Target) -> None:
    """shutdown(2) for reading shows at the other end of a Unix socket. The target can still send, and then finish."""
    with (
        path.open(unix_target.address, {"target_fin": 1}) as door,
        connect(door.address) as client,
        unix_target.accept() as served,
    ):
        served.shutdown(socket.SHUT_RD)
        stream(71).send(served, 40 * KIB)
        fin(served)
        assert receive(client) == whole(71, 40 * KIB)


def test_a_unix_target_that_closes_on_a_client_that_still_sends(forwarder: DataPath, unix_target: Target) -> None:
    """It answers before it has read everything, and closes. The client gets the whole answer, then a reset or a FIN."""
    size = 150 * KIB
    with (
        forwarder.open(unix_target.address, {"target_fin|target_reset": 1}) as door,
        connect(door.address, rcvbuf_bytes=4096) as client,
    ):
        with unix_target.accept() as served:
            stream(72).fill(client, 256 * MIB, door.pids)
            stream(73).send(served, size)
            await_acknowledged(served)
        got = receive(client)
        assert (got.size_bytes, got.sha256) == (size, stream(73).sha256(size))


@pytest.mark.parametrize("sender", ["client", "target"])
def test_everything_happens_while_the_forwarder_stands_still(
    forwarder: DataPath, tcp_target: Target, sender: str
) -> None:
    """Data, more data, FIN: all events come to the forwarder in one batch. So do a whole connection's events."""
    ends = Counter([f"{sender}_fin", "client_fin"])
    with (
        forwarder.open(tcp_target.address, ends) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
        together() as pool,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        with stopped(door.pids):
            stream(74).send(source, 40 * KIB)
            fin(source)
            await_acknowledged(source)
            with connect(door.address) as whole_one:
                whole_one.sendall(b"all at once")
        other = pool.submit(tcp_target.accept)
        assert receive(reader) == whole(74, 40 * KIB)
        with other.result() as second:
            assert receive_exactly(second, 11) == b"all at once"
            assert second.recv(1) == b""
        fin(reader)
        assert source.recv(1) == b""


@contextlib.contextmanager
def stopped(pids: tuple[int, ...]) -> Iterator[None]:
    """Keep processes from running."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
