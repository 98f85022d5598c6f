"""Following sources: what they say comes into force, trouble is said once, and a new control goes on from where one was."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import Loaded, parse_service
from relay.config.model import Service
from relay.config.roster import Member, Roster
from relay.config.settings import Settings
from relay.config.snapshot import Snapshot
from relay.control import sources_follower
from relay.control.in_force import InForce
from relay.control.sources_follower import SourcesFollower
from relay.fleet import sources, standing_answer
from relay.fleet.numbering import everybody
from relay.ledger.layout import DaemonWord
from relay.ledger.ledger import Ledger
from tests.control.rig import Logged
from tests.fleet.dnses import SERVFAIL, Lying
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger

TEXT = """\
version: 1
service: shop
edge: {{instances: [198.51.100.10]}}
roles:
  db:
    bare: true
    instances: {}
    endpoints: {{pg: {{type: input, public_port: 5432, port: 5432}}}}
"""


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with new_ledger() as made:
        yield made


@pytest.fixture
def server() -> Iterator[Lying]:
    with Lying() as made:
        yield made


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_follower, "_TICK_S", 0.05)
    monkeypatch.setattr(sources_follower, "_SETTLE_S", 0.01)
    monkeypatch.setattr(sources, "_AGAIN_S", 0.05)
    monkeypatch.setattr("relay.fleet.looking_up.TTL_MIN_S", 0.05)


class Edge:
    """An edge with one named role: what is in force, and the follower that brings it there."""

    def __init__(self, ledger: Ledger, server: Lying, directory: Path) -> None:
        self.ledger, self.logged, self.path = ledger, Logged(), str(directory / "service.yaml")
        self.settings = Settings.model_validate({"names": {"resolvers": [server.server]}})
        self.hindrance = ""
        self.puts = 0
        self.in_force = self.of(["db.test"], ())
        self.follower = self.new()

    def of(self, items: list[Any], members: tuple[Member, ...]) -> InForce:
        """This file in force, with these members."""
        loaded = parse_service(parse(TEXT.format(json.dumps(items)).encode(), self.path))
        return InForce(loaded, self._compiled(loaded, members))

    def _compiled(self, loaded: Loaded[Service], members: tuple[Member, ...]) -> Snapshot:
        roster = Roster.of_service(loaded.value, everybody(loaded.value, (), members))
        made = compile_snapshot(loaded.value, self.settings, "edge_IN_0", generation=1, file=self.path, roster=roster)
        return replace(made, file=self.path)

    def new(self) -> SourcesFollower:
        """A follower of a control that was just started."""
        self.follower = SourcesFollower(self.settings, self.in_force, self.ledger, self.logged.log, self._put)
        self.follower.follow()
        return self.follower

    def reload(self, items: list[Any]) -> None:
        """Another list of instances comes into force."""
        new = self.of(items, self.in_force.roster.members)
        self.in_force.loaded, self.in_force.snapshot = new.loaded, new.snapshot
        self.follower.follow()

    async def _put(self) -> str:
        self.puts += 1
        if not self.hindrance:
            members = self.follower.members(self.in_force.service)
            self.in_force.snapshot = self._compiled(self.in_force.loaded, members)
        return self.hindrance

    @property
    def there(self) -> dict[str, int]:
        """Who is in force: numbers by address."""
        return {member.address: member.ordinal for member in self.in_force.roster.of("db")}

    def said(self) -> list[str]:
        """What the log has had since the last call."""
        return [line["message"] for line in self.logged.lines() if line["event"] == "source"]

    def the(self, source: str = "db.test") -> dict[str, Any]:
        """A source's part of the status."""
        (found,) = (dict(each) for each in self.follower.status() if each["source"] == source)
        return found


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(HANG_S):
        while not check():  # noqa: ASYNC110  # what is waited for is in another's hands
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def at_work(edge: Edge) -> AsyncIterator[None]:
    task = asyncio.create_task(edge.follower.run())
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@pytest.fixture
def edge(ledger: Ledger, server: Lying, tmp_path: Path) -> Iterator[Edge]:
    made = Edge(ledger, server, tmp_path)
    yield made
    made.logged.close()


