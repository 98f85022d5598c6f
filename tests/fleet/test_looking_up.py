"""Asking for instances: names, service records and files; a server answers well, late, in part, not at all, or lies."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import dns.rcode
import pytest

from relay.config import reading
from relay.config.instances import Listed
from relay.config.values import HostPort
from relay.errors import SourceError
from relay.fleet import local_names, looking_up
from relay.fleet.listed_file import SIZE_MAX_BYTES
from relay.fleet.local_names import LocalNames
from relay.fleet.looking_up import TTL_MAX_S, TTL_MIN_S, LookUp
from relay.fleet.places import Place, SourceAnswer
from tests.fleet.dnses import HOST, NOTHING, NXDOMAIN, SERVFAIL, SILENCE, Lying, Says

V4, V6 = frozenset({4}), frozenset({6})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lying]:
    """A server; nobody waits for it for long."""
    monkeypatch.setattr(looking_up, "LIFETIME_S", 0.5)
    with Lying() as made:
        yield made


class Asked:
    """What sources say by that server, and by files of a test."""

    def __init__(self, server: Lying, directory: Path) -> None:
        self.directory, self.hosts, self.resolv_conf = directory, directory / "hosts", directory / "resolv.conf"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.resolv_conf.write_text("")
        servers = (HostPort(HOST, server.port),)
        self.names = LocalNames(servers, hosts=str(self.hosts), resolv_conf=str(self.resolv_conf))

    def look_up(self, kind: Literal["name", "srv", "file"], text: str) -> LookUp:
        return LookUp(self.names, Listed(kind, text), str(self.directory))

    async def name(self, text: str = "db.test") -> SourceAnswer:
        return await self.look_up("name", text).ask()

    async def srv(self, text: str = "_pg._tcp.test") -> SourceAnswer:
        return await self.look_up("srv", text).ask()


@pytest.fixture
def asked(server: Lying, tmp_path: Path) -> Asked:
    return Asked(server, tmp_path)


def at(answer: SourceAnswer) -> list[str]:
    return [place.address for place in answer.places]


# --- names --------------------------------------------------------------------------------------------------------------


async def test_both_versions_in_one_order(server: Lying, asked: Asked) -> None:
    server.say("db.test", "A", "10.0.0.5", "10.0.0.4", ttl_s=60)
    server.say("db.test", "AAAA", "2001:db8::1", ttl_s=30)
    assert await asked.name() == SourceAnswer(tuple(map(Place.of, ("10.0.0.4", "10.0.0.5", "2001:db8::1"))), 30.0)


@pytest.mark.parametrize(("ttl_s", "for_s"), [(0, TTL_MIN_S), (60, 60.0), (86400, TTL_MAX_S)])
async def test_the_time_has_bounds(server: Lying, asked: Asked, ttl_s: int, for_s: float) -> None:
    server.does("db.test", "A", Says(("10.0.0.4",), ttl_s=ttl_s))
    server.does("db.test", "AAAA", Says(negative_s=86400))
    assert (await asked.name()).ttl_s == for_s


async def test_the_shortest_time_of_a_chain(server: Lying, asked: Asked) -> None:
    aliases = (("db.test.", "one.test.", 60), ("one.test.", "two.test.", 7))
    server.does("db.test", "A", Says(("10.0.0.4",), ttl_s=90, aliases=aliases))
    server.does("db.test", "AAAA", Says(aliases=aliases, negative_s=None))
    found = await asked.name()
    assert (at(found), found.ttl_s, found.trouble) == (["10.0.0.4"], 7.0, "")


@pytest.mark.parametrize("says", [NXDOMAIN, NOTHING])
async def test_nothing_is_an_answer(server: Lying, asked: Asked, says: Says) -> None:
    server.does("db.test", "A", says)
    server.does("db.test", "AAAA", says)
    assert await asked.name() == SourceAnswer((), 1.0)


@pytest.mark.parametrize(
    ("says", "why"),
    [
        (SERVFAIL, "answered SERVFAIL"),
        (SILENCE, "does not answer"),
        (Says(("10.0.0.4",), wrong_id=True), "does not answer"),
        (Says(("10.0.0.4",), other_name="other.test"), "does not answer"),
        (Says(rcode=dns.rcode.REFUSED), "answered REFUSED"),
        (Says(("10.0.0.4",), rcode=dns.rcode.NXDOMAIN), "rcode is NXDOMAIN"),
    ],
)
async def test_what_is_no_answer(server: Lying, asked: Asked, says: Says, why: str) -> None:
    server.does("db.test", "A", says)
    found = await asked.name()
    assert (found.places, found.unsure) == ((), V4)
    assert found.trouble.startswith(f"db.test (A): {server.server} ")
    assert why in found.trouble
    server.does("db.test", "AAAA", SERVFAIL)
    with pytest.raises(SourceError) as failed:
        await asked.name()
    assert str(failed.value).startswith(found.trouble)


async def test_nobody_is_there_to_ask(asked: Asked) -> None:
    with Lying() as gone:
        pass
    asked.names = LocalNames((HostPort(HOST, gone.port),), hosts=str(asked.hosts))
    with pytest.raises(SourceError, match=f"{gone.server} "):
        await asked.name()


async def test_a_lie_before_the_answer_changes_nothing(server: Lying, asked: Asked) -> None:
    lies = [Says(("10.6.6.6",), wrong_id=True), Says(("10.6.6.6",), other_name="other.test")]
    server.does("db.test", "A", *lies, Says(("10.0.0.4",), late_s=0.1))
    assert at(await asked.name()) == ["10.0.0.4"]


async def test_records_of_other_names_in_an_answer_do_not_count(server: Lying, asked: Asked) -> None:
    server.does("db.test", "A", Says(("10.6.6.6",), aliases=(("other.test.", "evil.test.", 1),)))
    assert at(await asked.name()) == []


async def test_what_comes_too_late_is_no_answer(server: Lying, asked: Asked) -> None:
    server.does("db.test", "A", Says(("10.0.0.4",), late_s=1.5))
    found = await asked.name()
    assert (found.places, found.unsure) == ((), V4)


async def test_a_version_that_gave_no_answer_is_no_empty_one(server: Lying, asked: Asked) -> None:
    server.say("db.test", "A", "10.0.0.4")
    server.does("db.test", "AAAA", SILENCE)
    found = await asked.name()
    assert (at(found), found.unsure) == (["10.0.0.4"], V6)
    assert found.trouble.startswith("db.test (AAAA): ")


async def test_a_truncated_answer_is_asked_for_again_by_tcp(server: Lying, asked: Asked) -> None:
    addresses = [f"10.0.{n // 200}.{n % 200}" for n in range(500)]
    server.does("db.test", "A", Says(tuple(addresses), truncated=True))
    assert at(await asked.name()) == addresses
    assert server.asked["db.test", "A", "udp"] == server.asked["db.test", "A", "tcp"] == 1


async def test_addresses_that_can_be_no_target(server: Lying, asked: Asked) -> None:
    server.say("db.test", "A", "0.0.0.0", "127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "10.0.0.4")
    server.say("db.test", "AAAA", "::", "::1", "fe80::1", "ff02::1", "::ffff:10.0.0.5", "::ffff:127.0.0.1")
    found = await asked.name()
    assert at(found) == ["10.0.0.4", "10.0.0.5"]
    assert len(found.left_out) == 10
    assert "127.0.0.1 is this machine itself, which DNS must not lead to" in found.left_out


async def test_the_hosts_file_comes_first(server: Lying, asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_names, "LOOK_S", 0.0)
    server.say("db.test", "A", "10.0.0.4", ttl_s=60)
    asked.hosts.write_text("127.0.0.9 DB.test\n::1 db.test\n")
    found = await asked.name()
    assert (at(found), found.ttl_s) == (["127.0.0.9", "::1"], TTL_MIN_S)
    assert not server.asked
    asked.hosts.write_text("")
    assert at(await asked.name()) == ["10.0.0.4"]


async def test_the_search_list(server: Lying, asked: Asked) -> None:
    asked.resolv_conf.write_text("search a.test b.test\n")
    server.say("db.b.test", "A", "10.0.0.4")
    assert at(await asked.name("db")) == ["10.0.0.4"]
    server.does("db.a.test", "A", SERVFAIL)
    server.forget("db.b.test")
    assert (await asked.name("db")).unsure == V4, "whoever failed may have known it"


# --- service records ----------------------------------------------------------------------------------------------------


async def test_a_service_record(server: Lying, asked: Asked) -> None:
    records = ("10 0 5432 one.test.", "10 512 5433 two.test.", "20 5 5434 three.test.", "20 0 0 .")
    server.say("_pg._tcp.test", "SRV", *records, ttl_s=20)
    server.say("one.test", "A", "10.0.0.1", "10.0.0.11", ttl_s=60)
    server.say("two.test", "A", "10.0.0.2", ttl_s=60)
    server.does("two.test", "AAAA", Says(negative_s=None))
    server.say("three.test", "AAAA", "2001:db8::3", ttl_s=9)
    found = await asked.srv()
    assert found.places == (
        Place.of("10.0.0.1", 5432, 1),
        Place.of("10.0.0.2", 5433, 256),
        Place.of("10.0.0.11", 5432, 1),
        Place.of("2001:db8::3", 5434, 5, True),
    )
    assert (found.ttl_s, found.unsure, found.trouble) == (1.0, frozenset(), "")


@pytest.mark.parametrize("says", [NXDOMAIN, NOTHING, Says(("0 0 0 .",))])
async def test_no_such_service(server: Lying, asked: Asked, says: Says) -> None:
    server.does("_pg._tcp.test", "SRV", says)
    assert (await asked.srv()).places == ()


async def test_a_service_record_that_fails(server: Lying, asked: Asked) -> None:
    server.does("_pg._tcp.test", "SRV", SERVFAIL)
    with pytest.raises(SourceError, match=r"_pg\._tcp\.test \(SRV\): .* answered SERVFAIL"):
        await asked.srv()


async def test_one_of_its_machines_gives_no_answer(server: Lying, asked: Asked) -> None:
    server.say("_pg._tcp.test", "SRV", "1 1 5432 one.test.", "1 1 5432 two.test.")
    server.say("one.test", "A", "10.0.0.1")
    server.does("two.test", "A", SERVFAIL)
    found = await asked.srv()
    assert (at(found), found.unsure) == (["10.0.0.1"], V4)
    assert "two.test. (A): " in found.trouble


async def test_dns_does_not_get_into_this_machine_by_the_hosts_file(server: Lying, asked: Asked) -> None:
    server.say("_pg._tcp.test", "SRV", "1 1 5432 localhost.", "1 1 5432 db.test.")
    asked.hosts.write_text("127.0.0.1 localhost\n10.0.0.4 db.test\n")
    found = await asked.srv()
    assert at(found) == ["10.0.0.4"]
    assert found.left_out == ("127.0.0.1 is this machine itself, which DNS must not lead to",)


# --- files --------------------------------------------------------------------------------------------------------------


async def test_a_file_is_read_when_it_changes(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    file = asked.directory / "targets.yaml"
    look_up = asked.look_up("file", "targets.yaml")
    with pytest.raises(SourceError, match=r"targets\.yaml cannot be read: no such file"):
        await look_up.ask()
    file.write_text('- targets: ["127.0.0.1:5432", "0.0.0.0", "10.0.0.4"]\n')
    found = await look_up.ask()
    assert found.places == (Place.of("10.0.0.4"), Place.of("127.0.0.1", 5432))
    assert (found.ttl_s, found.left_out) == (1.0, ("0.0.0.0 is no machine's",))
    reads: list[Any] = []
    monkeypatch.setattr(reading, "read_bytes", lambda *_, **__: reads.append(1))
    assert await look_up.ask() == found
    assert not reads
    monkeypatch.undo()
    file.write_text("- targets: [\n")
    for _ in range(2):
        with pytest.raises(SourceError, match="neither JSON nor YAML"):
            await look_up.ask()
    file.write_text("[]")
    assert (await look_up.ask()).places == ()
    file.unlink()
    with pytest.raises(SourceError, match="no such file"):
        await look_up.ask()


async def test_a_path_from_the_top_and_one_that_is_no_file(asked: Asked, tmp_path: Path) -> None:
    (tmp_path / "t.json").write_text('[{"targets": ["10.0.0.4"]}]')
    assert at(await asked.look_up("file", str(tmp_path / "t.json")).ask()) == ["10.0.0.4"]
    with pytest.raises(SourceError, match="is a directory, not a file"):
        await asked.look_up("file", str(tmp_path)).ask()
    (tmp_path / "large").write_bytes(b" " * (SIZE_MAX_BYTES + 1))
    with pytest.raises(SourceError, match="is larger than 1 MiB"):
        await asked.look_up("file", "large").ask()


async def test_names_in_a_file(server: Lying, asked: Asked) -> None:
    (asked.directory / "t.yaml").write_text(
        '- targets: ["db.test:5433", "db.test:5432", "gone.test:1", "localhost:80"]\n'
    )
    server.say("db.test", "A", "10.0.0.4", "127.0.0.1", ttl_s=60)
    server.does("gone.test", "A", SERVFAIL)
    look_up = asked.look_up("file", "t.yaml")
    for _ in range(2):
        found = await look_up.ask()
        assert [(place.address, place.port) for place in found.places] == [
            ("10.0.0.4", 5432),
            ("10.0.0.4", 5433),
            ("127.0.0.1", 80),
        ], "the file may name this machine; a server may not"
        assert (found.unsure, found.ttl_s) == (V4, 1.0)
        assert "gone.test (A)" in found.trouble
    assert server.asked["db.test", "A", "udp"] == 1, "its answer counts for a minute"
    assert server.asked["gone.test", "A", "udp"] == 1, "it is not asked again at once"
