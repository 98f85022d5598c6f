"""A reader that is slow or stands still costs a bounded amount, whatever is sent, and loses nothing."""

import socket
import time

import pytest

from tests.conformance.paths import DataPath
from tests.conformance.peers import Target, connect, fin, together
from tests.conformance.proc import cpu_s_over, rss_bytes
from tests.conformance.streams import KIB, MIB, receive, receive_exactly, send_whole, stream, whole

GIB = 1024 * MIB
SIDES = pytest.mark.parametrize("sender", ["client", "target"])


@SIDES
def test_a_stopped_reader_and_a_gigabyte(path: DataPath, target: Target, sender: str) -> None:
    """The memory plateau: what the sender gets rid of is what kernel buffers hold, and the forwarder does not grow."""
    with (
        path.open(target.address, {f"{sender}_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        before_bytes = sum(map(rss_bytes, door.pids))
        taken = stream(40).fill(source, GIB, door.pids)
        assert 0 < taken < 64 * MIB
        assert sum(map(rss_bytes, door.pids)) - before_bytes < 16 * MIB
        assert cpu_s_over(0.5, *door.pids) < 0.1  # they wait, they do not try over and over
        pool.submit(fin, source)
        assert receive(reader) == whole(40, taken)


@SIDES
def test_a_reader_that_stops_again_and_again(path: DataPath, tcp_target: Target, sender: str) -> None:
    rounds, size = 5, 3 * MIB
    with (
        path.open(tcp_target.address, {f"{sender}_fin": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
        together() as pool,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        pool.submit(send_whole, source, 41, rounds * size)
        head = bytearray()
        for _ in range(rounds - 1):
            head += receive_exactly(reader, size - 1)
            time.sleep(0.1)  # the reader's own pause
        assert receive(reader, begun_with=head) == whole(41, rounds * size)


@SIDES
def test_a_reader_of_10_kb_a_second(forwarder: DataPath, tcp_target: Target, sender: str) -> None:
    size = 24 * MIB
    with (
        forwarder.open(tcp_target.address, {f"{sender}_fin": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
        together() as pool,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        before_bytes = sum(map(rss_bytes, door.pids))
        pool.submit(send_whole, source, 42, size)
        head, until_s = bytearray(), time.monotonic() + 1.5
        while time.monotonic() < until_s:
            head += receive_exactly(reader, KIB)
            time.sleep(0.1)  # the pace of a slow reader
        assert sum(map(rss_bytes, door.pids)) - before_bytes < 16 * MIB
        assert receive(reader, begun_with=head) == whole(42, size)


@SIDES
def test_one_byte_segments_behind_a_full_pipe(path: DataPath, tcp_target: Target, sender: str) -> None:
    """Each segment takes a slot of a pipe, so a pipe of 64 KiB is full at 16 bytes (pipe(7)). None gets lost."""
    segments = 20_000
    with (
        path.open(tcp_target.address, {f"{sender}_fin": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
        together() as pool,
    ):
        source, reader = (client, served) if sender == "client" else (served, client)
        source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        bulk = stream(43).fill(source, GIB, door.pids)

        def trickle() -> None:
            for offset in range(bulk, bulk + segments):
                source.sendall(stream(43).part(offset, 1))
            fin(source)

        trickling = pool.submit(trickle)
        assert receive(reader) == whole(43, bulk + segments)
        trickling.result()


def test_both_readers_stand_still(path: DataPath, target: Target) -> None:
    """Both pipes of the flow are full; each direction comes free by itself."""
    with (
        path.open(target.address, {"client_fin|target_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):
        up = stream(44).fill(client, GIB, door.pids)
        down = stream(45).fill(served, GIB, door.pids)
        assert cpu_s_over(0.5, *door.pids) < 0.1
        pool.submit(fin, client)
        assert receive(served) == whole(44, up)
        pool.submit(fin, served)
        assert receive(client) == whole(45, down)


def test_one_stopped_reader_stops_nobody_else(forwarder: DataPath, tcp_target: Target) -> None:
    with (
        forwarder.open(tcp_target.address, {"client_fin": 2}) as door,
        connect(door.address) as stopped,
        tcp_target.accept() as reader,
        together() as pool,
    ):
        taken = stream(46).fill(stopped, GIB, door.pids)
        with connect(door.address) as client, tcp_target.accept() as served:
            at_target = pool.submit(receive, served)
            stream(47).send(client, 32 * MIB)
            fin(client)
            assert at_target.result() == whole(47, 32 * MIB)
        fin(stopped)
        assert receive(reader) == whole(46, taken)
