"""A flow in each state in which one can stand: over a real pair of sockets, without a listener, and by a clock that waits."""

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final
from unittest.mock import patch

from relay.config.snapshot import ProbeRow
from relay.dataplane import peers
from relay.dataplane.flow import Flow
from relay.dataplane.forwarding import Forwarding
from relay.dataplane.greeting import begin
from relay.dataplane.pipes import Pipe
from relay.envelope import asking, proxyproto
from relay.kernel.bare_socket import BareSocket
from relay.kernel.sockets import Transmission, transmission
from relay.ledger.layout import Count, Health, State
from relay.targets import why
from relay.targets.health import packed
from tests.dataplane.rig import READER_BYTES, Rig, Target, refusing, reset, rig_to, silent_target, tcp_target

EDGE: Final = "127.0.0.1"
CLIENT: Final = "198.51.100.7"  # of whom the edge speaks
HEADER: Final = proxyproto.build_v2(socket.inet_aton(CLIENT), 40_000, socket.inet_aton(EDGE), 80)
HELLO: Final = b"GET / HTTP/1.1\r\n"


@dataclass
class Scene:
    """A client, what became of it so far, and its target's side once there is one."""

    rig: Rig
    client: socket.socket
    flow: Flow
    target: Target | None = None
    service: socket.socket | None = None

    @property
    def forwarding(self) -> Forwarding:
        """Its stage in SPLICE and CLOSE."""
        stage = self.flow.stage
        assert isinstance(stage, Forwarding)
        return stage

    @property
    def served(self) -> socket.socket:
        """The target's side."""
        assert self.service is not None
        return self.service

    def say(self, data: bytes) -> None:
        """Send it, and wait until it has been dealt with."""
        before = self.flow.state
        self.client.send(data)
        self.rig.until(lambda: self.flow.state != before, "it goes on")


def begun(stack: contextlib.ExitStack, *targets: Any, state: int, **keys: Any) -> Scene:
    """A flow that has just begun, and stands at `state`."""
    rig = rig_to(stack, *targets, **keys)
    client, flow = rig.let_in()
    begin(flow)
    assert flow.state == state
    return Scene(rig, client, flow)


def at_header(stack: contextlib.ExitStack, *targets: Any, **keys: Any) -> Scene:
    return begun(stack, *(targets or (refusing(),)), state=State.HEADER, edges=(EDGE,), **keys)


def at_line(stack: contextlib.ExitStack, **keys: Any) -> Scene:
    """An edge holds a line, and has not heard the first word yet."""
    scene = at_header(stack, **keys)
    scene.rig.log.level = "debug"  # an edge's questions are told there
    scene.say(asking.header(asking.LINE))
    return scene


def at_look(stack: contextlib.ExitStack, *targets: Any, **keys: Any) -> Scene:
    return begun(stack, *(targets or (refusing(),)), state=State.LOOK, **{"protocol": "http", **keys})


def at_dial(stack: contextlib.ExitStack, **keys: Any) -> Scene:
    return begun(stack, silent_target(stack), state=State.DIAL, **keys)


def at_splice(stack: contextlib.ExitStack, **keys: Any) -> Scene:
    target = tcp_target(stack)
    target.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, READER_BYTES)
    scene = begun(stack, target, state=State.SPLICE, **keys)
    scene.target, scene.service = target, target.accept(scene.rig)
    return scene


def at_close(stack: contextlib.ExitStack, by: str = "target", *, dead: bool = False, **keys: Any) -> Scene:
    """One side has sent a lot and was reset, or died; the other has not yet taken all of it."""
    scene = at_splice(stack, **keys)
    sender, reader = (scene.served, scene.client) if by == "target" else (scene.client, scene.served)
    fill(scene, by, 8192 if dead else 65536)
    if dead:
        die(scene, by)
    else:
        reset(sender)
    read_until_close(scene, reader)
    return scene


def taken_over(scene: Scene, up: Pipe | None = None, down: Pipe | None = None) -> Scene:
    """A successor's stage of the same flow, with the pipes that have bytes in them."""
    dead, rig = scene.forwarding, scene.rig
    rig.sweep()
    rig.poller.forget(dead._target.fileno())
    flow, record = rig.taken_over(scene.flow)
    assert record.target_fd == dead._target.fileno()
    Forwarding(flow, BareSocket(dead._target.detach())).resume(record, up, down)
    return Scene(rig, scene.client, flow, scene.target, scene.service)


@contextlib.contextmanager
def silence(scene: Scene, whose: str) -> Iterator[None]:
    """Meanwhile the kernel says of this side's peer that it has not answered for very long."""
    fd = (scene.flow.client if whose == "client" else scene.forwarding._target).fileno()
    told = Transmission(1e6, 7, in_flight=True, unsent=False, resent=9, timeouts=9, probes=9)
    with patch.object(peers, "transmission", lambda asked: told if asked == fd else transmission(asked)):
        yield


def die(scene: Scene, who: str) -> None:
    """This side's peer is dead, and that is found out."""
    with silence(scene, who):
        for _ in range(2):  # at the first one bytes may just have come from it
            scene.rig.sweep(60.0)


def read_until_close(scene: Scene, reader: socket.socket) -> None:
    """Until all that the other side has sent is in the reader's buffers, and no pipe holds any of it."""

    def all_sent() -> bool:
        with contextlib.suppress(BlockingIOError):
            reader.recv(65536)
        return scene.flow.state == State.CLOSE

    scene.rig.until(all_sent, "all is in the send buffer")


def arrives_until_reset(scene: Scene, reader: socket.socket) -> int:
    """Bytes that a slow reader takes before it is reset."""
    arrived = 0
    with contextlib.suppress(ConnectionResetError):
        while True:
            with contextlib.suppress(BlockingIOError):
                arrived += len(reader.recv(65536))
            scene.rig.tick()
    return arrived


def fill(scene: Scene, by: str, piece_bytes: int = 65536) -> None:
    """Have one side send until a pipe of the flow's holds bytes, for the other side takes no more.

    With small pieces nothing is left then in the sender's own socket.
    """
    stage, sender = scene.forwarding, scene.served if by == "target" else scene.client
    lane = stage._down if by == "target" else stage._up

    def filled() -> int:
        if not lane.held_bytes:
            with contextlib.suppress(BlockingIOError):
                sender.send(b"a" * piece_bytes)
        return lane.held_bytes

    scene.rig.until(filled, "a pipe holds bytes")


def found_down(scene: Scene, number: int = why.RESET) -> None:
    """A probe has found the one target down, and connections to it are to end; the worker looks."""
    gate = scene.flow.gate
    gate.declare(replace(gate.declared, probe=ProbeRow("", 1.0, 1.0, on_down="cut")))
    scene.rig.ledger.words[scene.rig.part.counts_at(0) + Count.HEALTH] = packed(Health.DOWN, number, 1)
    scene.rig.sweep(1.0)


def last(scene: Scene, for_s: float) -> None:
    """It may last for so long, and has."""
    gate = scene.flow.gate
    gate.declare(replace(gate.declared, lifetime_s=for_s))
    scene.rig.sweep(for_s * 1.1)
