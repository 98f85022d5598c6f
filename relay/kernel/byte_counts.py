"""How many bytes have gone through a TCP socket, by whichever process: asked of the kernel by who takes a socket over."""

import socket
import struct
from typing import Final

from relay import calls
from relay.kernel.bare_socket import AnySocket

# linux/tcp.h, struct tcp_info: state, bytes_acked, bytes_received (Linux 4.1)
_COUNTS: Final = struct.Struct("=B 119x QQ")
# tcp_states.h: CLOSE_WAIT, LAST_ACK, CLOSING, TIME_WAIT. The peer's FIN has come, and is in `bytes_received` as one byte.
_AFTER_FIN: Final = (8, 9, 11, 6)


def taken_bytes(sock: AnySocket) -> int:
    """How many bytes were read from a connection: tcp(7), TCP_INFO and SIOCINQ.

    One too many where its peer sent a FIN and a reset after that: nobody can tell then.
    """
    while True:
        waits = calls.readable_bytes(sock.fileno())
        state, _, received = _counts(sock)
        if calls.readable_bytes(sock.fileno()) == waits:  # else some came between the two questions
            return received - waits - (state in _AFTER_FIN)


def sent_bytes(sock: AnySocket, *, dialled: bool) -> int:
    """How many bytes were written to a connection of which the end was not: tcp(7), TCP_INFO and SIOCOUTQ.

    `dialled`: it was connected from here. Its SYN counts as one byte that was acknowledged; that of an accepted one does not.
    """
    while True:
        waits = calls.unsent_bytes(sock.fileno())
        _, acked, _ = _counts(sock)
        if calls.unsent_bytes(sock.fileno()) == waits:  # else some were acknowledged between the two questions
            return acked + waits - dialled


def _counts(sock: AnySocket) -> tuple[int, int, int]:
    state, acked, received = _COUNTS.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _COUNTS.size))
    return int(state), int(acked), int(received)
