"""Bytes flow, over real sockets and without processes: each way that it can go, and its one cause."""

import contextlib
import os
import select
import socket
from pathlib import Path

import pytest

from relay import calls
from relay.kernel.poller import UNWATCHED
from relay.kernel.sockets import is_gone
from relay.ledger.layout import Count, Flag, State, Word
from tests.dataplane.rig import Target, no_descriptors, reset, rig_to, tcp_target, unix_target
from tests.dataplane.scenes import arrives_until_reset, at_close, at_splice, fill, read_until_close, taken_over
from tests.harness import eventually
from tests.ledger.rig import target_up


def test_there_and_back(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    client.send(b"question")
    assert rig.receive(service, 8) == b"question"
    service.send(b"answer")
    assert rig.receive(client, 6) == b"answer"
    [flow] = rig.ledger.flows()
    assert (flow.state, flow.peer) == (State.SPLICE, f"127.0.0.1:{client.getsockname()[1]}")
    assert (rig.ledger.active(0), target_up(rig.ledger)) == (1, True)
    client.shutdown(socket.SHUT_WR)
    assert rig.ending(service) == "fin"
    service.send(b"the other direction lives on")
    assert rig.receive(client, 28) == b"the other direction lives on"
    rig.clock.go_on(7.5)
    service.close()
    assert rig.ending(client) == "fin"
    record = rig.ended()
    assert (record["cause"], record["received"], record["sent"]) == ("client_fin", 8, 34)
    assert (record["endpoint"], record["peer"], record["target"]) == ("web/in", flow.peer, target.row.text)
    assert (record["connect_s"], record["duration_s"]) == (0, 7.5)


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


@pytest.mark.parametrize("by", ["client", "target"])
def test_what_came_before_a_reset_is_delivered_to_a_slow_reader(by: str, stack: contextlib.ExitStack) -> None:
    scene = at_close(stack, by)
    rig, reader = scene.rig, scene.client if by == "target" else scene.served
    rig.tick()
    assert rig.context.flows, "not everything has been taken yet"
    assert arrives_until_reset(scene, reader) > 0
    assert rig.ended()["cause"] == f"{by}_reset"


def test_delivering_has_a_deadline_which_begins_anew_with_what_is_taken(stack: contextlib.ExitStack) -> None:
    """Without `idle` it is 60 s."""
    scene = at_close(stack)
    rig = scene.rig
    rig.tick(59)
    before = calls.unsent_bytes(scene.flow.client.fd)

    def taken() -> bool:
        with contextlib.suppress(BlockingIOError):
            scene.client.recv(65536)
        return calls.unsent_bytes(scene.flow.client.fd) < before

    rig.until(taken, "the client takes some of it")
    rig.tick()
    rig.tick(59.9)
    assert rig.context.flows
    rig.tick(0.1)
    assert rig.ended()["cause"] == "target_reset"


def test_the_ledger_says_that_a_flow_is_closing_and_nothing_is_watched(stack: contextlib.ExitStack) -> None:
    scene = at_close(stack, idle_s=5.0)
    [record] = scene.rig.ledger.flows()
    assert record.state == State.CLOSE
    for _ in range(3):
        scene.rig.sweep(4.9)
    assert scene.rig.context.flows, "its deadline is that of CLOSE"
    assert select.select([scene.rig.poller.fileno()], [], [], 0.02)[0] == []


def test_one_that_had_no_pipe_needs_none_any_more(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    rig, flow = scene.rig, scene.flow
    scene.served.send(b"x")
    assert rig.receive(scene.client, 1) == b"x"
    with no_descriptors():
        fill(scene, "target", 8192)  # with that it has the worker's pipe, and there is no other
        scene.client.send(b"x")
        rig.until(lambda: flow in rig.context.starved, "there is no pipe")
    reset(scene.served)
    read_until_close(scene, scene.client)
    rig.go_on_with_pipes()
    assert flow.client_interest == UNWATCHED
    assert select.select([rig.poller.fileno()], [], [], 0.02)[0] == []


def test_what_is_sent_to_an_end_that_is_broken_is_read_away(stack: contextlib.ExitStack) -> None:
    """Left unread it fills the receive buffer, and the peer's acknowledgements would be dropped with what fills it."""
    scene = at_close(stack)
    scene.client.sendall(b"x" * 1000)
    rig = scene.rig
    rig.until(lambda: calls.readable_bytes(scene.flow.client.fileno()) == 1000, "it has come")
    rig.tick()
    assert calls.readable_bytes(scene.flow.client.fileno()) == 0


def test_a_reader_that_never_takes_it_is_cut_in_the_end(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, idle_s=5.0)
    fill(scene, "target")
    rig = scene.rig
    rig.sweep()
    rig.sweep(4.9)
    assert rig.context.flows
    rig.sweep(0.1)
    assert rig.ended()["cause"] == "idle"


def test_idle_is_counted_from_the_last_byte(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, idle_s=10.0)
    client = rig.connect()
    service = target.accept(rig)
    rig.sweep()
    rig.sweep(9.0)
    client.send(b"x")
    assert rig.receive(service, 1) == b"x"
    rig.sweep(2.0)
    service.send(b"yy")
    assert rig.receive(client, 2) == b"yy"
    rig.sweep(9.0)
    [record] = rig.ledger.flows()
    assert (record.received_bytes, record.sent_bytes) == (1, 2)
    rig.sweep(9.9)
    assert rig.context.flows
    rig.sweep(0.1)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "idle"


def test_without_an_idle_timeout_nothing_is_cut(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, idle_s=None)
    rig.connect()
    target.accept(rig)
    for after_s in (0.0, 1e6, 1e9):
        rig.sweep(after_s)
    assert rig.context.flows


def test_no_pipe_means_later_and_loses_nothing(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target)
    client = rig.connect()
    service = target.accept(rig)
    flow = rig.flow()
    client.send(b"patience")
    rig.drop_scratch()
    with no_descriptors():
        rig.until(lambda: flow in rig.context.starved, "there is no pipe")
        assert select.select([rig.poller.fileno()], [], [], 0.02)[0] == [], "it waits, and does not spin"
    rig.go_on_with_pipes()
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
    flow = rig.flow()
    rig.drop_scratch()
    with no_descriptors():
        client.send(b"x")
        reset(client)
        rig.until(lambda: flow in rig.context.starved, "there is no pipe")
        before = rig.part[Word.PIPES_REFUSED]
        for _ in range(5):
            rig.poller.serve()
        assert rig.part[Word.PIPES_REFUSED] - before <= 5
    rig.go_on_with_pipes()
    assert rig.ended()["cause"] == "client_reset"


# --- taken over from a dead worker -----------------------------------------------------------------------------------


def test_a_successor_goes_on_in_the_midst(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    rig = scene.rig
    scene.client.send(b"before")
    assert rig.receive(scene.served, 6) == b"before"
    later = taken_over(scene)
    assert later.flow.state == State.SPLICE
    scene.client.send(b"after")
    assert rig.receive(scene.served, 5) == b"after"
    scene.served.send(b"answer")
    assert rig.receive(scene.client, 6) == b"answer"
    scene.client.close()
    scene.served.close()
    record = rig.ended()
    assert (record["cause"], record["received"], record["sent"]) == ("client_fin", 11, 6)
    assert scene.target is not None
    assert record["target"] == scene.target.row.text


def test_bytes_in_a_dead_workers_pipe_come_first(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    rig = scene.rig
    pipe = rig.pool.take()
    assert pipe is not None
    os.write(pipe.w, b"held, ")
    rig.part.hold(scene.flow.record, 0, (pipe.r, pipe.w))
    scene.client.send(b"then sent")
    taken_over(scene, up=pipe)
    assert rig.receive(scene.served, 15) == b"held, then sent"
    [record] = rig.ledger.flows()
    assert record.up_pipe == (-1, -1)


@pytest.mark.parametrize("by", ["client", "target"])
def test_a_reset_that_the_dead_worker_was_told(by: str, stack: contextlib.ExitStack) -> None:
    """The socket tells an error once, so the record has it. Without it this would look like an orderly end."""
    scene = at_splice(stack)
    broken, other = (scene.client, scene.served) if by == "client" else (scene.served, scene.client)
    scene.rig.part.flag(scene.flow.record, Flag.CLIENT_RESET if by == "client" else Flag.TARGET_RESET)
    taken_over(scene)
    broken.shutdown(socket.SHUT_WR)
    assert scene.rig.ending(other) == "reset"
    assert scene.rig.ended()["cause"] == f"{by}_reset"


@pytest.mark.parametrize("by", ["client", "target"])
def test_a_reset_that_came_while_nobody_was_there(by: str, stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    rig = scene.rig
    reset(scene.client if by == "client" else scene.served)
    taken_over(scene)
    assert rig.ending(scene.served if by == "client" else scene.client) == "reset"
    assert rig.ended()["cause"] == f"{by}_reset"


def test_an_end_that_was_passed_on_already(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack)
    rig = scene.rig
    scene.client.shutdown(socket.SHUT_WR)
    assert rig.ending(scene.served) == "fin"
    taken_over(scene)
    scene.served.send(b"the other direction lives on")
    assert rig.receive(scene.client, 28) == b"the other direction lives on"
    scene.served.close()
    assert rig.ended()["cause"] == "client_fin"


@pytest.mark.parametrize("last", ["client", "target"])
def test_one_that_was_told_the_end_and_then_left_was_not_reset(last: str, stack: contextlib.ExitStack) -> None:
    """Its connection is over in both directions, as after a reset; what it sent last is still delivered."""
    scene = at_splice(stack)
    rig = scene.rig
    leaves, stays = (scene.client, scene.served) if last == "client" else (scene.served, scene.client)
    left = scene.flow.client if last == "client" else scene.forwarding._target
    stays.shutdown(socket.SHUT_WR)
    assert rig.ending(leaves) == "fin"
    leaves.send(b"last words")
    leaves.close()
    eventually(lambda: is_gone(left), "the kernel knows, and no worker yet")
    taken_over(scene)
    assert rig.receive(stays, 10) == b"last words"
    assert rig.ending(stays) == "fin"
    assert rig.ended()["cause"] == ("target_fin" if last == "client" else "client_fin")


@pytest.mark.parametrize("by", ["client", "target"])
def test_a_successor_goes_on_waiting_for_a_slow_reader(by: str, stack: contextlib.ExitStack) -> None:
    scene = at_close(stack, by)
    rig = scene.rig
    later = taken_over(scene)
    assert later.flow.state == State.CLOSE
    rig.tick()
    assert rig.context.flows
    rig.tick(60)
    assert rig.ended()["cause"] == f"{by}_reset"
