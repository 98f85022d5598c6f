"""A line: what is said on it and when, what is counted, and what a successor makes of it."""

import contextlib
import socket
import time
from dataclasses import replace

import pytest

from relay import calls
from relay.dataplane import line
from relay.dataplane.greeting import Greeting
from relay.dataplane.line import Line, is_busy, tell_all
from relay.envelope import asking, proxyproto
from relay.kernel import channel, messages
from relay.kernel.listening import open_listener
from relay.ledger.layout import CAUSES, Count, DaemonWord, Flag, State, Word
from relay.ledger.record import FlowRecord, by_text
from tests.config.rig import snapshot_of
from tests.dataplane.rig import LATER_S, reset
from tests.dataplane.running import Running
from tests.dataplane.scenes import EDGE, Scene, at_header, at_line

BUSY, OPEN = asking.BUSY, asking.OPEN
Stack = contextlib.ExitStack


def be_busy(scene: Scene, *, busy: bool = True) -> None:
    """Drain the instance, or take it back; and tell, as a worker does that hears of it."""
    scene.rig.part.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = scene.rig.clock() + 3600 * 10**9 if busy else 0
    tell_all(scene.rig.context)


def record_of(scene: Scene) -> FlowRecord:
    [record] = scene.rig.ledger.flows(State.LINE)
    return record


def said_and_heard(scene: Scene) -> tuple[int, int]:
    """As control reads it."""
    record = record_of(scene)
    return record.sent_bytes, record.received_bytes


def hear(scene: Scene, words: bytes) -> None:
    """The edge hears these, and says them back."""
    assert scene.rig.receive(scene.client, len(words)) == words
    scene.client.send(words)
    heard = said_and_heard(scene)[1] + len(words)
    scene.rig.until(lambda: said_and_heard(scene)[1] == heard, "it is heard")


def closed(scene: Scene) -> list[str]:
    counts = {cause: scene.rig.ledger.total(0, Count.CLOSED + n) for n, cause in enumerate(CAUSES)}
    return [cause for cause, count in counts.items() for _ in range(count)]


def test_each_change_is_said_once_and_counted_when_it_is_said_back(stack: Stack) -> None:
    scene = at_line(stack)
    assert said_and_heard(scene) == (1, 0)
    hear(scene, OPEN)
    for busy, word in ((True, BUSY), (False, OPEN), (True, BUSY)):
        be_busy(scene, busy=busy)
        be_busy(scene, busy=busy)
        said, heard = said_and_heard(scene)
        assert said == heard + 1
        hear(scene, word)
        assert said_and_heard(scene) == (said, said)


def test_one_that_is_busy_says_so_at_once(stack: Stack) -> None:
    scene = at_header(stack)
    scene.rig.log.level = "debug"
    be_busy(scene)
    scene.say(asking.header(asking.LINE))
    hear(scene, OPEN + BUSY)


def test_the_end_of_its_time_is_noticed_by_the_workers_tick(stack: Stack) -> None:
    scene = at_line(stack)
    be_busy(scene)
    hear(scene, OPEN + BUSY)
    scene.rig.part.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = scene.rig.clock()
    scene.rig.sweep(1.0)
    hear(scene, OPEN)


def test_the_daemons_own_end_is_being_busy(stack: Stack) -> None:
    scene = at_line(stack)
    assert not is_busy(scene.rig.part.words, scene.rig.clock())
    scene.rig.part.words[DaemonWord.DRAIN_UNTIL_NS] = 1
    tell_all(scene.rig.context)
    hear(scene, OPEN + BUSY)
    scene.rig.part.words[DaemonWord.DRAIN_UNTIL_NS] = 0


