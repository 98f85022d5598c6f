"""One connection at a time, over real sockets and without processes: each way that it can go, and its one cause."""

import contextlib
import select
import socket
import struct
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from relay.config.snapshot import TargetRow
from relay.dataplane.session import Session
from relay.envelope.rules import RuleRow
from relay.ledger.layout import CAUSES, REASONS, Count, State, Word
from tests.config.rig import endpoint_row
from tests.conformance.peers import full_backlog
from tests.dataplane.rig import Rig, Target, no_descriptors, reset, rig_to, tcp_target, unix_target
from tests.harness import HANG_S
from tests.ports import free_port, free_ports

LATER_S: Final = 3600.0  # beyond every deadline
HELLO: Final = b"GET / HTTP/1.1\r\n"


def refusing() -> TargetRow:
    """A target that nobody listens on."""
    port = free_port()
    return TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port)


@pytest.fixture(params=["tcp", "unix"])
def target(request: pytest.FixtureRequest, stack: contextlib.ExitStack, tmp_path: Path) -> Target:
    """A target, on TCP and then on a Unix socket."""
    return tcp_target(stack) if request.param == "tcp" else unix_target(stack, tmp_path / "target")


# --- SPLICE -----------------------------------------------------------------------------------------------------


def test_there_and_back(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target)
    begun_s = time.monotonic()
    client = rig.connect()
    service = target.accept(rig)
    client.send(b"question")
    assert rig.receive(service, 8) == b"question"
    service.send(b"answer")
    assert rig.receive(client, 6) == b"answer"
    [flow] = rig.ledger.flows()
    assert (flow.state, flow.peer) == (State.SPLICE, f"127.0.0.1:{client.getsockname()[1]}")
    assert (rig.ledger.active(0), rig.ledger.target_up(0)) == (1, True)
    client.shutdown(socket.SHUT_WR)
    assert rig.ending(service) == "fin"
    service.send(b"the other direction lives on")
    assert rig.receive(client, 28) == b"the other direction lives on"
    service.close()
    assert rig.ending(client) == "fin"
    record = rig.ended()
    assert (record["cause"], record["received"], record["sent"]) == ("client_fin", 8, 34)
    assert (record["endpoint"], record["peer"], record["target"]) == ("web/in", flow.peer, target.row.text)
    assert 0 <= record["connect_s"] <= record["duration_s"] <= time.monotonic() - begun_s


