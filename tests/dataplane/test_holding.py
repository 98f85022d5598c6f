"""While no target is to be had a connection waits, and loses nothing by that but time."""

import contextlib
import socket
from collections.abc import Callable

import pytest

from relay.dataplane.dialling import Dialling
from relay.dataplane.greeting import begin
from relay.envelope import asking
from relay.ledger.layout import State
from tests.dataplane.holding_scenes import (
    HOLD_S,
    TRY_S,
    at_hold,
    at_hold_after_silence,
    begun_by_hand,
    dials,
    hold_by_hand,
    is_back,
    one_more,
)
from tests.dataplane.holding_scenes import held as waiting
from tests.dataplane.rig import refusing, reset, rig_to, unroutable
from tests.dataplane.scenes import EDGE, Scene, begun

Stack = contextlib.ExitStack


def test_it_goes_on_when_its_target_is_back_with_all_that_came_before(stack: Stack) -> None:
    scene = at_hold(stack)
    scene.client.send(b"said before")
    assert waiting(scene.rig) == 1
    target = is_back(stack, scene)
    scene.rig.tick(TRY_S)
    assert (scene.flow.state, waiting(scene.rig)) == (State.SPLICE, 0)
    service = target.accept(scene.rig)
    assert scene.rig.receive(service, 11) == b"said before"
    scene.client.close()
    assert scene.rig.ending(service) == "fin"
    service.close()
    record = scene.rig.ended()
    assert (record["cause"], record["attempts"]) == ("client_fin", 2)
    assert "reason" not in record
    assert record["connect_s"] < TRY_S, "from the dial that was answered"
    assert record["duration_s"] >= TRY_S


@pytest.mark.parametrize(("make", "cause"), [(at_hold, "connect_failed"), (at_hold_after_silence, "connect_timeout")])
def test_it_ends_as_it_would_have_when_its_time_is_over(
    stack: Stack, make: Callable[[Stack], Scene], cause: str
) -> None:
    scene = make(stack)
    scene.rig.tick(HOLD_S * 0.4)  # a try: of a silent target, one that takes its time
    scene.rig.tick(HOLD_S * 0.4)
    assert scene.flow.state == State.HOLD
    scene.rig.tick(HOLD_S * 0.3)
    assert scene.rig.ending(scene.client) == "reset"
    assert scene.rig.ended()["cause"] == cause
    assert waiting(scene.rig) == 0


def test_without_a_declaration_nobody_waits(stack: Stack) -> None:
    scene = begun(stack, refusing(), state=State.END)
    assert scene.rig.ended()["cause"] == "connect_failed"


def test_every_try_has_the_whole_time_for_connecting(stack: Stack) -> None:
    scene = at_hold_after_silence(stack, connect_s=5.0)
    scene.rig.tick(TRY_S)
    assert scene.flow.state == State.DIAL
    scene.rig.tick(4.9)
    assert scene.flow.state == State.DIAL
    scene.rig.tick(0.2)
    assert scene.flow.state == State.HOLD


def test_a_client_that_resets_is_noticed_and_one_that_has_finished_waits(stack: Stack) -> None:
    scene = at_hold(stack)
    finished, flow = one_more(scene.rig)
    finished.send(b"all of it")
    finished.shutdown(socket.SHUT_WR)
    reset(scene.client)
    scene.rig.until(lambda: scene.flow.state == State.END, "the reset is noticed")
    scene.rig.until(lambda: flow.state == State.HOLD, "the other one waits")
    target = is_back(stack, scene)
    scene.rig.tick(TRY_S)
    assert scene.rig.receive(target.accept(scene.rig), 9) == b"all of it"


@pytest.mark.parametrize("asks", [asking.TAKEN, asking.THROUGH])
def test_who_asks_is_told_at_once(stack: Stack, asks: int) -> None:
    rig = rig_to(stack, refusing(), hold_s=HOLD_S, edges=(EDGE,))
    client, flow = rig.let_in()
    flow.asks, flow.probe = asks, asks == asking.THROUGH
    Dialling(flow).start()
    rig.until(lambda: flow.state == State.END, "it is told")
    rig.poller.bury()
    assert asking.is_refusal(rig.receive(client, 10))


