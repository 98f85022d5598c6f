"""Where the client of an edge connected to: its target is told of that, by whichever worker dials it."""

import contextlib
import socket
from dataclasses import replace
from typing import Any, Final

import pytest

from relay.address import Address, packed_host
from relay.dataplane.dialling import Dialling
from relay.dataplane.greeting import Greeting
from relay.envelope import proxyproto
from relay.ledger.layout import State
from relay.ledger.record import by_ends
from tests.dataplane.rig import Rig, Target, refusing, silent_target, tcp_target
from tests.dataplane.scenes import CLIENT, EDGE, HELLO, at_header

PUBLIC: Final = Address("192.0.2.80", 443)
SIX: Final = Address("2001:db8::80", 443)


def header(client: str = CLIENT, to: Address = PUBLIC) -> bytes:
    return proxyproto.build_v2(Address(client, 0).packed, 40_000, to.packed, to.port)


BUILDERS: Final = {"v1": proxyproto.build_v1, "v2": proxyproto.build_v2}


def told(version: str, client: str = CLIENT, to: Address = PUBLIC) -> bytes:
    return BUILDERS[version](Address(client, 0).packed, 40_000, to.packed, to.port)


def hears(rig: Rig, target: Target, expected: bytes) -> bool:
    return rig.receive(target.accept(rig), len(expected)) == expected


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("client", "to"), [(CLIENT, PUBLIC), ("2001:db8::9", SIX), ("2001:db8::9", PUBLIC), (CLIENT, SIX)]
)
def test_the_target_is_told(version: str, client: str, to: Address, stack: contextlib.ExitStack) -> None:
    """Also a client of one IP version at an address of the other."""
    target = tcp_target(stack)
    scene = at_header(stack, target, send_proxy=version)
    scene.say(header(client, to) + b"first")
    assert hears(scene.rig, target, told(version, client, to) + b"first")
    [record] = scene.rig.ledger.flows()
    assert record.peer == str(Address(client, 40_000))


def test_an_edges_own_question_says_nothing_of_it(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target, send_proxy="v2")
    own, rig = scene.flow.peer, scene.rig
    scene.say(proxyproto.LOCAL_V2)
    assert scene.flow.came_to is None
    assert hears(rig, target, proxyproto.build_v2(own.packed, own.port, socket.inet_aton(EDGE), rig.address[1]))


@pytest.mark.parametrize("state", [State.HEADER, State.LOOK, State.DIAL, State.HOLD])
def test_a_successor_tells_the_same(state: int, stack: contextlib.ExitStack) -> None:
    """Wherever the dead worker stood, what is dialled now hears what it would have heard before."""
    silent = silent_target(stack)
    keys: dict[str, Any] = {"send_proxy": "v2", "protocol": "http" if state == State.LOOK else "tcp"}
    if state == State.HOLD:
        keys["hold_s"] = 60.0
    scene = at_header(stack, refusing() if state == State.HOLD else silent, **keys)
    rig = scene.rig
    if state == State.HEADER:  # it has written down who it is, and taken the header
        rig.part.identify(scene.flow.record, by_ends(packed_host(CLIENT), 40_000, PUBLIC.packed, PUBLIC.port), 0)
        scene.client.send(header())
        rig.until(lambda: scene.flow.client.recv(99, socket.MSG_PEEK | socket.MSG_DONTWAIT), "it has come")
        assert len(scene.flow.client.recv(99)) == len(header())
    else:
        scene.say(header())
        assert scene.flow.state == state
    scene.flow.stage.leave("error")  # the dead worker's own dial
    flow, record = rig.taken_over(scene.flow)
    assert (flow.came_to, record.state) == (PUBLIC, state)
    target = tcp_target(stack)
    flow.gate.declare(replace(flow.gate.declared, targets=(target.row,)))
    if state in (State.HEADER, State.LOOK):
        Greeting(flow).resume(record)
    elif state == State.DIAL:
        Dialling(flow).start()
    else:
        Dialling(flow).resume_hold()
    scene.client.send(HELLO)
    rig.tick(1.0)  # of one that waits, until it is tried again
    assert hears(rig, target, told("v2") + HELLO)