def test_the_target_finishes_first(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    service.send(b"greeting")
    service.shutdown(socket.SHUT_WR)
    assert rig.receive(client, 8) == b"greeting"
    assert rig.ending(client) == "fin"
    client.send(b"still talking")
    assert rig.receive(service, 13) == b"still talking"
    client.close()
    assert rig.ending(service) == "fin"
    assert rig.ended()["cause"] == "target_fin"


def test_no_byte_at_all(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    client.close()
    assert rig.ending(service) == "fin"
    service.close()
    assert (record := rig.ended())["cause"] == "client_fin"
    assert record["received"] == record["sent"] == 0


def test_a_unix_target_that_closes_right_after_its_answer(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    target = unix_target(stack, tmp_path / "target")
    rig = rig_to(stack, target)
    client = rig.connect()
    client.send(b"question")
    service = target.accept(rig)
    assert rig.receive(service, 8) == b"question"
    service.send(b"a" * 100_000)
    service.close()
    assert rig.receive(client, 100_000) == b"a" * 100_000
    assert rig.ending(client) == "fin"
    assert rig.ended()["cause"] == "target_fin"


@pytest.mark.parametrize("both", [False, True], ids=["after its answer", "after the client's FIN too"])
def test_a_unix_target_that_leaves_something_unread(both: bool, stack: contextlib.ExitStack, tmp_path: Path) -> None:
    """Its answer arrives whole; that it did not read all is a reset, as it would be on TCP."""
    target = unix_target(stack, tmp_path / "target")
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    client.send(b"question")
    if both:
        client.shutdown(socket.SHUT_WR)
    rig.until(lambda: rig.ledger.total(0, Count.RECEIVED) == 8, "the target's socket has it")
    service.send(b"no")
    service.close()
    assert rig.receive(client, 2) == b"no"
    assert rig.ended()["cause"] == "target_reset"


def test_a_client_that_resets(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    client = rig.connect()
    client.send(b"before")
    service = target.accept(rig)
    assert rig.receive(service, 6) == b"before"
    reset(client)
    assert rig.ending(service) == "reset"
    assert rig.ended()["cause"] == "client_reset"


def test_a_target_that_resets(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    service.send(b"before")
    assert rig.receive(client, 6) == b"before"
    reset(service)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "target_reset"


def closing(stack: contextlib.ExitStack) -> tuple[Rig, socket.socket]:
    """A flow whose target was reset, and whose client has not yet taken what came before: (rig, client)."""
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    session = rig.session()
    while session._down is None or not session._down.held_bytes:
        with contextlib.suppress(BlockingIOError):
            service.send(b"a" * 65536)
        rig.poller.serve()
    reset(service)

    def all_sent() -> bool:
        with contextlib.suppress(BlockingIOError):
            client.recv(65536)
        return session._state == State.CLOSE

    rig.until(all_sent, "all is in the send buffer")
    return rig, client


def test_what_came_before_a_reset_is_delivered_to_a_slow_reader(stack: contextlib.ExitStack) -> None:
    rig, client = closing(stack)
    rig.tick(time.monotonic())
    assert rig.plane.sessions, "the client has not taken everything yet"
    arrived = 0
    with contextlib.suppress(ConnectionResetError):
        while True:
            with contextlib.suppress(BlockingIOError):
                arrived += len(client.recv(65536))
            rig.tick(time.monotonic())
    assert arrived > 65536
    assert rig.ended()["cause"] == "target_reset"


def test_delivering_has_a_deadline(stack: contextlib.ExitStack) -> None:
    rig, _ = closing(stack)
    rig.tick(time.monotonic() + LATER_S)
    assert rig.ended()["cause"] == "target_reset"


def test_the_ledger_says_that_a_flow_is_closing(stack: contextlib.ExitStack) -> None:
    rig, _ = closing(stack)
    assert [flow.state for flow in rig.ledger.flows()] == [State.CLOSE]


def test_a_reader_that_never_takes_it_is_cut_in_the_end(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, idle_s=5.0)
    rig.connect()
    service = target.accept(rig)
    session = rig.session()
    while session._down is None or not session._down.held_bytes:
        with contextlib.suppress(BlockingIOError):
            service.send(b"a" * 65536)
        rig.poller.serve()
    session.sweep(100.0)
    session.sweep(104.9)
    assert rig.plane.sessions
    session.sweep(105.0)
    assert rig.ended()["cause"] == "idle"


# --- LOOK -------------------------------------------------------------------------------------------------------


def test_http_that_comes_byte_by_byte(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, protocol="http")
    client = rig.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    session = rig.session()
    for at in range(len(HELLO) - 1):
        client.send(HELLO[at : at + 1])
        rig.until(lambda at=at: session._looked_bytes == at + 1, "it is looked at")  # type: ignore[misc]
        assert session._state == State.LOOK
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
    rig.until(lambda: rig.session()._looked_bytes == 3, "it is looked at")
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
    rig.plane.denials.tick()
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
    assert session in rig.plane.sessions
    rig.tick(time.monotonic() + 2.5)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "first_byte_timeout"


@pytest.mark.parametrize("data", [b"", b"GET / HT"])
def test_a_client_that_leaves_before_it_said_enough(data: bytes, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    client.send(data)
    session = rig.session()
    rig.until(lambda: session._looked_bytes == len(data), "it is looked at")
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


# --- DIAL -------------------------------------------------------------------------------------------------------


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


def silent_target(stack: contextlib.ExitStack) -> Target:
    """A listener whose backlog is full: the kernel drops further SYNs (listen(2)), so dialling waits."""
    target = tcp_target(stack, backlog=0)
    stack.enter_context(full_backlog(target.sock))
    return target


def test_a_target_that_does_not_answer(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, silent_target(stack), connect_s=2.0)
    before_s = time.monotonic()
    client = rig.connect()
    session = rig.session()
    [flow] = rig.ledger.flows()
    assert flow.state == State.DIAL
    rig.tick(before_s + 1.0)
    assert session in rig.plane.sessions
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
    assert rig.plane.sessions, "once connected there is no deadline"


def test_what_the_client_sends_while_dialling_waits_and_does_not_spin(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, silent_target(stack), protocol="http")
    client = rig.connect()
    client.send(HELLO)
    rig.until(lambda: rig.session()._state == State.DIAL, "it is dialled")
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
    assert rig.plane.waiting
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
        assert rig.plane.waiting, "it is tried again"
    rig.tick(after_s + 2.5)  # trying again does not put the deadline off
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "connect_timeout"


def test_no_descriptor_for_the_target(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, tcp_target(stack), protocol="http")
    client = rig.connect()
    rig.session()
    client.send(HELLO)
    session = next(iter(rig.plane.sessions))
    with no_descriptors():
        rig.until(lambda: rig.exhausted, "it is noticed")
        session.tick(time.monotonic())
        assert rig.plane.sessions, "it waits"
        session.tick(time.monotonic() + 1000)  # until its time is up
    assert rig.ended()["cause"] == "error"
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0, "that was not the target's fault"


# --- PROXY ------------------------------------------------------------------------------------------------------


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
    rig.until(lambda: rig.ledger.total(0, Count.ACCEPTED) and not rig.plane.sessions, "the session ends")
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 0
    assert rig.ledger.target_up(0) is not False, "the target answered"
    assert rig.ended()["cause"] in ("client_reset", "client_gone")


# --- from outside -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", ["revoked", "drain", "idle"])
def test_cut_while_bytes_flow(cause: str, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    rig.session().cut(cause)
    rig.poller.bury()
    assert (rig.ending(client), rig.ending(service)) == ("reset", "reset")
    assert rig.ended()["cause"] == cause


def test_cut_while_looking(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    rig.session().cut("revoked")
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "revoked"


def test_cut_while_dialling(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, silent_target(stack))
    client = rig.connect()
    rig.session().cut("drain")
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "drain"


def test_cut_while_bytes_are_held(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    client = rig.connect()
    target.accept(rig)
    session = rig.session()
    while not session._up.held_bytes:  # type: ignore[union-attr]
        with contextlib.suppress(BlockingIOError):
            client.send(b"a" * 65536)
        rig.poller.serve()
    session.cut("drain")
    rig.poller.bury()
    assert rig.ended()["cause"] == "drain"


def test_idle_is_counted_from_the_last_byte(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, idle_s=10.0)
    client = rig.connect()
    service = target.accept(rig)
    session = rig.session()
    session.sweep(100.0)
    session.sweep(109.0)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    session.sweep(111.0)
    service.send(b"yy")
    assert rig.receive(client, 2) == b"yy"
    session.sweep(120.0)
    [flow] = rig.ledger.flows()
    assert (flow.received_bytes, flow.sent_bytes) == (1, 2)
    session.sweep(129.9)
    assert rig.plane.sessions
    session.sweep(130.0)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "idle"


def test_without_an_idle_timeout_nothing_is_cut(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, idle_s=None)
    rig.connect()
    target.accept(rig)
    for now_s in (0.0, 1e6, 1e9):
        rig.session().sweep(now_s)
    assert rig.plane.sessions


# --- without pipes ----------------------------------------------------------------------------------------------


def test_no_pipe_means_later_and_loses_nothing(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    session = rig.session()
    client.send(b"patience")
    with no_descriptors():
        rig.until(lambda: session in rig.plane.starved, "there is no pipe")
        assert select.select([rig.poller.fileno()], [], [], 0.02)[0] == [], "it waits, and does not spin"
    rig.plane.starved.discard(session)
    session.read_on()
    assert rig.receive(service, 8) == b"patience"
    client.close()
    service.close()
    assert rig.ended()["cause"] == "client_fin"


def test_no_pipe_and_a_socket_that_broke_do_not_spin(stack: contextlib.ExitStack) -> None:
    """A hang-up is reported until it is dealt with, and dealing with it takes a pipe."""
    target = tcp_target(stack)
    rig = rig_to(stack, target)
    client = rig.connect()
    target.accept(rig)
    session = rig.session()
    with no_descriptors():
        client.send(b"x")
        reset(client)
        rig.until(lambda: session in rig.plane.starved, "there is no pipe")
        before = rig.part[Word.PIPES_REFUSED]
        for _ in range(5):
            rig.poller.serve()
        assert rig.part[Word.PIPES_REFUSED] - before <= 5
    rig.plane.starved.discard(session)
    session.read_on()
    assert rig.ended()["cause"] == "client_reset"


def test_lines_in_the_log_are_json_whatever_the_target_is_called(stack: contextlib.ExitStack, tmp_path: Path) -> None:
    target = unix_target(stack, tmp_path / 'a "quoted" \\ ключ')
    rig = rig_to(stack, target)
    client = rig.connect()
    target.accept(rig).close()
    client.close()
    assert rig.ended()["target"] == target.row.text


def test_the_log_is_quiet_where_the_level_says_so(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing())
    rig.log.level = "warning"
    rig.connect()
    rig.until(lambda: rig.ledger.total(0, Count.CLOSED + CAUSES.index("connect_failed")), "it ended")
    rig.log.flush()
    assert rig.records() == []


def test_a_revoked_source_keeps_no_share(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, per_source=1, rules=(RuleRow(True, "127.0.0.0/8", "f:1"),), permit_unmatched=False)
    rig.connect()
    target.accept(rig)
    refused = rig.connect()
    assert rig.ending(refused) == "reset"
    rig.session().cut("revoked")
    rig.poller.bury()
    again = rig.connect()
    service = target.accept(rig)
    again.send(b"x")
    assert rig.receive(service, 1) == b"x"


# --- a range of ports -------------------------------------------------------------------------------------------------


def ranges(stack: contextlib.ExitStack, **keys: Any) -> tuple[Rig, list[Target]]:
    """A rig that listens on the middle one of three ports, which lead to three targets, port for port."""
    first = free_ports(3)
    targets = [tcp_target(stack, port=first + n) for n in range(3)]
    row = TargetRow(f"127.0.0.1:{first}-{first + 2}", host="127.0.0.1", port=first, port_count=3)
    listen_port = free_ports(3)
    rig = Rig(endpoint_row(targets=(row,), listen_port=listen_port, port_count=3, **keys), stack, port=listen_port + 1)
    return rig, targets


def test_a_port_of_a_range_leads_to_its_own_of_the_targets(stack: contextlib.ExitStack) -> None:
    rig, targets = ranges(stack)
    client = rig.connect()
    client.send(b"hello")
    service = targets[1].accept(rig)
    assert rig.receive(service, 5) == b"hello"
    client.close()
    service.close()
    assert not targets[0].was_dialled()
    assert not targets[2].was_dialled()
    assert rig.ended()["target"] == targets[1].row.text, "the log names the port that was dialled"


def test_one_target_behind_a_range(stack: contextlib.ExitStack, target: Target) -> None:
    first = free_ports(3)
    rig = Rig(endpoint_row(targets=(target.row,), listen_port=first, port_count=3), stack, port=first + 2)
    client = rig.connect()
    client.send(b"hello")
    assert rig.receive(target.accept(rig), 5) == b"hello"


def test_a_range_that_moves_away_under_a_client_who_has_said_nothing_yet(stack: contextlib.ExitStack) -> None:
    rig, targets = ranges(stack, protocol="http")
    client = rig.connect()
    rig.session()
    rig.gate.declare(replace(rig.gate.declared, listen_port=rig.gate.declared.listen_port + 2))
    client.send(b"GET / HTTP/1.1\r\n")
    assert rig.ending(client) == "reset"
    assert not any(target.was_dialled() for target in targets)
    assert (record := rig.ended())["cause"] == "revoked"
    assert record["target"] is None


def test_the_next_target_of_a_range_has_the_same_place(stack: contextlib.ExitStack) -> None:
    """As `localhost` has two addresses: nobody listens at the first."""
    rig, targets = ranges(stack)
    [row] = rig.gate.declared.targets
    nowhere = replace(row, host="127.0.0.9")
    rig.gate.declare(replace(rig.gate.declared, targets=(nowhere, row)))
    rig.connect()
    targets[1].accept(rig)
    assert rig.ledger.total(0, Count.CONNECT_FAILURES) == 1
