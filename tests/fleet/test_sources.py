"""Sources at work, one by one; and all of them before a start, which waits for nobody for long."""

import asyncio
import math
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.config.instances import Listed
from relay.config.model import Service
from relay.config.roster import Member
from relay.config.settings import Settings
from relay.errors import SourceError
from relay.fleet.local_names import LocalNames
from relay.fleet.looking_up import LookUp
from relay.fleet.places import Place, SourceAnswer
from relay.fleet.sources import AT_ONCE_S, Heard, Source, members_at_once, sources, too_many_text
from tests.config.rig import service
from tests.fleet.dnses import SERVFAIL, SILENCE, Lying, Says

TEXT = """\
version: 1
service: shop
edge: {instances: [127.0.0.1]}
roles:
  db:
    bare: true
    instances: [10.0.0.9, db.test, {address: other.test, weight: 3}, {file: t.yaml}]
    endpoints: {pg: {type: input, public_port: 5432, port: 5432}}
  web: {instances: [10.0.1.1]}
"""


@pytest.fixture
def server() -> Iterator[Lying]:
    with Lying() as made:
        yield made


def settings(server: Lying) -> Settings:
    return Settings.model_validate({"names": {"resolvers": [server.server]}})


def shop(text: str = TEXT) -> Service:
    return service(text)


class Says1(LookUp):
    """A source that says what a test has it say."""

    def __init__(self) -> None:
        super().__init__(LocalNames(), Listed("name", "db.test"), "")
        self.answer: SourceAnswer | None = None

    async def ask(self) -> SourceAnswer:
        if self.answer is None:
            raise SourceError("it is away")
        return self.answer


def at(*texts: str) -> tuple[Place, ...]:
    return tuple(Place.of(text) for text in texts)


async def test_a_source() -> None:
    look_up, before_s = Says1(), time.monotonic()
    source = Source("db", Listed("name", "db.test"), look_up, None, before_s)
    assert (source.has_answered, source.good_at_s, source.was_asked) == (False, -math.inf, False)
    waits_s = []
    for _ in range(5):
        assert await source.ask() == Heard(None, "it is away")
        waits_s.append(source.wait_s())
    assert waits_s == [1, 2, 4, 5, 5]
    assert (source.failures, source.trouble, source.has_answered, source.was_asked) == (5, "it is away", False, True)
    look_up.answer = SourceAnswer(at("10.0.0.1", "10.0.0.2"), 7.0, left_out=("::1 no",))
    assert await source.ask() == Heard("changed", "", ("::1 no",))
    assert (source.places, source.ttl_s, source.wait_s(), source.trouble) == (at("10.0.0.1", "10.0.0.2"), 7, 7, "")
    assert source.good_at_s >= before_s
    assert await source.ask() == Heard("same"), "what is left out is told once"
    look_up.answer = None
    good_at_s = source.good_at_s
    await source.ask()
    assert (source.good_at_s, source.wait_s(), len(source.places)) == (good_at_s, 1, 2)


async def test_its_age_goes_on_while_it_is_doubted_or_not_whole() -> None:
    look_up = Says1()
    source = Source("db", Listed("name", "db.test"), look_up, at("10.0.0.1"), 5.0)
    assert (source.has_answered, source.good_at_s) == (True, 5.0)
    look_up.answer = SourceAnswer((), 60.0)
    assert (await source.ask()).verdict == "doubted"
    assert (source.good_at_s, source.is_doubting) == (5.0, True)
    assert 4.9 < source.wait_s() <= 5
    look_up.answer = SourceAnswer(at("10.0.0.1"), 60.0, frozenset({6}), "AAAA does not answer")
    assert await source.ask() == Heard("same", "AAAA does not answer")
    assert (source.good_at_s, source.failures, source.wait_s()) == (5.0, 1, 1)


