"""The accept loop where the kernel says no: it rests, says so, and takes whoever has waited."""

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from typing import Final, Protocol

import pytest

from relay import calls
from relay.kernel import accepting
from relay.ledger.layout import Count, Word
from tests.dataplane.rig import Rig, rig_to, tcp_target

STAYS: Final = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EBADF)
OF_ONE: Final = (
    errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH,
    errno.EOPNOTSUPP, errno.ENETUNREACH,
)  # fmt: skip
LOOKS: Final = 20


class Unwilling:
    """A kernel that answers for one listening socket with `errors`, the first one first; the last one stays if it `stays`."""

    def __init__(self, listener_fd: int, errors: list[int], *, stays: bool) -> None:
        self.errors, self.stays = errors, stays
        self.asked = 0
        self._listener_fd = listener_fd
        self._accept = calls.accept

    def accept(self, listener_fd: int) -> int:
        if listener_fd != self._listener_fd:
            return self._accept(listener_fd)
        self.asked += 1
        if self.errors:
            error = self.errors[0] if self.stays and len(self.errors) == 1 else self.errors.pop(0)
            if error:
                return -error
        return self._accept(listener_fd)


class Makes(Protocol):
    """Have the kernel be unwilling to accept for this rig."""

    def __call__(self, rig: Rig, *errors: int, stays: bool = False) -> Unwilling: ...


@pytest.fixture
def unwilling(monkeypatch: pytest.MonkeyPatch) -> Makes:
    """Such a kernel, of the rig's listening socket."""

    def make(rig: Rig, *errors: int, stays: bool = False) -> Unwilling:
        made = Unwilling(rig.listener.sock.fileno(), list(errors), stays=stays)
        monkeypatch.setattr(calls, "accept", made.accept)
        return made

    return make


def serve(rig: Rig) -> None:
    """What a poller of a worker does in a moment."""
    for _ in range(LOOKS):
        rig.poller.serve()
    assert rig.bugs == []


def tick(rig: Rig, after_s: float = 0.05) -> None:
    """What a worker does after a tick for those whom it has left."""
    rig.clock.go_on(after_s)
    for take in list(rig.context.left):
        take()


@pytest.mark.interpreted
@pytest.mark.parametrize("error", STAYS)
def test_an_error_that_stays(error: int, unwilling: Makes, stack: contextlib.ExitStack) -> None:
    """It is asked about once a tick, counted each time, and said once in a while; then who waits is let in."""
    rig = rig_to(stack, target := tcp_target(stack))
    kernel = unwilling(rig, error, stays=True)
    client = rig.connect()
    for n in range(1, 6):
        serve(rig)
        assert (kernel.asked, rig.part[Word.ACCEPT_PAUSES]) == (n, n), "once: a listener that rests does not spin"
        tick(rig)
    [line] = rig.records()
    assert (line["event"], line["level"], line["endpoint"], line["active"]) == ("accept paused", "warning", "web/in", 0)
    assert f"({errno.errorcode[error]})" in line["message"]
    serve(rig)
    tick(rig, accepting.SAID_S)
    serve(rig)
    assert [each["event"] for each in rig.records()] == ["accept paused"], "again, after a while"
    assert rig.exhausted == [], "other ports are not to blame"
    kernel.errors = []
    tick(rig)
    client.send(b"still here")
    assert rig.receive(target.accept(rig), 10) == b"still here"
    assert rig.ledger.total(0, Count.ACCEPTED) == 1
    assert rig.context.left == set()


@pytest.mark.interpreted
@pytest.mark.parametrize("error", OF_ONE)
def test_an_error_of_one_connection_costs_the_others_nothing(
    error: int, unwilling: Makes, stack: contextlib.ExitStack
) -> None:
    rig = rig_to(stack, tcp_target(stack))
    unwilling(rig, *[error] * (accepting.OVER_MAX - 1), 0, *[error] * (accepting.OVER_MAX - 1))
    for _ in range(2):
        rig.connect()
    rig.until(lambda: len(rig.context.flows) == 2, "both are let in")
    assert rig.part[Word.ACCEPT_PAUSES] == 0
    assert rig.records() == []


