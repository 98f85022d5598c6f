"""A connection that names its endpoint where relays talk to each other: it is that one's, whoever dies at that moment."""

import contextlib
import socket
from collections.abc import Callable
from typing import Any, Final

import pytest

from relay.dataplane import first_bytes
from relay.dataplane.adopt import Adoption
from relay.dataplane.flow import Flow
from relay.dataplane.gate import Gate
from relay.dataplane.greeting import begin
from relay.envelope import asking, proxyproto
from relay.envelope.rules import RuleRow
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import CAUSES, REASONS, Count, DaemonWord, State
from relay.ledger.ledger import WorkerLedger
from relay.targets import why
from tests.config.rig import endpoint_row
from tests.dataplane.rig import Rig, Target, rig_to, silent_target, tcp_target
from tests.dataplane.scenes import CLIENT, EDGE, Scene

RELAY: Final = 0  # slots
ENDPOINT: Final = 1
MACHINE: Final = "127.0.0.1"  # as an edge, or one with a door
PASSED: Final = CAUSES.index("passed")


def at_relay_port(stack: contextlib.ExitStack, target: Target | None = None, **keys: Any) -> Scene:
    """A connection to a relay's own port; behind it is the endpoint `web/in`, of which these are the keys."""
    target = target or tcp_target(stack)
    rig = rig_to(stack, name="web/@relay", type="relay", denied_reason="roster", slot=RELAY)
    row = endpoint_row(slot=ENDPOINT, listen_port=8080, targets=(target.row,), **keys)
    rig.context.gates = {
        each.name: Gate(each, rig.part, SourceCounts(rig.part))
        for each in (
            row,
            endpoint_row("web/range", slot=2, port_count=2, listen_port=9000),
            endpoint_row("web/db", slot=3, type="door", leads_to="store/pg"),
        )
    }
    rig.context.gates["web/@relay"] = rig.gate
    rig.context.relay_port = rig.address[1]
    client, flow = rig.let_in()
    begin(flow)
    assert flow.state == State.HEADER
    return Scene(rig, client, flow, target)


def named(client: str = MACHINE, name: str = "web/in", asked: int = asking.TAKEN) -> bytes:
    """A header of this client's for this endpoint."""
    packed = socket.inet_aton(client)
    return proxyproto.build_v2(packed, 4711, packed, 80, asking.tlv(asked) + asking.endpoint_tlv(name))


def total(rig: Rig, slot: int, count: int) -> int:
    return rig.ledger.total(slot, count)


def denied(rig: Rig, slot: int) -> dict[str, int]:
    counts = {name: total(rig, slot, Count.DENIED + n) for n, name in enumerate(REASONS)}
    return {name: count for name, count in counts.items() if count}


def closed(rig: Rig, slot: int) -> dict[str, int]:
    counts = {name: total(rig, slot, Count.CLOSED + n) for n, name in enumerate(CAUSES)}
    return {name: count for name, count in counts.items() if count}


def all_that_comes(scene: Scene) -> bytes:
    """What the other relay is told before the end."""
    told = bytearray()

    def ended() -> bool:
        with contextlib.suppress(BlockingIOError):
            told.extend(part := scene.client.recv(4096))
            return not part
        return False

    scene.rig.until(ended, "it ends")
    return bytes(told)


def test_it_is_the_endpoints_from_then_on(stack: contextlib.ExitStack) -> None:
    scene = at_relay_port(stack, type="internal", send_proxy="v2", per_source=1)
    rig, target = scene.rig, scene.target
    assert target is not None
    assert (total(rig, RELAY, Count.ACCEPTED), total(rig, RELAY, Count.ACTIVE)) == (1, 1)
    scene.say(named() + b"hello")
    service = target.accept(rig)
    packed = socket.inet_aton(MACHINE)
    told = proxyproto.build_v2(packed, 4711, packed, 8080)  # as if it had come to the endpoint's own port
    assert rig.receive(service, len(told) + 5) == told + b"hello"
    assert rig.receive(scene.client, 1) == asking.TOOK
    assert (total(rig, RELAY, Count.ACCEPTED), total(rig, RELAY, Count.ACTIVE)) == (1, 0)
    assert closed(rig, RELAY) == {"passed": 1}
    assert (total(rig, ENDPOINT, Count.ACCEPTED), total(rig, ENDPOINT, Count.ACTIVE)) == (1, 1)
    [record] = rig.ledger.flows()
    assert (record.slot, record.peer) == (ENDPOINT, f"{MACHINE}:4711")
    assert rig.context.gates["web/in"].admit(MACHINE, rig.context.now_s()) == "per_source"
    scene.client.close()
    service.close()
    rig.until(lambda: not rig.context.flows, "it ends")
    rig.log.flush()
    [line] = [each for each in rig.records() if each["event"] == "connection"]
    assert (line["endpoint"], line["peer"]) == ("web/in", f"{MACHINE}:4711")
    assert sum(closed(rig, ENDPOINT).values()) == 1
    assert total(rig, ENDPOINT, Count.ACTIVE) == 0


