"""The data plane of one endpoint without processes, driven by hand."""

import contextlib
import json
import os
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal

from relay import log as logging
from relay.config.snapshot import EndpointRow, TargetRow
from relay.dataplane.context import Context
from relay.dataplane.denials import Denials
from relay.dataplane.gate import Gate
from relay.dataplane.listener import Listener
from relay.dataplane.pipes import Pipe, PipePool
from relay.dataplane.flow import Flow
from relay.dataplane.splice import Mover, Turn, lanes
from relay.kernel.listening import open_listener
from relay.kernel.poller import Handler, Poller
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import CAUSES, Count, Word
from relay.ledger.ledger import Ledger
from relay.log import Logger
from tests.config.rig import endpoint_row
from tests.conformance.peers import full_backlog
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger
from tests.logs import waiting
from tests.ports import free_port


class Rig:
    """A worker's data plane with one endpoint, driven by hand. Clients and targets are a test's own sockets."""

    def __init__(
        self, row: EndpointRow, stack: contextlib.ExitStack, *, flows: int = 32, port: int | None = None
    ) -> None:
        self._stack = stack
        self.ledger = stack.enter_context(new_ledger(flows=flows))
        self.part = self.ledger.worker(0)
        self.pool = stack.enter_context(pool_of(self.ledger))
        self.exhausted: list[str] = []
        self.bugs: list[Exception] = []
        self.poller = Poller(self._on_error, lambda: self.context.closed())
        sink, self._log_source = (stack.enter_context(sock) for sock in logging.channel())
        self.log = Logger(sink, "worker-0", "info")
        self.context = Context(
            poller=self.poller,
            mover=Mover(self.pool, self.part),
            ledger=self.part,
            log=self.log,
            denials=Denials(self.log),
            free_records=list(range(flows - 1, -1, -1)),
            exhausted=self._on_exhausted,
        )
        self.gate = Gate(row, self.part, SourceCounts(self.part))
        self.listener = Listener(self.context, self.gate, open_listener(row, port))
        self.address = self.listener.sock.getsockname()
        self.listener.resume()
        stack.callback(self._end)

    def _on_error(self, _handler: Handler, error: Exception) -> None:
        self.bugs.append(error)

    def _on_exhausted(self, why: str) -> None:
        self.exhausted.append(why)
        self.listener.pause()

    def _end(self) -> None:
        for session in list(self.context.flows):
            session.cut("drain")
        self.listener.pause()
        self.listener.sock.close()
        self.poller.shut()
        if self.context.mover._scratch is not None:
            close(self.context.mover._scratch)

    def connect(self) -> socket.socket:
        """A client, connected and not yet accepted."""
        client = self._stack.enter_context(socket.create_connection(self.address[:2]))
        client.setblocking(False)
        return client

    def keep(self, sock: socket.socket) -> socket.socket:
        """A socket that is closed when the test ends."""
        sock.setblocking(False)
        return self._stack.enter_context(sock)

    def until(self, done: Callable[[], Any], what: str) -> Any:
        """Serve until `done` says so: its value."""
        deadline_s = time.monotonic() + HANG_S
        late = False
        while not (value := done()):
            assert not late, f"not in time: {what}"
            late = time.monotonic() > deadline_s  # before the next look: a machine that stands still costs none
            select.select([self.poller.fileno()], [], [], 0.002)
            self.poller.serve()
            self.poller.bury()
            assert self.bugs == []
        return value

    def session(self) -> Flow:
        """The one session there is, as soon as it was let in."""
        self.until(lambda: self.context.flows, "a session begins")
        [session] = self.context.flows
        assert isinstance(session, Flow)
        return session

    def tick(self, now_s: float) -> None:
        """What a worker does for sessions that wait."""
        for session in list(self.context.waiting):
            session.stage.tick(now_s)
        self.poller.bury()

    def receive(self, sock: socket.socket, count: int) -> bytes:
        """Exactly so many bytes."""
        data = bytearray()

        def more() -> bool:
            with contextlib.suppress(BlockingIOError):
                part = sock.recv(count - len(data))
                assert part, f"the stream ended after {bytes(data)!r}"
                data.extend(part)
            return len(data) == count

        self.until(more, f"{count} bytes come")
        return bytes(data)

    def ending(self, sock: socket.socket) -> str:
        """How a stream ends, after nothing more: `fin` or `reset`."""

        def ended() -> str:
            try:
                data = sock.recv(1)
            except BlockingIOError:
                return ""
            except ConnectionResetError:
                return "reset"
            assert not data, "more came than should"
            return "fin"

        return str(self.until(ended, "the stream ends"))

    def ended(self) -> dict[str, Any]:
        """The log's record of the one connection that ended, after checking that nothing of it is left."""

        def over() -> bool:
            self.tick(time.monotonic())
            return not self.context.flows

        self.until(over, "the session ends")
        self.poller.bury()
        self.log.flush()
        [record] = [line for line in self.records() if line["event"] == "connection"]
        closed = [self.ledger.total(0, Count.CLOSED + n) for n in range(len(CAUSES))]
        assert [CAUSES[n] for n, count in enumerate(closed) if count] == [record["cause"]]
        assert sum(closed) == self.ledger.total(0, Count.ACCEPTED) == 1
        assert list(self.ledger.flows()) == []
        assert (self.context.waiting, self.context.starved, self.bugs) == (set(), set(), [])
        assert len(set(self.context.free_records)) == len(self.context.free_records) == 32
        assert self.ledger.total(0, Count.RECEIVED) == record["received"]
        assert self.ledger.total(0, Count.SENT) == record["sent"]
        assert sum(self.ledger.total(0, Count.DURATION_BUCKETS + n) for n in range(14)) == 1
        assert self.part[Word.PIPES] == len(self.pool._spare) + (self.context.mover._scratch is not None)
        return record

    def records(self) -> list[dict[str, Any]]:
        """Every line logged since the last time."""
        return [json.loads(line) for line in waiting(self._log_source)]