def test_it_is_no_connection(stack: Stack) -> None:
    scene = at_line(stack, idle_s=1.0, connections=1, per_source=1)
    rig = scene.rig
    assert (rig.ledger.active(0), rig.ledger.total(0, Count.ACCEPTED), closed(scene)) == (0, 1, ["told"])
    assert rig.gate.admit(EDGE, rig.context.now_s()) is None
    rig.gate.release(EDGE, "client_fin")
    for _ in range(3):
        rig.sweep(LATER_S)
        rig.tick(LATER_S)
    assert scene.flow.state == State.LINE
    rig.log.flush()
    [told] = rig.records()
    assert (told["event"], told["cause"]) == ("connection", "told")
    rig.context.log.level = "info"
    scene.client.close()
    rig.until(lambda: not rig.context.flows, "it ends")
    assert rig.context.lines == set()
    rig.log.flush()
    assert rig.records() == [], "it was said already, and to whom wants to know everything alone"
    assert closed(scene) == ["client_fin", "told"]
    assert list(rig.ledger.flows()) == []


@pytest.mark.parametrize("how", ["fin", "reset", "more than was said"])
def test_who_leaves_or_says_more_than_he_heard_loses_it(how: str, stack: Stack) -> None:
    scene = at_line(stack)
    if how == "fin":
        scene.client.close()
    elif how == "reset":
        reset(scene.client)
    else:
        scene.client.send(b"\x01\x01")
    assert scene.rig.ended()["cause"] == "told"


@pytest.mark.parametrize("cause", ["revoked", "drain", "error", "gone"])
def test_it_can_be_cut(cause: str, stack: Stack) -> None:
    scene = at_line(stack)
    assert scene.rig.receive(scene.client, 1) == OPEN
    scene.flow.cut(cause)
    assert scene.rig.ending(scene.client) == "reset"
    assert scene.rig.ended()["cause"] == "told", "as a connection it has ended before"


def test_after_many_changes_another_is_opened(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line, "_SAID_MAX", 3)
    scene = at_line(stack)
    hear(scene, OPEN)
    be_busy(scene)
    hear(scene, BUSY)
    be_busy(scene, busy=False)
    assert scene.rig.ended()["cause"] == "told"