def test_its_first_bytes_are_looked_at(stack: contextlib.ExitStack) -> None:
    scene = at_relay_port(stack, type="internal", protocol="http")
    scene.say(named())
    assert scene.flow.state == State.LOOK
    scene.say(b"\x16\x03\x01 no HTTP")
    assert all_that_comes(scene).startswith(b"\0relay: %d " % why.DENIED)
    assert (denied(scene.rig, ENDPOINT), closed(scene.rig, ENDPOINT)) == ({"protocol": 1}, {"protocol": 1})


def test_an_edge_speaks_for_its_clients(stack: contextlib.ExitStack) -> None:
    scene = at_relay_port(stack, edges=(EDGE,))
    scene.say(named(CLIENT))
    assert (scene.flow.source, scene.flow.via) == (CLIENT, EDGE)
    assert scene.flow.gate.keeps(CLIENT, EDGE)
    assert scene.rig.receive(scene.client, 1) == asking.TOOK


def test_an_edge_says_where_its_client_connected_to(stack: contextlib.ExitStack) -> None:
    """A door cannot: its client connected to another machine's own port. See the first test."""
    scene = at_relay_port(stack, edges=(EDGE,), send_proxy="v2")
    assert scene.target is not None
    client, public = socket.inet_aton(CLIENT), socket.inet_aton("192.0.2.80")
    tlvs = asking.tlv(asking.TAKEN) + asking.endpoint_tlv("web/in")
    scene.say(proxyproto.build_v2(client, 4711, public, 443, tlvs))
    told = proxyproto.build_v2(client, 4711, public, 443)
    assert scene.rig.receive(scene.target.accept(scene.rig), len(told)) == told


@pytest.mark.parametrize("asked", [asking.THROUGH, asking.TAKEN])
def test_an_edge_asks_through(asked: int, stack: contextlib.ExitStack) -> None:
    scene = at_relay_port(stack, edges=(EDGE,))
    scene.say(asking.header(asked, endpoint="web/in"))
    assert scene.flow.probe
    assert scene.flow.state == State.SPLICE


DENIES: Final = (RuleRow(False, f"{MACHINE}/32", "f:1"),)


@pytest.mark.parametrize(
    ("said", "keys", "number", "reason", "cause"),
    [
        (named(name=""), {}, why.RESET, "protocol", "protocol"),
        (named(name="web/out"), {}, why.RESET, "protocol", "protocol"),
        (named(name="web/range"), {}, why.RESET, "protocol", "protocol"),
        (named(name="web/db"), {}, why.RESET, "protocol", "protocol"),
        (named(name="web/@relay"), {}, why.RESET, "protocol", "protocol"),
        (named(CLIENT), {"type": "internal"}, why.DENIED, "roster", "denied"),
        (named(CLIENT), {"edges": ("127.0.0.9",)}, why.DENIED, "roster", "denied"),
        (named(), {"edges": ("127.0.0.9",)}, why.DENIED, "roster", "denied"),
        (asking.header(asking.RELAY, endpoint="web/in"), {"rules": DENIES}, why.DENIED, "roster", "denied"),
        (asking.header(asking.THROUGH, endpoint="web/in"), {"type": "internal"}, why.DENIED, "protocol", "protocol"),
        (asking.header(asking.RELAY), {}, why.RESET, "protocol", "protocol"),
    ],
)
def test_whom_a_relay_refuses(
    said: bytes, keys: dict[str, Any], number: int, reason: str, cause: str, stack: contextlib.ExitStack
) -> None:
    """Where the endpoint is not here, another instance may have it: as if nobody listened at its port."""
    scene = at_relay_port(stack, **keys)
    scene.client.send(said)
    told = why.DENIED if number == why.DENIED else why.of_error(111)
    assert all_that_comes(scene).startswith(b"\0relay: %d " % told)
    assert (denied(scene.rig, RELAY), closed(scene.rig, RELAY)) == ({reason: 1}, {cause: 1})
    assert total(scene.rig, ENDPOINT, Count.ACCEPTED) == 0
    assert scene.target is not None
    assert not scene.target.was_dialled()


def test_whom_the_endpoint_refuses(stack: contextlib.ExitStack) -> None:
    scene = at_relay_port(stack, type="internal", rules=DENIES, denied_reason="roster")
    scene.say(named())
    assert all_that_comes(scene).startswith(b"\0relay: %d " % why.DENIED)
    assert (denied(scene.rig, ENDPOINT), closed(scene.rig, ENDPOINT)) == ({"roster": 1}, {"denied": 1})
    assert closed(scene.rig, RELAY) == {"passed": 1}