def on_his_way(address: tuple[str, int]) -> socket.socket:
    """A client whom the kernel has answered, and whose own answer to that comes with his first bytes: tcp(7), QUICKACK."""
    client = socket.socket()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
    client.connect(address)
    client.setblocking(False)
    return client


class Target:
    """A listening service of a test's own."""

    def __init__(self, sock: socket.socket, row: TargetRow) -> None:
        self.sock = sock
        self.row = row

    def accept(self, rig: Rig) -> socket.socket:
        """The next connection that relay made."""

        def accepted() -> socket.socket | None:
            with contextlib.suppress(BlockingIOError):
                return self.sock.accept()[0]
            return None

        sock: socket.socket = rig.until(accepted, "the target is dialled")
        return rig.keep(sock)

    def was_dialled(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            self.sock.accept()[0].close()
            return True
        return False


def tcp_target(stack: contextlib.ExitStack, backlog: int = 16, port: int = 0) -> Target:
    sock = stack.enter_context(socket.socket())
    sock.bind(("127.0.0.1", port))
    sock.listen(backlog)
    sock.setblocking(False)
    port = sock.getsockname()[1]
    return Target(sock, TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port))


def unix_target(stack: contextlib.ExitStack, path: Path, backlog: int = 16) -> Target:
    sock = stack.enter_context(socket.socket(socket.AF_UNIX))
    sock.bind(str(path))
    sock.listen(backlog)
    sock.setblocking(False)
    return Target(sock, TargetRow(f"unix:{path}", path=str(path)))


def rig_to(stack: contextlib.ExitStack, *targets: Target | TargetRow, **keys: Any) -> Rig:
    """A rig whose endpoint leads to these targets; `keys` are the rest of its row."""
    rows = tuple(each.row if isinstance(each, Target) else each for each in targets)
    return Rig(endpoint_row(targets=rows, **keys), stack)


@contextmanager
def no_descriptors() -> Iterator[None]:
    """Whoever asks for a descriptor in here gets EMFILE: the limit is below every number that is free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


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


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


LATER_S: Final = 3600.0  # beyond every deadline


def refusing() -> TargetRow:
    """A target that nobody listens on."""
    port = free_port()
    return TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port)


def silent_target(stack: contextlib.ExitStack) -> Target:
    """A listener whose backlog is full: the kernel drops further SYNs (listen(2)), so dialling waits."""
    target = tcp_target(stack, backlog=0)
    stack.enter_context(full_backlog(target.sock))
    return target


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

    def turn(self) -> Turn:
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
            still = not took and turn is Turn.SAME and before == (self.up.total_bytes, self.up.held_bytes)
            quiet = quiet + 1 if still and self.up.held_bytes else 0
            written += took
        return written


def wait(sock: socket.socket) -> None:
    """Until there is something to be read: bytes, an end, an error. By select(2), which needs no free descriptor."""
    assert select.select([sock], [], [], HANG_S)[0]


def connected(kind: Kind, stack: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends of a connection with small buffers, neither blocking."""
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
    return pair


@contextlib.contextmanager
def new_bench(kind: Kind) -> Iterator[Bench]:
    """A lane with all that it needs."""
    with new_ledger() as ledger, pool_of(ledger) as pool, contextlib.ExitStack() as stack:
        yield Bench(kind, pool, ledger, stack)
