"""How many bytes went through a socket, whoever looks, reads, finishes or resets."""

import contextlib
import random
import socket
from collections.abc import Iterator

import pytest

from relay import calls
from relay.kernel import byte_counts
from relay.kernel.byte_counts import sent_bytes, taken_bytes
from tests.dataplane.rig import reset
from tests.harness import eventually


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """One that was connected from here, and the one that was accepted."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        dialled = stack.enter_context(socket.create_connection(listener.getsockname()))
        accepted, _ = listener.accept()
        yield dialled, stack.enter_context(accepted)


def test_what_lies_in_a_socket_was_not_taken_whoever_looks_at_it(pair: tuple[socket.socket, socket.socket]) -> None:
    dialled, accepted = pair
    assert taken_bytes(accepted) == taken_bytes(dialled) == 0
    dialled.sendall(b"hello")
    assert accepted.recv(5, socket.MSG_PEEK | socket.MSG_WAITALL) == b"hello"
    assert taken_bytes(accepted) == 0
    assert accepted.recv(3) == b"hel"
    assert taken_bytes(accepted) == 3
    assert accepted.recv(9, socket.MSG_TRUNC) is not None
    assert taken_bytes(accepted) == 5


def test_an_end_is_no_byte(pair: tuple[socket.socket, socket.socket]) -> None:
    dialled, accepted = pair
    dialled.sendall(b"hello")
    dialled.shutdown(socket.SHUT_WR)
    eventually(lambda: accepted.recv(1, socket.MSG_PEEK), "it has come")
    for taken in range(6):
        assert taken_bytes(accepted) == taken
        accepted.recv(1)
    assert accepted.recv(1) == b""
    assert taken_bytes(accepted) == 5
    accepted.sendall(b"bye")
    assert (sent_bytes(accepted, dialled=False), sent_bytes(dialled, dialled=True)) == (3, 6)


def test_what_was_sent_whether_it_has_arrived_or_not(pair: tuple[socket.socket, socket.socket]) -> None:
    chance = random.Random(14)
    for sender, is_dialled in zip(pair, (True, False), strict=True):
        sender.setblocking(False)
        sent = 0
        assert sent_bytes(sender, dialled=is_dialled) == 0
        for _ in range(300):  # the other side reads nothing: at last all buffers are full
            with contextlib.suppress(BlockingIOError):
                sent += sender.send(bytes(chance.randrange(1, 100_000)))
            assert sent_bytes(sender, dialled=is_dialled) == sent


def test_after_a_reset_it_is_still_known(pair: tuple[socket.socket, socket.socket]) -> None:
    dialled, accepted = pair
    dialled.sendall(b"hello")
    accepted.sendall(b"hi")
    assert (dialled.recv(2), accepted.recv(2)) == (b"hi", b"he")
    reset(dialled)
    eventually(lambda: accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1) == b"\x07", "the reset has come")
    assert (sent_bytes(accepted, dialled=False), taken_bytes(accepted)) == (2, 2)


def test_what_comes_between_two_questions_is_not_taken_for_read(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor what is acknowledged between them for never sent."""
    dialled, accepted = pair
    dialled.sendall(b"hello")
    assert accepted.recv(5) == b"hello"
    counts, more = byte_counts._counts, [b"a", b"b"]

    def late(sock: socket.socket) -> tuple[int, int, int]:
        found = counts(sock)
        if more:
            dialled.sendall(more.pop())
            eventually(lambda: calls.readable_bytes(accepted.fileno()) == 2 - len(more), "it has come")
        return found

    monkeypatch.setattr(byte_counts, "_counts", late)
    assert taken_bytes(accepted) == 5
    waits = iter([3, 1, 1, 1])  # the first two of one question
    monkeypatch.setattr(calls, "unsent_bytes", lambda _: next(waits))
    monkeypatch.setattr(byte_counts, "_counts", lambda _: (1, 10, 0))
    assert sent_bytes(accepted, dialled=False) == 11
