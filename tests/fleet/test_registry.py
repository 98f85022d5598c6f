"""The instances by a real etcd: what is announced is seen, and whatever befalls etcd, nobody is forgotten who is there."""

import asyncio
import contextlib
import os
import re
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from relay.config.roster import Member
from relay.fleet.believed import Believed
from relay.fleet.claim import Claimant, claim
from relay.fleet.entries import Entry, EntryKeys
from relay.fleet.etcd import REQUEST_S, EtcdClient
from relay.fleet.gateway import Batch, delete, put
from relay.fleet.identity import Vacancy
from relay.fleet.machine_id import Daemon
from relay.fleet.presence import Presence
from relay.fleet.registry import Crowd, Etcd, RegistryClient, Seen
from tests.fleet.etcds import EtcdServer, Forwarder, settings, shared
from tests.ports import free_port

pytestmark = pytest.mark.real("etcd", "etcdctl")

LONG_S = 120.0  # a bound for hanging
TTL_S = 2.0  # where a lease runs out, or may run out and be taken anew
KEPT_S = 30.0  # a lease that does not run out, and a watch that is not opened anew meanwhile
GRACE_S = 60.0
HERE = Daemon.of(os.getpid(), "10.0.0.4")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    yield from shared(tmp_path_factory)


class Fleet:
    """Machines of one service by the same endpoints; each is closed with the test."""

    def __init__(self, service: str, *urls: str, ttl_s: float = TTL_S) -> None:
        self.service, self.urls, self.ttl_s, self.keys = service, urls, ttl_s, EntryKeys(service)
        self.made: list[RegistryClient] = []

    def client(self) -> EtcdClient:
        """For the test itself, which does not ask again."""
        return EtcdClient(self.urls, timeout_s=LONG_S)

    def machine(self, n: int) -> Claimant:
        """The machine number `n`."""
        boot = replace(HERE, boot=f"boot-{n}")
        return Claimant(self.service, f"{n:032x}", boot, f"10.0.0.{n + 1}", self.ttl_s, hold_s=60)

    def member(self, n: int, me: Claimant | None = None) -> Etcd:
        """The registry of the machine that has number `n`, announced."""
        client = self._hasty()
        etcd = Etcd(client, self.service, self.ttl_s, Presence(client, me or self.machine(n), "web", n))
        self.made.append(etcd)
        etcd.announce(f"10.0.0.{n + 1}:9464", False, ())
        return etcd

    def watcher(self, known: Seen | None = None) -> Etcd:
        """The registry of a machine without a number."""
        etcd = Etcd(self._hasty(), self.service, self.ttl_s, known=known)
        self.made.append(etcd)
        return etcd

    def _hasty(self) -> EtcdClient:
        """With a bound that a path that has died does not outlast a lease."""
        return EtcdClient(self.urls, timeout_s=min(REQUEST_S, self.ttl_s / 2))


@pytest.fixture
async def fleets() -> AsyncIterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(service: str, *urls: str, ttl_s: float = TTL_S) -> Fleet:
        made.append(Fleet(service, *urls, ttl_s=ttl_s))
        return made[-1]

    yield make
    for fleet in made:
        await asyncio.gather(*(each.close(False) for each in fleet.made))


async def until(stream: AsyncGenerator[Seen], check: Callable[[Seen], bool]) -> Seen:
    """The first that fits."""
    async with asyncio.timeout(LONG_S):
        async for seen in stream:
            if check(seen):
                return seen
    raise AssertionError("it ended")


def who(*numbers: int) -> Callable[[Seen], bool]:
    """Whether these instances are there, and nothing is wrong."""
    return lambda seen: [member.ordinal for member in seen.members] == list(numbers) and not seen.trouble


def test_what_is_a_crowd() -> None:
    crowd = Crowd()
    assert not any(crowd.has_come(1, 0.5 * n) for n in range(40))
    assert [crowd.has_come(1, 100.0) for _ in range(16)] == [False] * 15 + [True]
    assert not crowd.has_come(0, 100.0), "the message that says that the watch is there"
    assert not crowd.has_come(1, 101.0)
    assert crowd.has_come(500, 102.0), "all in one message"
    assert not crowd.has_come(1, 103.0)


def test_a_crowd_that_lasts_is_left_alone_for_longer() -> None:
    crowd = Crowd()
    assert [crowd.pause_s(0.1, 30.0) for _ in range(6)] == [1.0, 2.0, 4.0, 5.0, 5.0, 5.0]
    assert crowd.pause_s(3.0, 30.0) == 0.5, "it was quiet for a while"
    assert crowd.pause_s(0.1, 2.0) == 0.5, "a lease is longer"


