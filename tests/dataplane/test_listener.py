"""The accept loop; and the data plane of one endpoint without processes, which the tests of its stages use too."""

import contextlib
import errno
import socket
from dataclasses import replace
from typing import Any

import pytest

from relay.envelope.rules import RuleRow
from relay.kernel.sockets import attach_filter, detach_filter
from relay.ledger.layout import ENVELOPE_REASONS, REASONS, Count
from tests.config.rig import dropping, endpoint_row
from tests.dataplane.rig import Rig, no_descriptors, on_his_way, rig_to, tcp_target
from tests.ports import free_port


def test_a_burst_of_clients_is_let_in(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack, backlog=256)
    rig = Rig(endpoint_row(targets=(target.row,)), stack, flows=256)
    for _ in range(200):
        rig.connect()
    rig.until(lambda: len(rig.context.flows) == 200, "all are let in")
    assert len(list(rig.ledger.flows())) == rig.ledger.active(0) == 200
    assert len({flow.peer for flow in rig.ledger.flows()}) == 200


def test_a_refused_client_gets_a_reset_and_nothing_is_dialled(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, rules=(RuleRow(False, "127.0.0.0/8", "f:1"),))
    client = rig.connect()
    assert rig.ending(client) == "reset"
    assert (rig.context.flows, rig.ledger.total(0, Count.ACCEPTED)) == (set(), 0)
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
def test_limits(keys: dict[str, Any], reason: str, stack: contextlib.ExitStack) -> None:
    """All of them come in the same second, for the clock stands still."""
    rig = rig_to(stack, tcp_target(stack), **keys)
    clients = [rig.connect() for _ in range(3)]
    assert rig.ending(clients[2]) == "reset"
    assert len(rig.context.flows) == 2
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
    rig.flow()
    rig.until(lambda: not rig.listener.count_dropped() and access_denied(rig), "what is dropped is counted")  # type: ignore[func-returns-value]
    assert denied.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0, "no answer at all"
    with pytest.raises(OSError, match="not connected"):
        denied.getpeername()
    assert permitted.getpeername() == rig.address
    assert len(rig.context.flows) == 1
    rig.context.denials.tick()
    [line] = rig.records()
    assert (line["event"], line["endpoint"], line["reason"]) == ("denied", "web/in", "access")
    assert line["left_out"] == access_denied(rig)


def test_a_connection_that_was_let_in_has_no_filter_any_more(stack: contextlib.ExitStack, filters: None) -> None:
    rig = rig_to(stack, target := tcp_target(stack), **dropping("127.0.0.2"))
    rig.listener.serve(rig.gate)
    client = from_source(rig, "127.0.0.3")
    flow = rig.flow()
    with pytest.raises(FileNotFoundError):
        flow.client.setsockopt(socket.SOL_SOCKET, 27, 0)  # SO_DETACH_FILTER: ENOENT where there is none
    client.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"


def test_another_declaration_is_another_filter_and_none_is_none(stack: contextlib.ExitStack, filters: None) -> None:
    rig = rig_to(stack, tcp_target(stack), **dropping("127.0.0.2"))
    rig.listener.serve(rig.gate)
    from_source(rig, "127.0.0.2").close()  # or it would try again later (tcp(7), tcp_syn_retries)
    rig.gate.declare(replace(rig.gate.declared, **dropping("127.0.0.3")))
    rig.listener.serve(rig.gate)
    first = from_source(rig, "127.0.0.2")
    rig.until(lambda: len(rig.context.flows) == 1, "who was denied is let in")
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
    rig.flow()


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
    rig.flow()
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


# --- the end --------------------------------------------------------------------------------------------------------------


def test_who_comes_while_a_port_closes_is_never_connected(stack: contextlib.ExitStack, filters: None) -> None:
    """Else he would be reset: the kernel connects whoever comes until the last moment, and nobody accepts him any more."""
    rig = rig_to(stack, target := tcp_target(stack))
    waits = rig.connect()
    rig.listener.turn_away()
    late = from_source(rig, "127.0.0.3")
    rig.listener.finish()
    later = from_source(rig, "127.0.0.4")
    rig.listener.sock.close()
    for client in (late, later):
        with pytest.raises(OSError, match="not connected"):
            client.getpeername()
    waits.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"
    flow = rig.flow()
    with pytest.raises(FileNotFoundError):
        flow.client.setsockopt(socket.SOL_SOCKET, 27, 0)  # as above: it has none
    refused: set[socket.socket] = set()

    def both() -> bool:
        refused.update(each for each in (late, later) if each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        return len(refused) == 2

    rig.until(both, "they ask again, and the port is closed")


def test_who_is_on_his_way_when_a_port_closes_is_let_in(stack: contextlib.ExitStack, filters: None) -> None:
    rig = rig_to(stack, target := tcp_target(stack))
    client = rig.keep(on_his_way(rig.address[:2]))
    rig.listener.turn_away()
    client.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"
    rig.listener.finish()


def test_a_kernel_that_refuses_filters_closes_ports_all_the_same(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_sock: socket.socket, _program: bytes) -> None:
        raise OSError(errno.EPERM, "x")

    monkeypatch.setattr("relay.dataplane.listener.attach_filter", refuse)
    rig = rig_to(stack, target := tcp_target(stack))
    client = rig.connect()
    rig.listener.turn_away()
    rig.listener.finish()
    client.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"


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
    context = Rig(endpoint_row(listen_port=free_port()), stack).context
    context.unused_records = range(32, 3000)
    assert context.has_room()
    assert len(context.free_records) == 32, "there were some"
    taken = []
    while context.free_records or context.has_room():
        assert len(context.free_records) <= 1024
        taken.append(context.free_records.pop())
    assert taken == list(range(3000))
    assert not context.has_room()


def test_out_of_records_pauses(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = Rig(endpoint_row(targets=(target.row,)), stack, flows=2)
    clients = [rig.connect() for _ in range(3)]
    rig.until(lambda: rig.exhausted, "there is no record left")
    assert (rig.exhausted, len(rig.context.flows)) == (["room for connections"], 2)
    clients[0].close()
    target.accept(rig).close()
    rig.until(lambda: len(rig.context.flows) == 1, "one flow is over")
    rig.listener.resume()
    rig.until(lambda: len(rig.context.flows) == 2, "the third is let in")


def test_resume_and_pause_may_be_said_twice(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack))
    rig.listener.resume()
    rig.listener.pause()
    rig.listener.pause()
    rig.connect()
    rig.poller.serve()
    assert rig.context.flows == set()
    rig.listener.resume()
    rig.flow()
