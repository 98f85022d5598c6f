"""A poller and its surroundings: what the tests of it begin from."""

import os
import socket
from collections.abc import Callable

from relay.kernel.bare_socket import BareSocket
from relay.kernel.poller import Handler, Poller


class Calling(Handler):
    """A handler that is a function of the events."""

    def __init__(self, call: Callable[[int], None]) -> None:
        self.call = call

    def ready(self, fd: int, events: int) -> None:
        self.call(events)


class Bench:
    """A poller, socket pairs, and what the poller was told about handlers that raised."""

    def __init__(self) -> None:
        self.errors: list[tuple[Handler, Exception]] = []
        self.buried = 0
        self.poller = Poller(lambda handler, error: self.errors.append((handler, error)), self._on_closed)
        self.socks: list[socket.socket] = []

    def _on_closed(self) -> None:
        self.buried += 1

    def pair(self) -> tuple[socket.socket, socket.socket]:
        pair = socket.socketpair()
        for sock in pair:
            sock.setblocking(False)
            self.socks.append(sock)
        return pair

    def bare(self, sock: socket.socket) -> BareSocket:
        """The same by its descriptor alone, which is the poller's to close."""
        self.socks.remove(sock)
        return BareSocket(sock.detach())

    def end(self) -> None:
        self.poller.shut()
        for sock in self.socks:
            sock.close()


def is_open(sock: BareSocket) -> bool:
    try:
        os.fstat(sock.fd)
    except OSError:
        return False
    return True
