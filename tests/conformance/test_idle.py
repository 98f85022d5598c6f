"""The idle timeout ends a flow that carries nothing, and no other."""

import time
from typing import Final

import pytest

from tests.conformance.paths import DataPath
from tests.conformance.peers import Target, connect, fin, together
from tests.conformance.streams import KIB, MIB, Received, receive, receive_exactly, send_whole, stream, whole
from tests.harness import HANG_S

IDLE_S: Final = 2.0  # the machine may stand still in a test for a good part of it
IDLE = {"idle": "2s"}
EMPTY = stream(0).sha256(0)


def test_an_idle_flow_is_cut(forwarder: DataPath, tcp_target: Target) -> None:
    """Both sides get a reset: a FIN would say that all was sent."""
    with (
        forwarder.open(tcp_target.address, {"idle": 1}, timeouts=IDLE) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        begun_s = time.monotonic()
        client.sendall(b"x")
        assert receive_exactly(served, 1) == b"x"
        assert receive(client) == Received(0, EMPTY, fin=False)
        assert IDLE_S <= time.monotonic() - begun_s < HANG_S
        assert receive(served) == Received(0, EMPTY, fin=False)


@pytest.mark.parametrize("finished", ["client", "target"])
def test_a_half_closed_flow_that_is_idle_is_cut(forwarder: DataPath, tcp_target: Target, finished: str) -> None:
    with (
        forwarder.open(tcp_target.address, {"idle": 1}, timeouts=IDLE) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        done, other = (client, served) if finished == "client" else (served, client)
        fin(done)
        assert other.recv(1) == b""
        assert receive(done) == Received(0, EMPTY, fin=False)


@pytest.mark.parametrize("sender", ["client", "target"])
def test_bytes_one_way_are_enough(forwarder: DataPath, tcp_target: Target, sender: str) -> None:
    with (
        forwarder.open(tcp_target.address, {f"{sender}_fin": 1}, timeouts=IDLE) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        until_s, sent = time.monotonic() + IDLE_S + 1, 0
        while time.monotonic() < until_s:
            stream(50).send(source, 1, sent)
            receive_exactly(reader, 1)
            sent += 1
            time.sleep(0.1)  # the pace of a slow sender
        fin(source)
        assert reader.recv(1) == b""


@pytest.mark.parametrize("sender", ["client", "target"])
def test_a_slow_reader_is_not_idle(forwarder: DataPath, tcp_target: Target, sender: str) -> None:
    """The sender filled every buffer at once. The reader then takes 320 KB a second, for longer than the timeout.

    A socket's buffer must be free by a third before epoll says that it takes more. That is 4 s here, but bytes go out
    of it all the time. A relay before that one sees nothing move meanwhile: along a chain the timeout must be longer
    than what a reader needs for that third, so there it takes 2 MB a second.
    """
    size = 24 * MIB
    idle_s, pause_s, for_s = (IDLE_S, 0.2, 2 * IDLE_S) if forwarder.hops == 1 else (4, 0.03, 5)
    with (
        forwarder.open(tcp_target.address, {f"{sender}_fin": 1}, timeouts={"idle": f"{idle_s:.0f}s"}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
        together() as pool,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        pool.submit(send_whole, source, 51, size)
        head, until_s = bytearray(), time.monotonic() + for_s
        while time.monotonic() < until_s:
            head += receive_exactly(reader, 64 * KIB)
            time.sleep(pause_s)  # the pace of a slow reader
        assert receive(reader, begun_with=head) == whole(51, size)


def test_a_connection_that_was_never_used_is_cut(forwarder: DataPath, tcp_target: Target) -> None:
    with (
        forwarder.open(tcp_target.address, {"idle": 1}, timeouts=IDLE) as door,
        connect(door.address) as client,
        tcp_target.accept(),
    ):
        assert receive(client) == Received(0, EMPTY, fin=False)


def test_off_means_never(forwarder: DataPath, tcp_target: Target) -> None:
    """It is left alone for longer than another flow, which is cut for that."""
    with (
        forwarder.open(tcp_target.address, {"client_fin": 1}, timeouts={"idle": "off"}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        with (
            forwarder.open(tcp_target.address, {"idle": 1}, timeouts=IDLE) as other_door,
            connect(other_door.address) as other,
            tcp_target.accept(),
        ):
            assert receive(other) == Received(0, EMPTY, fin=False)
        client.sendall(b"x")
        assert receive_exactly(served, 1) == b"x"
        fin(client)
        assert served.recv(1) == b""
