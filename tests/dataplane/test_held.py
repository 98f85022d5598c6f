"""Of those who wait one tries for all, and the others follow in their order."""

import contextlib
from unittest.mock import patch

import pytest

from relay.dataplane import held
from relay.dataplane.dialling import Dialling
from relay.ledger.layout import Count, State
from tests.dataplane.holding_scenes import (
    HOLD_S,
    TRY_S,
    at_hold,
    dials,
    is_back,
    one_more,
)
from tests.dataplane.holding_scenes import held as waiting
from tests.dataplane.rig import silent_target

Stack = contextlib.ExitStack


def test_one_tries_for_all_and_ever_more_seldom(stack: Stack) -> None:
    scene = at_hold(stack)
    others = [one_more(scene.rig)[1] for _ in range(4)]
    assert waiting(scene.rig) == 5
    before = dials(scene.rig)
    for _ in range(100):
        scene.rig.tick(0.05)
    assert 8 <= dials(scene.rig) - before <= 16, "in 5 s; every 0.1 s at first, every 0.5 s at last"
    assert {flow.state for flow in [scene.flow, *others]} == {State.HOLD}


def test_they_follow_in_their_order_some_at_a_time(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "_GO_AT_ONCE", 2)
    scene = at_hold(stack)
    flows = [scene.flow, *(one_more(scene.rig)[1] for _ in range(5))]
    is_back(stack, scene)
    scene.rig.tick(TRY_S)
    stand = [flow.state == State.SPLICE for flow in flows]
    assert stand == [True, True, True, False, False, False], "the first has tried, then two"
    scene.rig.tick()
    assert [flow.state == State.SPLICE for flow in flows] == [True] * 5 + [False]
    scene.rig.tick()
    assert waiting(scene.rig) == 0


def test_another_connection_that_reaches_the_target_has_them_follow(stack: Stack) -> None:
    scene = at_hold(stack)
    is_back(stack, scene)
    _, flow = one_more(scene.rig)
    assert (flow.state, scene.flow.state) == (State.SPLICE, State.HOLD)
    scene.rig.tick()
    assert scene.flow.state == State.SPLICE


def test_nobody_who_waits_is_counted_below_nought(stack: Stack) -> None:
    """As when the row was given to another endpoint meanwhile, which began at nought."""
    scene = at_hold(stack)
    scene.rig.part.words[scene.rig.gate.counts_at + Count.HELD] = 0
    scene.flow.cut("revoked")
    assert waiting(scene.rig) == 0
    assert scene.rig.ended()["cause"] == "revoked"


def test_those_who_follow_and_fail_wait_again_and_no_longer_than_before(stack: Stack) -> None:
    scene = at_hold(stack)
    _, other = one_more(scene.rig)
    scene.rig.gate.reached(scene.flow.client)  # which one of another worker's has done, say
    before = dials(scene.rig)
    scene.rig.tick()
    assert dials(scene.rig) - before == 1, "the first has failed, so the other one is spared"
    assert (scene.flow.state, other.state) == (State.HOLD, State.HOLD)
    scene.rig.tick(HOLD_S)
    assert waiting(scene.rig) == 0


def test_when_the_one_that_tries_is_cut_the_next_one_tries(stack: Stack) -> None:
    scene = at_hold(stack)
    _, other = one_more(scene.rig)
    silent_target(stack, scene.rig.gate.declared.targets[0].port)
    scene.rig.tick(TRY_S)
    scene.rig.tick(TRY_S)
    assert (scene.flow.state, other.state) == (State.DIAL, State.HOLD), "one at a time"
    scene.flow.cut("drain")
    scene.rig.tick()
    assert other.state == State.DIAL


@pytest.mark.interpreted
def test_each_port_of_a_range_waits_for_itself(stack: Stack) -> None:
    scene = at_hold(stack)
    rig = scene.rig
    with patch.object(type(rig.gate), "held_at", lambda _gate, client: client.getpeername()[1]):
        _, flow = one_more(rig)
        assert len(rig.gate.held) == 2
        rig.gate.reached(scene.flow.client)  # to which nobody waits
        before = dials(rig)
        rig.tick()
    assert (dials(rig) - before, flow.state) == (0, State.HOLD)


@pytest.mark.interpreted
def test_a_mistake_ends_the_one_that_it_was_made_with(stack: Stack) -> None:
    scene = at_hold(stack)
    _, other = one_more(scene.rig)

    def bug(*_: object) -> None:
        raise ZeroDivisionError

    with patch.object(Dialling, "_connect", bug), pytest.raises(ZeroDivisionError):
        scene.rig.tick(TRY_S)
    assert (scene.flow.state, other.state) == (State.END, State.HOLD)
    is_back(stack, scene)
    scene.rig.tick(TRY_S)
    assert other.state == State.SPLICE
