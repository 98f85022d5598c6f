"""Both ends of a data path: plain blocking sockets, every wait of them bounded."""

import contextlib
import fcntl
import os
import resource
import select
import socket
import struct
import termios
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from tests.conformance.paths import Address
from tests.harness import eventually

PATIENCE_S: Final = 20.0  # a bound for hanging, not for speed
Kind = Literal["tcp", "unix"]
QUIET_S: Final = 0.3  # a socket that takes nothing for so long while nobody reads is full
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Site:
    """Where targets stand: the same place for one after the other, so that a forwarder can stay in front of them."""

    port: int
    path: Path

    @classmethod
    def within(cls, directory: Path) -> Self:
        """A site with its Unix socket in `directory`."""
        return cls(quiet_port(), directory / "target.sock")


class Target:
    """A listening service. `rcvbuf_bytes` is asked for its connections, to have them full soon."""

    def __init__(self, site: Site, kind: Kind, *, rcvbuf_bytes: int | None = None, backlog: int = 4096) -> None:
        self.kind = kind
        family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.settimeout(PATIENCE_S)
        if rcvbuf_bytes is not None:
            self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf_bytes)
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the one before left flows in TIME_WAIT
        site.path.unlink(missing_ok=True)
        self.listener.bind(("127.0.0.1", site.port) if kind == "tcp" else str(site.path))
        self.listener.listen(backlog)
        self.address: Address = self.listener.getsockname()

    def accept(self) -> socket.socket:
        """The next connection."""
        connection, _ = self.listener.accept()
        connection.settimeout(PATIENCE_S)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def quiet_port() -> int:
    """A TCP port that nobody listens on, below those that the kernel gives to clients (ip(7), ip_local_port_range).

    So nobody takes it while no target stands there, and a forwarder that dials it then cannot meet itself.
    """
    for port in range(20_000 + os.getpid() % 8_000, 30_000):
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free between 20000 and 30000")


def connect(address: Address, *, rcvbuf_bytes: int | None = None) -> socket.socket:
    """A client's connection, without Nagle's delay."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if rcvbuf_bytes is not None:  # before connecting: tcp(7), it bounds the window from the first segment on
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf_bytes)
    sock.settimeout(PATIENCE_S)
    try:
        sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return sock


def refused(address: Address) -> bool:
    """Connect, send nothing, and be reset without a byte: True. The reset may be there before connect(2) has returned."""
    try:
        with connect(address) as sock:
            assert sock.recv(1) == b"", "there was an answer"
            return False
    except ConnectionResetError:
        return True


def fin(sock: socket.socket) -> None:
    """Finish sending."""
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close with a reset: what has not been sent yet is thrown away (socket(7), SO_LINGER of 0 s)."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    sock.close()


def unacknowledged_bytes(sock: socket.socket) -> int:
    """What was sent and has not reached the other kernel: tcp(7), SIOCOUTQ. A FIN counts as one."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def await_acknowledged(sock: socket.socket) -> None:
    """Until the next kernel has all that was sent, so that a reset cannot take it back."""
    eventually(lambda: unacknowledged_bytes(sock) == 0, "everything sent was acknowledged", PATIENCE_S)


def await_broken(sock: socket.socket) -> None:
    """Until the connection is dead in both directions, without sending or receiving anything."""
    poll = select.poll()
    poll.register(sock, 0)  # HUP and ERR are always told: poll(2)
    assert poll.poll(PATIENCE_S * 1000), "the connection still stands"


def sending_fails(sock: socket.socket) -> bool:
    """Send until that fails, as it must within PATIENCE_S once the other side is gone. False: it never did."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        eventually(lambda: not sock.send(b"x"), "sending fails", PATIENCE_S)
        return False
    return True


def together(threads: int = 8) -> ThreadPoolExecutor:
    """Run several ends at once. Their sockets' timeouts bound the wait at its exit."""
    return ThreadPoolExecutor(threads)


def want_descriptors(count: int) -> None:
    """Make sure this process may hold so many. Fails where the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        assert hard == resource.RLIM_INFINITY or hard >= count, f"the test needs `ulimit -Hn` of {count}"
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
