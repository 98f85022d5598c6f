"""The change stream: what one who watches is sent, whoever else there is and whatever it has seen before."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import pytest

from relay.config.roster import Member
from relay.control import watch
from relay.control.discovery import Fleet, instances
from relay.control.watch import EVENTS_MAX, HEARTBEAT, Feed
from tests.control.rig import WEB_0, WEB_2, fleet
from tests.harness import HANG_S


class Connection(asyncio.BaseTransport):
    """As much of one as the feed looks at."""

    def __init__(self) -> None:
        super().__init__()
        self.closing = False

    def is_closing(self) -> bool:
        return self.closing


class Truth:
    """How things are, for a feed to look at; and its feed, which somebody else watches already."""

    def __init__(self) -> None:
        self.fleet = fleet(WEB_0)
        self.looks = 0
        self.feed = Feed(self.look)

    def look(self) -> Fleet:
        self.looks += 1
        return self.fleet

    def now(self, *registered: Member) -> None:
        self.fleet = fleet(*registered)
        self.feed.changed()


@pytest.fixture
async def truth() -> AsyncGenerator[Truth]:
    made = Truth()
    with made.feed.watcher(Connection()):
        yield made


def parsed(frame: bytes) -> tuple[str, str, Any]:
    """Id, kind and data of a frame."""
    lines = frame.decode().split("\n")
    assert lines[3:] == ["", ""], "an empty line ends an event"
    fields = dict(line.split(": ", 1) for line in lines[:3])
    return fields["id"], fields["event"], json.loads(fields["data"])


async def begun(feed: Feed, last: str = "") -> AsyncGenerator[bytes]:
    """A watcher's frames, after the first, which says when to come back."""
    frames = feed.frames(last)
    assert await anext(frames) == b"retry: 2000\n\n"
    return frames


async def following(frames: AsyncGenerator[bytes]) -> tuple[str, str, Any]:
    async with asyncio.timeout(HANG_S):
        return parsed(await anext(frames))


async def test_first_everything_then_what_changes(truth: Truth) -> None:
    frames = await begun(truth.feed)
    _, kind, data = await following(frames)
    assert (kind, data["service"]) == ("roster", "shop")
    assert [each["id"] for each in data["instances"]] == ["web_IN_0", "store_IN_0", "edge_IN_0", "edge_IN_1"]
    truth.now(WEB_2)
    assert [(await following(frames))[1:] for _ in range(2)] == [
        ("left", data["instances"][0]),
        ("joined", json.loads(json.dumps(instances(truth.fleet)[0]))),
    ]
    truth.now(replace(WEB_2, busy=True))
    _, kind, data = await following(frames)
    assert (kind, data["id"], data["busy"]) == ("changed", "web_IN_2", True)


async def test_who_comes_back_is_sent_what_it_missed(truth: Truth) -> None:
    frames = await begun(truth.feed)
    roster, _, _ = await following(frames)
    await frames.aclose()
    truth.now(WEB_2)
    frames = await begun(truth.feed, roster)
    left, kind, _ = await following(frames)
    assert kind == "left"
    assert (await following(await begun(truth.feed, left)))[1] == "joined"


async def test_nobody_watched_when_it_changed() -> None:
    truth = Truth()
    with truth.feed.watcher(Connection()):
        roster, _, _ = await following(await begun(truth.feed))
    looks = truth.looks
    truth.now(WEB_0, WEB_2)
    assert truth.looks == looks, "nobody looks while nobody watches"
    with truth.feed.watcher(Connection()):
        _, kind, data = await following(await begun(truth.feed, roster))
    assert (kind, data["id"]) == ("joined", "web_IN_2")


@pytest.mark.parametrize("last", ["", "x", "0-0", "0123456789abcdef-0", "{epoch}-1", "{epoch}--1", "{epoch}-01x", "é"])
async def test_an_id_that_is_not_known_gets_everything(truth: Truth, last: str) -> None:
    """Of a former control process, of the future, of nobody."""
    roster, _, _ = await following(await begun(truth.feed))
    epoch = roster.partition("-")[0]
    assert (await following(await begun(truth.feed, last.replace("{epoch}", epoch))))[1] == "roster"


async def test_ids_of_two_control_processes_differ() -> None:
    ids = set()
    for _ in range(2):
        truth = Truth()
        with truth.feed.watcher(Connection()):
            ids.add((await following(await begun(truth.feed)))[0])
    assert len(ids) == 2


async def test_an_id_that_is_too_old_gets_everything(truth: Truth) -> None:
    roster, _, _ = await following(await begun(truth.feed))
    for n in range(EVENTS_MAX):
        truth.now(replace(WEB_0, busy=n % 2 == 0))
    assert (await following(await begun(truth.feed, roster)))[1] == "changed", "all of them are kept"
    truth.now(replace(WEB_0, down=("each",)))
    assert (await following(await begun(truth.feed, roster)))[1] == "roster"


async def test_who_is_too_slow_is_left_behind(truth: Truth) -> None:
    frames = await begun(truth.feed)
    await following(frames)
    for n in range(EVENTS_MAX + 1):
        truth.now(replace(WEB_0, busy=n % 2 == 0))
    with pytest.raises(TimeoutError):
        await anext(frames)


async def test_many_share_one_rendering(truth: Truth) -> None:
    watchers = [await begun(truth.feed) for _ in range(20)]
    assert len({id(await anext(frames)) for frames in watchers}) == 1
    waiting = [asyncio.ensure_future(anext(frames)) for frames in watchers]
    await asyncio.sleep(0)
    truth.now(WEB_0, WEB_2)
    async with asyncio.timeout(HANG_S):
        assert len({id(frame) for frame in await asyncio.gather(*waiting)}) == 1


async def test_a_heartbeat_while_nothing_changes(truth: Truth, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "HEARTBEAT_S", 0.01)
    frames = await begun(truth.feed)
    await following(frames)
    assert await anext(frames) == await anext(frames) == HEARTBEAT
    assert HEARTBEAT.startswith(b":"), "a comment: whoever reads events does not see it"


async def test_what_the_ledger_says_is_looked_for(truth: Truth) -> None:
    frames = await begun(truth.feed)
    await following(frames)
    truth.fleet = replace(truth.fleet, avoided={"web_IN_0": "HTTP 503"})  # and nobody says so
    _, kind, data = await following(frames)
    assert (kind, data["healthy"]) == ("changed", False)


async def test_the_end(truth: Truth) -> None:
    frames = await begun(truth.feed)
    await following(frames)
    waiting = asyncio.ensure_future(anext(frames))
    await asyncio.sleep(0)
    truth.feed.end()
    with pytest.raises(StopAsyncIteration):
        async with asyncio.timeout(HANG_S):
            await waiting


async def test_who_watches() -> None:
    feed = Truth().feed
    connections = [Connection() for _ in range(3)]
    with ExitStack() as watchers:
        for n, connection in enumerate(connections):
            assert feed.watchers == n
            watchers.enter_context(feed.watcher(connection))
        connections[0].closing = True
        assert feed.watchers == 2, "who has hung up takes no room, though its end may not have been noticed yet"
    assert feed.watchers == 0
