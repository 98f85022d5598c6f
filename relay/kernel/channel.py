"""Messages between relay's own processes: one JSON object each, with descriptors attached.

The sockets are made by the keeper, which keeps both ends. So a message sent to a process that has just died waits in
the kernel for the one that takes its place.
"""

import array
import json
import socket
from typing import Any, Final

_MESSAGE_BYTES: Final = 128 * 1024  # SEQPACKET messages come whole; ours are far smaller
FDS_MAX: Final = 200  # of one message; the kernel's limit is 253 (unix(7), SCM_RIGHTS)


def pair() -> tuple[socket.socket, socket.socket]:
    """Two connected ends, neither blocking."""
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one.setblocking(False)
    other.setblocking(False)
    return one, other


def send(sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...] = ()) -> bool:
    """Send one message with descriptors; False when the other side has not made room for it."""
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    try:
        sock.sendmsg([json.dumps(message).encode()], rights)
    except BlockingIOError:
        return False
    return True


def receive(sock: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """The next message and the descriptors that came with it (the caller's to close); None: nothing waits."""
    try:
        data, rights, _flags, _address = sock.recvmsg(
            _MESSAGE_BYTES, socket.CMSG_SPACE(FDS_MAX * 4), socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    fds = array.array("i")
    for level, kind, raw in rights:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(raw[: len(raw) - len(raw) % fds.itemsize])
    return (json.loads(data) if data else {}), list(fds)
