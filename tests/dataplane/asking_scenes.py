"""A flow of an edge whose client's bytes were copied to an instance: the instances' relays are a test's own sockets."""

import contextlib
import socket
from dataclasses import replace
from typing import Any, Final

from relay.config.snapshot import TargetRow
from relay.dataplane.asking import Asking
from relay.dataplane.dialling import Dialling
from relay.dataplane.greeting import begin
from relay.envelope import asking, proxyproto
from relay.kernel.bare_socket import BareSocket
from relay.kernel.poller import UNWATCHED
from relay.ledger.layout import State, TargetCount
from tests.dataplane.rig import Rig, Target, rig_to, tcp_target
from tests.dataplane.scenes import Scene

REQUEST: Final = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LONG_NS: Final = 10**15


def edge_rig(
    stack: contextlib.ExitStack, *targets: Target | TargetRow, knows: tuple[int, ...] = (1, 1), **keys: Any
) -> Rig:
    """An edge's endpoint. Its instances are tried in this order; `knows`: which of them say when they took a connection."""
    rows = [
        replace(each.row if isinstance(each, Target) else each, slot=n, instance=f"web_IN_{n}")
        for n, each in enumerate(targets)
    ]
    rig = rig_to(stack, *rows, **{"distribution": "five-tuple", "send_proxy": "v2", **keys})
    for n in range(len(rows)):
        [at] = rig.part.target_counts_at(n)
        rig.ledger.words[at + TargetCount.KNOWS] = knows[n]
        rig.ledger.words[at + TargetCount.EJECTED_UNTIL_NS] = n and LONG_NS  # the first one first
    return rig


def at_ask(
    stack: contextlib.ExitStack,
    *others: Target | TargetRow,
    said: bytes = REQUEST,
    knows: tuple[int, ...] = (1, 1),
    **keys: Any,
) -> Scene:
    """The first instance's relay has been asked, after the client said this. It is `served`, and has read nothing yet."""
    target = tcp_target(stack)
    return asked(edge_rig(stack, target, *others, knows=knows, **keys), target, said)


def asked(rig: Rig, target: Target, said: bytes) -> Scene:
    """A client who said this was let in, and the relay at `target` has been asked."""
    client, flow = rig.let_in()
    if said:
        client.send(said)
        rig.until(lambda: flow.client.recv(len(said), socket.MSG_PEEK) == said, "it has come")
    begin(flow)
    assert flow.state == State.ASK
    return Scene(rig, client, flow, target, target.accept(rig))


def header_of(scene: Scene) -> bytes:
    """What the instance's relay is told before what the client says."""
    flow = scene.flow
    host, port = flow.client.getsockname()[:2]
    tlv = asking.tlv(asking.TAKEN)
    return proxyproto.build_v2(flow.peer.packed, flow.peer.port, socket.inet_aton(host), port, tlv)


def at_taken(stack: contextlib.ExitStack, **keys: Any) -> Scene:
    """A worker has read the relay's answer, and was killed before it took anything out of the sockets."""
    scene = at_ask(stack, **keys)
    scene.served.send(asking.TOOK)
    stage = scene.flow.stage
    assert isinstance(stage, Asking)
    scene.rig.until(lambda: stage._target.recv(1, socket.MSG_PEEK), "the answer has come")
    scene.flow.stand(stage, State.TAKEN, stage._target.fileno())
    return scene


def succeeded(scene: Scene) -> Scene:
    """A successor goes on with it."""
    rig, dead = scene.rig, scene.flow.stage
    assert isinstance(dead, Asking)
    if dead._watched != UNWATCHED:
        rig.poller.forget(dead._target.fileno())
    flow, record = rig.taken_over(scene.flow)
    assert record.target_fd == dead._target.fileno()
    dead._target.detach()
    Dialling(flow).resume(record, BareSocket(record.target_fd))
    return replace(scene, flow=flow)
