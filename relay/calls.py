"""The data plane's system calls, by descriptor and number: each returns what the kernel did, or `-errno`, and raises nothing.

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


def lock_memory(at: int, count: int) -> bool:
    """Keep these bytes in memory, each where it is: mlock(2). Not inherited by a child."""
    return bool(_mlock(at, count) == 0)


def readable_bytes(fd: int) -> int:
    """Bytes that stand in a pipe: pipe(7), FIONREAD. 0 where there is no such pipe any more."""
    return _ioctl_int(fd, termios.FIONREAD)


def unsent_bytes(fd: int) -> int:
    """Bytes in the send buffer that the peer has not acknowledged: tcp(7), SIOCOUTQ."""
    return _ioctl_int(fd, termios.TIOCOUTQ)


def _ioctl_int(fd: int, request: int) -> int:
    try:
        return int(struct.unpack("i", fcntl.ioctl(fd, request, b"\0\0\0\0"))[0])
    except OSError:
        return 0


_epolls: Final[dict[int, select.epoll]] = {}
_events: list[tuple[int, int]] = []

ADD, DELETE, MODIFY = 1, 2, 3
"""What `control_poll` does: epoll_ctl(2)."""


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
