"""One connection at a time, over real sockets and without processes: each way that it can go, and its one cause."""

import contextlib
import select
import socket
import time
from pathlib import Path

import pytest

from relay.envelope.rules import RuleRow
from relay.ledger.layout import CAUSES, Count, State, Word
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
    while session.stage._down is None or not session.stage._down.held_bytes:
        with contextlib.suppress(BlockingIOError):
            service.send(b"a" * 65536)
        rig.poller.serve()
    reset(service)

    def all_sent() -> bool:
        with contextlib.suppress(BlockingIOError):
            client.recv(65536)
        return session.state == State.CLOSE

    rig.until(all_sent, "all is in the send buffer")
    return rig, client


def test_what_came_before_a_reset_is_delivered_to_a_slow_reader(stack: contextlib.ExitStack) -> None:
    rig, client = closing(stack)
    rig.tick(time.monotonic())
    assert rig.context.flows, "the client has not taken everything yet"
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
    while session.stage._down is None or not session.stage._down.held_bytes:
        with contextlib.suppress(BlockingIOError):
            service.send(b"a" * 65536)
        rig.poller.serve()
    session.stage.sweep(100.0)
    session.stage.sweep(104.9)
    assert rig.context.flows
    session.stage.sweep(105.0)
    assert rig.ended()["cause"] == "idle"


# --- LOOK -------------------------------------------------------------------------------------------------------


# --- DIAL -------------------------------------------------------------------------------------------------------


# --- PROXY ------------------------------------------------------------------------------------------------------


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
    while not session.stage._up.held_bytes:  # type: ignore[union-attr]
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
    session.stage.sweep(100.0)
    session.stage.sweep(109.0)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    session.stage.sweep(111.0)
    service.send(b"yy")
    assert rig.receive(client, 2) == b"yy"
    session.stage.sweep(120.0)
    [flow] = rig.ledger.flows()
    assert (flow.received_bytes, flow.sent_bytes) == (1, 2)
    session.stage.sweep(129.9)
    assert rig.context.flows
    session.stage.sweep(130.0)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "idle"


def test_without_an_idle_timeout_nothing_is_cut(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, idle_s=None)
    rig.connect()
    target.accept(rig)
    for now_s in (0.0, 1e6, 1e9):
        rig.session().stage.sweep(now_s)
    assert rig.context.flows


# --- without pipes ----------------------------------------------------------------------------------------------


def test_no_pipe_means_later_and_loses_nothing(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    session = rig.session()
    client.send(b"patience")
    with no_descriptors():
        rig.until(lambda: session in rig.context.starved, "there is no pipe")
        assert select.select([rig.poller.fileno()], [], [], 0.02)[0] == [], "it waits, and does not spin"
    rig.context.starved.discard(session)
    session.stage.watch()
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
        rig.until(lambda: session in rig.context.starved, "there is no pipe")
        before = rig.part[Word.PIPES_REFUSED]
        for _ in range(5):
            rig.poller.serve()
        assert rig.part[Word.PIPES_REFUSED] - before <= 5
    rig.context.starved.discard(session)
    session.stage.watch()
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
