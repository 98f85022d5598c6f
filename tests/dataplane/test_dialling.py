"""How a flow comes by its target, over real sockets: one after the other, in time; and what the target is told."""

import contextlib
import select
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from relay.config.snapshot import TargetRow
from relay.dataplane.dialling import Dialling, introduce
from relay.kernel.bare_socket import BareSocket
from relay.ledger.layout import Count, State
from relay.targets.pool import Pool
from tests.conformance.peers import full_backlog
from tests.dataplane.rig import (
    LATER_S,
    Rig,
    Target,
    no_descriptors,
    refusing,
    reset,
    rig_to,
    silent_target,
    tcp_target,
    unix_target,
)
from tests.dataplane.scenes import HELLO, at_dial
from tests.harness import HANG_S
from tests.ledger.rig import target_up


def test_a_target_that_refuses(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, row := refusing())
    client = rig.connect()
    assert rig.ending(client) == "reset"
    record = rig.ended()
    assert (record["cause"], record["target"]) == ("connect_failed", row.text)
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1
    assert target_up(rig.ledger) is False


def test_a_unix_target_that_is_not_there(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    rig = rig_to(stack, TargetRow("unix:none", path=str(tmp_path / "none")))
    assert rig.ending(rig.connect()) == "reset"
    assert rig.ended()["cause"] == "connect_failed"


def test_the_next_target_is_tried(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, refusing(), target)
    client = rig.connect()
    service = target.accept(rig)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    assert (rig.ledger.total(0, Count.CONNECT_FAILURES), target_up(rig.ledger)) == (1, True)
    client.close()
    service.close()
    assert rig.ended()["target"] == target.row.text


def test_no_more_than_two_targets_are_tried(stack: contextlib.ExitStack) -> None:
    third = tcp_target(stack)
    rig = rig_to(stack, refusing(), refusing(), third)
    assert rig.ending(rig.connect()) == "reset"
    assert (rig.ended()["cause"], rig.ledger.total(0, Count.CONNECT_FAILURES)) == ("connect_failed", 2)
    assert not third.was_dialled()


def test_a_target_that_does_not_answer(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, silent_target(stack), connect_s=2.0)
    client = rig.connect()
    rig.flow()
    [record] = rig.ledger.flows()
    assert record.state == State.DIAL
    rig.tick(1.9)
    assert rig.context.flows
    rig.tick(0.1)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "connect_timeout"
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1


def test_after_a_target_that_does_not_answer_the_next_is_asked(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, silent_target(stack), target, connect_s=2.0)
    client = rig.connect()
    rig.flow()
    rig.tick(2.0)
    service = target.accept(rig)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    rig.tick(LATER_S)
    assert rig.context.flows, "once connected there is no deadline"


def test_what_the_client_sends_while_dialling_waits_and_does_not_spin(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, silent_target(stack), protocol="http")
    client = rig.connect()
    client.send(HELLO)
    rig.until(lambda: rig.flow().state == State.DIAL, "it is dialled")
    client.send(b"more")
    assert select.select([rig.poller.fileno()], [], [], 0.02)[0] == []


def full_unix_target(stack: contextlib.ExitStack, path: Path) -> Target:
    target = unix_target(stack, path, backlog=0)
    stack.enter_context(full_backlog(target.sock))
    return target


def test_a_full_unix_backlog_is_tried_again(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    target = full_unix_target(stack, tmp_path / "target")
    rig = rig_to(stack, target, connect_s=HANG_S)
    client = rig.connect()
    client.send(b"patience")
    rig.flow()
    for _ in range(5):
        rig.tick(0.1)
    assert rig.context.waiting
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0
    while target.was_dialled():
        pass
    rig.tick(0.25)
    service = target.accept(rig)
    assert rig.receive(service, 8) == b"patience"
    assert not rig.context.waiting, "bytes that flow have no deadline"
    client.close()
    service.close()
    record = rig.ended()
    assert record["cause"] == "client_fin"
    assert record["connect_s"] == 0.75, "connecting takes from the first attempt to the answer"


def test_a_unix_backlog_that_stays_full(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    rig = rig_to(stack, full_unix_target(stack, tmp_path / "target"), connect_s=2.0)
    client = rig.connect()
    rig.flow()
    for _ in range(3):
        rig.tick(0.5)
        assert rig.context.waiting, "it is tried again"
    rig.tick(0.5)  # trying again does not put the deadline off
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "connect_timeout"


def test_no_descriptor_for_the_target(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack), protocol="http")
    client = rig.connect()
    rig.flow()
    client.send(HELLO)
    with no_descriptors():
        rig.until(lambda: rig.exhausted, "it is noticed")
        rig.tick()
        assert rig.context.flows, "it waits"
        rig.tick(LATER_S)  # until its time is up
    assert rig.ended()["cause"] == "error"
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0, "that was not the target's fault"


@contextlib.contextmanager
def without_a_descriptor(stack: contextlib.ExitStack, *rows: TargetRow) -> Iterator[Rig]:
    """A dial to a set that waits for a descriptor, of which there is none meanwhile."""
    rig = rig_to(stack, *rows, distribution="round_robin", connect_s=8.0, protocol="http")
    client = rig.connect()
    rig.flow()
    client.send(HELLO)
    with no_descriptors():
        rig.until(lambda: rig.exhausted, "it is noticed")
        yield rig


def test_of_a_set_each_target_has_its_part_of_the_time_also_without_a_descriptor(stack: contextlib.ExitStack) -> None:
    rows = tuple(replace(refusing(), slot=n) for n in range(2))
    with without_a_descriptor(stack, *rows) as rig:
        rig.tick(0.5)
        assert rig.context.flows
        rig.tick(0.5)
    assert rig.ended()["cause"] == "error"


def test_the_next_of_a_set_has_its_own_part_of_the_time(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after one that had to be dialled again."""
    monkeypatch.setattr(Pool, "choose", lambda _pool, _source, _port, _to, tried, _now_ns, **_: 1 if tried else 0)
    rows = refusing(), replace(silent_target(stack).row, slot=1)
    with without_a_descriptor(stack, *rows) as rig:
        pass
    rig.tick(0.5)
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1, "the first refuses"
    rig.tick(0.9)
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1, "the second has 1 s"
    rig.tick(0.1)
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 2


def test_a_target_that_answers_late(stack: contextlib.ExitStack) -> None:
    """Its backlog was full, so the kernel dropped the first SYN; the next one comes a second later (tcp(7))."""
    target = tcp_target(stack, backlog=0)
    with full_backlog(target.sock) as waiting:
        rig = rig_to(stack, target)
        client = rig.connect()
        client.send(b"patience")
        rig.flow()
        for _ in range(waiting):
            target.sock.accept()[0].close()
        service = target.accept(rig)
    assert rig.receive(service, 8) == b"patience"
    client.close()
    service.close()
    assert rig.ended()["cause"] == "client_fin"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_the_target_is_told_who_the_client_is(version: str, stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, send_proxy=version)
    client = rig.connect()
    client.send(b"first")
    service = target.accept(rig)
    parser = ProxyProtocolV1() if version == "v1" else ProxyProtocolV2()
    name, mine, theirs = (client.getsockname(), "127.0.0.1", rig.address)
    expected = f"PROXY TCP4 {mine} {theirs[0]} {name[1]} {theirs[1]}\r\n".encode()
    length = len(expected) if version == "v1" else 28
    header = rig.receive(service, length)
    assert rig.receive(service, 5) == b"first"
    assert version == "v2" or header == expected
    assert parser.is_valid(header[:8])
    if version == "v2":
        assert header[16:] == socket.inet_aton(mine) + socket.inet_aton(theirs[0]) + struct.pack(
            "!HH", name[1], theirs[1]
        )
    client.close()
    service.close()
    record = rig.ended()
    assert record["received"] == 5, "the header is relay's, not the client's"


def test_what_follows_the_header_does_not_wait_until_it_is_acknowledged(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, target := tcp_target(stack))
    dialled = socket.create_connection(target.sock.getsockname())
    with contextlib.closing(BareSocket(dialled.detach())) as sock:
        _, flow = rig.let_in()
        assert not sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert introduce(sock, flow)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize("send_proxy", [None, "v1", "v2"])
def test_a_client_that_is_gone_already_is_not_the_targets_fault(
    send_proxy: str | None, stack: contextlib.ExitStack
) -> None:
    """A port scanner: connect and reset, before it is even accepted."""
    target = tcp_target(stack)
    rig = rig_to(stack, target, send_proxy=send_proxy)
    reset(rig.connect())
    rig.until(lambda: rig.ledger.total(0, Count.ACCEPTED) and not rig.context.flows, "the flow ends")
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0
    assert target_up(rig.ledger) is not False, "the target answered"
    assert rig.ended()["cause"] in ("client_reset", "client_gone")


def test_a_whole_set_of_targets_that_refuse(stack: contextlib.ExitStack) -> None:
    """One after the other, however many there are."""
    row = refusing()
    rows = tuple(replace(row, text=f"web_IN_{n}", slot=n) for n in range(400))
    rig = rig_to(stack, *rows, distribution="round_robin")
    assert rig.ending(rig.connect()) == "reset"
    assert rig.ended()["cause"] == "connect_failed"
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 400


def test_a_successor_dials_anew(stack: contextlib.ExitStack) -> None:
    """Nothing has been sent on, so it begins with the first target, and has the whole time for it."""
    scene = at_dial(stack, connect_s=2.0)
    rig = scene.rig
    rig.tick(1.9)
    flow, record = rig.taken_over(scene.flow)
    target = tcp_target(stack)
    rig.gate.declare(replace(rig.gate.declared, targets=(target.row,)))
    assert record.state == State.DIAL
    Dialling(flow).start()
    assert flow.state == State.SPLICE
    scene.client.send(b"patience")
    assert rig.receive(target.accept(rig), 8) == b"patience"
    scene.flow.stage.leave("error")  # the dead worker's own dial
