"""The data plane's system calls, by descriptor and number: each returns what the kernel did, or `-errno`; none raises.

A call that moves a message is made many thousand times a second. An exception for "nothing there" (EAGAIN) would cost more
than the call, and so would an object for each socket.
"""

import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import termios
import time
from typing import Final

from relay.address import join_host_port

AGAIN: Final = -errno.EAGAIN
"""What a call returns that would have to wait."""

_EVENTS_MAX: Final = 256  # of one batch; the rest stays ready and comes with the next one
_libc: Final = ctypes.PyDLL(None, use_errno=True)
_recvmmsg: Final = _libc.recvmmsg
_recvmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int, ctypes.c_void_p)
_sendmmsg: Final = _libc.sendmmsg
_sendmmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_uint, ctypes.c_int)
_write: Final = _libc.write
_write.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)
_write.restype = ctypes.c_ssize_t
_accept4: Final = _libc.accept4
_socket: Final = _libc.socket
_connect: Final = _libc.connect
_shutdown: Final = _libc.shutdown
_setsockopt: Final = _libc.setsockopt
_getsockopt: Final = _libc.getsockopt
_peer: Final = (ctypes.c_ubyte * 28)()  # a struct sockaddr_in or sockaddr_in6: ip(7), ipv6(7)
_peer_bytes: Final = ctypes.c_uint()
_recv: Final = _libc.recv
_recv.restype = ctypes.c_ssize_t
PEEK_MAX_BYTES: Final = 32 * 1024
"""More is not looked at: a whole TLS record, which is the longest of what is (envelope/clienthello.py)."""
_peeked: Final = ctypes.create_string_buffer(PEEK_MAX_BYTES)
_mlock: Final = _libc.mlock
_mlock.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
# SPLICE_F_NONBLOCK is for the pipe's end; the sockets are O_NONBLOCK themselves. Never SPLICE_F_MORE: on a last
# part it holds the data back for 200 ms (golang/go#10948).
_MOVE: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK


def splice(source_fd: int, sink_fd: int, most_bytes: int) -> int:
    """Move bytes between a socket and a pipe, either way: splice(2). How many; 0 is the end of the stream."""
    try:
        return os.splice(source_fd, sink_fd, most_bytes, None, None, _MOVE)
    except OSError as error:
        return -(error.errno or errno.EIO)


def receive_message(fd: int, header_at: int) -> int:
    """recvmmsg(2) of one message by the `struct mmsghdr` at this address, where the kernel writes how long it is. 1."""
    done: int = _recvmmsg(fd, header_at, 1, socket.MSG_DONTWAIT, None)
    return done if done >= 0 else -ctypes.get_errno()


def send_message(fd: int, header_at: int) -> int:
    """sendmmsg(2) of one message by the `struct mmsghdr` at this address, where the kernel writes how much it took. 1."""
    done: int = _sendmmsg(fd, header_at, 1, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
    return done if done >= 0 else -ctypes.get_errno()


def write_at(fd: int, at: int, count: int) -> int:
    """write(2) of so many bytes from this address. How many were taken."""
    done: int = _write(fd, at, count)
    return done if done >= 0 else -ctypes.get_errno()


def put_text(at: int, text: str, room: int) -> None:
    """Store this text (ASCII) at this address, where there is so much room, and nought behind it."""
    ctypes.memmove(at, text.encode().ljust(room, b"\0"), room)


def lock_memory(at: int, count: int) -> bool:
    """Keep these bytes in memory, each where it is: mlock(2). Not inherited by a child."""
    return bool(_mlock(at, count) == 0)


def peek(fd: int, most_bytes: int) -> int:
    """Look at what has come, and leave it there: recv(2), MSG_PEEK. How many bytes, PEEK_MAX_BYTES at most; 0: the end."""
    return _receive(fd, most_bytes, socket.MSG_PEEK)


def peeked(count: int) -> bytes:
    """So many of the bytes that were looked at last."""
    return bytes(memoryview(_peeked)[:count])


def take(fd: int, count: int) -> int:
    """Take so many bytes out of the socket; nobody wants them: recv(2). How many; PEEK_MAX_BYTES at most."""
    return _receive(fd, count, 0)


def _receive(fd: int, most_bytes: int, flags: int) -> int:
    room = ctypes.c_size_t(min(most_bytes, PEEK_MAX_BYTES))
    done: int = _recv(fd, _peeked, room, flags | socket.MSG_DONTWAIT)
    return done if done >= 0 else -ctypes.get_errno()


def readable_bytes(fd: int) -> int:
    """Bytes that stand in a pipe or a socket: pipe(7), tcp(7), FIONREAD. 0 where there is no such descriptor any more."""
    return _ioctl_int(fd, termios.FIONREAD)


def unsent_bytes(fd: int) -> int:
    """Bytes in the send buffer that the peer has not acknowledged: tcp(7), SIOCOUTQ."""
    return _ioctl_int(fd, termios.TIOCOUTQ)


def _ioctl_int(fd: int, request: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, request, b"\0\0\0\0"))[0])
    except OSError:
        return 0


