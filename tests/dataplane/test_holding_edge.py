"""On an edge: a connection waits when no instance is left, and tries those that are down where that is exact."""

import contextlib
import errno

import pytest

from relay.config.snapshot import ProbeRow
from relay.dataplane.greeting import begin
from relay.envelope import asking
from relay.ledger.layout import Health, State, TargetCount, health_at
from relay.targets import health, why
from tests.dataplane.asking_scenes import REQUEST, edge_rig, header_of
from tests.dataplane.holding_scenes import HOLD_S, TRY_S, at_hold_behind_an_edge, held, hold_by_hand, one_more
from tests.dataplane.rig import Rig, refusing, tcp_target
from tests.dataplane.scenes import CLIENT, EDGE, HEADER, HELLO, at_header

Stack = contextlib.ExitStack
RELAY = ProbeRow("", 2.0, 5.0, "relay")
HTTP = ProbeRow("/healthz", 2.0, 5.0)


def down(rig: Rig, place: int = 0, reason: int = why.of_relay(why.of_error(errno.ECONNREFUSED))) -> None:
    """Control has found that instance so: not even its relay is there."""
    rig.ledger.words[health_at(place)] = health.packed(Health.DOWN, reason, 1)
    rig.ledger.words[rig.part.target_counts_at(place)[0] + TargetCount.LOOKED_NS] = rig.clock()


def test_what_it_sent_goes_to_the_instance_again_whole(stack: Stack) -> None:
    scene = at_hold_behind_an_edge(stack)
    scene.client.send(b"more")
    scene.rig.tick(TRY_S)
    assert scene.flow.state == State.ASK
    assert scene.target is not None
    scene.service = scene.target.accept(scene.rig)
    sent = header_of(scene) + REQUEST + b"more"
    assert scene.rig.receive(scene.served, len(sent)) == sent
    scene.served.send(asking.TOOK + b"hello")
    assert scene.rig.receive(scene.client, 5) == b"hello"
    assert (scene.flow.state, held(scene.rig)) == (State.SPLICE, 0)


@pytest.mark.parametrize(
    ("probe", "knows", "state"), [(RELAY, 1, State.ASK), (RELAY, 0, State.HOLD), (HTTP, 1, State.HOLD)]
)
def test_one_that_is_down_is_tried_where_a_connection_alone_proves_it(
    stack: Stack, probe: ProbeRow, knows: int, state: int
) -> None:
    rig = edge_rig(stack, tcp_target(stack), knows=(knows,), probe=probe, hold_s=HOLD_S)
    down(rig)
    _, flow = one_more(rig)
    assert flow.state == State.HOLD, "it was let in though no instance is up, and dials nobody at first"
    rig.tick(TRY_S)
    assert flow.state == state
    rig.ledger.words[health_at(0)] = health.packed(Health.UP, 0, 1)
    if state == State.HOLD:
        rig.tick(TRY_S)
        assert flow.state == (State.ASK if knows else State.SPLICE)


def test_one_that_is_up_comes_first(stack: Stack) -> None:
    first, second = tcp_target(stack), tcp_target(stack)
    rig = edge_rig(stack, first, second, probe=RELAY, hold_s=HOLD_S)
    down(rig, 0)
    down(rig, 1)
    one_more(rig)
    rig.ledger.words[health_at(1)] = health.packed(Health.UP, 0, 1)
    rig.tick(TRY_S)
    assert (first.was_dialled(), second.was_dialled()) == (False, True)


def test_without_a_declaration_nobody_is_let_in_when_no_instance_is_up(stack: Stack) -> None:
    rig = edge_rig(stack, tcp_target(stack), knows=(1,), probe=RELAY)
    down(rig)
    assert rig.gate.admit("127.0.0.1", rig.context.now_s()) == "no_target"


def test_no_more_are_let_in_than_may_wait(stack: Stack) -> None:
    rig = edge_rig(stack, tcp_target(stack), knows=(1,), probe=HTTP, hold_s=HOLD_S, held_max=1)
    down(rig)
    one_more(rig)
    assert rig.gate.admit("127.0.0.1", rig.context.now_s()) == "no_target"


def test_an_instance_that_holds_is_waited_for_without_a_declaration_and_has_not_failed(stack: Stack) -> None:
    scene = at_hold_behind_an_edge(stack, why.HELD, hold_s=None)
    words, at = scene.rig.ledger.words, scene.rig.part.target_counts_at(0)[0]
    assert (words[at + TargetCount.FAILURES], words[at + TargetCount.EJECTIONS]) == (0, 0)
    scene.rig.tick(TRY_S)
    assert scene.target is not None
    scene.target.accept(scene.rig).send(asking.refusal(why.HELD, ""))
    scene.rig.until(lambda: scene.flow.state == State.HOLD, "it waits again")
    scene.rig.tick(61.0)
    record = scene.rig.ended()
    assert (record["cause"], record["reason"]) == ("connect_failed", why.text_of(why.HELD))


def test_a_probe_that_was_told_so_is_enough(stack: Stack) -> None:
    rig = edge_rig(stack, tcp_target(stack), knows=(1,), probe=HTTP)
    down(rig, 0, why.HELD)
    _, flow = one_more(rig)
    assert flow.state == State.HOLD
    rig.ledger.words[health_at(0)] = health.packed(Health.UP, 0, 1)
    rig.tick(TRY_S)
    assert flow.state == State.ASK


def test_when_another_instance_is_left_nobody_waits(stack: Stack) -> None:
    rig = edge_rig(stack, refusing(), tcp_target(stack), hold_s=HOLD_S)
    _, flow = rig.let_in()
    begin(flow)
    rig.until(lambda: flow.state == State.ASK, "the other one is asked")


def said_to(stack: Stack, header: bytes, *, is_down: bool = False) -> bytes:
    """What an instance that is held by hand answers an edge."""
    scene = hold_by_hand(at_header(stack, refusing()))
    if is_down:
        scene.rig.gate.target_failed(scene.rig.clock(), why.of_error(errno.ECONNREFUSED))
    scene.client.send(header)
    scene.rig.until(lambda: scene.flow.state == State.END, "it is answered")
    scene.rig.poller.bury()
    return scene.client.recv(1024)


def test_an_edge_that_asks_is_told_that_the_endpoint_is_held(stack: Stack) -> None:
    told = asking.refusal(why.HELD, why.text_of(why.HELD))
    assert said_to(stack, asking.header(asking.TAKEN, asking.THROUGH)) == told, "its probe"
    assert said_to(stack, asking.header(asking.RELAY), is_down=True) == told
    assert said_to(stack, asking.header(asking.RELAY)) == asking.WELL, (
        "an edge sends connections on, and they wait there"
    )
    assert asking.is_refusal(said_to(stack, asking.header(asking.THROUGH))), "an older one goes through, as ever"


def test_a_client_whose_edge_does_not_ask_waits_at_the_instance(stack: Stack) -> None:
    scene = hold_by_hand(at_header(stack, tcp_target(stack)))
    scene.say(HEADER)
    assert (scene.flow.state, scene.flow.peer.host, scene.flow.source) == (State.HOLD, CLIENT, CLIENT)
    assert EDGE in scene.rig.gate.declared.edges
    scene.client.send(HELLO)
    hold_by_hand(scene, 0)
    scene.rig.tick(TRY_S)
    assert scene.flow.state == State.SPLICE
