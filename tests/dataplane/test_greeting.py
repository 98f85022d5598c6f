"""What comes before the dial, over real sockets: an edge's header, and the first bytes that are looked at and left."""

import contextlib
import select
import socket
from typing import Any

import pytest

from relay import calls
from relay.dataplane import first_bytes
from relay.dataplane.greeting import Greeting, begin
from relay.envelope import proxyproto
from relay.envelope.rules import RuleRow
from relay.kernel.bare_socket import BareSocket
from relay.ledger.layout import ENVELOPE_REASONS, REASONS, Count, DaemonWord, State
from relay.ledger.record import by_text
from tests.dataplane.rig import Rig, Target, refusing, reset, rig_to, silent_target, tcp_target
from tests.dataplane.scenes import CLIENT, EDGE, HEADER, HELLO, at_header, at_look
from tests.harness import HANG_S

# --- LOOK ---------------------------------------------------------------------------------------------------------------


def looked_bytes(rig: Rig) -> int:
    """How much of what the one client has sent has been looked at."""
    stage = rig.flow().stage
    assert isinstance(stage, Greeting)
    return stage._looked_bytes


def test_http_that_comes_byte_by_byte(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, protocol="http")
    client = rig.connect()
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(len(HELLO) - 1):
        client.send(HELLO[at : at + 1])
        rig.until(lambda at=at: looked_bytes(rig) == at + 1, "it is looked at")  # type: ignore[misc]
        assert rig.flow().state == State.LOOK
        assert not target.was_dialled(), "nothing is dialled before the line is whole"
    rig.tick()
    client.send(HELLO[-1:] + b"rest")
    service = target.accept(rig)
    assert rig.receive(service, len(HELLO) + 4) == HELLO + b"rest", "looking takes nothing"
    client.send(b"x")
    assert rig.receive(service, 1) == b"x", "the first byte alone wakes it again"
    client.close()
    service.close()
    assert rig.ended()["cause"] == "client_fin"


