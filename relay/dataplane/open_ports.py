"""The listening sockets of one worker: exactly where the snapshot in force says."""

import asyncio
import os
import socket
from collections.abc import Callable, Iterable
from typing import Final

from relay.dataplane.context import Context
from relay.dataplane.gate import Gate
from relay.dataplane.listener import Listener
from relay.kernel.sockets import listening_address

# From the last SYN that is answered to the port's end: the third packet of a handshake comes within this, as a rule. And
# every client who comes meanwhile waits a second, so it is not longer.
HANDSHAKE_S: Final = 0.02


class OpenPorts:
    """Listening sockets by address, and the listener at each that is declared.

    A socket may be here before the snapshot that wants it, and for a moment after the last one that did.
    """

    def __init__(
        self, context: Context, failed: Callable[[Callable[[], None], Exception], None], closed: Callable[[], None]
    ) -> None:
        """`failed` is told of a mistake of our own at one connection; `closed` is called when `close` has come to its end."""
        self.listeners: dict[str, Listener] = {}
        self.closing: list[Listener] = []
        self._sockets: dict[str, socket.socket] = {}
        self._context = context
        self._failed = failed
        self._closed = closed

    def find(self, fds: Iterable[int]) -> set[int]:
        """Take every listening socket among what a predecessor or the keeper left: it says itself where it listens."""
        found = set()
        for fd in fds:
            if (address := listening_address(fd)) is not None and str(address) not in self._sockets:
                self._sockets[str(address)] = socket.socket(fileno=fd)
                found.add(fd)
        return found

    def add(self, addresses: list[str], fds: list[int]) -> None:
        """Take sockets that were opened for the next snapshot."""
        # Not strict: what has no room here the kernel leaves out, the last first (recvmsg(2), MSG_CTRUNC); `serve` says so.
        for address, fd in zip(addresses, fds, strict=False):
            if address in self._sockets:  # inherited already: this worker is younger than the message
                os.close(fd)
            else:
                self._sockets[address] = socket.socket(fileno=fd)

    def unserved(self, wanted: dict[str, Gate]) -> dict[str, Listener]:
        """A listener at each of these addresses that has a socket, which accepts nobody yet: for an adoption."""
        return {
            address: Listener(self._context, gate, self._sockets[address])
            for address, gate in wanted.items()
            if address in self._sockets
        }

    def serve(self, wanted: dict[str, Gate]) -> list[str]:
        """Listen at these addresses and nowhere else; those that have no socket."""
        for address in [address for address in self.listeners if address not in wanted]:
            self.listeners.pop(address).pause()
        for address, gate in wanted.items():
            self._context.beat()  # the kernel may have a large filter to compile for each
            if address not in self.listeners and (sock := self._sockets.get(address)) is not None:
                self.listeners[address] = Listener(self._context, gate, sock)
            if (listener := self.listeners.get(address)) is not None:
                listener.serve(gate)
        return [address for address in wanted if address not in self.listeners]

    def resume(self) -> None:
        """Accept everywhere."""
        for listener in (*self.listeners.values(), *self.closing):
            listener.resume()

    def pause(self) -> None:
        """Accept nowhere for now."""
        for listener in (*self.listeners.values(), *self.closing):
            listener.pause()

    def close(self, addresses: Iterable[str], *, at_once: bool = False) -> None:
        """Let nobody new in, take those who are connected already or about to be, and close.

        `at_once`: somebody else waits for the ports, and who is about to be connected is reset.
        """
        closing = []
        for address in list(addresses):
            listener = self.listeners.pop(address)
            del self._sockets[address]
            listener.turn_away()
            closing.append(listener)
        self.closing += closing
        self.close_unwanted()
        if at_once:
            self._finish(closing)
        else:
            asyncio.get_running_loop().call_later(HANDSHAKE_S, self._finish, closing)

    def _finish(self, closing: list[Listener]) -> None:
        for listener in closing:
            try:
                listener.finish()
            except Exception as error:  # of one connection, as in the poller
                self._failed(listener.finish, error)
            listener.sock.close()
            self.closing.remove(listener)
        self._closed()

    def close_unwanted(self) -> None:
        """Close every socket that the snapshot has no use for."""
        for address in [address for address in self._sockets if address not in self.listeners]:
            self._sockets.pop(address).close()
