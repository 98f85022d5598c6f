"""Streams and their ends: every byte, in order, and each FIN where it was sent."""

import time

import pytest

from tests.conformance.paths import DataPath
from tests.conformance.peers import Kind, Site, Target, await_acknowledged, connect, fin, together
from tests.conformance.streams import KIB, MIB, receive, receive_exactly, send_whole, stream, whole


def test_64_mib_come_back_after_the_client_finished(path: DataPath, target: Target) -> None:
    size = 64 * MIB
    with (
        path.open(target.address, {"client_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):

        def echo() -> None:
            data = receive_exactly(served, size)
            assert served.recv(1) == b""  # the client's FIN, before a byte goes back
            served.sendall(data)
            fin(served)

        echoing = pool.submit(echo)
        stream(1).send(client, size)
        fin(client)
        assert receive(client) == whole(1, size)
        echoing.result()


def test_an_echo_while_it_is_sent(path: DataPath, target: Target) -> None:
    size = 32 * MIB
    with (
        path.open(target.address, {"client_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):

        def echo() -> None:
            while data := served.recv(100_000):
                served.sendall(data)
            fin(served)

        echoing = pool.submit(echo)
        sending = pool.submit(send_whole, client, 2, size)
        assert receive(client) == whole(2, size)
        sending.result()
        echoing.result()


def test_the_target_finishes_first(path: DataPath, target: Target) -> None:
    with (
        path.open(target.address, {"target_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):
        sending = pool.submit(send_whole, served, 3, 16 * MIB)
        assert receive(client) == whole(3, 16 * MIB)
        sending.result()
        # Its half is closed; the other one still carries a stream.
        sending = pool.submit(send_whole, client, 4, 16 * MIB)
        assert receive(served) == whole(4, 16 * MIB)
        sending.result()


def test_both_finish_at_once(path: DataPath, target: Target) -> None:
    with (
        path.open(target.address, {"client_fin|target_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):
        pool.submit(send_whole, client, 5, MIB)
        pool.submit(send_whole, served, 6, MIB)
        at_target = pool.submit(receive, served)
        assert receive(client) == whole(6, MIB)
        assert at_target.result() == whole(5, MIB)


def test_full_duplex_bulk(path: DataPath, target: Target) -> None:
    size = 64 * MIB
    with (
        path.open(target.address, {"client_fin|target_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):
        pool.submit(send_whole, client, 7, size)
        pool.submit(send_whole, served, 8, size)
        at_target = pool.submit(receive, served)
        assert receive(client) == whole(8, size)
        assert at_target.result() == whole(7, size)


def test_the_server_speaks_first(path: DataPath, target: Target) -> None:
    with (
        path.open(target.address, {"client_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
    ):
        served.sendall(b"220 ready\r\n")
        assert receive_exactly(client, 11) == b"220 ready\r\n"
        client.sendall(b"QUIT\r\n")
        assert receive_exactly(served, 6) == b"QUIT\r\n"
        fin(client)
        assert served.recv(1) == b""
        fin(served)
        assert client.recv(1) == b""


def test_nothing_and_a_fin(path: DataPath, target: Target) -> None:
    with path.open(target.address, {"client_fin": 1}) as door, connect(door.address) as client:
        fin(client)
        with target.accept() as served:
            assert served.recv(1) == b""
        assert client.recv(1) == b""


def test_nothing_and_a_close(path: DataPath, target: Target) -> None:
    with path.open(target.address, {"client_fin": 1}) as door:
        connect(door.address).close()
        with target.accept() as served:
            assert served.recv(1) == b""


def test_a_target_that_closes_right_after_its_answer(path: DataPath, target: Target) -> None:
    """The client gets all of it and a FIN, though nobody told the target that the client had finished."""
    size = 8 * MIB
    with (
        path.open(target.address, {"target_fin": 1}) as door,
        connect(door.address) as client,
        together() as pool,
    ):

        def answer() -> None:
            with target.accept() as served:
                assert receive_exactly(served, 4) == b"GET\n"
                stream(9).send(served, size)

        answering = pool.submit(answer)
        client.sendall(b"GET\n")
        assert receive(client) == whole(9, size)
        answering.result()


def test_a_target_that_closes_while_its_answer_waits(path: DataPath, target: Target) -> None:
    """All buffers are full. On a Unix socket the close is seen before its last bytes can be read: still it was the first."""
    with path.open(target.address, {"target_fin": 1}) as door, connect(door.address) as client:
        with target.accept() as served:
            size = stream(14).fill(served, 256 * MIB, door.pids)
        assert receive(client) == whole(14, size)


@pytest.mark.parametrize("size", [1, KIB, 48 * KIB])
def test_a_short_answer_and_a_close(path: DataPath, target: Target, size: int) -> None:
    """The answer and the end come together. On a Unix socket close(2) shows as broken in both directions at once."""
    with path.open(target.address, {"target_fin": 1}) as door, connect(door.address, rcvbuf_bytes=4096) as client:
        client.sendall(b"GET\n")
        with target.accept() as served:
            assert receive_exactly(served, 4) == b"GET\n"
            stream(10).send(served, size)
        assert receive(client) == whole(10, size)


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_an_answer_that_outlives_its_target(forwarder: DataPath, site: Site, kind: Kind) -> None:
    """All of the answer stands in the forwarder when the target has long closed; the client then takes its time."""
    size = 160 * KIB
    with (
        Target(site, kind) as target,
        forwarder.open(target.address, {"target_fin": 1}) as door,
        connect(door.address, rcvbuf_bytes=4096) as client,
    ):
        with target.accept() as served:
            stream(14).send(served, size)
            await_acknowledged(served)
        assert receive(client) == whole(14, size)


def test_one_byte_at_a_time(path: DataPath, target: Target) -> None:
    size = 5_000
    with (
        path.open(target.address, {"client_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):
        at_target = pool.submit(receive, served)
        for offset in range(size):
            client.send(stream(11).part(offset, 1))
        fin(client)
        assert at_target.result() == whole(11, size)


def test_many_small_questions(path: DataPath, target: Target) -> None:
    """Neither side waits for the other's delayed acknowledgement, which takes 40 ms (tcp.h, TCP_DELACK_MIN).

    Now and then another program has the CPU for so long: this is about three of four rounds, and not their sum.
    """
    rounds, took_s = 2_000, []
    with (
        path.open(target.address, {"client_fin": 1}) as door,
        connect(door.address) as client,
        target.accept() as served,
        together() as pool,
    ):

        def answer() -> None:
            for _ in range(rounds):
                served.sendall(receive_exactly(served, 64)[::-1])

        answering = pool.submit(answer)
        for number in range(rounds):
            question = bytes(stream(12).part(64 * number, 64)).ljust(64, b".")
            begun_s = time.monotonic()
            client.sendall(question)
            assert receive_exactly(client, 64) == question[::-1]
            took_s.append(time.monotonic() - begun_s)
        answering.result()
        delayed = sum(each_s >= 0.035 for each_s in took_s)
        assert delayed <= rounds // 20
        fin(client)
        assert served.recv(1) == b""


@pytest.mark.parametrize("finished", ["client", "target"])
def test_half_a_connection_lives_long(forwarder: DataPath, tcp_target: Target, finished: str) -> None:
    """One side finishes at once; the other streams on for longer than the idle timeout, and bulk after that."""
    idle_s = 2
    with (
        forwarder.open(tcp_target.address, {f"{finished}_fin": 1}, timeouts={"idle": f"{idle_s}s"}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
        together() as pool,
    ):
        quiet, busy = (client, served) if finished == "client" else (served, client)
        fin(quiet)
        assert busy.recv(1) == b""
        at_quiet = pool.submit(receive, quiet)
        offset, until_s = 0, time.monotonic() + idle_s + 1
        while time.monotonic() < until_s:
            stream(13).send(busy, 1, offset)
            offset += 1
            await_acknowledged(busy)
            time.sleep(0.1)  # the pace of a slow sender
        stream(13).send(busy, 8 * MIB, offset)
        fin(busy)
        assert at_quiet.result() == whole(13, 8 * MIB + offset)
