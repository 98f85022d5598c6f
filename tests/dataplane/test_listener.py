"""The accept loop; and the data plane of one endpoint without processes, which the tests of sessions use too."""

import contextlib
import errno
import json
import select
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relay import log as logging
from relay.config.snapshot import EndpointRow, RuleRow, TargetRow
from relay.dataplane.context import Plane
from relay.dataplane.denials import Denials
from relay.dataplane.gate import Gate
from relay.dataplane.listener import Listener, close_all, filter_refusal, open_listener
from relay.dataplane.session import Session
from relay.dataplane.splice import Mover
from relay.errors import ListenError
from relay.kernel.poller import Handler, Poller
from relay.kernel.sockets import attach_filter, detach_filter
from relay.ledger.by_source import Sources
from relay.ledger.layout import CAUSES, ENVELOPE_REASONS, REASONS, Count, Word
from relay.log import Log
from tests.config.test_snapshot import dropping, endpoint_row
from tests.dataplane.test_pipes import close, no_descriptors, pool_of
from tests.harness import HANG_S
from tests.ledger.test_ledger import new_ledger
from tests.ports import free_port, free_ports
from tests.test_log import waiting


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
        self.poller = Poller(self._on_error, lambda: self.plane.closed())
        sink, self._log_source = (stack.enter_context(sock) for sock in logging.channel())
        self.log = Log(sink, "worker-0", "info")
        self.plane = Plane(
            poller=self.poller,
            mover=Mover(self.pool, self.part),
            ledger=self.part,
            log=self.log,
            denials=Denials(self.log),
            free_records=list(range(flows - 1, -1, -1)),
            exhausted=self._on_exhausted,
        )
        self.gate = Gate(row, self.part, Sources(self.part))
        self.listener = Listener(self.plane, self.gate, open_listener(row, port))
        self.address = self.listener.sock.getsockname()
        self.listener.resume()
        stack.callback(self._end)

    def _on_error(self, _handler: Handler, error: Exception) -> None:
        self.bugs.append(error)

    def _on_exhausted(self, why: str) -> None:
        self.exhausted.append(why)
        self.listener.pause()

    def _end(self) -> None:
        for session in list(self.plane.sessions):
            session.cut("drain")
        self.listener.pause()
        self.listener.sock.close()
        self.poller.shut()
        if self.plane.mover._scratch is not None:
            close(self.plane.mover._scratch)

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

    def session(self) -> Session:
        """The one session there is, as soon as it was let in."""
        self.until(lambda: self.plane.sessions, "a session begins")
        [session] = self.plane.sessions
        assert isinstance(session, Session)
        return session

    def tick(self, now_s: float) -> None:
        """What a worker does for sessions that wait."""
        for session in list(self.plane.waiting):
            session.tick(now_s)
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
            return not self.plane.sessions

        self.until(over, "the session ends")
        self.poller.bury()
        self.log.flush()
        [record] = [line for line in self.records() if line["event"] == "connection"]
        closed = [self.ledger.total(0, Count.CLOSED + n) for n in range(len(CAUSES))]
        assert [CAUSES[n] for n, count in enumerate(closed) if count] == [record["cause"]]
        assert sum(closed) == self.ledger.total(0, Count.ACCEPTED) == 1
        assert list(self.ledger.flows()) == []
        assert (self.plane.waiting, self.plane.starved, self.bugs) == (set(), set(), [])
        assert len(set(self.plane.free_records)) == len(self.plane.free_records) == 32
        assert self.ledger.total(0, Count.RECEIVED) == record["received"]
        assert self.ledger.total(0, Count.SENT) == record["sent"]
        assert sum(self.ledger.total(0, Count.DURATION_BUCKETS + n) for n in range(14)) == 1
        assert self.part[Word.PIPES] == len(self.pool._spare) + (self.plane.mover._scratch is not None)
        return record

    def records(self) -> list[dict[str, Any]]:
        """Every line logged since the last time."""
        return [json.loads(line) for line in waiting(self._log_source)]


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


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What a test opened, closed in reverse."""
    with contextlib.ExitStack() as made:
        yield made


def rig_to(stack: contextlib.ExitStack, *targets: Target | TargetRow, **keys: Any) -> Rig:
    """A rig whose endpoint leads to these targets; `keys` are the rest of its row."""
    rows = tuple(each.row if isinstance(each, Target) else each for each in targets)
    return Rig(endpoint_row(targets=rows, **keys), stack)


def test_a_burst_of_clients_is_let_in(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack, backlog=256)
    rig = Rig(endpoint_row(targets=(target.row,)), stack, flows=256)
    for _ in range(200):
        rig.connect()
    rig.until(lambda: len(rig.plane.sessions) == 200, "all are let in")
    assert len(list(rig.ledger.flows())) == rig.ledger.active(0) == 200
    assert len({flow.peer for flow in rig.ledger.flows()}) == 200


def test_a_refused_client_gets_a_reset_and_nothing_is_dialled(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, rules=(RuleRow(False, "127.0.0.0/8", "f:1"),))
    client = rig.connect()
    assert rig.ending(client) == "reset"
    assert (rig.plane.sessions, rig.ledger.total(0, Count.ACCEPTED)) == (set(), 0)
    assert rig.ledger.total(0, Count.DENIED + REASONS.index("access")) == 1
    assert not target.was_dialled()
    [line] = rig.records()
    assert (line["event"], line["reason"], line["endpoint"]) == ("denied", "access", "web/in")
    assert line["peer"] == f"127.0.0.1:{client.getsockname()[1]}"


def test_one_who_would_be_refused_is_let_in_counted_and_named(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, enforce="audit", rules=(RuleRow(False, "127.0.0.1/32", "f:1"),))
    client = rig.connect()
    client.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"
    assert rig.ledger.total(0, Count.WOULD_DENY + ENVELOPE_REASONS.index("access")) == 1
    assert rig.ledger.total(0, Count.DENIED + REASONS.index("access")) == 0
    [line] = rig.records()
    assert (line["event"], line["level"], line["reason"]) == ("would deny", "warning", "access")
    assert line["peer"] == f"127.0.0.1:{client.getsockname()[1]}"


@pytest.mark.parametrize(
    ("keys", "reason"),
    [({"connections": 2}, "connections"), ({"per_source": 2}, "per_source"), ({"rate_per_s": 2.0}, "rate")],
)
def test_limits(
    keys: dict[str, Any], reason: str, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns = time.monotonic_ns()  # all of them come in the same second
    monkeypatch.setattr("relay.dataplane.listener.time", SimpleNamespace(monotonic_ns=lambda: now_ns))
    rig = rig_to(stack, tcp_target(stack), **keys)
    clients = [rig.connect() for _ in range(3)]
    assert rig.ending(clients[2]) == "reset"
    assert len(rig.plane.sessions) == 2
    assert rig.ledger.total(0, Count.DENIED + REASONS.index(reason)) == 1


# --- deny: drop -------------------------------------------------------------------------------------------------------


def from_source(rig: Rig, source: str) -> socket.socket:
    """A client that connects from there, and does not wait for it."""
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    client = rig.keep(socket.socket(family))
    client.bind((source, 0))
    client.connect_ex(rig.address[:2])
    return client


def access_denied(rig: Rig) -> int:
    return rig.ledger.total(0, Count.DENIED + REASONS.index("access"))


def test_the_kernel_drops_whom_the_envelope_denies(stack: contextlib.ExitStack, filters: None) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, **dropping("127.0.0.2"))
    rig.listener.serve(rig.gate)
    denied = from_source(rig, "127.0.0.2")
    permitted = from_source(rig, "127.0.0.3")
    rig.session()
    rig.until(lambda: not rig.listener.count_dropped() and access_denied(rig), "what is dropped is counted")  # type: ignore[func-returns-value]
    assert denied.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "no answer at all"
    with pytest.raises(OSError, match="not connected"):
        denied.getpeername()
    assert permitted.getpeername() == rig.address
    assert len(rig.plane.sessions) == 1
    rig.plane.denials.tick()
    [line] = rig.records()
    assert (line["event"], line["endpoint"], line["reason"]) == ("denied", "web/in", "access")
    assert line["left_out"] == access_denied(rig)


def test_a_connection_that_was_let_in_has_no_filter_any_more(stack: contextlib.ExitStack, filters: None) -> None:
    rig = rig_to(stack, target := tcp_target(stack), **dropping("127.0.0.2"))
    rig.listener.serve(rig.gate)
    client = from_source(rig, "127.0.0.3")
    session = rig.session()
    with pytest.raises(FileNotFoundError):
        session._client.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER: ENOENT where there is none
    client.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"


def test_another_declaration_is_another_filter_and_none_is_none(stack: contextlib.ExitStack, filters: None) -> None:
    rig = rig_to(stack, tcp_target(stack), **dropping("127.0.0.2"))
    rig.listener.serve(rig.gate)
    from_source(rig, "127.0.0.2").close()  # or it would try again later (tcp(7), tcp_syn_retries)
    rig.gate.declare(replace(rig.gate.declared, **dropping("127.0.0.3")))
    rig.listener.serve(rig.gate)
    first = from_source(rig, "127.0.0.2")
    rig.until(lambda: len(rig.plane.sessions) == 1, "who was denied is let in")
    from_source(rig, "127.0.0.3").close()
    rig.gate.declare(replace(rig.gate.declared, deny="reset", drop_filter=""))
    rig.listener.serve(rig.gate)
    assert rig.ending(from_source(rig, "127.0.0.3")) == "reset"
    counted = access_denied(rig)
    rig.listener.count_dropped()
    assert access_denied(rig) == counted, "without a filter nothing that the kernel drops is a refusal"
    assert first.getpeername() == rig.address


def test_a_successor_removes_what_a_predecessor_left(stack: contextlib.ExitStack, filters: None) -> None:
    rig = rig_to(stack, tcp_target(stack), rules=(RuleRow(False, "127.0.0.2/32", "f:1"),))
    attach_filter(rig.listener.sock, bytes.fromhex(dropping("127.0.0.0/8")["drop_filter"]))
    rig.listener.serve(rig.gate)
    assert rig.ending(from_source(rig, "127.0.0.2")) == "reset"


def test_ipv6_is_dropped_too(stack: contextlib.ExitStack, filters: None) -> None:
    """There is one loopback address of IPv6, so the same source is denied first and permitted then."""
    rig = rig_to(stack, tcp_target(stack), listen_host="::1", **dropping("::1", version=6))
    rig.listener.serve(rig.gate)
    first = from_source(rig, "::1")
    rig.until(lambda: not rig.listener.count_dropped() and access_denied(rig), "it is dropped")  # type: ignore[func-returns-value]
    first.close()  # or it would try again by itself
    rig.gate.declare(replace(rig.gate.declared, **dropping("::2", version=6)))
    rig.listener.serve(rig.gate)
    from_source(rig, "::1")
    rig.session()


def test_a_kernel_that_has_no_room_for_two_filters(
    stack: contextlib.ExitStack, filters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """net.core.optmem_max holds one of them: the old one goes first."""
    rig = rig_to(stack, tcp_target(stack), **dropping("127.0.0.2"))
    rig.listener.serve(rig.gate)
    calls: list[str] = []

    def attach(sock: socket.socket, program: bytes) -> None:
        calls.append("attach")
        if "detach" not in calls:
            raise OSError(errno.ENOMEM, "x")
        attach_filter(sock, program)

    def detach(fd: int) -> None:
        calls.append("detach")
        detach_filter(fd)

    monkeypatch.setattr("relay.dataplane.listener.attach_filter", attach)
    monkeypatch.setattr("relay.dataplane.listener.detach_filter", detach)
    rig.gate.declare(replace(rig.gate.declared, **dropping("127.0.0.3")))
    rig.listener.serve(rig.gate)
    assert calls == ["attach", "detach", "attach"]
    from_source(rig, "127.0.0.2")
    rig.session()
    assert [line["event"] for line in rig.records() if line["event"] == "no filter"] == []


def test_a_filter_that_is_refused_leaves_a_reset(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_sock: socket.socket, _program: bytes) -> None:
        raise OSError(errno.EPERM, "x")

    monkeypatch.setattr("relay.dataplane.listener.attach_filter", refuse)
    rig = rig_to(stack, tcp_target(stack), **dropping("127.0.0.2"))
    rig.listener.serve(rig.gate)
    assert rig.ending(from_source(rig, "127.0.0.2")) == "reset"
    rig.listener.count_dropped()
    assert access_denied(rig) == 1
    lines = rig.records()
    assert [line["event"] for line in lines] == ["no filter", "denied"]
    assert lines[0]["endpoint"] == "web/in"


@pytest.mark.parametrize(
    ("code", "words"), [(errno.EPERM, "CAP_NET_ADMIN"), (errno.ENOMEM, "optmem_max"), (errno.EINVAL, "log")]
)
def test_why_a_filter_is_refused(code: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_sock: socket.socket, _program: bytes) -> None:
        raise OSError(code, "x")

    monkeypatch.setattr("relay.dataplane.listener.attach_filter", refuse)
    said = filter_refusal(endpoint_row(**dropping("127.0.0.2")))
    assert words in said
    assert said.endswith("or write `deny: reset`")


def test_a_filter_that_the_kernel_takes(filters: None) -> None:
    assert filter_refusal(endpoint_row(**dropping("127.0.0.2"))) == ""
    assert filter_refusal(endpoint_row(listen_host="::1", **dropping("::1", version=6))) == ""


def test_ipv6(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, listen_host="::1", rules=(RuleRow(True, "::1/128", "f:1"),), permit_unmatched=False)
    client = rig.connect()
    target.accept(rig)
    [flow] = rig.ledger.flows()
    assert flow.peer == f"[::1]:{client.getsockname()[1]}"


def test_out_of_descriptors_pauses_and_loses_nobody(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, target := tcp_target(stack))
    client = rig.connect()
    with no_descriptors():
        rig.until(lambda: rig.exhausted, "accepting fails")
        for _ in range(5):
            rig.poller.serve()
    assert rig.exhausted == ["EMFILE"], "once: a paused listener does not spin"
    assert rig.ledger.total(0, Count.ACCEPTED) == 0
    rig.listener.resume()
    client.send(b"still here")
    assert rig.receive(target.accept(rig), 10) == b"still here"


def test_records_are_taken_by_the_handful(stack: contextlib.ExitStack) -> None:
    plane = Rig(endpoint_row(listen_port=free_port()), stack).plane
    plane.unused_records = range(32, 3000)
    assert plane.has_room()
    assert len(plane.free_records) == 32, "there were some"
    taken = []
    while plane.free_records or plane.has_room():
        assert len(plane.free_records) <= 1024
        taken.append(plane.free_records.pop())
    assert taken == list(range(3000))
    assert not plane.has_room()


def test_out_of_records_pauses(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = Rig(endpoint_row(targets=(target.row,)), stack, flows=2)
    clients = [rig.connect() for _ in range(3)]
    rig.until(lambda: rig.exhausted, "there is no record left")
    assert (rig.exhausted, len(rig.plane.sessions)) == (["flows"], 2)
    clients[0].close()
    target.accept(rig).close()
    rig.until(lambda: len(rig.plane.sessions) == 1, "one flow is over")
    rig.listener.resume()
    rig.until(lambda: len(rig.plane.sessions) == 2, "the third is let in")


def test_resume_and_pause_may_be_said_twice(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack))
    rig.listener.resume()
    rig.listener.pause()
    rig.listener.pause()
    rig.connect()
    rig.poller.serve()
    assert rig.plane.sessions == set()
    rig.listener.resume()
    rig.session()


def test_it_listens_where_the_row_says_and_nowhere_else() -> None:
    port = free_port("127.0.0.2")
    with open_listener(endpoint_row(listen_host="127.0.0.2", listen_port=port)) as listener:
        assert listener.getsockname() == ("127.0.0.2", port)
        assert not listener.getblocking()
        assert not listener.get_inheritable()
        socket.create_connection(("127.0.0.2", port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))


def test_one_port_of_a_range() -> None:
    row = endpoint_row(listen_port=free_ports(3), port_count=3)
    with open_listener(row, row.listen_port + 2) as listener:
        assert listener.getsockname() == ("127.0.0.1", row.listen_port + 2)
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{row.listen_port + 2} for web/in"):
            open_listener(row, row.listen_port + 2)
    open_listener(row).close()


def test_all_ipv6_addresses_are_not_ipv4() -> None:
    with (
        open_listener(endpoint_row(listen_host="::", listen_port=free_port("::"))) as listener,
        pytest.raises(ConnectionRefusedError),
    ):
        socket.create_connection(("127.0.0.1", listener.getsockname()[1]))


def test_a_port_that_was_just_used_can_be_listened_on() -> None:
    row = endpoint_row(listen_port=free_port())
    with open_listener(row) as listener:
        client = socket.create_connection(listener.getsockname())
        listener.accept()[0].close()
        client.close()
    open_listener(row).close()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        row = endpoint_row(listen_port=other.getsockname()[1])
        with pytest.raises(ListenError) as caught:
            open_listener(row)
    assert str(caught.value) == (
        f"cannot listen on {row.listen} for web/in: the address is in use by another program; "
        "stop that program (`ss -ltnp` names it), or change the endpoint's `port`"
    )


def test_an_address_that_is_not_here() -> None:
    with pytest.raises(
        ListenError, match=r"on 203.0.113.1:80 for web/in: .* not on any interface .*; write this machine's"
    ):
        open_listener(endpoint_row(listen_host="203.0.113.1", listen_port=80))


def test_no_descriptor_to_listen_with() -> None:
    with no_descriptors(), pytest.raises(ListenError, match=r"cannot listen on .*; .* raise LimitNOFILE"):
        open_listener(endpoint_row())


def test_a_machine_without_ipv6(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a kernel booted with ipv6.disable=1 says."""

    def refusing(*_: object) -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "x")

    monkeypatch.setattr(socket, "socket", refusing)
    with pytest.raises(ListenError, match=r"cannot listen on \[::1\]:80"):
        open_listener(endpoint_row(listen_host="::1", listen_port=80))


def test_closing_all() -> None:
    socks = {str(n): open_listener(endpoint_row()) for n in range(3)}
    socks["1"].close()
    close_all(socks)
    assert [sock.fileno() for sock in socks.values()] == [-1] * 3