def test_who_names_nobody_names_no_endpoint(stack: contextlib.ExitStack) -> None:
    """Neither a question nor a name is read where a header of somebody's names no client."""
    scene = at_relay_port(stack, type="internal")
    own = asking.header(asking.RELAY, endpoint="web/in")
    scene.client.send(own[:12] + b"\x21" + own[13:])
    assert scene.rig.ending(scene.client) == "reset"
    assert (denied(scene.rig, RELAY), closed(scene.rig, RELAY)) == ({"protocol": 1}, {"protocol": 1})


def test_a_door_asks_how_the_application_is(stack: contextlib.ExitStack) -> None:
    scene = at_relay_port(stack, type="internal")
    scene.say(asking.header(asking.RELAY, endpoint="web/in"))
    assert all_that_comes(scene) == asking.WELL
    assert closed(scene.rig, ENDPOINT) == {"told": 1}


def test_an_instance_that_wants_no_more_says_so(stack: contextlib.ExitStack) -> None:
    scene = at_relay_port(stack, type="internal")
    scene.rig.ledger.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = 2**62
    scene.say(named())
    assert all_that_comes(scene).startswith(b"\0relay: %d " % why.BUSY)
    assert closed(scene.rig, ENDPOINT) == {"drain": 1}


# --- deaths -------------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """Here a worker dies."""


def kill_at(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool) -> None:
    """Once the flow is about to be passed on, this call is the last, or is not made any more."""
    real: Callable[..., Any] = getattr(owner, name)

    def dying(*args: Any, **keys: Any) -> None:
        if after:
            real(*args, **keys)
        raise Killed

    monkeypatch.setattr(owner, name, dying)


STORES: Final = [
    pytest.param(owner, name, after, id=f"{'after' if after else 'before'} {name}")
    for owner, name in (
        (WorkerLedger, "identify"),
        (WorkerLedger, "pass_on"),
        (Gate, "release"),
        (Gate, "readmit"),
        (Gate, "accepted"),
        (first_bytes, "take"),
        (Gate, "identify"),
    )
    for after in (False, True)
]


def die(scene: Scene) -> None:
    """The worker dies while it passes the flow on."""
    with pytest.raises(Killed):
        scene.rig.until(lambda: False, "it dies")


def succeed(scene: Scene) -> Flow:
    """The successor's flow, with gates of its own."""
    rig, dead = scene.rig, scene.flow
    rig.poller.forget(dead.client.fileno())
    for flows in (rig.context.flows, rig.context.waiting):
        flows.clear()
    left = {dead.client.detach()}
    rows = [rig.gate.declared, *(gate.declared for gate in rig.context.gates.values() if gate is not rig.gate)]
    rig.context.gates = {row.name: Gate(row, rig.part, SourceCounts(rig.part)) for row in rows}
    gates = {gate.declared.slot: gate for gate in rig.context.gates.values()}
    records = list(rig.part.flows())
    failed: list[Exception] = []

    def fail(_flow: object, error: Exception) -> None:
        failed.append(error)

    Adoption(rig.context, rig.pool, gates, {}, records, left, lambda _: set(), lambda: None, fail).run()
    assert failed == []
    return rig.flow()


@pytest.mark.interpreted
@pytest.mark.parametrize("others_end", [0, 1])
@pytest.mark.parametrize(("owner", "name", "after"), STORES)
def test_a_worker_that_dies_while_it_passes_one_on(
    owner: Any, name: str, after: bool, others_end: int, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every connection is counted once where it came, once where it went, and nothing of it is lost or sent twice."""
    target = silent_target(stack)
    scene = at_relay_port(stack, target, type="internal")
    rig = scene.rig
    for _ in range(others_end):  # one that the relay's port has refused: counted, and not buried yet
        _, other = rig.let_in()
        begin(other)
        other.cut("denied")
    scene.client.send(named() + b"hello")
    with monkeypatch.context() as patched:
        kill_at(patched, owner, name, after=after)
        die(scene)
    flow = succeed(scene)
    rig.until(lambda: flow.state == State.DIAL, "it goes on")
    assert (flow.gate.declared.slot, flow.source, flow.via) == (ENDPOINT, MACHINE, MACHINE)
    assert flow.asks == asking.TAKEN
    assert flow.client.recv(99, socket.MSG_PEEK) == b"hello"
    expected = {"passed": 1} | ({"denied": 1} if others_end else {})
    assert closed(rig, RELAY) == expected
    assert (total(rig, RELAY, Count.ACCEPTED), total(rig, RELAY, Count.ACTIVE)) == (1 + others_end, 0)
    assert (total(rig, ENDPOINT, Count.ACCEPTED), total(rig, ENDPOINT, Count.ACTIVE)) == (1, 1)
    assert closed(rig, ENDPOINT) == {}