def test_waiting_for_more_does_not_spin(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    scene = at_line(stack)
    hear(scene, OPEN)
    called: list[int] = []
    monkeypatch.setattr(Line, "_say", lambda _: called.append(1))
    for _ in range(20):
        scene.rig.poller.serve()
    assert called == []


def taken_over(scene: Scene) -> Scene:
    """A successor's line."""
    scene.rig.context.lines.clear()
    flow, _ = scene.rig.taken_over(scene.flow)
    Line(flow).resume()
    return Scene(scene.rig, scene.client, flow)


@pytest.mark.parametrize("changes", range(4))
def test_a_successor_says_what_is_new_and_nothing_twice(changes: int, stack: Stack) -> None:
    scene, words = at_line(stack), OPEN
    for n in range(changes):
        be_busy(scene, busy=n % 2 == 0)
        words += BUSY if n % 2 == 0 else OPEN
    scene = taken_over(scene)
    assert said_and_heard(scene) == (changes + 1, 0)
    hear(scene, words)
    scene = taken_over(scene)
    assert said_and_heard(scene) == (changes + 1, changes + 1)
    be_busy(scene, busy=changes % 2 == 0)
    hear(scene, BUSY if changes % 2 == 0 else OPEN)


def test_a_successor_of_one_that_died_before_it_said_anything(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Line, "_hold", lambda _: None)
    scene = at_line(stack)
    monkeypatch.undo()
    scene.rig.context.waiting.clear()
    hear(taken_over(scene), OPEN)


def test_a_successor_of_one_that_had_just_taken_the_header(stack: Stack) -> None:
    scene = at_header(stack)
    rig = scene.rig
    rig.log.level = "debug"
    rig.part.identify(scene.flow.record, by_text(scene.flow.peer_text), Flag.PROBE | Flag.ASKS_LINE)
    scene.client.send(asking.header(asking.LINE))
    flow, record = rig.taken_over(scene.flow)
    assert flow.asks == asking.LINE
    rig.until(lambda: flow.client.recv(len(asking.header(asking.LINE))), "the dead worker has taken the header")
    Greeting(flow).resume(record)
    hear(Scene(rig, scene.client, flow), OPEN)


def test_a_clients_header_cannot_ask_for_one(stack: Stack) -> None:
    scene = at_header(stack)
    asks = asking.tlv(asking.LINE)
    header = proxyproto.build_v2(socket.inet_aton("192.0.2.1"), 1, socket.inet_aton(EDGE), 80, asks)
    scene.client.send(header)
    assert scene.rig.ended()["cause"] == "connect_failed"


# --- a whole worker -----------------------------------------------------------------------------------------------------


@pytest.fixture
def behind(running: Running) -> Running:
    """A worker to start that is behind an edge."""
    running.row = replace(running.row, edges=(EDGE,))
    return running


async def held(running: Running) -> socket.socket:
    """A line to a worker that is at work."""
    client = await running.connect()
    client.send(asking.header(asking.LINE))
    await running.until(lambda: list(running.ledger.flows(State.LINE)), "the line is held")
    return client


def account(running: Running) -> tuple[int, int, dict[str, int]]:
    """Accepted, open, closed."""
    return running.ledger.total(0, Count.ACCEPTED), running.ledger.active(0), running.closed()


async def test_a_worker_tells_when_control_says_that_something_has_changed(behind: Running) -> None:
    await behind.start()
    client = await held(behind)
    behind.part.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = time.monotonic_ns() + 3600 * 10**9
    channel.send(behind.mine, messages.plain(messages.BUSY))
    await behind.until(lambda: calls.readable_bytes(client.fileno()) == 2, "it is told")
    assert client.recv(2) == OPEN + BUSY


async def test_a_line_keeps_no_worker_from_ending(behind: Running) -> None:
    await behind.start(drain_s=3600.0)
    client = await held(behind)
    behind.working._ending.begin(time.monotonic() + 3600.0)
    await behind.until(behind.task.done, "it ends")
    assert client.recv(1) == OPEN
    assert await behind.is_cut(client)
    assert account(behind) == (1, 0, {"told": 1})


async def test_one_whose_edge_is_none_any_more_is_cut(behind: Running) -> None:
    snapshot = await behind.start()
    client = await held(behind)
    other = replace(behind.row, edges=("127.0.0.2",))
    await behind.put_in_force(replace(snapshot, generation=2, endpoints=(other,)))
    assert client.recv(1) == OPEN
    assert await behind.is_cut(client)


@pytest.mark.parametrize("counted", [True, False])
async def test_a_new_worker_counts_it_once(counted: bool, behind: Running) -> None:
    """The dead one may have died between the record and the count."""
    with open_listener(behind.row) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, address = listener.accept()
    accepted.setblocking(False)
    part, slot, peer = behind.part, behind.row.slot, f"{EDGE}:{address[1]}"
    at = part.claim(slot, behind.row.name)
    part.begin(0, State.HEADER, slot, accepted.fileno(), -1, time.monotonic_ns(), peer)
    part.words[at + Count.ACCEPTED] = part.words[at + Count.ACTIVE] = 1
    part.identify(0, by_text(peer), Flag.PROBE | Flag.ASKS_LINE)
    part[Word.ENDING] = 1
    part.advance(0, State.LINE, -1)
    if counted:
        part.words[at + Count.CLOSED + CAUSES.index("told")] = 1
        part.words[at + Count.ACTIVE] = 0
    with client:
        behind.launch(snapshot_of(behind.row), frozenset({accepted.detach()}))
        assert (await behind.answer())["op"] == "ready"
        assert account(behind) == (1, 0, {"told": 1})
        assert client.recv(1) == OPEN
        [line_to] = behind.ledger.flows(State.LINE)
        assert (line_to.sent_bytes, line_to.received_bytes) == (1, 0)