async def test_a_crowd_comes_in_few_messages(
    server: EtcdServer, fleets: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleets("crowd", server.url, ttl_s=KEPT_S)
    messages: list[int] = []
    watching = asyncio.Event()
    client, watch = fleet.client(), EtcdClient.watch

    async def counted(self: EtcdClient, prefix: str, revision: int, *, silence_s: float) -> AsyncGenerator[Batch]:
        async with contextlib.aclosing(watch(self, prefix, revision, silence_s=silence_s)) as stream:
            async for batch in stream:
                messages.append(len(batch.events))
                watching.set()
                yield batch

    monkeypatch.setattr(EtcdClient, "watch", counted)
    async with client, contextlib.aclosing(fleet.watcher().watch()) as stream:
        await until(stream, who())
        await asyncio.wait_for(watching.wait(), LONG_S)
        puts = [put(fleet.keys.member("web", n), entry_of(n)) for n in range(200)]
        await asyncio.gather(*(client.txn((), [each]) for each in puts))
        await until(stream, who(*range(200)))
        assert sum(messages) == 200
        assert max(messages) > 1, "what came while the watch was closed came in one message"
        await client.txn((), [delete(fleet.keys.member("web", 0))])
        await until(stream, who(*range(1, 200)))


async def test_a_watch_that_is_never_silent_is_opened_anew(
    server: EtcdServer, fleets: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet, watch = fleets("busy", server.url), EtcdClient.watch
    opened: list[int] = []

    async def counted(self: EtcdClient, prefix: str, revision: int, *, silence_s: float) -> AsyncGenerator[Batch]:
        opened.append(revision)
        async with contextlib.aclosing(watch(self, prefix, revision, silence_s=silence_s)) as stream:
            async for batch in stream:
                yield batch

    monkeypatch.setattr(EtcdClient, "watch", counted)
    monkeypatch.setattr(Crowd, "has_come", lambda *_: False)
    async with fleet.client() as client, contextlib.aclosing(fleet.watcher().watch()) as stream:
        await until(stream, who())
        n = 0
        async with asyncio.timeout(LONG_S):
            while len(opened) < 3:
                await client.txn((), [put(fleet.keys.member("web", n % 100), entry_of(n % 100))])
                n += 1
        await until(stream, who(*range(min(n, 100))))
        assert opened == sorted(opened)


def entry_of(n: int) -> bytes:
    """What an instance's own machine would have written."""
    return Entry(Member("web", n, f"10.0.0.{n + 1}"), "m", "d").to_value()


async def test_what_is_announced_is_seen(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    fleet, began_ns = fleets("announce", server.url), time.time_ns()
    async with contextlib.aclosing(fleet.watcher().watch()) as stream:
        assert await anext(stream) == Seen()
        one, two = fleet.member(0), fleet.member(1)
        seen = await until(stream, who(0, 1))
        assert seen.members[1] == Member("web", 1, "10.0.0.2", "10.0.0.2:9464")
        assert began_ns <= seen.confirmed_ns <= time.time_ns()
        one.announce("", True, ("http-in",))
        seen = await until(stream, lambda seen: bool(seen.members) and seen.members[0].busy)
        assert seen.members[0] == Member("web", 0, "10.0.0.1", "", True, ("http-in",))
        await two.close(True)
        await until(stream, who(0))
        await one.close(False)  # as one that was killed: when its lease has run out
        await until(stream, who())
        assert one.conflict == two.conflict == ""


async def test_a_lease_is_kept(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    """For longer than the lease nothing comes, and the view is confirmed all the time."""
    fleet = fleets("kept", server.url, ttl_s=6.0)  # of which a busy machine has two thirds to be late
    fleet.member(0)
    watcher = fleet.watcher()
    async with contextlib.aclosing(watcher.watch()) as stream:
        await until(stream, who(0))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1.5 * fleet.ttl_s):
                await anext(stream)
    assert time.time_ns() - watcher.current.confirmed_ns < 2 * fleet.ttl_s * 1e9
    assert watcher.current.trouble == ""


async def test_a_new_control_takes_over_the_leases_of_the_former(
    server: EtcdServer, fleets: Callable[..., Fleet]
) -> None:
    fleet = fleets("control", server.url, ttl_s=KEPT_S)
    async with fleet.client() as client:
        me = fleet.machine(0)
        assert (await claim(client, me, Vacancy("web"), 3)).ordinal == 0
        claimed = (await client.range(fleet.keys.slots("web"))).found[0][0].lease
        async with contextlib.aclosing(fleet.watcher().watch()) as stream:
            await until(stream, who(0))
            metrics = "10.0.0.1:9464"
            for _ in range(3):
                control = fleet.member(0, me)
                await until(control.watch(), lambda seen: bool(seen.members) and seen.members[0].metrics == metrics)
                await control.close(False)
            assert (await client.range(fleet.keys.slots("web"))).found[0][0].lease == claimed
            assert (await anext(stream)).members[0].metrics  # it has not been away in between


async def test_the_lease_was_lost(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    fleet = fleets("lost", server.url, ttl_s=KEPT_S)
    fleet.member(0)
    async with contextlib.aclosing(fleet.watcher().watch()) as stream, fleet.client() as client:
        await until(stream, who(0))
        (found,) = (await client.range(fleet.keys.all_members)).found[0]
        await client.revoke(found.lease)
        await until(stream, who())
        await until(stream, who(0))
        (slot,) = (await client.range(fleet.keys.slots("web"))).found[0]
        await client.txn((), [delete(slot.key), delete(found.key)])  # by the hand of somebody
        await until(stream, who())
        await until(stream, who(0))
        assert len((await client.range(fleet.keys.slots("web"))).found[0]) == 1


async def test_etcd_is_killed_and_started_again(tmp_path: Path, fleets: Callable[..., Fleet]) -> None:
    with EtcdServer(tmp_path / "etcd") as server:
        fleet = fleets("killed", server.url)
        fleet.member(0)
        watcher = fleet.watcher()
        async with contextlib.aclosing(watcher.watch()) as stream:
            await until(stream, who(0))
            server.kill()
            seen = await until(stream, lambda seen: bool(seen.trouble))
            assert [member.ordinal for member in seen.members] == [0]
            assert "nobody listens there" in seen.trouble or "etcd's watch ended" in seen.trouble
            confirmed_ns = watcher.current.confirmed_ns
            await asyncio.sleep(1.2 * TTL_S)  # longer than every lease
            assert [member.ordinal for member in watcher.current.members] == [0]
            assert watcher.current.confirmed_ns == confirmed_ns
            await asyncio.to_thread(server.start, wait=False)
            async with asyncio.timeout(LONG_S):
                seen = await until(stream, lambda seen: not seen.trouble)
            assert [member.ordinal for member in seen.members] == [0]
            fleet.member(1)
            await until(stream, who(0, 1))
            assert watcher.current.confirmed_ns > confirmed_ns


async def test_what_happens_while_the_watch_is_away_is_not_missed(
    server: EtcdServer, fleets: Callable[..., Fleet]
) -> None:
    """For less than a lease: by its revision, or anew when that has been compacted."""
    async with Forwarder(server.port) as path:
        near, far = (fleets("away", url, ttl_s=KEPT_S) for url in (server.url, path.url))
        for n in range(2):
            near.member(n)
        async with contextlib.aclosing(far.watcher().watch()) as stream, near.client() as client:
            await until(stream, who(0, 1))
            for n, compacted in ((2, False), (3, True)):
                path.swallow()
                near.member(n)
                await until(near.watcher().watch(), who(*range(n + 1)))
                if compacted:
                    await client.txn((), [put("/other", b"")])  # or the event would be in the revision that is left
                    await asyncio.to_thread(server.ctl, "compact", str((await client.range("/x/")).revision))
                path.drop()
                await until(stream, who(*range(n + 1)))


async def test_a_path_that_dies(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    """Whoever has only this path is told within about a lease; whoever has another one takes that."""
    async with Forwarder(server.port) as path:
        near, far = fleets("dies", server.url), fleets("dies", path.url)
        both = fleets("dies", path.url, server.url)
        near.member(0)
        async with (
            contextlib.aclosing(far.watcher().watch()) as only,
            contextlib.aclosing(both.watcher().watch()) as either,
        ):
            await until(only, who(0))
            await until(either, who(0))
            path.swallow()
            near.member(1)
            seen = await until(either, who(0, 1))
            seen = await until(only, lambda seen: bool(seen.trouble))
            assert [member.ordinal for member in seen.members] == [0]
            assert re.search("no answer within [12] s", seen.trouble)  # a second one has twice the time
            path.drop()
            await until(only, who(0, 1))


async def test_two_endpoints_of_which_one_is_dead(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    fleet = fleets("two", f"http://127.0.0.1:{free_port()}", server.url)
    fleet.member(0)
    await until(fleet.watcher().watch(), who(0))


@pytest.mark.parametrize("writes", [0, 100])
async def test_a_store_that_was_wiped(
    tmp_path: Path, fleets: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    """Nobody is cut: those that are there register again, and the one that died meanwhile has a grace.

    Also where the new store has had more writes than the former one when it is looked at.
    """
    monkeypatch.setattr("relay.fleet.registry.grace_s", lambda _ttl_s: GRACE_S)
    with EtcdServer(tmp_path / "etcd") as server:
        async with Forwarder(server.port) as path:
            far, near = fleets("wiped", path.url), fleets("wiped", server.url)
            members = [far.member(n) for n in range(3)]
            await until(members[0].watch(), who(0, 1, 2))
            async with contextlib.aclosing(far.watcher().watch()) as stream, near.client() as client:
                await until(stream, who(0, 1, 2))
                server.kill()
                await members[2].close(False)
                await until(stream, lambda seen: bool(seen.trouble))
                path.swallow()
                shutil.rmtree(server.data)
                await asyncio.to_thread(server.start)
                for _ in range(writes):
                    await client.txn((), [put("/other", b"")])
                path.drop()
                await until(stream, who(0, 1, 2))
                back = {near.keys.member("web", n) for n in range(2)}
                async with asyncio.timeout(LONG_S):
                    async with contextlib.aclosing(client.watch("/relay/wiped/", 1, silence_s=LONG_S)) as changes:
                        async for batch in changes:
                            back -= {each.key for each in batch.events}
                            if not back:
                                break
                near.member(4)
                await until(stream, who(0, 1, 2, 4))
                assert len((await client.range(near.keys.slots("web"))).found[0]) == 3
                if writes:  # and the grace is over
                    told = Believed.members
                    monkeypatch.setattr(Believed, "members", lambda self, now_s: told(self, now_s + GRACE_S))
                    await until(stream, who(0, 1, 4))


async def test_the_last_roster_of_a_disk_stands_until_the_registry_knows_all_again(
    server: EtcdServer, fleets: Callable[..., Fleet]
) -> None:
    """After a start by the roster on disk: others may have lost their leases while etcd was down."""
    fleet = fleets("disk", server.url)
    fleet.member(0)
    known = (Member("web", 0, "10.0.0.1"), Member("web", 1, "10.0.0.2"))
    old = Seen(known, time.time_ns() - int(3600e9))
    metrics = "10.0.0.1:9464"
    await until(fleet.watcher(old).watch(), lambda seen: who(0, 1)(seen) and seen.members[0].metrics == metrics)
    fresh = Seen(known, time.time_ns())
    await until(fleet.watcher(fresh).watch(), who(0))


async def test_garbage(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    fleet = fleets("garbage", server.url)
    good = Entry(Member("web", 7, "10.0.0.8"), "m", "d").to_value()
    fleet.member(0)
    watcher = fleet.watcher()
    async with contextlib.aclosing(watcher.watch()) as stream, fleet.client() as client:
        await until(stream, who(0))
        prefix = fleet.keys.all_members
        bad = {"web/1": b"\xff", "web/2": b"[]", "web/x": good, "web/01": good, "web": good, "we b/1": good}
        bad |= {"web/3": good.replace(b"10.0.0.8", b"0.0.0.0"), "web/4": good.replace(b"10.0.0.8", b"web-7")}
        await client.txn((), [*(put(prefix + name, value) for name, value in bad.items()), put(prefix + "web/7", good)])
        await until(stream, who(0, 7))
        assert watcher.rejected == len(bad)
        await client.txn((), [put(prefix + "web/7", b"garbage now"), put(prefix + "web/8", good)])
        await until(stream, who(0, 7, 8))  # what it said before stands
        again = fleet.watcher()
        await until(again.watch(), who(0, 8))
        assert again.rejected == len(bad) + 1


async def test_as_the_settings_say(server: EtcdServer, tmp_path: Path) -> None:
    registry = settings(tmp_path, [server.url]).registry
    assert registry is not None
    me = Claimant("settings", "m", HERE, "10.0.0.4", registry.ttl_s, registry.hold_s)
    etcd = Etcd.of(registry, "settings", me, ("web", 2), Seen())
    etcd.announce("", False, ("http-in",))
    seen = await until(etcd.watch(), who(2))
    assert seen.members == (Member("web", 2, "10.0.0.4", down=("http-in",)),)
    await etcd.close(True)
    edge = Etcd.of(registry, "settings", None, None, Seen())  # which has no number, and is nobody by the registry
    edge.announce("", False, ())
    await until(edge.watch(), who())
    await edge.close(True)


async def test_somebody_else_has_the_number(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    fleet = fleets("conflict", server.url, ttl_s=KEPT_S)
    me = fleet.machine(0)
    first = fleet.member(0, me)
    async with contextlib.aclosing(fleet.watcher().watch()) as stream:
        await until(stream, who(0))
        clone = fleet.member(0, replace(me, daemon=replace(HERE, boot="another"), address="10.0.0.99"))
        other = fleet.member(0, fleet.machine(5))
        await until(clone.watch(), lambda _: bool(clone.conflict))
        await until(other.watch(), lambda _: bool(other.conflict))
        assert clone.conflict.startswith(
            "web_IN_0 at 10.0.0.1 has the same machine id as this machine, so one is a clone"
        )
        assert other.conflict == "web_IN_0 at 10.0.0.1 is another machine; stop relay there, or ask for another number"
        assert first.conflict == ""
        await other.close(False)
        await first.close(True)
        await until(stream, lambda seen: [member.address for member in seen.members] == ["10.0.0.99"])
        await until(clone.watch(), lambda _: not clone.conflict)