async def test_a_part_is_better_than_nothing_at_first() -> None:
    look_up = Says1()
    source = Source("db", Listed("name", "db.test"), look_up, None, 0.0)
    look_up.answer = SourceAnswer((), 60.0, frozenset({4}), "A does not answer")
    assert (await source.ask()).trouble
    assert not source.has_answered
    look_up.answer = SourceAnswer(at("2001:db8::1"), 60.0, frozenset({4}), "A does not answer")
    assert (await source.ask()).verdict == "changed"
    assert source.has_answered


def test_all_are_asked_at_once(server: Lying, tmp_path: Path) -> None:
    server.say("db.test", "A", "10.0.0.1")
    server.say("other.test", "A", "10.0.0.2")
    (tmp_path / "t.yaml").write_text('- targets: ["10.0.0.3:5433"]\n')
    found, notes = members_at_once(shop(), settings(server), str(tmp_path / "service.yaml"))
    assert notes == ()
    assert found == (
        Member("db", 0, "10.0.0.9"),
        Member("db", 1, "10.0.0.1", name="db.test"),
        Member("db", 2, "10.0.0.2", weight=3, name="other.test"),
        Member("db", 3, "10.0.0.3", port=5433, name="file: t.yaml"),
    )


def test_who_gives_no_answer_is_waited_for_two_seconds_and_said(server: Lying, tmp_path: Path) -> None:
    server.does("db.test", "A", SILENCE)
    server.does("other.test", "A", SERVFAIL)
    server.does("other.test", "AAAA", SERVFAIL)
    began_s = time.monotonic()
    found, notes = members_at_once(shop(), settings(server), str(tmp_path / "service.yaml"))
    assert time.monotonic() - began_s >= AT_ONCE_S
    assert found == (Member("db", 0, "10.0.0.9"),)
    later = "its instances come as soon as it answers"
    assert [note.split(": ", 1)[1] for note in notes] == [
        f"`db.test`: no answer within 2 s; {later}",
        f"`other.test`: other.test (A): {server.server} answered SERVFAIL; "
        f"other.test (AAAA): {server.server} answered SERVFAIL; {later}",
        f"`file: t.yaml`: {tmp_path}/t.yaml cannot be read: no such file; check the path and the permissions; {later}",
    ]


def test_what_stands_is_not_asked(server: Lying, tmp_path: Path) -> None:
    before = (Member("db", 4, "10.0.0.7", name="db.test"), Member("db", 5, "10.0.0.6", name="file: t.yaml"))
    server.say("other.test", "A", "10.0.0.2")
    found, notes = members_at_once(shop(), settings(server), str(tmp_path / "service.yaml"), before)
    assert notes == ()
    assert {member.address: member.ordinal for member in found} == {
        "10.0.0.7": 4, "10.0.0.6": 5, "10.0.0.9": 0, "10.0.0.2": 1
    }  # fmt: skip
    assert not any(name == "db.test" for name, _, _ in server.asked)


def test_too_many_are_said(server: Lying, tmp_path: Path) -> None:
    many = tuple(f"10.{n // 60000}.{n // 250 % 250}.{n % 250}" for n in range(1200))
    server.does("db.test", "A", Says(many, truncated=True))
    server.say("other.test", "A", "10.0.0.2")
    (tmp_path / "t.yaml").write_text("[]")
    found, notes = members_at_once(shop(), settings(server), str(tmp_path / "service.yaml"))
    assert len(found) == 1024
    assert notes == (f"role db: {too_many_text(176)}",)


def test_a_service_without_sources_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(asyncio, "run")
    plain = shop(TEXT.replace("10.0.0.9, db.test, {address: other.test, weight: 3}, {file: t.yaml}", "10.0.0.9"))
    assert members_at_once(plain, Settings(), "service.yaml") == ((), ())


async def test_sources_begin_with_what_stands() -> None:
    before = [Member("db", 0, "10.0.0.7", name="db.test")]
    found = {str(source.item): source for _, _, source in sources(shop(), Settings(), "service.yaml", before, 5.0)}
    assert list(found) == ["db.test", "other.test", "file: t.yaml"]
    assert (found["db.test"].places, found["db.test"].good_at_s) == (at("10.0.0.7"), 5.0)
    assert (found["other.test"].places, found["other.test"].has_answered) == ((), False)
