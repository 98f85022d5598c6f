"""What relay asks of a single socket or descriptor: options, closing, and what the kernel knows about it."""

import contextlib
import ctypes
import errno
import fcntl
import os
import resource
import select
import socket
import struct
import termios
from array import array
from collections.abc import Iterable
from socket import SO_LINGER, SOL_SOCKET, SocketType
from typing import Final, NamedTuple

from relay import calls
from relay.address import Address
from relay.kernel.bare_socket import AnySocket

RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)  # socket(7) SO_LINGER on, 0 s: close(2) sends RST
_libc: Final = ctypes.PyDLL(None)
_setsockopt: Final = _libc.setsockopt
_getsockopt: Final = _libc.getsockopt
_poll: Final = ctypes.PyDLL(None, use_errno=True).poll
_poll.argtypes = (ctypes.c_void_p, ctypes.c_ulong, ctypes.c_int)
_ON: Final = struct.pack("i", 1)
# accept(2), socket(2): this machine has no more to give; a moment later it may.
CAPACITY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
# asm-generic/socket.h: Python has no names for these.
_SO_ATTACH_FILTER: Final = 26
_SO_DETACH_FILTER: Final = 27
_SO_MEMINFO: Final = 55
_MEMINFO: Final = struct.Struct("9I")
_MEMINFO_DROPS: Final = 8  # linux/sock_diag.h, SK_MEMINFO_DROPS
_TCP_CLOSE: Final = 7  # tcp_states.h; the first byte of TCP_INFO
_state: Final = (ctypes.c_ubyte * 1)()  # where the kernel writes that byte
_state_bytes: Final = ctypes.pointer(ctypes.c_uint(1))
# linux/tcp.h, struct tcp_info: retransmits and probes; unacked; last_data_recv, last_ack_recv; total_retrans; segs_in,
# notsent_bytes.
_TCP_INFO: Final = struct.Struct("=2x2B 20xI 24x2I 40xI 36x2I")
_info: Final = ctypes.create_string_buffer(_TCP_INFO.size)
_info_bytes: Final = ctypes.pointer(ctypes.c_uint(_TCP_INFO.size))
_option: Final = ctypes.c_int()
_option_at: Final = ctypes.byref(_option)
_TCP_RTO_MAX_MS: Final = 44  # linux/tcp.h, since Linux 6.15
UNREACHED: Final = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN})
"""What a socket fails with whose peer has not answered for too long; the routers' word on it, where they gave one."""