def accept(listener_fd: int) -> int:
    """The descriptor of the next connection, not blocking: accept4(2). Who came, `accepted_host` says until the next one."""
    _peer_bytes.value = ctypes.sizeof(_peer)
    fd: int = _accept4(listener_fd, _peer, ctypes.byref(_peer_bytes), socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    return fd if fd >= 0 else -ctypes.get_errno()


def accepted_host() -> str:
    """The IP address of who was accepted last."""
    if struct.unpack_from("H", _peer)[0] == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, bytes(_peer[4:8]))
    return socket.inet_ntop(socket.AF_INET6, bytes(_peer[8:24]))


def accepted_peer() -> str:
    """Who that is, with the port: `host:port`, `[host]:port`. After `accepted_host`."""
    (port,) = struct.unpack_from("!H", _peer, 2)
    return join_host_port(accepted_host(), port)


def open_socket(family: int) -> int:
    """A new stream socket, not blocking: socket(2)."""
    fd: int = _socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    return fd if fd >= 0 else -ctypes.get_errno()


def connect(fd: int, host: str, port: int) -> int:
    """Connect to an IP address: connect(2), of a socket that does not block. 0, or -EINPROGRESS: it will be told.

    Asked a second time where it is in progress, for over loopback the handshake is over by then.
    """
    try:
        if ":" in host:
            address = struct.pack(
                "=H2s4x16s4x", socket.AF_INET6, port.to_bytes(2), socket.inet_pton(socket.AF_INET6, host)
            )
        else:
            address = struct.pack("=H2s4s8x", socket.AF_INET, port.to_bytes(2), socket.inet_pton(socket.AF_INET, host))
    except OSError:
        return -errno.EINVAL
    for _ in range(2):
        code = 0 if _connect(fd, address, len(address)) == 0 else ctypes.get_errno()
        if code != errno.EINPROGRESS:
            break
    return -{errno.EISCONN: 0, errno.EALREADY: errno.EINPROGRESS}.get(code, code)


def shut_write(fd: int) -> int:
    """Send the end of the stream: shutdown(2) for writing. 0."""
    return 0 if _shutdown(fd, socket.SHUT_WR) == 0 else -ctypes.get_errno()


def close(fd: int) -> int:
    """close(2). 0."""
    try:
        os.close(fd)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return 0


def set_option(fd: int, level: int, name: int, value: int) -> int:
    """Set an option of a socket to this number: setsockopt(2). 0."""
    return _set_option(fd, level, name, struct.pack("i", value))


def finish_on_close(fd: int) -> int:
    """Make close(2) send what is still in the buffer, and a FIN: socket(7), SO_LINGER off. 0."""
    return _set_option(fd, socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))


def _set_option(fd: int, level: int, name: int, value: bytes) -> int:
    return 0 if _setsockopt(fd, level, name, value, len(value)) == 0 else -ctypes.get_errno()


def pending_error(fd: int) -> int:
    """The error that the next read or write would fail with, 0 for none; it is told once: socket(7), SO_ERROR."""
    error, size = ctypes.c_int(), ctypes.c_uint(ctypes.sizeof(ctypes.c_int))
    failed = _getsockopt(fd, socket.SOL_SOCKET, socket.SO_ERROR, ctypes.byref(error), ctypes.byref(size))
    return ctypes.get_errno() if failed else error.value


_epolls: Final[dict[int, select.epoll]] = {}
_events: list[tuple[int, int]] = []

ADD, DELETE, MODIFY = 1, 2, 3
"""What `control_poll` does: epoll_ctl(2)."""

READ: Final = select.EPOLLIN
WRITE: Final = select.EPOLLOUT
PEER_FIN: Final = select.EPOLLRDHUP
BROKEN: Final = select.EPOLLHUP | select.EPOLLERR
"""What is watched for, and what a descriptor is ready for. BROKEN always counts."""


def open_poll() -> int:
    """A new epoll(7) instance."""
    made = select.epoll()
    _epolls[made.fileno()] = made
    return made.fileno()


def close_poll(epoll_fd: int) -> None:
    """Close it."""
    _epolls.pop(epoll_fd).close()


def control_poll(epoll_fd: int, how: int, fd: int, interest: int) -> int:
    """Watch `fd` for this interest, anew or otherwise, or not at all: epoll_ctl(2). 0."""
    epoll = _epolls[epoll_fd]
    try:
        if how == ADD:
            epoll.register(fd, interest)
        elif how == MODIFY:
            epoll.modify(fd, interest)
        else:
            epoll.unregister(fd)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return 0


def poll(epoll_fd: int, wait_ms: int) -> int:
    """How many descriptors are ready, after so long at most: epoll_wait(2). A process has one batch at a time."""
    global _events
    try:
        _events = _epolls[epoll_fd].poll(wait_ms / 1000, _EVENTS_MAX)
    except OSError as error:
        return -(error.errno or errno.EIO)
    return len(_events)


def event_fd(n: int) -> int:
    """The descriptor of event number `n` of the batch."""
    return _events[n][0]


def event_mask(n: int) -> int:
    """What it is ready for."""
    return _events[n][1]


now_ns = time.monotonic_ns
"""CLOCK_MONOTONIC."""
