"""An instance's relay is talked to at its own port, and told for which endpoint: by an edge, and by a door out."""

import contextlib
import errno
import socket
from typing import Any, Final

import pytest

from relay.config.snapshot import TargetRow
from relay.dataplane.greeting import begin
from relay.envelope import asking, proxyproto
from relay.ledger.layout import Knows, State, TargetCount
from relay.targets import why
from tests.dataplane.asking_scenes import REQUEST, asked, edge_rig, succeeded
from tests.dataplane.rig import Target, refusing, reset, tcp_target
from tests.dataplane.scenes import Scene
from tests.ports import free_port

Stack = contextlib.ExitStack
REFUSED: Final = asking.refusal(why.of_error(errno.ECONNREFUSED), "connection refused")
DOOR: Final[dict[str, Any]] = {
    "type": "door",
    "leads_to": "store/pg",
    "send_proxy": None,
    "distribution": "least-connections",
}


def instance(port: int, relay_port: int) -> TargetRow:
    return TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port, relay_port=relay_port)


def at_ask(stack: Stack, *others: TargetRow, said: bytes = REQUEST, **keys: Any) -> Scene:
    """The first instance's relay has been asked at its own port; at the endpoint's nobody listens."""
    relay = tcp_target(stack)
    rows = (instance(free_port(), relay.row.port), *others)
    return asked(edge_rig(stack, *rows, knows=(Knows.NAMES,) * len(rows), **keys), relay, said)


def header_of(scene: Scene, name: str, *, door: bool = False) -> bytes:
    tlvs = asking.tlv(asking.TAKEN) + asking.endpoint_tlv(name)
    if door:
        peer = local = scene.served.getpeername()
    else:
        peer, local = scene.client.getsockname(), scene.client.getpeername()
    return proxyproto.build_v2(socket.inet_aton(peer[0]), peer[1], socket.inet_aton(local[0]), local[1], tlvs)


def takes(scene: Scene, header: bytes, said: bytes = REQUEST) -> None:
    """The relay has been told this, and its application takes the connection and says hello."""
    assert scene.rig.receive(scene.served, len(header + said)) == header + said
    scene.served.send(asking.TOOK + b"hello")
    assert scene.rig.receive(scene.client, 5) == b"hello"


def knows(scene: Scene, place: int = 0) -> int:
    return scene.rig.ledger.target_total(place, TargetCount.KNOWS)


def counted(scene: Scene, word: int, place: int = 0) -> int:
    return scene.rig.ledger.target_total(place, word)


def ended(scene: Scene) -> dict[str, Any]:
    reset(scene.served)
    scene.client.close()
    return scene.rig.ended()


@pytest.mark.parametrize("name", ["web/in", "web/in@instance"])
def test_an_edge_names_the_endpoint_and_its_client(name: str, stack: Stack) -> None:
    scene = at_ask(stack, name=name)
    takes(scene, header_of(scene, "web/in"))
    record = ended(scene)
    assert record["target"] == scene.rig.gate.declared.targets[0].text
    assert "attempts" not in record


def test_a_door_names_the_endpoint_and_its_own_machine(stack: Stack) -> None:
    scene = at_ask(stack, **DOOR)
    takes(scene, header_of(scene, "store/pg", door=True))
    assert ended(scene)["cause"] == "target_reset"
    assert counted(scene, TargetCount.FAILURES) == 0


def test_what_is_reset_after_it_was_taken_says_nothing_of_the_instance(stack: Stack) -> None:
    """A client of the door's could bring such a reset about; and it is asked how its application is."""
    scene = at_ask(stack, said=b"", **DOOR)
    scene.rig.receive(scene.served, len(header_of(scene, "store/pg", door=True)))
    scene.served.send(asking.TOOK)
    scene.rig.until(lambda: scene.flow.state == State.SPLICE, "it is taken")
    assert ended(scene)["cause"] == "target_reset"
    assert counted(scene, TargetCount.FAILURES) == 0
    assert counted(scene, TargetCount.CONNECTED) == 1


@pytest.mark.parametrize("door", [False, True])
def test_a_successor_knows_what_was_told(door: bool, stack: Stack) -> None:
    scene = at_ask(stack, **(DOOR if door else {}))
    header = header_of(scene, "store/pg" if door else "web/in", door=door)
    scene = succeeded(scene)
    assert scene.flow.route.by_name
    takes(scene, header)
    scene.client.send(b"more")
    assert scene.rig.receive(scene.served, 4) == b"more"
    assert ended(scene)["received"] == len(REQUEST) + 4


@pytest.mark.parametrize("door", [False, True])
def test_an_application_that_is_gone_behind_one_of_two(door: bool, stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, instance(free_port(), other.row.port), **(DOOR if door else {}))
    scene.served.send(REFUSED)
    scene = next_one(scene, other)
    takes(scene, header_of(scene, "store/pg" if door else "web/in", door=door))
    assert (counted(scene, TargetCount.FAILURES), counted(scene, TargetCount.RETRIES)) == (1, 1)
    assert knows(scene) == Knows.NAMES, "its relay is well"
    assert ended(scene)["attempts"] == 2


def next_one(scene: Scene, other: Target) -> Scene:
    return Scene(scene.rig, scene.client, scene.flow, other, other.accept(scene.rig))


@pytest.mark.parametrize("door", [False, True])
def test_a_relay_that_has_left_its_port_is_reached_at_the_endpoints(door: bool, stack: Stack) -> None:
    target = tcp_target(stack)
    row = instance(target.row.port, free_port())
    rig = edge_rig(stack, row, knows=(Knows.NAMES,), **{**(DOOR if door else {}), "send_proxy": None})
    client, flow = rig.let_in()
    begin(flow)
    scene = Scene(rig, client, flow, target, target.accept(rig))
    rig.until(lambda: flow.state == State.SPLICE, "it is forwarded")
    client.send(b"hello")
    assert rig.receive(scene.served, 5) == b"hello"
    assert (knows(scene), counted(scene, TargetCount.FAILURES)) == (0, 0)
    assert "attempts" not in ended(scene)


def test_another_program_at_the_relays_port(stack: Stack) -> None:
    other = tcp_target(stack)
    scene = at_ask(stack, instance(free_port(), other.row.port), **DOOR)
    scene.served.send(b"220 mail.example.org")
    scene = next_one(scene, other)
    takes(scene, header_of(scene, "store/pg", door=True))
    assert (knows(scene), counted(scene, TargetCount.FAILURES)) == (0, 1)
    assert knows(scene, 1) == Knows.NAMES


def test_nobody_is_left(stack: Stack) -> None:
    scene = at_ask(stack, refusing(), **DOOR)
    scene.served.send(REFUSED)
    assert scene.rig.ending(scene.client) == "reset"
    record = ended(scene)
    assert (record["cause"], record["reason"]) == ("connect_failed", "connection refused")
