"""Both ends of a data path: plain blocking sockets, every wait of them bounded."""

import contextlib
import fcntl
import resource
import select
import socket
import struct
import sys
import termios
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

from tests.conformance.paths import Address
from tests.conformance.proc import is_asleep
from tests.harness import HANG_S, eventually
from tests.ports import free_port

Kind = Literal["tcp", "unix"]
_BACKLOG_AT: Final = 24  # in a listening socket's tcp_info: how many wait (tcpi_unacked), how many may (tcpi_sacked)
_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_TIME_WAIT: Final = "06"  # net/tcp_states.h, as /proc/net/tcp has it


@dataclass(frozen=True)
class Site:
    """Where targets stand: the same place for one after the other, so that a forwarder can stay in front of them."""

    port: int
    path: Path

    @classmethod
    def within(cls, directory: Path) -> Self:
        """A site with its Unix socket in `directory`."""
        return cls(free_port(), directory / "target.sock")


class Target:
    """A listening service. `rcvbuf_bytes` is asked for its connections, to have them full soon."""

    def __init__(self, site: Site, kind: Kind, *, rcvbuf_bytes: int | None = None, backlog: int = 4096) -> None:
        self.kind = kind
        family = socket.AF_INET if kind == "tcp" else socket.AF_UNIX
        self.listener = socket.socket(family, socket.SOCK_STREAM)
        self.listener.settimeout(HANG_S)
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
        connection.settimeout(HANG_S)
        return connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()


def connect(address: Address, *, rcvbuf_bytes: int | None = None) -> socket.socket:
    """A client's connection, without Nagle's delay."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    else:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if rcvbuf_bytes is not None:  # before connecting: tcp(7), it bounds the window from the first segment on
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf_bytes)
    sock.settimeout(HANG_S)
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


def reset_heard(sock: socket.socket, pids: Iterable[int]) -> None:
    """Reset, and wait until the next kernel has been told, and the processes that forward, which it has woken, rest again."""
    host, port = sock.getsockname()
    name = f"{int.from_bytes(socket.inet_aton(host), sys.byteorder):08X}:{port:04X}"  # as in proc_net_tcp.rst
    reset(sock)

    def is_known() -> bool:
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        return any(fields[2] == name and fields[3] != _TIME_WAIT for fields in sockets)

    eventually(lambda: not is_known(), "the next kernel has been told of the reset")
    eventually(lambda: all(map(is_asleep, pids)), "who forwards has noticed")


@contextlib.contextmanager
def full_backlog(listener: socket.socket) -> Iterator[int]:
    """Connect to `listener` until its backlog takes no more; how many wait in it. Whoever comes then is not answered."""
    with contextlib.ExitStack() as stack:
        waiting = 0
        with contextlib.suppress(BlockingIOError):  # what connect(2) gives for a Unix socket that is full
            while listener.family == socket.AF_UNIX or not _drops_syns(listener, waiting):
                assert waiting < 16, "the backlog does not fill"
                sock = stack.enter_context(socket.socket(listener.family, socket.SOCK_STREAM))
                sock.settimeout(HANG_S)
                sock.connect(listener.getsockname())
                waiting += 1
        assert waiting, "the backlog took nobody"
        yield waiting


def _drops_syns(listener: socket.socket, waiting: int) -> bool:
    """Whether so many, who have all connected, are more than may wait: the kernel drops another one's SYN then."""

    def backlog() -> tuple[int, int]:
        info = listener.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BACKLOG_AT + 8)
        now, most = struct.unpack_from("II", info, _BACKLOG_AT)
        return int(now), int(most)

    eventually(lambda: backlog()[0] == waiting, "each of them waits to be accepted")
    return waiting > backlog()[1]


def unacknowledged_bytes(sock: socket.socket) -> int:
    """What was sent and has not reached the other kernel: tcp(7), SIOCOUTQ. A FIN counts as one."""
    return int(struct.unpack("i", fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])


def await_acknowledged(sock: socket.socket) -> None:
    """Until the next kernel has all that was sent, so that a reset cannot take it back."""
    eventually(lambda: unacknowledged_bytes(sock) == 0, "everything sent was acknowledged")


def await_broken(sock: socket.socket) -> None:
    """Until the connection is dead in both directions, without sending or receiving anything."""
    poll = select.poll()
    poll.register(sock, 0)  # HUP and ERR are always told: poll(2)
    assert poll.poll(HANG_S * 1000), "the connection still stands"


def sending_fails(sock: socket.socket) -> bool:
    """Send until that fails, as it must within HANG_S once the other side is gone. False: it never did."""
    with contextlib.suppress(ConnectionResetError, BrokenPipeError):
        eventually(lambda: not sock.send(b"x"), "sending fails")
        return False
    return True


def together(threads: int = 8) -> ThreadPoolExecutor:
    """Run several ends at once. Their sockets' timeouts bound the wait at its exit."""
    return ThreadPoolExecutor(threads)


@contextlib.contextmanager
def want_descriptors(count: int) -> Iterator[None]:
    """Let this process hold so many meanwhile. Fails where the hard limit is lower."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < count:
        assert hard == resource.RLIM_INFINITY or hard >= count, f"the test needs `ulimit -Hn` of {count}"
        resource.setrlimit(resource.RLIMIT_NOFILE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
