"""A live upgrade's second half: a holder gives its whole descriptor table to its successor, under the same numbers.

execve(2) would end the sharing of a table and cost the start of an interpreter, while connections stand still. So the new
program's keeper, which has everything imported, forks a successor for each holder, and what the worker had open goes over
by SCM_RIGHTS (unix(7)). Where a holder is dead its worker does the same by itself, in any program; it has nobody to kill.
It is the ledger that says what a number means, so each must have the same one over there.

    holder (old program)                       successor (new program)
                                               closes what is not a holder's; "ready"; SIGUSR2
    kills its worker, fetches its end of the
    channel, which no worker must find open
    the number of its own end of the channel   moves its own end there
    descriptors, in ascending order            takes each part; "have"
    "all"                                      puts them in their places; starts a worker, which shows
                                               that it lives, and waits (beginning.py); "mine"
    closes its table, the channel last; ends   sees that; lets the worker adopt, as after any kill

The worker has the same end of the channel. If the successor dies once the worker lives, the worker says "mine".

A received descriptor gets the lowest number that is free. Both sides begin with the same ones open, so by ascending order
none ever lands above its place; and put there from the highest down, none lands on another.

Until the successor has said "mine", the holder can take everything back; each side is killed, slow or full at its own
cost alone. "mine" is the moment. A holder that has waited too long stops its ears first and then looks whether it was said;
if not, it says "no" and goes on. A successor that is not heard asks: after a "no" it ends, and where the holder is dead it
goes on. Never both of them, and one of them as long as one lives. "mine" may be said twice.

No worker begins while both tables are there, whoever goes on. A connection that it closed would live on in the other one, and
epoll would go on to report it, under a number that is the next connection's by then (epoll(7), questions 1 and 6).
"""

import contextlib
import errno
import os
import resource
import select
import socket
import stat
import struct
from array import array
from collections.abc import Callable, Collection
from typing import Final, NoReturn

from relay.kernel import channel
from relay.kernel.sockets import open_descriptors, readable_now

_PATIENCE_S: Final = 5.0  # for each of the other's words; all of it takes a tenth of a second with 10,000 connections

_READY: Final = b"ready"
_HAVE: Final = b"have"
_ALL: Final = b"all"
_MINE: Final = b"mine"
_NO: Final = b"no"

_NUMBER: Final = struct.Struct("i")


