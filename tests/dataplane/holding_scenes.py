"""A flow that waits for a target."""

import contextlib
import socket
from typing import Any, Final

from relay.config.snapshot import TargetRow
from relay.dataplane.flow import Flow
from relay.dataplane.greeting import begin
from relay.envelope import asking
from relay.ledger.layout import CONNECT_BOUNDS_S, Count, State
from relay.targets import why
from tests.dataplane.asking_scenes import at_ask
from tests.dataplane.rig import LATER_S, Rig, Target, refusing, rig_to, silent_target, tcp_target
from tests.dataplane.scenes import Scene, begun

HOLD_S: Final = 20.0
TRY_S: Final = 0.6  # longer than from one try to the next


def at_hold(stack: contextlib.ExitStack, *targets: Target | TargetRow, **keys: Any) -> Scene:
    """Its target has refused it."""
    return begun(stack, *(targets or (refusing(),)), state=State.HOLD, **{"hold_s": HOLD_S, **keys})


def at_hold_after_silence(stack: contextlib.ExitStack, **keys: Any) -> Scene:
    """Its target has not answered in time."""
    scene = begun(stack, silent_target(stack), state=State.DIAL, **{"hold_s": HOLD_S, **keys})
    scene.rig.tick(LATER_S)
    assert scene.flow.state == State.HOLD
    return scene


def at_hold_behind_an_edge(stack: contextlib.ExitStack, reason: int = why.TOLD, **keys: Any) -> Scene:
    """The only instance has refused it, for this reason."""
    scene = at_ask(stack, **{"hold_s": HOLD_S, **keys})
    scene.served.send(asking.refusal(reason, ""))
    scene.rig.until(lambda: scene.flow.state == State.HOLD, "it waits")
    return scene


def hold_by_hand(scene: Scene, for_s: float = HOLD_S) -> Scene:
    """What `relay hold` does; 0: `relay release`."""
    scene.rig.ledger.words[scene.rig.gate.hold_until_at] = scene.rig.clock() + int(for_s * 1e9) if for_s else 0
    return scene


def begun_by_hand(stack: contextlib.ExitStack, **keys: Any) -> Scene:
    """It came while the endpoint was held by hand."""
    target = tcp_target(stack)
    rig = rig_to(stack, target, **keys)
    client, flow = rig.let_in()
    scene = hold_by_hand(Scene(rig, client, flow, target))
    begin(flow)
    assert flow.state == State.HOLD
    return scene


def is_back(stack: contextlib.ExitStack, scene: Scene) -> Target:
    """Its target listens again."""
    return tcp_target(stack, port=scene.rig.gate.declared.targets[0].port)


def one_more(rig: Rig) -> tuple[socket.socket, Flow]:
    """Another client, who comes now."""
    client, flow = rig.let_in()
    begin(flow)
    return client, flow


def held(rig: Rig) -> int:
    """How many wait, as the ledger says."""
    return rig.ledger.total(0, Count.HELD)


def dials(rig: Rig) -> int:
    """How many dials have come to something so far: to an answer, or to a refusal."""
    answered = sum(rig.ledger.total(0, Count.CONNECT_BUCKETS + n) for n in range(len(CONNECT_BOUNDS_S) + 1))
    return answered + rig.ledger.total(0, Count.CONNECT_FAILURES)
