"""A PROXY header that names no TCP client: only the command LOCAL makes the connection its sender's own."""

import contextlib
import socket
from typing import Final

import pytest

from relay.dataplane.greeting import Greeting
from relay.envelope import asking, proxyproto
from relay.envelope.rules import RuleRow
from relay.ledger.layout import REASONS, Count, DaemonWord, Flag, State
from tests.dataplane.rig import tcp_target
from tests.dataplane.scenes import EDGE, HELLO, Scene, at_header

SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
DENY_EDGE: Final = (RuleRow(False, f"{EDGE}/32", "f:1"),)


def unnamed(family: int, rest: bytes = bytes(216)) -> bytes:
    """A header of the command PROXY with this family and transport."""
    return SIGNATURE + bytes([0x21, family]) + len(rest).to_bytes(2, "big") + rest


UNNAMED: Final = {"unspec": unnamed(0x00, b""), "udp4": unnamed(0x12), "udp6": unnamed(0x22), "unix": unnamed(0x31)}
EACH: Final = pytest.mark.parametrize("header", UNNAMED.values(), ids=UNNAMED)


def denied(scene: Scene, reason: str) -> int:
    return scene.rig.ledger.total(0, Count.DENIED + REASONS.index(reason))


@EACH
def test_the_envelope_is_asked_about_the_connections_own_address(header: bytes, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target, rules=DENY_EDGE)
    own = scene.flow.peer
    scene.client.send(header + b"first")
    rig = scene.rig
    assert rig.ending(scene.client) == "reset"
    line = rig.ended()
    assert (line["cause"], line["peer"], denied(scene, "access")) == ("denied", str(own), 1)
    assert not target.was_dialled()


@EACH
def test_its_first_bytes_are_looked_at(header: bytes, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target, protocol="http")
    scene.say(header)
    assert (scene.flow.state, scene.flow.probe, scene.flow.source, scene.flow.via) == (State.LOOK, False, EDGE, EDGE)
    scene.client.send(b"\0\1 no HTTP")
    assert scene.rig.ending(scene.client) == "reset"
    assert (scene.rig.ended()["cause"], denied(scene, "protocol")) == ("protocol", 1)
    assert not target.was_dialled()


@EACH
def test_the_target_is_told_of_the_connections_own_ends_and_the_log_too(
    header: bytes, stack: contextlib.ExitStack
) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target, protocol="http", send_proxy="v2", per_source=1)
    rig, own = scene.rig, scene.flow.peer
    scene.say(header)
    scene.say(HELLO)
    service = target.accept(rig)
    told = proxyproto.build_v2(own.packed, own.port, socket.inet_aton(EDGE), rig.address[1])
    assert rig.receive(service, len(told) + len(HELLO)) == told + HELLO
    assert rig.gate.admit(EDGE, rig.context.now_s()) is None
    assert rig.gate.identify(EDGE, EDGE, rig.context.now_s()) == "per_source", "it is under the limits"
    rig.gate.release(EDGE, "denied")
    scene.client.close()
    service.close()
    rig.until(lambda: not rig.context.flows, "it ends")
    rig.log.flush()
    [line] = [each for each in rig.records() if each["event"] == "connection"]
    assert (line["level"], line["peer"], line["received"]) == ("info", str(own), len(HELLO))


def test_it_is_cut_when_its_address_may_not_connect_any_more(stack: contextlib.ExitStack) -> None:
    """As is a client on the edge's own machine, who has the same address; and not an edge's own question."""
    own = proxyproto.build_v2(socket.inet_aton(EDGE), 40_000, socket.inet_aton(EDGE), 80)
    for header, kept in ((UNNAMED["unspec"], False), (own, False), (proxyproto.LOCAL_V2, True), (b"", True)):
        scene = at_header(stack, tcp_target(stack))
        flow = scene.flow
        if header:
            scene.say(header)
        flow.gate.declare(at_header(stack, rules=DENY_EDGE).flow.gate.declared)
        assert flow.gate.keeps(flow.source, flow.via, brings_nobody=flow.brings_nobody) is kept, header


@pytest.mark.parametrize("question", [asking.THROUGH, asking.RELAY, asking.TAKEN, asking.LINE])
@EACH
def test_it_asks_nothing(header: bytes, question: int, stack: contextlib.ExitStack) -> None:
    """What only an edge's own connection may ask is answered to nobody else; here it is as if it were not there."""
    asks = asking.tlv(question)
    asked = header[:14] + (int.from_bytes(header[14:16], "big") + len(asks)).to_bytes(2, "big") + header[16:] + asks
    target = tcp_target(stack)
    scene = at_header(stack, target)
    scene.say(asked)
    assert (scene.flow.state, scene.flow.asks, scene.flow.probe) == (State.SPLICE, asking.NOTHING, False)
    assert target.was_dialled()


def test_it_is_let_in_while_the_instance_wants_no_more(stack: contextlib.ExitStack) -> None:
    """A question is refused then, which is how an edge learns of it; a client that it sent all the same is not."""
    scene = at_header(stack, tcp_target(stack))
    scene.rig.ledger.words[DaemonWord.BUSY_UNTIL_NS] = 2**62
    scene.say(UNNAMED["unspec"])
    assert scene.flow.state == State.SPLICE


def test_a_successor_knows_it(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, tcp_target(stack), protocol="http")
    scene.say(UNNAMED["unspec"])
    own = scene.flow.peer
    flow, record = scene.rig.taken_over(scene.flow)
    assert (flow.probe, flow.source, flow.peer, flow.came_to) == (False, EDGE, own, None)
    assert not record.flags & Flag.PROBE
    assert not flow.brings_nobody
    Greeting(flow).resume(record)
    assert flow.state == State.LOOK