async def test_answers_come_into_force(edge: Edge, server: Lying) -> None:
    server.say("db.test", "A", "10.0.0.1", "10.0.0.2", ttl_s=0)
    async with at_work(edge):
        await until(lambda: edge.there == {"10.0.0.1": 0, "10.0.0.2": 1})
        assert edge.said() == ["it has 2 addresses now"]
        server.say("db.test", "A", "10.0.0.2", "10.0.0.0", ttl_s=0)
        await until(lambda: edge.there == {"10.0.0.0": 0, "10.0.0.2": 1})
        puts, asked = edge.puts, server.asked["db.test", "A", "udp"]
        await until(lambda: server.asked["db.test", "A", "udp"] > asked + 3)
        assert edge.puts == puts, "an answer that changes nothing brings nothing"
        assert edge.the() | {"age_s": 0.0} == {
            "role": "db", "source": "db.test", "kind": "name", "targets": 2, "age_s": 0.0, "ttl_s": 0.05, "doubted": False,
            "trouble": "", "failures": 0, "left_out": 0,
        }  # fmt: skip


async def test_trouble_is_said_once_and_what_stands_stays(edge: Edge, server: Lying) -> None:
    server.say("db.test", "A", "10.0.0.1", ttl_s=0)
    async with at_work(edge):
        await until(lambda: edge.there)
        edge.said()
        for kind in ("A", "AAAA"):
            server.does("db.test", kind, SERVFAIL)
        await until(lambda: edge.the()["failures"] > 3)
        assert "answered SERVFAIL" in edge.the()["trouble"]
        (line,) = edge.said()
        assert line.endswith("; what it said last stays in force (1 address)")
        assert edge.there == {"10.0.0.1": 0}
        server.say("db.test", "A", "10.0.0.1", ttl_s=0)
        server.say("db.test", "AAAA", ttl_s=0)
        await until(lambda: not edge.the()["trouble"])
        assert edge.said() == ["it answers again"]


async def test_an_empty_answer_is_doubted_and_then_believed(
    edge: Edge, server: Lying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standing_answer, "AGAIN_S", 0.05)
    server.say("db.test", "A", "10.0.0.1", ttl_s=0)
    async with at_work(edge):
        await until(lambda: edge.there)
        edge.said()
        server.forget("db.test")
        await until(lambda: edge.the()["doubted"])
        asked = server.asked["db.test", "A", "udp"]
        await until(lambda: server.asked["db.test", "A", "udp"] > asked + 3)
        assert edge.there == {"10.0.0.1": 0}
        server.say("db.test", "A", "10.0.0.1", ttl_s=0)
        await until(lambda: not edge.the()["doubted"])
        server.forget("db.test")
        await until(lambda: edge.the()["doubted"])
        monkeypatch.setattr(standing_answer, "DOUBT_S", 0.01)
        await until(lambda: edge.there == {})
    doubt = "it says that half of its addresses or more are gone; until it stays so, all stand (1 address)"
    believed = "it has stayed so, and is believed: it has 0 addresses now"
    assert edge.said() == [doubt, "it has 1 address as before", doubt, believed]


async def test_a_new_control_goes_on_with_the_same_numbers_and_age(edge: Edge, server: Lying) -> None:
    server.say("db.test", "A", "10.0.0.1", "10.0.0.2", ttl_s=0)
    async with at_work(edge):
        await until(lambda: edge.there)
        server.say("db.test", "A", "10.0.0.2", "10.0.0.3", "10.0.0.4", ttl_s=0)
        await until(lambda: len(edge.there) == 3)
        for kind in ("A", "AAAA"):
            server.does("db.test", kind, SERVFAIL)
        await until(lambda: edge.the()["failures"])
    there = edge.there
    edge.ledger.words[DaemonWord.ANSWERED_AT_MONOTONIC_NS] -= 100 * 10**9
    edge.new()
    assert {member.address: member.ordinal for member in edge.follower.members(edge.in_force.service)} == there
    assert (edge.the()["targets"], 100 < edge.the()["age_s"] < 100 + HANG_S) == (3, True)
    puts = edge.puts
    async with at_work(edge):
        await until(lambda: edge.the()["failures"] > 1)
        assert (edge.there, edge.puts) == (there, puts)


