"""How a session begins: the first bytes, the dial, and the target that is told who the client is."""

import contextlib
import select
import socket
import struct
import time
from pathlib import Path
from typing import Final

import pytest
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from relay.config.snapshot import TargetRow
from relay.dataplane.flow import Flow
from relay.ledger.layout import REASONS, Count, State
from tests.conformance.peers import full_backlog
from tests.dataplane.rig import (
    LATER_S,
    Target,
    no_descriptors,
    refusing,
    reset,
    rig_to,
    silent_target,
    tcp_target,
    unix_target,
)
from tests.harness import HANG_S

HELLO: Final = b"GET / HTTP/1.1\r\n"


def test_http_that_comes_byte_by_byte(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, protocol="http")
    client = rig.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    session = rig.session()
    for at in range(len(HELLO) - 1):
        client.send(HELLO[at : at + 1])
        rig.until(lambda at=at: session.stage._looked_bytes == at + 1, "it is looked at")  # type: ignore[misc]
        assert session.state == State.LOOK
        assert not target.was_dialled(), "nothing is dialled before the line is whole"
    rig.tick(time.monotonic())
    client.send(HELLO[-1:] + b"rest")
    service = target.accept(rig)
    assert rig.receive(service, len(HELLO) + 4) == HELLO + b"rest", "looking takes nothing"
    client.send(b"x")
    assert rig.receive(service, 1) == b"x", "the first byte alone wakes it again"
    client.close()
    service.close()
    assert rig.ended()["cause"] == "client_fin"


