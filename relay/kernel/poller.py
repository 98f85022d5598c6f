"""A level-triggered epoll of our own, nested in the event loop by its descriptor.

The event loop sees one descriptor that is readable when any socket of the data plane is ready. That costs a
connection 22 µs of user time where a registration of its own with the loop costs 76 µs, and a forwarder's sockets need
nothing else that a loop offers.
"""

import os
import select
from collections.abc import Callable
from typing import Final

from relay import calls
from relay.kernel.bare_socket import BareSocket

EXCLUSIVE: Final = select.EPOLLEXCLUSIVE
EDGE: Final = select.EPOLLET
UNWATCHED: Final = -1
"""The interest in a descriptor of which not even its breaking is to be told."""

# While traffic flows, the next batch is waited for right here, which saves the loop's own round; no longer than a slice, so
# that timers and control messages are served. And not less than a tick of the kernel's clock (CONFIG_HZ=250): for a wait that
# ends before it the hardware's timer is set anew, and on a virtual machine that costs as much as a message does.
_LINGER_MS: Final = 4
_SLICE_NS: Final = 4_000_000


class Handler:
    """Who is told what a descriptor is ready for."""

    __slots__ = ()

    def ready(self, fd: int, events: int) -> None:
        """`fd` is ready for these `events`: a mask, in which BROKEN may always be."""


class Poller:
    """Registrations by descriptor, and the handling of what is ready.

    `on_closed` is told when sockets were closed. `on_error` is told of a handler that raised; the batch goes on, because
    one flow's trouble is not another's.

    Whoever is sure that something has come says `soon`: at the end of the batch the handler is told, and the kernel is not
    asked. A socket given to `close` is closed after that, so a descriptor number cannot be reused while
    the batch still has events of its former holder.
    """

    def __init__(self, on_error: Callable[[Handler, Exception], None], on_closed: Callable[[], None]) -> None:
        self._on_error = on_error
        self._on_closed = on_closed
        self._epoll_fd = calls.open_poll()
        if self._epoll_fd < 0:
            raise OSError(-self._epoll_fd, "no poller is to be had")
        self._handlers: list[Handler | None] = []  # by descriptor
        self._soon: list[tuple[int, Handler]] = []
        self._closing: list[BareSocket] = []

    def fileno(self) -> int:
        """The descriptor to nest in another loop."""
        return self._epoll_fd

    def watch(self, fd: int, interest: int, handler: Handler) -> None:
        """Tell `handler` whenever `fd` is ready for `interest` (a mask; BROKEN always counts)."""
        self._control(calls.ADD, fd, interest)
        self._set(fd, handler)

    def want(self, fd: int, before: int, after: int, handler: Handler) -> None:
        """Another interest, and perhaps another handler, for what was watched for `before`; either may be UNWATCHED."""
        if after < 0:
            self.forget(fd)
            return
        if before < 0:
            self._control(calls.ADD, fd, after)
        elif before != after:
            self._control(calls.MODIFY, fd, after)
        self._set(fd, handler)

    def _control(self, how: int, fd: int, interest: int) -> None:
        done = calls.control_poll(self._epoll_fd, how, fd, interest)
        if done < 0:
            raise OSError(-done, os.strerror(-done))

    def _set(self, fd: int, handler: Handler) -> None:
        missing = fd + 1 - len(self._handlers)
        if missing > 0:
            self._handlers += [None] * missing
        self._handlers[fd] = handler

    def _take(self, fd: int) -> Handler | None:
        """Whoever was told of it; and is no more."""
        if not 0 <= fd < len(self._handlers):  # below 0: a socket that was closed
            return None
        handler, self._handlers[fd] = self._handlers[fd], None
        return handler

    def forget(self, fd: int) -> None:
        """Watch no longer. Before the descriptor is closed."""
        if self._take(fd) is not None:
            self._control(calls.DELETE, fd, 0)

    def close(self, sock: BareSocket) -> None:
        """Forget the socket now, close it when the batch is through. Closing takes it out of epoll (epoll(7), Q6)."""
        self._take(sock.fd)
        self._closing.append(sock)

    def soon(self, fd: int, handler: Handler) -> None:
        """Tell it at the end of this batch that `fd` can be read, though nobody has said so; unless it is another's by then.

        All who come in one batch are dialled before the first byte of one is passed on. Of three programs on one CPU each
        message would wake another one, and each of them would find one thing to do at a time.
        """
        self._soon.append((fd, handler))

    def serve(self) -> None:
        """Handle what is ready, and what becomes ready within a moment; then return to the outer loop."""
        deadline_ns = calls.now_ns() + _SLICE_NS
        wait_ms = 0
        while (ready := calls.poll(self._epoll_fd, wait_ms)) > 0:
            for n in range(ready):
                fd = calls.event_fd(n)
                handler = self._handlers[fd]
                if handler is not None:  # else an earlier event of this batch ended its flow
                    self._tell(handler, fd, calls.event_mask(n))
            if self._soon:
                self._tell_soon()
            self.bury()
            if calls.now_ns() >= deadline_ns:
                return
            wait_ms = _LINGER_MS

    def _tell(self, handler: Handler, fd: int, events: int) -> None:
        try:
            handler.ready(fd, events)
        except Exception as error:
            self._on_error(handler, error)

    def _tell_soon(self) -> None:
        soon = self._soon
        for fd, handler in soon:  # it grows meanwhile: a flow goes through one stage after the other
            if self._handlers[fd] is handler:
                self._tell(handler, fd, calls.READ)
        soon.clear()

    def bury(self) -> None:
        """Close what `close` was given. For use outside of a batch."""
        if not self._closing:
            return
        closing, self._closing = self._closing, []
        for sock in closing:
            sock.close()
        self._on_closed()

    def shut(self) -> None:
        """Close the poller itself."""
        self.bury()
        calls.close_poll(self._epoll_fd)
