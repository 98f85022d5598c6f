"""An edge that asks whether the target has taken the connection is told before all others, once, and exactly."""

import contextlib
import errno
import socket

import pytest

from relay.dataplane.forwarding import Forwarding
from relay.envelope import asking, proxyproto
from relay.envelope.rules import RuleRow
from relay.kernel.bare_socket import BareSocket
from relay.ledger.layout import DaemonWord, State
from relay.targets import why
from tests.dataplane.rig import LATER_S, Target, refusing, reset, silent_target, tcp_target
from tests.dataplane.scenes import CLIENT, EDGE, Scene, at_header

Stack = contextlib.ExitStack
ADDRESSES = (socket.inet_aton(CLIENT), 40_000, socket.inet_aton(EDGE), 80)
ASKED = proxyproto.build_v2(*ADDRESSES, asking.tlv(asking.TAKEN))
REFUSED = asking.refusal(why.of_error(errno.ECONNREFUSED), "connection refused")
DENIED = asking.refusal(why.DENIED, why.text_of(why.DENIED))


def joined(stack: Stack, data: bytes, **keys: object) -> Scene:
    """The edge has said this, and the target has been dialled."""
    target = tcp_target(stack)
    scene = at_header(stack, target, **keys)
    scene.say(data)
    scene.target, scene.service = target, target.accept(scene.rig)
    return scene


def answered(scene: Scene, data: bytes) -> None:
    assert scene.rig.receive(scene.client, len(data)) == data


def refused(scene: Scene, answer: bytes) -> str:
    answered(scene, answer)
    assert scene.rig.ending(scene.client) == "fin"
    return str(scene.rig.ended()["cause"])


def test_a_client_that_was_taken(stack: Stack) -> None:
    scene = joined(stack, ASKED + b"hello")
    scene.served.send(b"\x01world")
    answered(scene, asking.TOOK + b"\x01world")
    assert scene.rig.receive(scene.served, 5) == b"hello"
    scene.served.close()
    assert scene.rig.ending(scene.client) == "fin"
    scene.client.close()
    record = scene.rig.ended()
    assert (record["received"], record["sent"]) == (5, 6), "what is relay's own does not count"


def test_a_target_is_told_who_it_is_first_of_all(stack: Stack) -> None:
    scene = joined(stack, ASKED + b"hello", send_proxy="v2")
    header = proxyproto.build_v2(*ADDRESSES)  # and where it connected to, at the edge
    assert scene.rig.receive(scene.served, len(header) + 5) == header + b"hello"
    answered(scene, asking.TOOK)


def test_an_edges_own_question_that_was_taken(stack: Stack) -> None:
    scene = joined(stack, asking.header(asking.TAKEN, asking.THROUGH) + b"GET /")
    scene.served.send(b"HTTP/1.1 200 OK")
    answered(scene, asking.WELL + b"HTTP/1.1 200 OK")
    assert scene.rig.receive(scene.served, 5) == b"GET /"


def test_other_questions_of_a_clients_header_are_nothing(stack: Stack) -> None:
    for question in (asking.THROUGH, asking.RELAY):
        scene = joined(stack, proxyproto.build_v2(*ADDRESSES, asking.tlv(question)))
        scene.served.send(b"hello")
        answered(scene, b"hello")


@pytest.mark.parametrize("said", [b"", b"hello"])
def test_a_client_that_no_target_takes(said: bytes, stack: Stack) -> None:
    scene = at_header(stack, refusing())
    scene.say(ASKED + said)
    assert refused(scene, REFUSED) == "connect_failed"


def test_a_target_that_does_not_answer(stack: Stack) -> None:
    scene = at_header(stack, silent_target(stack), connect_s=5.0)
    scene.say(ASKED)
    scene.rig.tick(5.0)
    assert refused(scene, asking.refusal(why.no_answer(5.0), "no answer in 5 s")) == "connect_timeout"


def test_a_busy_instance_takes_no_client_of_an_edge_that_asks(stack: Stack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target)
    scene.rig.ledger.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = scene.rig.clock() + 10**12
    scene.say(ASKED)
    assert refused(scene, asking.refusal(why.BUSY, why.text_of(why.BUSY))) == "drain"
    assert not target.was_dialled()


def test_a_busy_instance_takes_clients_of_an_edge_that_does_not(stack: Stack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target)
    scene.rig.ledger.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = scene.rig.clock() + 10**12
    scene.say(proxyproto.build_v2(*ADDRESSES))
    target.accept(scene.rig)


def test_a_client_that_is_denied_is_so_at_every_instance(stack: Stack) -> None:
    scene = at_header(stack, rules=(RuleRow(False, f"{CLIENT}/32", "f:1"),))
    scene.say(ASKED + b"hello")
    assert refused(scene, DENIED) == "denied"


def test_a_client_that_speaks_something_else(stack: Stack) -> None:
    scene = at_header(stack, protocol="http")
    scene.say(ASKED + b"\x16\x03\x01")
    scene.rig.until(lambda: not scene.rig.context.flows, "it is refused")
    assert refused(scene, DENIED) == "protocol"


def test_a_client_that_says_too_little(stack: Stack) -> None:
    scene = at_header(stack, protocol="http")
    scene.say(ASKED + b"GE")
    scene.rig.tick(LATER_S)
    assert refused(scene, DENIED) == "first_byte_timeout"


@pytest.mark.parametrize("said", [b"", b"hello"])
def test_an_edge_that_has_left_has_its_clients_bytes_elsewhere_and_the_target_gets_none(
    said: bytes, stack: Stack
) -> None:
    target = silent_target(stack)
    scene = at_header(stack, target)
    scene.say(ASKED + said)
    assert scene.flow.state == State.DIAL
    reset(scene.client)
    took, service = connected_pair(stack, target)
    stage = scene.flow.stage
    stage._drop()  # type: ignore[attr-defined]  # of Dialling
    stage._connected(took)  # type: ignore[attr-defined]
    assert scene.rig.ended()["cause"] == "client_reset"
    service.settimeout(5)
    with pytest.raises(ConnectionResetError):
        service.recv(99)


def connected_pair(stack: Stack, _target: Target) -> tuple[BareSocket, socket.socket]:
    """A dial that was answered: its socket, and the service's."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
    dialled = socket.create_connection(listener.getsockname())
    dialled.setblocking(False)
    service = stack.enter_context(listener.accept()[0])
    return BareSocket(dialled.detach()), service


@pytest.mark.parametrize("told_already", [False, True])
def test_a_successor_tells_it_unless_the_dead_worker_has(told_already: bool, stack: Stack) -> None:
    """A worker that was killed when the ledger said that the target had taken it."""
    scene = joined(stack, ASKED + b"hello")
    if not told_already:
        scene = joined_untold(stack)
    rig, dead = scene.rig, scene.forwarding
    rig.poller.forget(dead._target.fileno())
    flow, record = rig.taken_over(scene.flow)
    assert (flow.asks, record.state) == (asking.TAKEN, State.SPLICE)
    Forwarding(flow, BareSocket(dead._target.detach())).resume(record, None, None)
    scene.served.send(b"world")
    answered(scene, asking.TOOK + b"world")
    assert rig.receive(scene.served, 5) == b"hello"


def joined_untold(stack: Stack) -> Scene:
    with pytest.MonkeyPatch.context() as killed:
        killed.setattr("relay.dataplane.forwarding.tell_taken", lambda _: True)
        return joined(stack, ASKED + b"hello")
