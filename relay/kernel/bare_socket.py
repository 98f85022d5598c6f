"""A socket by its descriptor, which most connections need nothing more of."""

from socket import SocketType
from typing import Any

from relay import calls


class BareSocket:
    """A descriptor, closed by `close` alone. The object that Python needs for asking more is made when asked for.

    Making it asks the kernel for the socket's name under its lock, which with the object itself is a tenth of a short
    connection's cost.
    """

    __slots__ = ("_socket", "fd")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self._socket: SocketType | None = None

    def fileno(self) -> int:
        """The descriptor."""
        return self.fd

    def close(self) -> None:
        """close(2)."""
        if self._socket is not None:
            self._socket.detach()
        calls.close(self.fd)

    def __getattr__(self, name: str) -> Any:
        if self._socket is None:
            self._socket = SocketType(fileno=self.fd)
        return getattr(self._socket, name)


AnySocket = SocketType | BareSocket
