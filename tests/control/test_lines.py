"""The lines that an edge holds: to whom, what comes of what is heard, and what when one breaks."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest

from relay.config.snapshot import EndpointRow, TargetRow
from relay.control import lines, looking
from relay.control.lines import Lines, Way, ways
from relay.control.looking import Looker
from relay.envelope import asking
from relay.ledger.layout import Health, TargetCount
from relay.ledger.ledger import Ledger
from relay.targets import health, why
from tests.config.rig import endpoint_row, snapshot_of
from tests.control.rig import Logged
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger

BUSY, OPEN = asking.BUSY, asking.OPEN


class Instance:
    """Listens as an instance's relay does, and has every connection that came."""

    def __init__(self, slot: int, name: str = "web_IN_0") -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setblocking(False)
        self.port = self.listener.getsockname()[1]
        self.target = TargetRow(f"127.0.0.1:{self.port}", host="127.0.0.1", port=self.port, slot=slot, instance=name)

    async def line(self) -> socket.socket:
        """The next line, after its header."""
        loop = asyncio.get_running_loop()
        header = asking.header(asking.LINE)
        while True:
            async with asyncio.timeout(HANG_S):
                accepted, _ = await loop.sock_accept(self.listener)
                came = await loop.sock_recv(accepted, len(header))
            if came == header:
                return accepted
            accepted.close()  # a look


class Edge:
    """An edge's control at work."""

    def __init__(self, ledger: Ledger, logged: Logged) -> None:
        self.ledger = ledger
        self.logged = logged
        self.looker = Looker(ledger, logged.log)
        self.lines = Lines(ledger, logged.log, self.looker)
        self.hurried: list[str] = []
        self.stack = contextlib.ExitStack()
        hurry = self.looker.hurry

        def counted(instance: str) -> None:
            self.hurried.append(instance)
            hurry(instance)

        self.looker.hurry = counted  # type: ignore[method-assign]

    def instance(self, slot: int = 3, name: str = "web_IN_0") -> Instance:
        made = Instance(slot, name)
        self.stack.callback(made.listener.close)
        self.know(made.target)
        return made

    def know(self, target: TargetRow, knows: int = 1) -> None:
        """Its relay has answered as one that knows what a line is."""
        at = self.ledger.worker(0).target_counts_at(target.slot)[0]
        self.ledger.words[at + TargetCount.KNOWS] = knows

    def found(self, row: EndpointRow, at: int = 0) -> tuple[int, int]:
        seen = health.of_target(self.ledger, row, row.targets[at])
        return seen.health, seen.why

    async def line(self, instance: Instance) -> socket.socket:
        sock = await instance.line()
        self.stack.callback(sock.close)
        return sock

    async def until(self, done: Callable[[], Any]) -> None:
        async with asyncio.timeout(HANG_S):
            while not done():  # noqa: ASYNC110  # what is waited for is in another's hands
                await asyncio.sleep(0.005)


@pytest.fixture
async def edge(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Edge]:
    monkeypatch.setattr(lines, "_AGAIN_S", 0.01)
    monkeypatch.setattr(lines, "_CONNECT_S", HANG_S)
    monkeypatch.setattr(lines, "_DEAD_MS", round(HANG_S * 1000))
    monkeypatch.setattr(looking, "_FIRST_WITHIN_S", 3600.0)  # nobody is asked, unless he is hurried
    logged = Logged()
    with contextlib.closing(logged), new_ledger() as ledger:
        made = Edge(ledger, logged)
        running = asyncio.create_task(made.lines.run())
        with made.stack:
            yield made
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await made.looker.end()
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("line to")]


def public(*targets: TargetRow, name: str = "web/in", slot: int = 0) -> EndpointRow:
    return endpoint_row(name, slot=slot, targets=targets, distribution="five-tuple", dial_from="127.0.0.9")


async def say(line: socket.socket, words: bytes) -> None:
    """Say these, and wait until they are said back."""
    loop = asyncio.get_running_loop()
    await loop.sock_sendall(line, words)
    back = b""
    async with asyncio.timeout(HANG_S):
        while len(back) < len(words):
            back += (part := await loop.sock_recv(line, len(words)))
            assert part, "it is held"
    assert back == words


