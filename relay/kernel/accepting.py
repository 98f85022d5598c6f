"""accept(2) where it fails: which errors are one connection's, which are this machine's, and what is said of them.

The listening socket stays ready after an error, so whoever asks again at once asks in a circle, at a whole CPU. Event loops
do (uvloop 0.23, every error), or say the same each time (asyncio); so what control serves is accepted here.
"""

import asyncio
import errno
import socket
from collections.abc import Callable
from typing import Any, Final

from relay.address import Address
from relay.errors import os_reason
from relay.log import Logger

# accept(2): of the connection that would have come, which is over; the next one may be well. ECONNREFUSED: of a packet.
_OVER: Final = frozenset(
    {
        errno.ECONNABORTED, errno.EINTR, errno.ENETDOWN, errno.EPROTO, errno.ENOPROTOOPT, errno.EHOSTDOWN, errno.ENONET,
        errno.EHOSTUNREACH, errno.EOPNOTSUPP, errno.ENETUNREACH, errno.ECONNREFUSED,
    }
)  # fmt: skip
OVER_MAX: Final = 16  # in a row, without a connection in between: then it is no connection's fault. Less than any burst
SAID_S: Final = 10.0  # that nobody is let in is logged no more often than this
_REST_S: Final = 0.1  # how long the kernel is not asked again, which says no to the next one too
_BURST: Final = 32  # accepted in one go; the rest of the process waits no longer than that takes


def is_over(error: OSError, in_a_row: int) -> bool:
    """Whether accept(2) may be called again at once, after so many errors in a row: its error was of one connection."""
    return error.errno in _OVER and in_a_row < OVER_MAX


def refusal(error: OSError) -> str:
    """What is said of an error that stays, and what to look at."""
    name = errno.errorcode.get(error.errno or 0, "no number")
    fix = "look for what forbids it: a security module (SELinux, AppArmor), seccomp, or the limits of this machine"
    return f"the kernel lets nobody in: {os_reason(error)} ({name}); who comes waits. If it stays, {fix}"


class Resting:
    """Something that an event loop reads for as long as the kernel lets it, and that rests for a moment when not."""

    def __init__(self, sock: socket.socket, read: Callable[[], OSError | None], log: Logger | None) -> None:
        """`read` takes what there is, and returns the error that will stay. It is logged, every SAID_S at most."""
        sock.setblocking(False)
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._read = read
        self._log = log
        self._said_s = -SAID_S
        self._timer: asyncio.TimerHandle | None = None
        self._loop.add_reader(sock, self._on_ready)

    def _on_ready(self) -> None:
        error = self._read()
        if error is None:
            return
        self._loop.remove_reader(self._sock)
        self._timer = self._loop.call_later(_REST_S, self._go_on)
        if self._log is not None and self._loop.time() - self._said_s >= SAID_S:
            self._said_s = self._loop.time()
            at = self._sock.getsockname()
            where = at if isinstance(at, str) else str(Address(*at[:2]))
            self._log.event("warning", "accept paused", message=f"{where}: {refusal(error)}")

    def _go_on(self) -> None:
        self._timer = None
        self._loop.add_reader(self._sock, self._on_ready)

    def close(self) -> None:
        """Read no more, and close the socket. May be said twice."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._sock.fileno() >= 0:
            self._loop.remove_reader(self._sock)
            self._sock.close()


class Acceptor:
    """Accepts for an event loop, and makes a protocol for each connection; the socket is its own from here on."""

    def __init__(self, sock: socket.socket, make: Callable[[], Any], log: Logger | None) -> None:
        self._sock = sock
        self._make = make
        self._beginning: dict[asyncio.Task[Any], socket.socket] = {}
        self._resting = Resting(sock, self._accept, log)

    def close(self) -> None:
        """Accept no more. Connections that have a protocol go on. May be said twice."""
        self._resting.close()
        for task, accepted in self._beginning.items():
            task.cancel()
            accepted.close()

    def _accept(self) -> OSError | None:
        over = 0
        for _ in range(_BURST):
            try:
                accepted, _ = self._sock.accept()
            except BlockingIOError:
                return None
            except OSError as error:
                over += 1
                if not is_over(error, over):
                    return error
                continue
            over = 0
            task = asyncio.get_running_loop().create_task(self._begin(accepted))
            self._beginning[task] = accepted
            task.add_done_callback(self._beginning.pop)
        return None

    async def _begin(self, accepted: socket.socket) -> None:
        accepted.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(self._make, accepted)
        except OSError:  # it is over already
            accepted.close()
