"""The listening sockets of one worker: exactly where the snapshot in force says."""

import os
import socket
from collections.abc import Callable, Iterable

from relay.dataplane.context import Context
from relay.dataplane.gate import Gate
from relay.dataplane.listener import Listener
from relay.kernel.sockets import listening_address


class OpenPorts:
    """Listening sockets by address, and the listener at each that is declared.

    A socket may be here before the snapshot that wants it, and for a moment after the last one that did.
    """

    def __init__(self, context: Context, failed: Callable[[Callable[[], None], Exception], None]) -> None:
        """`failed` is told of a mistake of our own at one connection."""
        self.listeners: dict[str, Listener] = {}
        self._sockets: dict[str, socket.socket] = {}
        self._context = context
        self._failed = failed

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
        for address, fd in zip(addresses, fds, strict=True):
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
            if address not in self.listeners and (sock := self._sockets.get(address)) is not None:
                self.listeners[address] = Listener(self._context, gate, sock)
            if (listener := self.listeners.get(address)) is not None:
                listener.serve(gate)
        return [address for address in wanted if address not in self.listeners]

    def resume(self) -> None:
        """Accept everywhere."""
        for listener in self.listeners.values():
            listener.resume()

    def pause(self) -> None:
        """Accept nowhere for now."""
        for listener in self.listeners.values():
            listener.pause()

    def close(self, addresses: Iterable[str]) -> None:
        """Take those who wait there, and close."""
        for address in list(addresses):
            listener = self.listeners.pop(address)
            try:
                listener.finish()
            except Exception as error:  # of one connection, as in the poller
                self._failed(listener.finish, error)
        self.close_unwanted()

    def close_unwanted(self) -> None:
        """Close every socket that the snapshot has no use for."""
        for address in [address for address in self._sockets if address not in self.listeners]:
            self._sockets.pop(address).close()