async def test_what_is_heard_is_written_down_of_all_its_targets_before_it_is_said_back(edge: Edge) -> None:
    instance = edge.instance()
    one = public(instance.target)
    two = public(replace(instance.target, slot=4), name="web/other", slot=1)
    snapshot = snapshot_of(one, two)
    edge.looker.follow(snapshot)
    edge.lines.follow(snapshot)
    line = await edge.line(instance)
    assert line.getpeername()[0] == "127.0.0.9"
    await say(line, OPEN + BUSY)
    assert [edge.found(row) for row in (one, two)] == [(Health.DOWN, why.BUSY)] * 2
    hurried = len(edge.hurried)
    await say(line, OPEN)
    assert edge.hurried[hurried:] == ["web_IN_0"], "the looks find out the rest"
    await say(line, BUSY)
    assert edge.found(one) == (Health.DOWN, why.BUSY)


async def test_one_line_for_an_instance_and_only_to_who_knows_what_that_is(edge: Edge) -> None:
    first, second = edge.instance(3, "web_IN_0"), edge.instance(4, "web_IN_1")
    edge.know(second.target, 0)
    rows = public(first.target, second.target), public(replace(first.target, slot=5), name="web/x", slot=1)
    edge.lines.follow(snapshot_of(*rows))
    line = await edge.line(first)
    await say(line, OPEN)
    assert set(edge.lines._held) == {"web_IN_0"}
    edge.know(second.target)
    await say(await edge.line(second), OPEN)
    with pytest.raises(BlockingIOError):
        first.listener.accept()


@pytest.mark.parametrize("how", ["fin", "reset", "nonsense"])
async def test_one_that_breaks_is_opened_anew_and_that_instance_is_looked_at(how: str, edge: Edge) -> None:
    instance = edge.instance()
    edge.lines.follow(snapshot_of(public(instance.target)))
    line = await edge.line(instance)
    await say(line, OPEN)
    edge.hurried.clear()
    if how == "nonsense":
        await asyncio.get_running_loop().sock_sendall(line, b"\x00relay: 5 words")
    else:
        if how == "reset":
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
    await say(await edge.line(instance), OPEN)
    assert edge.hurried[0] == "web_IN_0"


async def test_a_reload_that_changes_nothing_for_it_leaves_it(edge: Edge) -> None:
    instance, other = edge.instance(), edge.instance(4, "web_IN_1")
    edge.lines.follow(snapshot_of(public(instance.target)))
    line = await edge.line(instance)
    edge.lines.follow(snapshot_of(public(other.target, instance.target), generation=2))
    await say(line, OPEN)
    await say(await edge.line(other), OPEN)
    edge.lines.follow(snapshot_of(public(other.target), generation=3))
    async with asyncio.timeout(HANG_S):
        assert await asyncio.get_running_loop().sock_recv(line, 1) == b"", "who is not there any more loses it"


async def test_who_is_not_there_is_tried_again(edge: Edge) -> None:
    instance = edge.instance()
    instance.listener.close()
    edge.lines.follow(snapshot_of(public(instance.target)))
    task = edge.lines._held["web_IN_0"][1]
    await edge.until(lambda: edge.lines._held["web_IN_0"][1] is not task)
    assert edge.logged.lines() == []


async def test_a_mistake_of_ours_is_told_and_it_is_opened_anew(edge: Edge, monkeypatch: pytest.MonkeyPatch) -> None:
    instance = edge.instance()

    def wrong(_instance: str) -> None:
        raise ValueError("x")

    monkeypatch.setattr(edge.looker, "busy", wrong)
    edge.lines.follow(snapshot_of(public(instance.target)))
    await asyncio.get_running_loop().sock_sendall(await edge.line(instance), BUSY)
    await edge.line(instance)
    assert edge.logged.lines()[0]["message"] == "relay cannot hold a line to web_IN_0"


def test_ways(edge: Edge) -> None:
    a, b = (TargetRow(f"10.0.0.{n}:80", host=f"10.0.0.{n}", port=80, slot=n, instance=f"web_IN_{n}") for n in (1, 2))
    edge.know(b)
    edge.know(replace(a, slot=7))
    door = replace(public(a, name="web/db", slot=3), type="door")
    rows = (
        public(a, b),
        public(replace(a, port=81, slot=7), name="web/x", slot=1),
        door,
        endpoint_row("web/own", slot=2),
    )
    everywhere, known = ways(snapshot_of(*rows), edge.ledger)
    here = "127.0.0.9"
    assert known == {
        "web_IN_1": Way("web_IN_1", "10.0.0.1", 81, here),
        "web_IN_2": Way("web_IN_2", "10.0.0.2", 80, here),
    }
    assert everywhere == {*known.values(), Way("web_IN_1", "10.0.0.1", 80, here)}
    alone = replace(public(a, b), direct=True), replace(door, direct=True)
    assert ways(snapshot_of(*alone), edge.ledger) == (set(), {}), "no relay stands before these"