def no_delay(sock: AnySocket) -> None:
    """What came apart is passed on apart: tcp(7), TCP_NODELAY. A Unix socket never waits."""
    calls.set_option(sock.fileno(), socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def keep_urgent(sock: AnySocket) -> None:
    """Have a byte of urgent data read in its place, as any other: socket(7), SO_OOBINLINE. Else recvmsg(2) leaves it out.

    Accepted sockets have it from their listener.
    """
    calls.set_option(sock.fileno(), SOL_SOCKET, socket.SO_OOBINLINE, 1)


def is_gone(sock: AnySocket) -> bool:
    """Whether a TCP socket's connection is over in both directions: reset, or finished by both sides."""
    # By the descriptor alone, like `finish_on_close`: a new worker asks this of every socket that it takes over.
    failed = _getsockopt(sock.fileno(), socket.IPPROTO_TCP, socket.TCP_INFO, _state, _state_bytes)
    return not failed and _state[0] == _TCP_CLOSE  # it fails for a Unix socket


class Transmission(NamedTuple):
    """What the kernel knows of a TCP connection's way to its peer and back."""

    silent_s: float  # since data or an acknowledgement came
    segments_in: int  # all that came, also what the kernel had no use for; modulo 2^32
    in_flight: bool  # something sent was not acknowledged
    unsent: bool  # something waits for the peer's window, or for the network
    resent: int  # segments sent again, ever
    timeouts: int  # times in a row that something was sent again in vain
    probes: int  # of an idle peer, or of one whose window is closed: not answered, in a row


def transmission(fd: int) -> Transmission | None:
    """That of a TCP connection; None for anything else: tcp(7), TCP_INFO."""
    if _getsockopt(fd, socket.IPPROTO_TCP, socket.TCP_INFO, _info, _info_bytes):
        return None
    timeouts, probes, unacked, data_ms, ack_ms, resent, segments_in, unsent = _TCP_INFO.unpack(_info)
    return Transmission(min(data_ms, ack_ms) / 1000, segments_in, unacked > 0, unsent > 0, resent, timeouts, probes)


def ask_peer(fd: int, idle_s: int, every_s: int, probes: int, resend_max_s: int) -> None:
    """Have the kernel ask a TCP peer that is silent for `idle_s` (0: never), and break the connection if no answer comes.

    It asks every `every_s`, and so many `probes` may go unanswered. What is not acknowledged is sent again, and a closed
    window asked for, at least every `resend_max_s`; before Linux 6.15 the kernel's pauses grow up to two minutes.
    """
    tcp = socket.IPPROTO_TCP
    idle = (
        ((tcp, socket.TCP_KEEPIDLE, idle_s), (tcp, socket.TCP_KEEPINTVL, every_s), (tcp, socket.TCP_KEEPCNT, probes))
        if idle_s
        else ()
    )
    # SO_KEEPALIVE after them: it starts the timer.
    resend = (tcp, _TCP_RTO_MAX_MS, resend_max_s * 1000)
    for level, name, _option.value in (*idle, (SOL_SOCKET, socket.SO_KEEPALIVE, int(idle_s > 0)), resend):
        _setsockopt(fd, level, name, _option_at, 4)


def ask_often(fd: int) -> None:
    """Have the kernel notice within three seconds that a silent TCP peer has vanished: of lines, which there are few of."""
    ask_peer(fd, idle_s=1, every_s=1, probes=2, resend_max_s=1)


def hear_beyond(fd: int, count: int) -> None:
    """Have a socket in which so many bytes are to stay become readable with the next one: socket(7), SO_RCVLOWAT."""
    calls.set_option(fd, SOL_SOCKET, socket.SO_RCVLOWAT, count + 1)


def hear_no_more(sock: AnySocket) -> None:
    """Let what has come be read, and after that an end."""
    with contextlib.suppress(OSError):  # it is over already
        sock.shutdown(socket.SHUT_RD)


def listening_address(fd: int) -> Address | None:
    """The address that a socket listens on; None for anything else."""
    with contextlib.suppress(OSError):
        sock = SocketType(fileno=fd)
        try:
            if sock.family in (socket.AF_INET, socket.AF_INET6) and sock.getsockopt(SOL_SOCKET, socket.SO_ACCEPTCONN):
                return Address(*sock.getsockname()[:2])
        finally:
            sock.detach()
    return None


def connected_addresses(fd: int) -> tuple[Address, Address] | None:
    """A TCP connection's own address, and its peer's; None for anything else."""
    with contextlib.suppress(OSError):
        sock = SocketType(fileno=fd)
        try:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                return Address(*sock.getsockname()[:2]), Address(*sock.getpeername()[:2])
        finally:
            sock.detach()
    return None


def peer_path(fd: int) -> str:
    """The path at which a Unix socket's peer listened; empty for anything else, and where that had none."""
    with contextlib.suppress(OSError):
        sock = SocketType(fileno=fd)
        try:
            found = sock.getpeername() if sock.family == socket.AF_UNIX else ""
            return found if isinstance(found, str) else ""
        finally:
            sock.detach()
    return ""


def descriptors(among: Iterable[int] | None = None) -> dict[int, str]:
    """The open descriptors of this process and what they are (proc(5), /proc/PID/fd): `socket:[123]`, `pipe:[4]` …

    All of them, or those `among` some: asking takes 5 µs each.
    """
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")) if among is None else among:
        with contextlib.suppress(OSError):  # the one that listdir itself used
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
    return found


def other_descriptors(known: dict[int, str]) -> set[int]:
    """Every open descriptor but the known ones, as `descriptors` told them. What has a known one's number is another."""
    opened = open_descriptors()
    return opened - {fd for fd, what in descriptors(known).items() if known[fd] == what}


def open_descriptors() -> set[int]:
    """The numbers of all open descriptors. poll(2) says which ones of a list are not open.

    That takes a tenth of what listing /proc/self/fd does, where the kernel makes a file for each, while clients wait.
    """
    with open("/proc/self/status", "rb") as status:
        size = next(int(line.split()[1]) for line in status if line.startswith(b"FDSize:"))
    polled = array("i", bytes(8 * size))  # of struct pollfd: int fd, short events, short revents
    polled[::2] = array("i", range(size))
    address, limit = polled.buffer_info()[0], resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    at_once = size if limit == resource.RLIM_INFINITY else min(size, limit)  # poll(2): EINVAL for more
    for first in range(0, size, at_once):
        if _poll(address + 8 * first, min(at_once, size - first), 0) < 0:
            raise OSError(ctypes.get_errno(), "poll")
    told = memoryview(polled).cast("B").cast("h")[3::4]
    return {fd for fd, events in enumerate(told) if events != select.POLLNVAL}


def readable_now(fds: list[int]) -> set[int]:
    """Which of these have bytes, an end or an error to tell. None where the limit of descriptors was lowered: poll(2)."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    with contextlib.suppress(OSError):
        return {fd for fd, _ in poll.poll(0)}
    return set()


def not_blocking(fd: int) -> None:
    """Set O_NONBLOCK: ioctl(2), FIONBIO."""
    fcntl.ioctl(fd, termios.FIONBIO, _ON)


def reset_on_close(sock: AnySocket) -> None:
    """Make close(2) send a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(SOL_SOCKET, SO_LINGER, RESET_ON_CLOSE)


def wake_watchers(listener: SocketType) -> None:
    """Have everybody who watches this listening socket look at it again, whoever was told of a client alone.

    Nothing is shut down: where a socket listens, the kernel does no more than wake who waits (net/ipv4/af_inet.c,
    `inet_shutdown`). A kernel that knows no such call leaves the others to see the next client.
    """
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_WR)


def attach_filter(sock: SocketType, program: bytes) -> None:
    """Have the kernel run this classic BPF program on every packet to the socket, in place of the one before: socket(7).

    Raises OSError: EPERM where the kernel wants CAP_NET_ADMIN for it, ENOMEM where net.core.optmem_max is too small.
    """
    code = ctypes.create_string_buffer(program, len(program))
    sock.setsockopt(SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("HP", len(program) // 8, ctypes.addressof(code)))
    del code  # not before: the kernel reads it in the call


def detach_filter(fd: int) -> None:
    """Have the kernel run no program on packets to this socket any more."""
    _setsockopt(fd, SOL_SOCKET, _SO_DETACH_FILTER, _ON, len(_ON))  # ENOENT where there is none, which is as well


def dropped_packets(sock: SocketType) -> int:
    """Packets to this socket that the kernel has dropped, modulo 2^32: socket(7), SO_MEMINFO."""
    raw = sock.getsockopt(SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size)
    return int(_MEMINFO.unpack(raw)[_MEMINFO_DROPS])
