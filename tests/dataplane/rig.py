"""The data plane of one endpoint without processes, driven by hand."""

import contextlib
import json
import resource
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

from relay import calls
from relay import log as logging
from relay.config.snapshot import EndpointRow, TargetRow
from relay.dataplane.adopt import flow_of
from relay.dataplane.context import Context
from relay.dataplane.denials import Denials
from relay.dataplane.flow import Flow
from relay.dataplane.gate import Gate
from relay.dataplane.listener import Listener
from relay.dataplane.splice import Mover
from relay.kernel import clock
from relay.kernel.bare_socket import BareSocket
from relay.kernel.listening import open_listener
from relay.kernel.poller import UNWATCHED, Handler, Poller
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import CAUSES, Count, Word
from relay.ledger.record import FlowRecord
from relay.log import Logger
from tests.config.rig import endpoint_row
from tests.conformance.peers import full_backlog
from tests.dataplane.lanes import pool_of
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger
from tests.logs import waiting
from tests.ports import free_port


class Move(NamedTuple):
    """A flow went from one state to another; `cause` is that of an end."""

    before: int
    after: int
    cause: str


class Clock(clock.Clock):
    """CLOCK_MONOTONIC of the data plane under test, in ns: it stands still until a test lets time pass."""

    def __init__(self) -> None:
        self._now_ns = 1_000_000_000_000

    def now_ns(self) -> int:
        return self._now_ns

    def __call__(self) -> int:
        return self._now_ns

    def go_on(self, after_s: float) -> None:
        self._now_ns += round(after_s * 1e9)


class Rig:
    """A worker's data plane with one endpoint, driven by hand. Clients and targets are a test's own sockets."""

    def __init__(
        self, row: EndpointRow, stack: contextlib.ExitStack, *, flows: int = 32, port: int | None = None
    ) -> None:
        self._stack = stack
        self.clock = Clock()
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
            clock=self.clock,
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
        for flow in list(self.context.flows):
            flow.cut("drain")
        self.listener.pause()
        self.listener.sock.close()
        self.poller.shut()
        self.drop_scratch()

    def drop_scratch(self) -> None:
        """As if no pipe had been to be had so far."""
        if self.context.mover._scratch is not None:
            self.pool.discard(self.context.mover._scratch)
            self.context.mover._scratch = None

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
            assert self.bugs == [], self.bugs
        return value

    def flow(self) -> Flow:
        """The one flow there is, as soon as it was let in."""
        self.until(lambda: self.context.flows, "a flow begins")
        [flow] = self.context.flows
        assert isinstance(flow, Flow)
        return flow

    def let_in(self) -> tuple[socket.socket, Flow]:
        """A client and its flow, which was let in and stands nowhere yet. The listener is out of the way from now on."""
        self.listener.pause()
        client = self._stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READER_BYTES)
        client.connect(self.address[:2])
        client.setblocking(False)
        fd = calls.accept(self.listener.sock.fileno())  # as the listener does
        host, peer = calls.accepted_host(), calls.accepted_peer()
        assert self.gate.admit(host, self.context.now_s()) is None
        record, via = self.context.free_records.pop(), host if self.gate.is_brought else ""
        return client, Flow(
            self.context, self.gate, BareSocket(fd), host, peer, started_ns=self.clock(), record=record, via=via
        )

    def taken_over(self, flow: Flow) -> tuple[Flow, FlowRecord]:
        """The same flow as a successor makes it, with its record: nothing of it is closed, and nobody else touches it."""
        [record] = self.ledger.flows()
        if flow.client_interest != UNWATCHED:
            self.poller.forget(flow.client.fileno())
        for flows in (self.context.flows, self.context.waiting, self.context.starved):
            flows.discard(flow)
        assert flow.client.detach() == record.client_fd
        return flow_of(record, self.context, self.gate), record

    def tick(self, after_s: float = 0.0) -> None:
        """Let so much time pass, and do what a worker does for flows that wait."""
        self.clock.go_on(after_s)
        for flow in list(self.context.waiting):
            flow.stage.tick(self.context.now_s())
        self.poller.bury()

    def sweep(self, after_s: float = 0.0) -> None:
        """Let so much time pass, and do what a worker does about once a second."""
        self.clock.go_on(after_s)
        for flow in list(self.context.flows):
            flow.stage.sweep(self.context.now_s())
        self.poller.bury()

    def go_on_with_pipes(self) -> None:
        """What a worker does for flows that had no pipe."""
        starved, self.context.starved = self.context.starved, set()
        for flow in starved:
            flow.stage.watch()

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
            self.tick()
            return not self.context.flows

        self.until(over, "the flow ends")
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


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


READER_BYTES: Final = 64 * 1024  # a receive buffer that does not grow, so that a send buffer can hold much more
LATER_S: Final = 3600.0  # beyond every deadline


def refusing() -> TargetRow:
    """A target that nobody listens on."""
    port = free_port()
    return TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port)


def unroutable() -> TargetRow:
    """A target that this machine cannot even begin to dial: no route of TCP leads to a broadcast address (ENETUNREACH)."""
    return TargetRow("127.255.255.255:80", host="127.255.255.255", port=80)


def silent_target(stack: contextlib.ExitStack, port: int = 0) -> Target:
    """A listener whose backlog is full: the kernel drops further SYNs (listen(2)), so dialling waits."""
    target = tcp_target(stack, backlog=0, port=port)
    stack.enter_context(full_backlog(target.sock))
    return target
