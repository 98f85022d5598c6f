"""Resets: the other side gets what was sent before, then a reset; never a FIN, which would say that all was sent."""

import time

import pytest

from tests.conformance.paths import DataPath
from tests.conformance.peers import (
    Target,
    await_acknowledged,
    await_broken,
    connect,
    fin,
    reset,
    reset_heard,
    sending_fails,
    unacknowledged_bytes,
)
from tests.conformance.streams import KIB, MIB, Received, receive, receive_exactly, stream, whole

SIDES = pytest.mark.parametrize("side", ["client", "target"])


@SIDES
def test_what_was_sent_before_a_reset_arrives(path: DataPath, tcp_target: Target, side: str) -> None:
    size = 48 * KIB  # fits any first window, so that all of it can be acknowledged while nobody reads
    with (
        path.open(tcp_target.address, {f"{side}_reset": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        stream(20).send(breaker, size)
        await_acknowledged(breaker)
        reset(breaker)
        assert receive(other) == whole(20, size, fin=False)


@SIDES
def test_a_reset_while_every_buffer_is_full(path: DataPath, tcp_target: Target, side: str) -> None:
    """The reader stands still, so bytes stand in every buffer on the way, relay's pipe too, when the reset comes."""
    with (
        path.open(tcp_target.address, {f"{side}_reset": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        offered = stream(21).fill(breaker, 256 * MIB, door.pids)
        arrived = offered - unacknowledged_bytes(breaker)
        assert 0 < arrived < offered
        reset(breaker)
        got = receive(other)
        assert got.size_bytes >= arrived
        assert got == whole(21, got.size_bytes, fin=False)


@SIDES
def test_the_reader_resets_while_every_buffer_is_full(path: DataPath, tcp_target: Target, side: str) -> None:
    with (
        path.open(tcp_target.address, {f"{side}_reset": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        stream(22).fill(other, 256 * MIB, door.pids)
        reset(breaker)
        await_broken(other)
        assert receive(other) == Received(0, stream(22).sha256(0), fin=False)


@SIDES
def test_a_reset_with_both_directions_full(path: DataPath, tcp_target: Target, side: str) -> None:
    with (
        path.open(tcp_target.address, {f"{side}_reset": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        stream(23).fill(other, 256 * MIB, door.pids)
        arrived = stream(24).fill(breaker, 256 * MIB, door.pids) - unacknowledged_bytes(breaker)
        reset(breaker)
        got = receive(other)
        assert got.size_bytes >= arrived
        assert got == whole(24, got.size_bytes, fin=False)


@SIDES
def test_a_reset_after_a_fin(path: DataPath, tcp_target: Target, side: str) -> None:
    """Finished, then broken: the other side saw an orderly end, and must still learn that nobody listens any more."""
    with (
        path.open(tcp_target.address, {f"{side}_reset": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        stream(25).send(breaker, MIB)
        fin(breaker)
        assert receive(other) == whole(25, MIB)
        reset(breaker)
        await_broken(other)
        assert sending_fails(other)


@SIDES
def test_a_fin_and_a_reset_behind_a_full_pipe(path: DataPath, narrow_target: Target, side: str) -> None:
    """Data, FIN and reset have come, and all of it waits behind a reader that stands still.

    The reader gets all of the data. Whether it then sees the FIN or the reset is not told, but it must learn that the
    connection is dead without sending anything.
    """
    with (
        path.open(narrow_target.address, {f"{side}_reset": 1}) as door,
        connect(door.address, rcvbuf_bytes=4096) as client,
        narrow_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        size = stream(26).fill(breaker, 256 * MIB, door.pids)
        fin(breaker)
        head = bytearray()
        while unacknowledged_bytes(breaker):
            head += other.recv(64 * KIB)
        reset(breaker)
        rest = receive(other, begun_with=head)
        assert (rest.size_bytes, rest.sha256) == (size, stream(26).sha256(size))
        await_broken(other)


@SIDES
def test_a_second_reset_while_the_first_is_delivered(forwarder: DataPath, narrow_target: Target, side: str) -> None:
    """`side` resets while the other side has yet to take what it sent; then that one resets too. Nothing is left waiting."""
    with (
        forwarder.open(narrow_target.address, {"client_reset|target_reset": 1}) as door,
        connect(door.address, rcvbuf_bytes=4096) as client,
        narrow_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        stream(27).send(breaker, 512 * KIB)
        await_acknowledged(breaker)
        reset(breaker)
        receive_exactly(other, 64 * KIB)
        reset(other)


@SIDES
def test_a_reader_that_closes_while_a_reset_is_delivered(forwarder: DataPath, narrow_target: Target, side: str) -> None:
    """As above, with close(2): with unread data it resets, and the flow is over at once."""
    # Of two forwarders the second may not have been told yet of the reset, and then the reader's is its first.
    ends = {f"{side}_reset" if forwarder.hops == 1 else "client_reset|target_reset": 1}
    with (
        forwarder.open(narrow_target.address, ends) as door,
        connect(door.address, rcvbuf_bytes=4096) as client,
        narrow_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        stream(28).send(breaker, 512 * KIB)
        await_acknowledged(breaker)
        reset_heard(breaker, door.pids)
        fin(other)
        receive_exactly(other, 64 * KIB)


@SIDES
def test_what_comes_after_a_reset_is_taken(forwarder: DataPath, tcp_target: Target, side: str) -> None:
    """While the other side has yet to take what came before a reset, what it sends meets no full buffer.

    A receive buffer that stays full can make the kernel drop acknowledgements: then the delivery stands still.
    """
    with (
        forwarder.open(tcp_target.address, {f"{side}_reset": 1}) as door,
        connect(door.address) as client,
        tcp_target.accept() as served,
    ):
        breaker, other = (client, served) if side == "client" else (served, client)
        arrived = stream(31).fill(breaker, 256 * MIB, door.pids) - unacknowledged_bytes(breaker)
        stream(32).fill(other, 256 * MIB, door.pids)
        assert unacknowledged_bytes(other)
        reset(breaker)
        await_acknowledged(other)
        got = receive(other)
        assert got.size_bytes >= arrived
        assert got == whole(31, got.size_bytes, fin=False)


def test_a_slow_reader_gets_all_that_came_before_a_reset(forwarder: DataPath, narrow_target: Target) -> None:
    """It takes longer than the idle timeout, but bytes go out all the time."""
    size, idle_s = 400 * KIB, 2
    with (
        forwarder.open(narrow_target.address, {"target_reset": 1}, timeouts={"idle": f"{idle_s}s"}) as door,
        connect(door.address, rcvbuf_bytes=4096) as client,
        narrow_target.accept() as served,
    ):
        stream(29).send(served, size)
        await_acknowledged(served)
        reset(served)
        taken = 0
        until_s = time.monotonic() + idle_s + 1
        while time.monotonic() < until_s:
            taken += len(receive_exactly(client, 4 * KIB))
            time.sleep(0.1)  # the pace of a slow reader
        rest = receive(client)
        assert (taken + rest.size_bytes, rest.fin) == (size, False)


def test_nothing_and_a_reset(path: DataPath, tcp_target: Target) -> None:
    with path.open(tcp_target.address, {"client_reset": 1}) as door:
        reset(connect(door.address))
        if path.hops < 2:  # an edge that sees it in time asks no instance to take it
            with tcp_target.accept() as served:
                assert receive(served) == Received(0, stream(0).sha256(0), fin=False)


def test_writing_to_a_target_that_has_closed(path: DataPath, tcp_target: Target) -> None:
    """The client sees the FIN first, and is free to write; then the target's kernel answers with a reset."""
    with (
        path.open(tcp_target.address, {"target_reset": 1}) as door,
        connect(door.address) as client,
    ):
        with tcp_target.accept() as served:
            served.sendall(b"bye")
        assert receive_exactly(client, 3) == b"bye"
        assert client.recv(1) == b""
        assert sending_fails(client)


def test_writing_from_a_target_to_a_client_that_has_closed(path: DataPath, tcp_target: Target) -> None:
    with path.open(tcp_target.address, {"client_reset": 1}) as door:
        with connect(door.address) as client:
            client.sendall(b"bye")
        with tcp_target.accept() as served:
            assert receive_exactly(served, 3) == b"bye"
            assert served.recv(1) == b""
            assert sending_fails(served)


def test_both_reset_at_once(path: DataPath, tcp_target: Target) -> None:
    flows = 50
    with path.open(tcp_target.address, {"client_reset|target_reset": flows}) as door:
        for _ in range(flows):
            client = connect(door.address)
            served = tcp_target.accept()
            client.sendall(b"x")
            assert receive_exactly(served, 1) == b"x"  # the way is open
            client.sendall(b"x" * 1000)
            served.sendall(b"y" * 1000)
            reset(client)
            reset(served)