def test_waiting_for_more_does_not_spin(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = Session._look

    def counting(session: Session, events: int) -> None:
        looks.append(events)
        real(session, events)

    monkeypatch.setattr(Session, "_look", counting)
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    client.send(b"GET")
    rig.until(lambda: rig.session().stage._looked_bytes == 3, "it is looked at")
    for _ in range(20):
        rig.poller.serve()
    assert len(looks) <= 2


@pytest.mark.parametrize(("protocol", "data"), [("http", b"SSH-2.0-x\r\n"), ("https", b"GET / HTTP/1.1\r\n")])
def test_the_wrong_protocol(protocol: str, data: bytes, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, protocol=protocol)
    client = rig.connect()
    client.send(data)
    assert rig.ending(client) == "reset"
    record = rig.ended()
    assert (record["cause"], record["target"]) == ("protocol", None)
    assert rig.ledger.total(0, Count.DENIED + REASONS.index("protocol")) == 1
    assert not target.was_dialled()


def test_a_flood_of_wrong_protocols_is_a_few_lines(stack: contextlib.ExitStack) -> None:
    """Each connection begins with another wrong byte; what a second leaves out must still be a line or two."""
    rig = rig_to(stack, refusing(), protocol="http")
    wrong = [bytes([byte]) for byte in range(128, 256)] + [b"G" * n + b"\x00" for n in range(1, 100)]
    lines = []
    for data in wrong:
        client = rig.connect()
        client.send(data)
        assert rig.ending(client) == "reset"
        rig.log.flush()
        lines += rig.records()
    rig.context.denials.tick()
    denied = [line for line in (*lines, *rig.records()) if line["event"] == "denied"]
    assert len(denied) <= 12
    assert sum(line.get("left_out", 1) for line in denied) == len(wrong)


@pytest.mark.parametrize("protocol", ["http", "https"])
def test_no_first_byte(protocol: str, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol=protocol, first_byte_s=2.0)
    before_s = time.monotonic()
    client = rig.connect()
    session = rig.session()
    rig.tick(before_s + 1.0)
    assert session in rig.context.flows
    rig.tick(time.monotonic() + 2.5)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "first_byte_timeout"


@pytest.mark.parametrize("data", [b"", b"GET / HT"])
def test_a_client_that_leaves_before_it_said_enough(data: bytes, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    client.send(data)
    session = rig.session()
    rig.until(lambda: session.stage._looked_bytes == len(data), "it is looked at")
    client.close()
    assert rig.ended()["cause"] == "client_gone"


def test_a_client_that_resets_before_it_said_enough(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    rig.session()
    reset(client)
    assert rig.ended()["cause"] == "client_reset"


def test_a_request_and_fin_at_once(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, protocol="http")
    client = rig.connect()
    client.send(HELLO)
    client.shutdown(socket.SHUT_WR)
    service = target.accept(rig)
    assert rig.receive(service, len(HELLO)) == HELLO
    assert rig.ending(service) == "fin"
    service.send(b"answer")
    service.close()
    assert rig.receive(client, 6) == b"answer"
    assert rig.ended()["cause"] == "client_fin"


def test_a_target_that_refuses(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, row := refusing())
    client = rig.connect()
    assert rig.ending(client) == "reset"
    record = rig.ended()
    assert (record["cause"], record["target"]) == ("connect_failed", row.text)
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1
    assert rig.ledger.target_up(0) is False


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
    assert (rig.ledger.total(0, Count.CONNECT_FAILURES), rig.ledger.target_up(0)) == (1, True)
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
    before_s = time.monotonic()
    client = rig.connect()
    session = rig.session()
    [flow] = rig.ledger.flows()
    assert flow.state == State.DIAL
    rig.tick(before_s + 1.0)
    assert session in rig.context.flows
    rig.tick(time.monotonic() + 2.5)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "connect_timeout"
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1


def test_after_a_target_that_does_not_answer_the_next_has_its_own_time(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, silent_target(stack), target, connect_s=2.0)
    client = rig.connect()
    rig.session()
    rig.tick(time.monotonic() + 2.5)
    service = target.accept(rig)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    rig.tick(time.monotonic() + LATER_S)
    assert rig.context.flows, "once connected there is no deadline"


def test_what_the_client_sends_while_dialling_waits_and_does_not_spin(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, silent_target(stack), protocol="http")
    client = rig.connect()
    client.send(HELLO)
    rig.until(lambda: rig.session().state == State.DIAL, "it is dialled")
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
    rig.session()
    dialled_s = time.monotonic()
    for _ in range(5):
        rig.tick(time.monotonic())
    assert rig.context.waiting
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0
    while target.was_dialled():
        pass
    waited_s = time.monotonic() - dialled_s
    rig.tick(time.monotonic())
    service = target.accept(rig)
    assert rig.receive(service, 8) == b"patience"
    client.close()
    service.close()
    record = rig.ended()
    assert record["cause"] == "client_fin"
    assert record["connect_s"] >= waited_s, "connecting takes from the first attempt to the answer"


def test_a_unix_backlog_that_stays_full(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    rig = rig_to(stack, full_unix_target(stack, tmp_path / "target"), connect_s=2.0)
    before_s = time.monotonic()
    client = rig.connect()
    rig.session()
    after_s = time.monotonic()
    for later_s in (0.5, 1.0, 1.5):
        rig.tick(before_s + later_s)
        assert rig.context.waiting, "it is tried again"
    rig.tick(after_s + 2.5)  # trying again does not put the deadline off
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "connect_timeout"


def test_no_descriptor_for_the_target(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack), protocol="http")
    client = rig.connect()
    rig.session()
    client.send(HELLO)
    session = next(iter(rig.context.flows))
    with no_descriptors():
        rig.until(lambda: rig.exhausted, "it is noticed")
        session.stage.tick(time.monotonic())
        assert rig.context.flows, "it waits"
        session.stage.tick(time.monotonic() + 1000)  # until its time is up
    assert rig.ended()["cause"] == "error"
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0, "that was not the target's fault"


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


@pytest.mark.parametrize("send_proxy", [None, "v1", "v2"])
def test_a_client_that_is_gone_already_is_not_the_targets_fault(
    send_proxy: str | None, stack: contextlib.ExitStack
) -> None:
    """A port scanner: connect and reset, before it is even accepted."""
    target = tcp_target(stack)
    rig = rig_to(stack, target, send_proxy=send_proxy)
    reset(rig.connect())
    rig.until(lambda: rig.ledger.total(0, Count.ACCEPTED) and not rig.context.flows, "the session ends")
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0
    assert rig.ledger.target_up(0) is not False, "the target answered"
    assert rig.ended()["cause"] in ("client_reset", "client_gone")