@pytest.mark.interpreted
@pytest.mark.parametrize("error", OF_ONE)
def test_such_an_error_that_stays_is_no_connections(error: int, unwilling: Makes, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack))
    kernel = unwilling(rig, error, stays=True)
    rig.connect()
    serve(rig)
    assert (kernel.asked, rig.part[Word.ACCEPT_PAUSES]) == (accepting.OVER_MAX, 1)
    [line] = rig.records()
    assert f"({errno.errorcode[error]})" in line["message"]
    kernel.errors = []
    tick(rig)
    rig.flow()


@pytest.mark.interpreted
def test_a_port_that_closes_while_it_rests(unwilling: Makes, stack: contextlib.ExitStack) -> None:
    """Nobody listens there again, also where the last try to take who waits is refused too."""
    rig = rig_to(stack, tcp_target(stack))
    kernel = unwilling(rig, errno.EPERM, stays=True)
    rig.connect()
    serve(rig)
    assert rig.context.left
    rig.listener.turn_away()
    rig.listener.finish()
    assert (kernel.asked, rig.context.left) == (2, set())
    serve(rig)
    assert kernel.asked == 2


@pytest.mark.interpreted
def test_a_pause_of_all_ports_ends_the_rest_of_one(unwilling: Makes, stack: contextlib.ExitStack) -> None:
    """Else the port would be asked again in the midst of it."""
    rig = rig_to(stack, tcp_target(stack))
    kernel = unwilling(rig, errno.EPERM, stays=True)
    rig.connect()
    serve(rig)
    rig.listener.pause()
    tick(rig)
    serve(rig)
    assert kernel.asked == 1
    kernel.errors = []
    rig.listener.resume()
    rig.flow()


@pytest.mark.interpreted
def test_one_who_was_left_to_others_and_is_refused(unwilling: Makes, stack: contextlib.ExitStack) -> None:
    """A worker that stood back takes him after a tick: it rests like any other."""
    rig = rig_to(stack, tcp_target(stack))
    kernel = unwilling(rig, errno.EPERM, stays=True)
    rig.listener.pause()
    rig.connect()
    rig.listener.take_left()
    assert (kernel.asked, rig.part[Word.ACCEPT_PAUSES]) == (1, 1)
    serve(rig)
    assert kernel.asked == 1
    kernel.errors = []
    tick(rig)
    rig.flow()


# --- as the kernel itself says it, which compiled code asks ---------------------------------------------------------------


@contextlib.contextmanager
def in_its_place(rig: Rig, other: socket.socket) -> Iterator[None]:
    """Meanwhile the listening socket's descriptor is this other socket's."""
    fd = rig.listener.sock.fileno()
    own = os.dup(fd)
    rig.listener.pause()
    os.dup2(other.fileno(), fd)
    rig.listener.resume()
    try:
        yield
    finally:
        rig.listener.pause()
        os.dup2(own, fd)
        os.close(own)


def test_a_socket_that_does_not_listen_rests_and_is_asked_once_a_tick(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, target := tcp_target(stack))
    client = rig.connect()
    with socket.socket() as idle, in_its_place(rig, idle):
        for n in range(1, 6):
            serve(rig)
            assert rig.part[Word.ACCEPT_PAUSES] == n
            tick(rig)
    [line] = rig.records()
    assert (line["event"], line["endpoint"]) == ("accept paused", "web/in")
    assert "(EINVAL)" in line["message"]
    assert rig.exhausted == []
    rig.listener.resume()
    client.send(b"still here")
    assert rig.receive(target.accept(rig), 10) == b"still here"


def test_an_error_as_of_one_connection_that_stays_ends_the_burst(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack))
    rig.connect()
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.bind(("127.0.0.1", 0))
        datagrams.sendto(b"somebody", datagrams.getsockname())  # so that there is something to hear
        with in_its_place(rig, datagrams):
            serve(rig)
            assert rig.part[Word.ACCEPT_PAUSES] == 1
    [line] = rig.records()
    assert f"({errno.errorcode[errno.EOPNOTSUPP]})" in line["message"]
    rig.listener.resume()
    rig.flow()
