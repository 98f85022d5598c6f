"""A lane between two connections, driven by hand; and what every test with sockets and pipes of its own opens."""

import contextlib
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from relay.dataplane import turns
from relay.dataplane.pipes import Pipe, PipePool
from relay.dataplane.splice import Mover, lanes
from relay.kernel.bare_socket import AnySocket, BareSocket
from relay.ledger.ledger import Ledger
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger


@contextmanager
def pool_of(ledger: Ledger) -> Iterator[PipePool]:
    """A pool of worker 0 of this ledger; what it keeps is closed at the end."""
    pool = PipePool(ledger.worker(0))
    try:
        yield pool
    finally:
        for pipe in pool._spare:
            close(pipe)


def close(pipe: Pipe) -> None:
    os.close(pipe.r)
    os.close(pipe.w)


Kind = Literal["tcp", "unix"]


class Bench:
    """A lane between two connections: `source` is where a test writes, `sink` where it reads."""

    def __init__(self, kind: Kind, pool: PipePool, ledger: Ledger, stack: contextlib.ExitStack) -> None:
        self.ledger = ledger
        self.pool = pool
        self.part = ledger.worker(0)
        self.mover = Mover(pool, self.part)
        stack.callback(self._close_pipes)
        self.source, inner_source = connected(kind, stack)
        self.sink, inner_sink = connected(kind, stack)
        self.inner = inner_source, inner_sink
        self.up, self.down = lanes(inner_source, inner_sink, ledger.worker(0).counts_at(0), record=3)

    def _close_pipes(self) -> None:
        for pipe in (self.mover._scratch, self.up.pipe, self.down.pipe):
            if pipe is not None:
                close(pipe)

    def turn(self) -> int:
        return self.mover.turn(self.up)

    def read(self) -> bytes:
        """What has arrived."""
        parts: list[bytes] = []
        with contextlib.suppress(BlockingIOError):
            while part := self.sink.recv(1 << 20):
                parts.append(part)
        return b"".join(parts)

    def write(self, data: bytes) -> int:
        """How much of it the kernel takes now."""
        with contextlib.suppress(BlockingIOError):
            return self.source.send(data)
        return 0

    def say(self, data: bytes) -> None:
        """Send it, and wait until the lane can read it."""
        self.source.sendall(data)
        wait(self.inner[0])

    def answer(self, data: bytes) -> None:
        """The same in the other direction."""
        self.sink.sendall(data)
        wait(self.inner[1])

    def hear(self, count: int) -> bytes:
        """Wait for so many bytes at the sink; fewer when the stream ends before."""
        data = b""
        while len(data) < count:
            wait(self.sink)
            part = self.sink.recv(count - len(data))
            if not part:
                break
            data += part
        return data

    def fill(self) -> int:
        """Write the letter a and turn until the lane holds bytes and nothing moves any more; how many were written."""
        written = quiet = 0
        while quiet < 3:
            took = self.write(b"a" * 65536)
            before = self.up.total_bytes, self.up.held_bytes
            turn = self.turn()
            still = not took and turn == turns.SAME and before == (self.up.total_bytes, self.up.held_bytes)
            quiet = quiet + 1 if still and self.up.held_bytes else 0
            written += took
        return written


def wait(sock: AnySocket) -> None:
    """Until there is something to be read: bytes, an end, an error. By select(2), which needs no free descriptor."""
    assert select.select([sock], [], [], HANG_S)[0]


def connected(kind: Kind, stack: contextlib.ExitStack) -> tuple[socket.socket, BareSocket]:
    """Two ends of a connection with small buffers, neither blocking: a test's, and a lane's."""
    if kind == "unix":
        pair = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as server:
            outer = socket.create_connection(server.getsockname())
            pair = outer, server.accept()[0]
    for sock in pair:
        stack.enter_context(sock)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16384)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
    inner = BareSocket(pair[1].detach())
    stack.callback(inner.close)
    return pair[0], inner


@contextlib.contextmanager
def new_bench(kind: Kind) -> Iterator[Bench]:
    """A lane with all that it needs."""
    with new_ledger() as ledger, pool_of(ledger) as pool, contextlib.ExitStack() as stack:
        yield Bench(kind, pool, ledger, stack)