@pytest.mark.interpreted
def test_waiting_for_more_does_not_spin(stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []
    real = first_bytes.first_bytes

    def counting(client: BareSocket, protocol: str, seen_bytes: int, before: first_bytes.SoFar | None) -> Any:
        looks.append(seen_bytes)
        return real(client, protocol, seen_bytes, before)

    monkeypatch.setattr(first_bytes, "first_bytes", counting)
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    client.send(b"GET")
    rig.until(lambda: looked_bytes(rig) == 3, "it is looked at")
    for _ in range(20):
        rig.poller.serve()
    assert 1 <= len(looks) <= 2


@pytest.mark.parametrize(("protocol", "data"), [("http", b"SSH-2.0-x\r\n"), ("https", b"GET / HTTP/1.1\r\n")])
def test_the_wrong_protocol(protocol: str, data: bytes, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    rig = rig_to(stack, target, protocol=protocol)
    client = rig.connect()
    client.send(data)
    assert rig.ending(client) == "reset"
    record = rig.ended()
    assert (record["cause"], record["target"]) == ("protocol", None)
    assert rig.ledger.total(0, Count.DENIED + REASONS.index("protocol")) == 1
    assert not target.was_dialled()


def test_a_flood_of_wrong_protocols_is_a_few_lines(stack: contextlib.ExitStack) -> None:
    """Each connection begins with another wrong byte; what a second leaves out must still be a line or two."""
    rig = rig_to(stack, refusing(), protocol="http")
    wrong = [bytes([byte]) for byte in range(128, 256)] + [b"G" * n + b"\x00" for n in range(1, 100)]
    lines = []
    for data in wrong:
        client = rig.connect()
        client.send(data)
        assert rig.ending(client) == "reset"
        rig.log.flush()
        lines += rig.records()
    rig.context.denials.tick()
    denied = [line for line in (*lines, *rig.records()) if line["event"] == "denied"]
    assert len(denied) <= 12
    assert sum(line.get("left_out", 1) for line in denied) == len(wrong)


@pytest.mark.parametrize("protocol", ["http", "https"])
def test_no_first_byte(protocol: str, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol=protocol, first_byte_s=2.0)
    client = rig.connect()
    rig.flow()
    rig.tick(1.9)
    assert rig.context.flows
    rig.tick(0.1)
    assert rig.ending(client) == "reset"
    assert rig.ended()["cause"] == "first_byte_timeout"


@pytest.mark.parametrize("data", [b"", b"GET / HT"])
def test_a_client_that_leaves_before_it_said_enough(data: bytes, stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    client.send(data)
    rig.flow()
    rig.until(lambda: looked_bytes(rig) == len(data), "it is looked at")
    client.close()
    assert rig.ended()["cause"] == "client_gone"


def test_a_client_that_resets_before_it_said_enough(stack: contextlib.ExitStack) -> None:
    rig = rig_to(stack, refusing(), protocol="http")
    client = rig.connect()
    rig.flow()
    reset(client)
    assert rig.ended()["cause"] == "client_reset"


def test_a_request_and_fin_at_once(stack: contextlib.ExitStack, target: Target) -> None:
    rig = rig_to(stack, target, protocol="http")
    client = rig.connect()
    client.send(HELLO)
    client.shutdown(socket.SHUT_WR)
    service = target.accept(rig)
    assert rig.receive(service, len(HELLO)) == HELLO
    assert rig.ending(service) == "fin"
    service.send(b"answer")
    service.close()
    assert rig.receive(client, 6) == b"answer"
    assert rig.ended()["cause"] == "client_fin"


@pytest.mark.parametrize("sent", [b"", b"GET / HT", HELLO])
def test_a_successor_looks_anew(sent: bytes, stack: contextlib.ExitStack) -> None:
    """Nothing was taken, so nothing is lost."""
    target = tcp_target(stack)
    scene = at_look(stack, target)
    rig, client = scene.rig, scene.client
    if sent and sent != HELLO:
        client.send(sent)
        rig.until(lambda: looked_bytes(rig) == len(sent), "it is looked at")
    flow, record = rig.taken_over(scene.flow)
    if sent == HELLO:
        client.send(sent)  # while nobody is there
    Greeting(flow).resume(record)
    rig.poller.serve()
    assert (flow.state == State.LOOK) is (sent != HELLO), "what is there is looked at in the first batch"
    client.send((HELLO + b"more")[len(sent) :])
    service = target.accept(rig)
    assert rig.receive(service, len(HELLO) + 4) == HELLO + b"more"
    client.send(b"x")
    assert rig.receive(service, 1) == b"x", "any byte is news again"


# --- HEADER -------------------------------------------------------------------------------------------------------------


def test_the_edge_says_who_the_client_is(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target, send_proxy="v2")
    rig, flow = scene.rig, scene.flow
    [record] = rig.ledger.flows()
    assert record.peer == str(flow.peer), "so far it is the edge's"
    scene.say(HEADER + b"first")
    assert (flow.state, flow.source, str(flow.peer), flow.via) == (State.SPLICE, CLIENT, f"{CLIENT}:40000", EDGE)
    [record] = rig.ledger.flows()
    assert (record.state, record.peer) == (State.SPLICE, f"{CLIENT}:40000")
    service = target.accept(rig)
    assert proxyproto.parse(rig.receive(service, len(HEADER))).src == socket.inet_aton(CLIENT)  # type: ignore[union-attr]
    assert rig.receive(service, 5) == b"first", "the header is taken, and not a byte more"
    scene.client.close()
    service.close()
    line = rig.ended()
    assert (line["peer"], line["received"]) == (f"{CLIENT}:40000", 5)


def test_a_header_that_comes_byte_by_byte(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, tcp_target(stack))
    rig = scene.rig
    for at in range(len(HEADER) - 1):
        scene.client.send(HEADER[at : at + 1])
        rig.until(lambda at=at: looked_bytes(rig) == at + 1, "it is looked at")  # type: ignore[misc]
    assert calls.readable_bytes(scene.flow.client.fileno()) == len(HEADER) - 1, "nothing is taken before it is whole"
    scene.say(HEADER[-1:])
    assert scene.flow.state == State.SPLICE


def test_then_the_clients_own_bytes_are_looked_at(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target, protocol="http")
    scene.say(HEADER)
    assert scene.flow.state == State.LOOK
    assert not target.was_dialled()
    scene.say(HELLO)
    assert scene.rig.receive(target.accept(scene.rig), len(HELLO)) == HELLO


def test_each_of_the_two_has_the_whole_time(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, protocol="http", first_byte_s=2.0)
    scene.rig.tick(1.9)
    scene.say(HEADER)
    scene.rig.tick(1.9)
    assert scene.flow.state == State.LOOK
    scene.rig.tick(0.1)
    assert scene.rig.ended()["cause"] == "first_byte_timeout"


@pytest.mark.parametrize(
    "data", [b"GET / HTTP/1.1\r\n", b"PROXY TCP4 198.51.100.7 127.0.0.1 40000 80\r\n"], ids=["none", "version 1"]
)
def test_what_is_no_header_of_an_edges(data: bytes, stack: contextlib.ExitStack) -> None:
    scene = at_header(stack)
    scene.client.send(data)
    assert scene.rig.ending(scene.client) == "reset"
    assert scene.rig.ended()["cause"] == "protocol"
    assert scene.rig.ledger.total(0, Count.DENIED + REASONS.index("protocol")) == 1


def test_a_client_whom_the_edge_names_and_the_envelope_denies(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, rules=(RuleRow(False, f"{CLIENT}/32", "f:1"),))
    scene.client.send(HEADER)
    rig = scene.rig
    assert rig.ending(scene.client) == "reset"
    rig.log.flush()
    [denied, ended] = rig.records()
    assert (denied["event"], denied["peer"], denied["reason"]) == ("denied", f"{CLIENT}:40000", "access")
    assert (ended["event"], ended["peer"], ended["cause"]) == ("connection", f"{CLIENT}:40000", "denied")
    assert (rig.ledger.active(0), rig.ledger.total(0, Count.DENIED + REASONS.index("access"))) == (0, 1)


def test_one_whom_the_envelope_would_deny_is_counted_and_named(stack: contextlib.ExitStack) -> None:
    rule = RuleRow(False, f"{CLIENT}/32", "f:1")
    scene = at_header(stack, tcp_target(stack), enforce="audit", rules=(rule,))
    scene.say(HEADER)
    assert scene.flow.state == State.SPLICE
    assert scene.rig.ledger.total(0, Count.WOULD_DENY + ENVELOPE_REASONS.index("access")) == 1
    [line] = scene.rig.records()
    assert (line["event"], line["peer"]) == ("would deny", f"{CLIENT}:40000")


def test_the_limits_are_the_clients_and_not_the_edges(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, tcp_target(stack), per_source=1)
    scene.say(HEADER)
    second, flow = scene.rig.let_in()
    begin(flow)
    second.send(HEADER)
    assert scene.rig.ending(second) == "reset"
    assert scene.rig.ledger.total(0, Count.DENIED + REASONS.index("per_source")) == 1


@pytest.mark.parametrize("busy", [False, True])
def test_the_edges_own_question(busy: bool, stack: contextlib.ExitStack) -> None:
    """It dials without a first byte, also where http is declared; and it is refused while the instance is busy."""
    target = tcp_target(stack)
    scene = at_header(stack, target, protocol="http")
    rig = scene.rig
    rig.log.level = "debug"
    if busy:
        rig.ledger.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = rig.clock() + 3600 * 10**9
    scene.say(proxyproto.LOCAL_V2)
    assert scene.flow.probe
    assert target.was_dialled() is not busy
    if not busy:
        assert scene.flow.state == State.SPLICE
        scene.client.close()
    assert rig.ended()["cause"] == "drain" if busy else rig.context.flows


@pytest.mark.parametrize("taken", [False, True], ids=["left", "taken"])
def test_a_successor_asks_the_kernel_whether_the_header_was_taken(taken: bool, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target)
    rig = scene.rig
    flow, record = rig.taken_over(scene.flow)
    rig.part.identify(flow.record, by_text(f"{CLIENT}:40000"), 0)
    [record] = rig.ledger.flows()
    scene.client.send(HEADER + b"first")
    assert select.select([flow.client.fileno()], [], [], HANG_S)[0]
    if taken:
        first_bytes.take(flow.client, len(HEADER))
    Greeting(flow).resume(record)
    rig.until(lambda: flow.state == State.SPLICE, "it goes on")
    assert (flow.source, str(flow.peer)) == (CLIENT, f"{CLIENT}:40000")
    assert rig.receive(target.accept(rig), 5) == b"first"


def test_a_successor_knows_whose_share_it_is_and_by_whom_it_came(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, protocol="http")
    flow, record = scene.rig.taken_over(scene.flow)
    assert (flow.source, flow.via, flow.peer, flow.probe) == (EDGE, EDGE, scene.flow.peer, False)
    scene.rig.part.identify(record.index, by_text(f"{CLIENT}:40000"), 0)
    flow, record = scene.rig.taken_over(flow)
    assert (flow.source, flow.state) == (EDGE, State.HEADER), "not the client's before the header is taken"
    Greeting(flow).resume(record)
    scene.client.send(HEADER)
    scene.rig.until(lambda: flow.state == State.LOOK, "the edge has said who it is")
    flow, _ = scene.rig.taken_over(flow)
    assert (flow.source, flow.via, str(flow.peer), flow.probe) == (CLIENT, EDGE, f"{CLIENT}:40000", False)


def test_a_successor_knows_the_edges_own_question(stack: contextlib.ExitStack) -> None:
    scene = at_header(stack, silent_target(stack), protocol="http")
    scene.say(proxyproto.LOCAL_V2)
    flow, record = scene.rig.taken_over(scene.flow)
    assert (record.state, flow.probe, flow.source) == (State.DIAL, True, EDGE)
    scene.flow.stage.leave("error")  # the dead worker's own dial
