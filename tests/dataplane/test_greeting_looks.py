"""Clients whose first bytes come in many pieces: nobody is looked at without end, and a change of what is declared."""

import contextlib
import socket
from dataclasses import replace
from typing import Literal

import pytest

from relay.dataplane import first_bytes
from relay.dataplane.first_bytes import LOOKS_MAX
from relay.dataplane.greeting import Greeting
from relay.envelope import proxyproto
from relay.ledger.layout import REASONS, Count, State
from tests.dataplane.rig import Rig, rig_to, tcp_target
from tests.dataplane.scenes import CLIENT, EDGE, HEADER, HELLO, at_header, at_look

LONG_HEADER = proxyproto.build_v2(
    socket.inet_aton(CLIENT), 1, socket.inet_aton(EDGE), 80, b"\xee\x0f\x00" + bytes(3840)
)
LONG = {
    "http": b"GET /" + b"a" * 4000,
    "https": b"\x16\x03\x01\x10\x00" + b"\x01\x00\x0f\xfc\x03\x03" + bytes(32) + b"\x00\x0f\x00" + bytes(3800),
    "header": LONG_HEADER,
}
REASON = {
    "http": "no HTTP request line within",
    "https": "no TLS ClientHello within",
    "header": "no PROXY header within",
}


def dribble(rig: Rig, client: socket.socket, data: bytes, count: int) -> None:
    """Send it in so many pieces of one byte, each looked at by itself."""
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for at in range(count):
        client.send(data[at : at + 1])
        rig.until(lambda at=at: not rig.context.flows or looked_bytes(rig) == at + 1, "it is looked at")  # type: ignore[misc]


def looked_bytes(rig: Rig) -> int:
    stage = rig.flow().stage
    assert isinstance(stage, Greeting)
    return stage._looked_bytes


@pytest.mark.parametrize("what", LONG)
def test_so_many_pieces_are_no_clients(what: str, stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target) if what == "header" else at_look(stack, target, protocol=what)
    rig, data = scene.rig, LONG[what]
    dribble(rig, scene.client, data, LOOKS_MAX // 2)
    stage = rig.flow().stage
    assert isinstance(stage, Greeting)
    stage._looks = LOOKS_MAX - 1  # a kernel that is short of memory may have it look twice
    scene.client.send(data[LOOKS_MAX // 2 : LOOKS_MAX // 2 + 1])
    assert rig.ending(scene.client) == "reset"
    rig.log.flush()
    lines = rig.records()
    assert [line["event"] for line in lines] == ["denied", "connection"]
    assert (lines[0]["reason"], lines[1]["cause"]) == ("protocol", "protocol")
    assert REASON[what] in str(lines[0]), lines[0]
    assert f"{LOOKS_MAX} looks" in str(lines[0])
    assert rig.ledger.total(0, Count.DENIED + REASONS.index("protocol")) == 1
    assert not target.was_dialled()


def test_a_header_and_then_a_line_have_all_looks_each(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_header(stack, target, protocol="http")
    long_header = (
        LONG_HEADER[:14] + (12 + 3 + 260).to_bytes(2, "big") + LONG_HEADER[16:28] + b"\xee\x01\x04" + bytes(260)
    )
    dribble(scene.rig, scene.client, long_header, len(long_header) - 1)
    scene.say(long_header[-1:])
    assert scene.flow.state == State.LOOK
    line = b"GET /" + b"a" * 260 + b" HTTP/1.1\r\n"
    # Together they are too many. Each is far from it: on a busy machine a piece may be looked at twice.
    assert len(long_header) + len(line) > LOOKS_MAX
    dribble(scene.rig, scene.client, line, len(line) - 1)
    scene.say(line[-1:])
    assert scene.rig.receive(target.accept(scene.rig), len(line)) == line


def test_what_comes_whole_is_looked_at_once_by_the_plain_function(
    stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is made for the many that need no second look."""
    monkeypatch.delattr(first_bytes, "so_far")
    scene = at_look(stack, tcp_target(stack))
    scene.say(HELLO)
    assert scene.flow.state == State.SPLICE


@pytest.mark.parametrize("protocol", ["http", "https"])
def test_what_comes_in_pieces_is_looked_at_as_a_whole_once(
    protocol: str, stack: contextlib.ExitStack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second look on, only what is new is read."""
    looks: list[int] = []
    plain = first_bytes._PARSERS[protocol]

    def counting(data: bytes) -> object:
        looks.append(len(data))
        return plain(data)

    monkeypatch.setitem(first_bytes._PARSERS, protocol, counting)
    scene = at_look(stack, tcp_target(stack), protocol=protocol)
    dribble(scene.rig, scene.client, LONG[protocol], 50)
    assert looks == [1]
    stage = scene.flow.stage
    assert isinstance(stage, Greeting)
    assert type(stage._so_far) is type(first_bytes.so_far(protocol))


@pytest.mark.parametrize("before", [0, 5])
@pytest.mark.parametrize("declared", ["tcp", "https"])
def test_another_protocol_is_declared_meanwhile(
    declared: Literal["tcp", "https"], before: int, stack: contextlib.ExitStack
) -> None:
    """Who came before is held against what was declared then, however much of it was looked at."""
    rig = rig_to(stack, target := tcp_target(stack), protocol="http")
    client = rig.connect()
    client.send(HELLO[:before])
    rig.flow()
    rig.until(lambda: looked_bytes(rig) == before, "it is looked at")
    rig.gate.declare(replace(rig.gate.declared, protocol=declared))
    client.send(HELLO[before:])
    assert rig.receive(target.accept(rig), len(HELLO)) == HELLO


def test_a_successor_where_nothing_is_declared_any_more(stack: contextlib.ExitStack) -> None:
    target = tcp_target(stack)
    scene = at_look(stack, target)
    flow, record = scene.rig.taken_over(scene.flow)
    flow.gate.declare(replace(flow.gate.declared, protocol="tcp"))
    scene.client.send(b"anything")
    Greeting(flow).resume(record)
    assert scene.rig.receive(target.accept(scene.rig), 8) == b"anything"


def test_a_successor_looks_from_the_start(stack: contextlib.ExitStack) -> None:
    """How often a dead worker had looked is forgotten: that is no way to be looked at for ever, for workers do not die."""
    target = tcp_target(stack)
    scene = at_header(stack, target, protocol="http")
    scene.say(HEADER)
    dribble(scene.rig, scene.client, HELLO, len(HELLO) - 1)
    flow, record = scene.rig.taken_over(scene.flow)
    Greeting(flow).resume(record)
    scene.client.send(HELLO[-1:])
    assert scene.rig.receive(target.accept(scene.rig), len(HELLO)) == HELLO