def test_what_this_machine_cannot_do_is_not_waited_for(stack: Stack) -> None:
    rig = rig_to(stack, unroutable(), hold_s=HOLD_S)
    _, flow = rig.let_in()
    begin(flow)
    assert rig.ended()["cause"] == "error"


def test_no_more_wait_than_may(stack: Stack) -> None:
    scene = at_hold(stack, held_max=1)
    _, flow = one_more(scene.rig)
    assert (flow.state, scene.flow.state) == (State.END, State.HOLD)
    scene.rig.tick(TRY_S)
    assert scene.flow.state == State.HOLD, "who has a place keeps it"


def test_by_hand_nobody_is_dialled_until_it_is_over(stack: Stack) -> None:
    scene = begun_by_hand(stack)
    target = scene.target
    assert target is not None
    scene.rig.tick(HOLD_S * 0.9)
    assert (scene.flow.state, target.was_dialled()) == (State.HOLD, False)
    hold_by_hand(scene, 0)
    scene.rig.tick()
    assert (scene.flow.state, target.was_dialled()) == (State.SPLICE, True)


def test_when_the_time_by_hand_is_over_each_dials_once(stack: Stack) -> None:
    scene = begun_by_hand(stack)
    _, other = one_more(scene.rig)
    assert scene.target is not None
    scene.target.sock.close()
    before = dials(scene.rig)
    scene.rig.tick(HOLD_S + 0.1)
    scene.rig.tick()
    assert dials(scene.rig) - before == 2
    assert (scene.flow.state, other.state) == (State.END, State.END)


def test_released_too_early_they_wait_for_as_long_as_was_asked(stack: Stack) -> None:
    scene = begun_by_hand(stack)
    assert scene.target is not None
    scene.target.sock.close()
    hold_by_hand(scene, 0)
    scene.rig.tick()
    assert scene.flow.state == State.HOLD
    is_back(stack, scene)
    scene.rig.tick(TRY_S)
    assert scene.flow.state == State.SPLICE


def test_who_waits_already_does_not_try_and_does_not_end_while_it_is_held_by_hand(stack: Stack) -> None:
    scene = hold_by_hand(at_hold(stack), 3 * HOLD_S)
    before = dials(scene.rig)
    scene.rig.tick(2 * HOLD_S)
    assert (scene.flow.state, dials(scene.rig) - before) == (State.HOLD, 0)
    is_back(stack, scene)
    hold_by_hand(scene, 0)
    scene.rig.tick()
    assert scene.flow.state == State.SPLICE


def test_a_successor_has_it_wait_anew(stack: Stack) -> None:
    scene = at_hold(stack)
    rig = scene.rig
    rig.tick(HOLD_S * 0.75)
    rig.gate.held.clear()
    flow, record = rig.taken_over(scene.flow)
    rig.part.reconcile(0, 1, [])
    rig.gate.readmit(flow.source)
    assert (record.state, waiting(rig)) == (State.HOLD, 0)
    Dialling(flow).resume_hold()
    assert (flow.state, waiting(rig)) == (State.HOLD, 1)
    rig.tick(HOLD_S * 0.75)
    assert flow.state == State.HOLD
    is_back(stack, scene)
    rig.tick(TRY_S)
    assert (flow.state, waiting(rig)) == (State.SPLICE, 0)


def test_a_successor_that_is_not_to_hold_any_more_dials(stack: Stack) -> None:
    scene = begun_by_hand(stack)
    hold_by_hand(scene, 0)
    scene.rig.gate.held.clear()
    flow, _ = scene.rig.taken_over(scene.flow)
    scene.rig.part.reconcile(0, 1, [])
    scene.rig.gate.readmit(flow.source)
    Dialling(flow).resume_hold()
    assert flow.state == State.SPLICE
