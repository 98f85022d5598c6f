"""A peer is dead: what it had sent, what the other side is told, and what a new worker knows of it."""

import contextlib
import errno
from dataclasses import replace

import pytest

from relay import calls
from relay.ledger.layout import Flag, State, TargetCount
from relay.targets import why
from tests.dataplane.rig import reset, tcp_target
from tests.dataplane.scenes import arrives_until_reset, at_close, at_splice, begun, die, silence, taken_over


@pytest.mark.parametrize("who", ["client", "target"])
def test_what_came_before_a_death_is_delivered_to_a_slow_reader(who: str, stack: contextlib.ExitStack) -> None:
    scene = at_close(stack, who, dead=True)
    rig, reader = scene.rig, scene.client if who == "target" else scene.served
    [record] = rig.ledger.flows()
    assert record.flags & Flag.PEER_DEAD
    assert arrives_until_reset(scene, reader) > 0
    assert rig.ended()["cause"] == "peer_dead"


def test_the_first_end_gives_the_cause(stack: contextlib.ExitStack) -> None:
    """The other side dies while it is waited for."""
    scene = at_close(stack, "client", idle_s=5.0)
    with silence(scene, "target"):
        scene.rig.tick(1.0)
    assert scene.rig.ended()["cause"] == "client_reset"


@pytest.mark.parametrize("by", ["client", "target"])
def test_a_death_that_the_dead_worker_had_found(by: str, stack: contextlib.ExitStack) -> None:
    """The kernel has not given the peer up, and its socket would say nothing for long."""
    scene = at_splice(stack)
    other = scene.served if by == "client" else scene.client
    reset_of = Flag.CLIENT_RESET if by == "client" else Flag.TARGET_RESET
    scene.rig.part.flag(scene.flow.record, reset_of | Flag.PEER_DEAD)
    taken_over(scene)
    assert scene.rig.ending(other) == "reset"
    assert scene.rig.ended()["cause"] == "peer_dead"


@pytest.mark.interpreted
@pytest.mark.parametrize("by", ["client", "target"])
def test_a_death_that_the_kernel_found_while_nobody_was_there(
    by: str, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = at_splice(stack)
    reset(scene.client if by == "client" else scene.served)
    monkeypatch.setattr(calls, "pending_error", lambda _: errno.EHOSTUNREACH)  # or the other one, of silence
    taken_over(scene)
    assert scene.rig.ending(scene.served if by == "client" else scene.client) == "reset"
    assert scene.rig.ended()["cause"] == "peer_dead"


def test_a_door_does_not_take_a_dead_instance_for_a_good_one(stack: contextlib.ExitStack) -> None:
    """It had served this connection; the dials that fail meanwhile know better."""
    target = tcp_target(stack)
    keys = {"type": "door", "distribution": "least-connections"}
    scene = begun(stack, replace(target.row, slot=0, instance="store_IN_0"), state=State.SPLICE, **keys)
    scene.target, scene.service = target, target.accept(scene.rig)
    scene.served.send(b"x")
    assert scene.rig.receive(scene.client, 1) == b"x"
    pool = scene.rig.gate.pool
    assert pool is not None
    pool.failed(0, scene.rig.clock(), why.RESET)
    die(scene, "target")
    assert scene.rig.ended()["cause"] == "peer_dead"
    assert scene.rig.ledger.target_total(0, TargetCount.FAILED_IN_A_ROW) == 1
