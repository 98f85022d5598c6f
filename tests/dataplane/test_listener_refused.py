"""The accept loop where the kernel says no: it rests, says so, and takes whoever has waited."""

import contextlib
import errno
import socket
from typing import Any, Final

import pytest

from relay.kernel import accepting
from relay.ledger.layout import Count, Word
from tests.dataplane.rig import Rig, rig_to, tcp_target

STAYS: Final = (errno.EPERM, errno.EACCES, errno.EINVAL, errno.EBADF)
OF_ONE: Final = (
    errno.ECONNABORTED, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET, errno.EHOSTUNREACH,
    errno.EOPNOTSUPP, errno.ENETUNREACH,
)  # fmt: skip
LOOKS: Final = 20


class Unwilling(socket.socket):
    """A listening socket of a kernel that answers with `errors`, the first one first; the last one stays if it `stays`."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(fileno=sock.detach())
        self.errors: list[int] = []
        self.stays = False
        self.asked = 0

    def _accept(self) -> Any:
        self.asked += 1
        if self.errors:
            error = self.errors[0] if self.stays and len(self.errors) == 1 else self.errors.pop(0)
            if error:
                raise OSError(error, "no")
        return super()._accept()  # type: ignore[misc]


def unwilling(rig: Rig, *errors: int, stays: bool = False) -> Unwilling:
    """The rig's listening socket, of such a kernel."""
    rig.listener.pause()
    sock = Unwilling(rig.listener.sock)
    sock.errors, sock.stays = list(errors), stays
    rig.listener.sock = sock
    rig.listener.resume()
    return sock


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


@pytest.mark.parametrize("error", STAYS)
def test_an_error_that_stays(error: int, stack: contextlib.ExitStack) -> None:
    """It is asked about once a tick, counted each time, and said once in a while; then who waits is let in."""
    rig = rig_to(stack, target := tcp_target(stack))
    sock = unwilling(rig, error, stays=True)
    client = rig.connect()
    for n in range(1, 6):
        serve(rig)
        assert (sock.asked, rig.part[Word.ACCEPT_PAUSES]) == (n, n), "once: a listener that rests does not spin"
        tick(rig)
    [line] = rig.records()
    assert (line["event"], line["level"], line["endpoint"], line["active"]) == ("accept paused", "warning", "web/in", 0)
    assert f"({errno.errorcode[error]})" in line["message"]
    serve(rig)
    tick(rig, accepting.SAID_S)
    serve(rig)
    assert [each["event"] for each in rig.records()] == ["accept paused"], "again, after a while"
    assert rig.exhausted == [], "other ports are not to blame"
    sock.errors = []
    tick(rig)
    client.send(b"still here")
    assert rig.receive(target.accept(rig), 10) == b"still here"
    assert rig.ledger.total(0, Count.ACCEPTED) == 1
    assert rig.context.left == set()


@pytest.mark.parametrize("error", OF_ONE)
def test_an_error_of_one_connection_costs_the_others_nothing(error: int, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack))
    unwilling(rig, *[error] * (accepting.OVER_MAX - 1), 0, *[error] * (accepting.OVER_MAX - 1))
    for _ in range(2):
        rig.connect()
    rig.until(lambda: len(rig.context.flows) == 2, "both are let in")
    assert rig.part[Word.ACCEPT_PAUSES] == 0
    assert rig.records() == []


@pytest.mark.parametrize("error", OF_ONE)
def test_such_an_error_that_stays_is_no_connections(error: int, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack))
    sock = unwilling(rig, error, stays=True)
    rig.connect()
    serve(rig)
    assert (sock.asked, rig.part[Word.ACCEPT_PAUSES]) == (accepting.OVER_MAX, 1)
    [line] = rig.records()
    assert f"({errno.errorcode[error]})" in line["message"]
    sock.errors = []
    tick(rig)
    rig.flow()


def test_a_port_that_closes_while_it_rests(stack: contextlib.ExitStack) -> None:
    """Nobody listens there again, also where the last try to take who waits is refused too."""
    rig = rig_to(stack, tcp_target(stack))
    sock = unwilling(rig, errno.EPERM, stays=True)
    rig.connect()
    serve(rig)
    assert rig.context.left
    rig.listener.turn_away()
    rig.listener.finish()
    assert (sock.asked, rig.context.left) == (2, set())
    serve(rig)
    assert sock.asked == 2


def test_a_pause_of_all_ports_ends_the_rest_of_one(stack: contextlib.ExitStack) -> None:
    """Else the port would be asked again in the midst of it."""
    rig = rig_to(stack, tcp_target(stack))
    sock = unwilling(rig, errno.EPERM, stays=True)
    rig.connect()
    serve(rig)
    rig.listener.pause()
    tick(rig)
    serve(rig)
    assert sock.asked == 1
    sock.errors = []
    rig.listener.resume()
    rig.flow()


def test_one_who_was_left_to_others_and_is_refused(stack: contextlib.ExitStack) -> None:
    """A worker that stood back takes him after a tick: it rests like any other."""
    rig = rig_to(stack, tcp_target(stack))
    sock = unwilling(rig, errno.EPERM, stays=True)
    rig.listener.pause()
    rig.connect()
    rig.listener.take_left()
    assert (sock.asked, rig.part[Word.ACCEPT_PAUSES]) == (1, 1)
    serve(rig)
    assert sock.asked == 1
    sock.errors = []
    tick(rig)
    rig.flow()
