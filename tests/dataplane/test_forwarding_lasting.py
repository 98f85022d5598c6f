"""Connections that end although both sides would go on: their time is over, or their target was found down."""

import contextlib
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from relay.config.snapshot import ProbeRow, TargetRow
from relay.dataplane.forwarding import LIFETIME_SPREAD
from relay.ledger.layout import Health, health_at
from relay.targets import why
from relay.targets.health import packed
from tests.dataplane.rig import LATER_S, Rig, rig_to, tcp_target
from tests.dataplane.scenes import Scene, at_close, at_splice, fill, found_down, taken_over

LIFETIME_S = 100.0
LEAST_S, MOST_S = LIFETIME_S * (1 - LIFETIME_SPREAD), LIFETIME_S * (1 + LIFETIME_SPREAD)


@pytest.fixture
def stack() -> Any:
    with contextlib.ExitStack() as made:
        yield made


def lasted_s(scene: Scene, *, moving: bool = False) -> float:
    """How long it lasted, to the second; `moving`: the client says something in each of them."""
    began_s, rig = scene.flow.started_ns / 1e9, scene.rig
    while rig.context.flows:
        if moving:
            scene.client.send(b"x")
            assert rig.receive(scene.served, 1) == b"x"
        rig.sweep(1.0)
        assert rig.context.now_s() - began_s < 2 * LIFETIME_S
    return rig.context.now_s() - began_s


def test_a_lifetime_is_over_in_time_and_at_a_moment_of_its_own(stack: contextlib.ExitStack) -> None:
    found = []
    for number in range(8):
        scene = at_splice(stack, lifetime_s=LIFETIME_S)
        scene.flow.started_ns += Random(number).randrange(10**9)  # in the same second
        found.append(lasted_s(scene))
        assert LEAST_S <= found[-1] <= MOST_S + 1
        assert scene.rig.ended()["cause"] == "lifetime"
        assert scene.rig.ending(scene.client) == scene.rig.ending(scene.served) == "reset"
    assert len({round(each) for each in found}) > 3, "those that began together do not end together"


def test_one_that_never_rests_lasts_to_the_end(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, lifetime_s=LIFETIME_S)
    assert MOST_S <= lasted_s(scene, moving=True) <= MOST_S + 1
    assert scene.rig.ended()["cause"] == "lifetime"


def test_a_pause_is_taken_once_its_time_has_come(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, lifetime_s=LIFETIME_S)
    rig = scene.rig
    for _ in range(int(LIFETIME_S * (1 + LIFETIME_SPREAD / 2)) + 1):  # every moment of its own has come by then
        scene.client.send(b"x")
        assert rig.receive(scene.served, 1) == b"x"
        rig.sweep(1.0)
    assert rig.context.flows
    rig.sweep(1.0)
    assert rig.ended()["cause"] == "lifetime"


def test_a_successor_counts_from_the_same_beginning(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, lifetime_s=LIFETIME_S)
    scene.rig.sweep(LEAST_S - 1)
    after = taken_over(scene)
    assert after.flow.started_ns == scene.flow.started_ns
    assert LEAST_S <= lasted_s(after) <= MOST_S + 1


def test_what_is_left_after_a_reset_has_its_own_time(stack: contextlib.ExitStack) -> None:
    """The cause is known by then: it lasts for as long as the other side takes some of it."""
    scene = at_close(stack, lifetime_s=LIFETIME_S)
    scene.rig.sweep(2 * LIFETIME_S)
    assert scene.rig.context.flows
    scene.rig.tick(LATER_S)
    assert scene.rig.ended()["cause"] == "target_reset"


def test_a_reader_that_has_stopped_is_no_reason_to_last(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, lifetime_s=LIFETIME_S, idle_s=None)
    fill(scene, "target")
    assert LEAST_S <= lasted_s(scene) <= MOST_S + 1
    assert scene.rig.ended()["cause"] == "lifetime"


def test_without_a_lifetime_it_lasts(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, idle_s=None)
    scene.rig.sweep(10 * LIFETIME_S)
    assert scene.rig.context.flows


@pytest.mark.parametrize("number", [why.BUSY, why.HELD])
def test_a_target_that_asks_for_nobody_keeps_whom_it_has(number: int, stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, idle_s=None)
    found_down(scene, number)
    assert scene.rig.context.flows


def test_one_that_is_down_keeps_whom_it_has_unless_it_is_said(stack: contextlib.ExitStack) -> None:
    scene = at_splice(stack, idle_s=None)
    found_down(scene)
    assert scene.rig.ended()["cause"] == "target_down"
    scene = at_splice(stack, idle_s=None)
    gate = scene.flow.gate
    found_down_only(scene.rig)
    gate.declare(replace(gate.declared, probe=ProbeRow("", 1.0, 1.0)))
    scene.rig.sweep(1.0)
    assert scene.rig.context.flows


def found_down_only(rig: Rig) -> None:
    rig.ledger.words[health_at(0)] = packed(Health.DOWN, why.RESET, 1)


def of_several(stack: contextlib.ExitStack, **keys: Any) -> tuple[Rig, Any, Any]:
    """A rig whose endpoint leads to two targets of this machine, one after the other, and these."""
    one, two = tcp_target(stack), tcp_target(stack)
    rows = [replace(each.row, slot=n) for n, each in enumerate((one, two))]
    given = {"distribution": "round-robin", "direct": True, "idle_s": None, **keys}
    return rig_to(stack, *rows, **given), one, two


def test_of_several_only_the_one_that_is_down_loses_its_own(stack: contextlib.ExitStack) -> None:
    rig, one, two = of_several(stack, probe=ProbeRow("/", 1.0, 1.0, on_down="cut"))
    first, second = rig.connect(), rig.connect()
    served = [one.accept(rig), two.accept(rig)]
    rig.until(lambda: len(rig.context.flows) == 2, "both are there")
    found_down_only(rig)  # the one in the first row
    rig.sweep(1.0)
    [left] = rig.context.flows
    assert rig.ending(first) == rig.ending(served[0]) == "reset"
    second.send(b"still")
    assert rig.receive(served[1], 5) == b"still"
    assert left.gate is rig.gate


def test_after_the_set_has_changed_a_row_is_not_taken_for_anothers(stack: contextlib.ExitStack) -> None:
    """The target has left, and its place in the ledger is another one's by now, which is down."""
    rig, one, _ = of_several(stack, probe=ProbeRow("/", 1.0, 1.0, on_down="cut"))
    rig.connect()
    one.accept(rig)
    other = TargetRow("127.0.0.1:9", host="127.0.0.1", port=9, slot=0)
    rig.gate.declare(replace(rig.gate.declared, targets=(other,)))
    found_down_only(rig)
    rig.sweep(1.0)
    assert rig.context.flows