async def test_a_reload_begins_and_ends_sources(edge: Edge, server: Lying) -> None:
    server.say("db.test", "A", "10.0.0.1", ttl_s=0)
    server.say("other.test", "A", "10.0.0.2", ttl_s=0)
    async with at_work(edge):
        await until(lambda: edge.there == {"10.0.0.1": 0})
        edge.reload([{"address": "db.test", "weight": 5}, "other.test", "10.0.0.9"])
        await until(lambda: edge.there == {"10.0.0.1": 0, "10.0.0.2": 1, "10.0.0.9": 2})
        assert [member.weight for member in edge.in_force.roster.of("db")] == [5, 1, 1]
        assert [each["source"] for each in edge.follower.status()] == ["db.test", "other.test"]
        edge.reload(["other.test"])
        await until(lambda: edge.there == {"10.0.0.2": 1})
        asked = server.asked["db.test", "A", "udp"]
        others = server.asked["other.test", "A", "udp"]
        await until(lambda: server.asked["other.test", "A", "udp"] > others + 5)
        assert server.asked["db.test", "A", "udp"] == asked
        edge.reload(["10.0.0.9"])
        assert edge.follower.status() == []
        assert edge.follower.members(edge.in_force.service) == ()


async def test_what_does_not_come_into_force_is_tried_again_and_said(edge: Edge, server: Lying) -> None:
    server.say("db.test", "A", "10.0.0.1", ttl_s=0)
    edge.hindrance = "a port is taken"
    async with at_work(edge):
        await until(lambda: edge.puts > 2)
        assert edge.the()["trouble"] == "a port is taken"
        edge.hindrance = ""
        await until(lambda: edge.there)
    message = "who is there by names and files does not come into force: a port is taken"
    assert sorted(edge.said()) == ["it has 1 address now", message]


async def test_a_mistake_of_relays_own_stops_nobody(edge: Edge, server: Lying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources_follower, "_AGAIN_S", 0.01)
    server.say("db.test", "A", "10.0.0.1", ttl_s=0)
    (source,) = edge.follower._sources.values()
    real, broken = source._look_up.ask, [1, 1]

    async def ask() -> Any:
        if broken:
            broken.pop()
            raise ZeroDivisionError
        return await real()

    monkeypatch.setattr(source._look_up, "ask", ask)
    async with at_work(edge):
        await until(lambda: edge.there)
    assert [line["message"] for line in edge.logged.lines() if line["event"] == "bug"] == [
        "relay cannot read its answer (ZeroDivisionError)"
    ] * 2


async def test_before_all_were_asked_nothing_is_brought(
    edge: Edge, server: Lying, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One roster is better than one for each source; and who is there stays until whoever knows has been asked."""
    monkeypatch.setattr(sources_follower, "AT_ONCE_S", HANG_S)
    server.say("db.test", "A", "10.0.0.1", ttl_s=0)
    edge.reload(["db.test", {"file": "t.yaml"}])
    (tmp_path / "t.yaml").write_text('- targets: ["10.0.0.2"]\n')
    (_, slow), may = edge.follower._sources.values(), asyncio.Event()
    real = slow._look_up.ask

    async def ask() -> Any:
        await may.wait()
        return await real()

    monkeypatch.setattr(slow._look_up, "ask", ask)
    async with at_work(edge):
        await until(lambda: server.asked["db.test", "A", "udp"] > 3)
        assert (edge.puts, edge.there) == (0, {})
        may.set()
        await until(lambda: edge.there == {"10.0.0.1": 0, "10.0.0.2": 1})
        assert edge.puts == 1


async def test_one_that_is_late_is_not_waited_for_long(
    edge: Edge, server: Lying, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_follower, "AT_ONCE_S", 0.05)
    server.say("db.test", "A", "10.0.0.1", ttl_s=0)
    edge.reload(["other.test", "db.test"])
    slow, _ = edge.follower._sources.values()
    monkeypatch.setattr(slow._look_up, "ask", asyncio.Event().wait)
    async with at_work(edge):
        await until(lambda: edge.there == {"10.0.0.1": 0})


async def test_who_is_no_target_here_is_said_once(edge: Edge, server: Lying) -> None:
    server.say("db.test", "A", "198.51.100.10", "10.0.0.1", ttl_s=0)
    async with at_work(edge):
        await until(lambda: edge.the()["trouble"])
        asked = server.asked["db.test", "A", "udp"]
        await until(lambda: server.asked["db.test", "A", "udp"] > asked + 3)
        message = "db/pg: db_IN_1 at 198.51.100.10 port 5432 is no target: that is this machine itself"
        assert edge.the()["trouble"] == message
        assert edge.said() == ["it has 2 addresses now", message]
        server.say("db.test", "A", "10.0.0.1", "10.0.0.2", ttl_s=0)
        await until(lambda: not edge.the()["trouble"])
