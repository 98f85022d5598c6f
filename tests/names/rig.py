"""Sockets for a name server."""

import contextlib
import socket

from relay.errors import ListenError
from relay.names.server import open_names_sockets
from tests.harness import eventually


def open_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Both sockets on a free port: a port that is free for TCP may be taken for UDP."""
    return eventually(lambda: suppressed(host), "a port that is free for both")  # type: ignore[no-any-return]


def suppressed(host: str) -> tuple[socket.socket, socket.socket] | None:
    with contextlib.suppress(ListenError):
        return open_names_sockets(host, 0)
    return None