def pair() -> tuple[socket.socket, socket.socket]:
    """The two ends of the channel between a holder and its successor."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.settimeout(_PATIENCE_S)
    return ends


def call(hand: tuple[socket.socket, socket.socket], end: socket.socket) -> None:
    """Leave its end of the channel to the holder that is about to be told, in place of one that nobody fetched."""
    recall(hand)
    channel.send(hand[0], {}, (end.fileno(),))


def recall(hand: tuple[socket.socket, socket.socket]) -> bool:
    """Take back what `call` left and nobody fetched; whether there was any."""
    if (end := fetched(hand[1])) is None:
        return False
    end.close()
    return True


def is_called(hand: socket.socket) -> bool:
    """Whether `call` has left something, which `fetched` would take."""
    return bool(readable_now([hand.fileno()]))


def fetched(hand: socket.socket) -> socket.socket | None:
    """What `call` left."""
    end = None
    while (received := channel.receive(hand)) is not None:
        for fd in received[1]:
            if end is not None:
                end.close()
            end = socket.socket(fileno=fd)
            end.settimeout(_PATIENCE_S)
    return end


def give(end: socket.socket, known: Collection[int]) -> None:
    """Give the successor every socket and pipe but the `known` ones. When this returns, it has them, and works by them.

    Nobody else may use this table meanwhile. Raises OSError, and then all is here as before.
    """
    _expect(end, _READY)
    others = open_descriptors() - set(known) - {end.fileno()}
    fds = array("i", sorted(fd for fd in others if _carries_bytes(fd)))
    try:
        end.send(_NUMBER.pack(end.fileno()))
        for first in range(0, len(fds), channel.FDS_MAX):
            part = fds[first : first + channel.FDS_MAX]
            end.sendmsg([part.tobytes()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, part)])
            # The kernel counts what is on its way, against the limit of open files (unix(7), ETOOMANYREFS).
            _expect(end, _HAVE)
        end.send(_ALL)
        _expect(end, _MINE)
    except OSError:
        end.shutdown(socket.SHUT_RD)  # before the look: now it cannot be said any more
        if end.recv(len(_MINE)) == _MINE:
            return
        with contextlib.suppress(OSError):  # it is dead
            end.send(_NO)
        see_end(end)  # only then is the table this one's alone, as it was
        raise


def leave(end: socket.socket) -> NoReturn:
    """What comes after `give`: end, and let the successor see at once that nothing is held here any more.

    The kernel would close the table as well, but not before it has taken this process' memory apart.
    """
    os.closerange(0, end.fileno())
    os.closerange(end.fileno() + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[0])
    end.close()  # last: the successor waits for it
    os._exit(0)


def take(end: socket.socket, known: Collection[int], call: Callable[[], None]) -> socket.socket:
    """Take what `give` gives, and have nothing else open but the `known` ones. They are the holder's too, by number.

    `call` tells the holder that this one is ready: it need not stop its worker for one that never will be.
    Returns `end`, as it is now: nothing is this process's own before `say_mine`, or to be used before `see_end`.
    Raises OSError: the holder goes on, and this process has to end without having used anything.
    """
    for fd in open_descriptors() - set(known) - {end.fileno()}:
        os.close(fd)
    end.send(_READY)
    call()
    end = _moved(end, _NUMBER.unpack(end.recv(_NUMBER.size))[0])
    arrived: list[tuple[int, int]] = []  # (its number, its place)
    while (part := _received(end)) is not None:
        arrived += part
        end.send(_HAVE)
    if not set(known).isdisjoint(place for _, place in arrived):
        raise OSError(errno.EEXIST, "the two programs do not have the same descriptors open at their start")
    for fd, place in reversed(arrived):
        if fd != place:
            os.dup2(fd, place, inheritable=False)
            os.close(fd)
    return end


def say_mine(end: socket.socket) -> None:
    """After `take`: all is this process's own. Raises OSError: the holder goes on, and this process has to end."""
    try:
        end.send(_MINE)
    except OSError:
        if end.recv(len(_NO), socket.MSG_PEEK) == _NO:  # it stays there, for who says it again
            raise


def see_end(end: socket.socket) -> None:
    """Wait until the other one has let go of its table. One that hangs is not waited for beyond the end's timeout."""
    poll = select.poll()
    poll.register(end, 0)  # POLLHUP comes unasked (poll(2)), and not for an end whose ears alone are stopped
    poll.poll((end.gettimeout() or _PATIENCE_S) * 1000)


def _received(end: socket.socket) -> list[tuple[int, int]] | None:
    """A part of the table as (number, place), ascending; None: that was all."""
    room = socket.CMSG_SPACE(channel.FDS_MAX * _NUMBER.size)
    message, rights, _flags, _address = end.recvmsg(channel.FDS_MAX * _NUMBER.size, room, socket.MSG_CMSG_CLOEXEC)
    if message == _ALL:
        return None
    if message in (b"", _NO):
        raise _gone()
    places, fds = array("i"), array("i")
    places.frombytes(message)
    for _level, _kind, raw in rights:
        fds.frombytes(raw)
    if len(fds) != len(places):  # the kernel leaves out what has no room (recvmsg(2), MSG_CTRUNC)
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    return list(zip(fds, places, strict=True))


def _moved(end: socket.socket, number: int) -> socket.socket:
    """The same end under the number of the other's, which is free here and no descriptor's place."""
    if end.fileno() != number:
        os.dup2(end.fileno(), number, inheritable=False)
        end.close()
        end = socket.socket(fileno=number)
        end.settimeout(_PATIENCE_S)
    return end


def _expect(end: socket.socket, word: bytes) -> None:
    if end.recv(len(word)) != word:
        raise _gone()


def _gone() -> OSError:
    return ConnectionAbortedError(errno.ECONNABORTED, "the other holder has ended")


def _carries_bytes(fd: int) -> bool:
    """Whether it is a socket or a pipe. All else was the worker's loop's, and io_uring's may not be sent at all."""
    mode = os.fstat(fd).st_mode
    return stat.S_ISSOCK(mode) or stat.S_ISFIFO(mode)
