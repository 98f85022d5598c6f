"""The instances by a real etcd: what is announced is seen, and whatever befalls etcd, nobody is forgotten who is there."""

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pytest

from relay.config.roster import Member
from relay.fleet.claim import claim
from relay.fleet.entries import Entry, KeyValue
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Batch, delete, put
from relay.fleet.identity import Vacancy
from relay.fleet.presence import Presence
from relay.fleet.registry import Crowd, Etcd, Seen
from tests.fleet.etcds import EtcdServer
from tests.fleet.rig import HERE, KEPT_S, LONG_S, Fleet, is_back, is_lost, noted, until, who

pytestmark = pytest.mark.real("etcd", "etcdctl")


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
    fleet, began_ns = fleets("announce", server.url), time.monotonic_ns()
    async with contextlib.aclosing(fleet.watcher().watch()) as stream:
        assert await anext(stream) == Seen()
        one, two = fleet.member(0), fleet.member(1)
        seen = await until(stream, who(0, 1))
        assert seen.members[1] == Member("web", 1, "10.0.0.2", "10.0.0.2:9464")
        assert began_ns <= seen.confirmed_ns <= time.monotonic_ns()
        one.announce("", True, {"http-in": "HTTP 503"})
        seen = await until(stream, lambda seen: bool(seen.members) and seen.members[0].busy)
        assert seen.members[0] == Member("web", 0, "10.0.0.1", "", True, ("http-in",), ("HTTP 503",))
        await two.close(True)
        await until(stream, who(0))
        await one.close(False)  # as one that was killed: when its lease has run out
        await until(stream, who())
        assert one.conflict == two.conflict == ""


async def test_one_that_is_back_is_not_gone(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    fleet = fleets("back", server.url, ttl_s=KEPT_S)
    async with contextlib.aclosing(fleet.watcher().watch()) as stream, fleet.client() as client:
        one = fleet.member(0)
        await until(stream, who(0))
        await one.close(False)
        (found,) = (await client.range(fleet.keys.member("web", 0))).found[0]
        await client.revoke(found.lease)  # as when it has run out
        assert (await until(stream, is_lost(0))).gone == ()
        assert (await until(stream, who())).gone == ("10.0.0.1",)
        back = fleet.member(0)
        assert (await until(stream, who(0))).gone == ()
        await back.close(False)
        await Presence(client, fleet.machine(0), "web", 0).leave()  # by a client that has time
        assert (await until(stream, who())).gone == ()


async def test_one_whose_lease_etcd_takes_away_has_never_left(
    server: EtcdServer, fleets: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a leader does that stood still: all who are there register again, and nobody is cut."""
    fleet = fleets("taken", server.url, ttl_s=KEPT_S)
    watcher = fleet.watcher()
    async with contextlib.aclosing(watcher.watch()) as stream, fleet.client() as client:
        fleet.member(0)
        fleet.member(1)
        await until(stream, who(0, 1))
        known = noted(watcher, monkeypatch)
        for each in (await client.range(fleet.keys.all_members)).found[0]:
            await client.revoke(each.lease)
        await until(stream, is_back(known))
    assert {(len(seen.members), seen.gone) for seen in known} == {(2, ())}, "neither was away at any time"


def test_leases_that_run_out_once_etcd_was_away_say_nothing() -> None:
    """Whoever could not reach it could not renew its lease, up to one lease before that."""
    watcher = Etcd(EtcdClient([]), "shop", 900.0, known=Seen(confirmed_ns=time.monotonic_ns()))
    key = watcher._keys.member("web", 0)

    def lost(away_s: float, failures: int) -> tuple[str, ...]:
        """Who is gone when a lease runs out after so long a time without a word, and so many attempts in vain."""
        watcher._take(Batch(1, (KeyValue(key, entry_of(0)),)))
        watcher._confirmed_s -= away_s
        watcher._failures = failures
        watcher._take(Batch(2))  # the watch is there again
        watcher._take(Batch(3, (KeyValue(key, None),)))
        watcher._believed.looked(watcher._believed.due(math.inf), (), math.inf)
        watcher._looked()
        return watcher.current.gone

    assert lost(1000.0, 0) == ("10.0.0.1",), "it is asked for the first time"
    watcher._cluster = "1"
    assert lost(600.0, 0) == ("10.0.0.1",), "nothing came because nothing happened"
    assert lost(200.0, 3) == ("10.0.0.1",), "it was away for a moment"
    for away_s, failures in ((350.0, 1), (700.0, 0)):
        assert lost(away_s, failures) == ()
        assert lost(0.0, 0) == (), "still, for a lease"
        watcher._doubtful_until_s = time.monotonic()
        assert lost(0.0, 0) == ("10.0.0.1",)


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
    assert time.monotonic_ns() - watcher.current.confirmed_ns < 2 * fleet.ttl_s * 1e9
    assert watcher.current.trouble == ""


async def test_a_new_control_takes_over_the_leases_of_the_former(
    server: EtcdServer, fleets: Callable[..., Fleet]
) -> None:
    fleet = fleets("control", server.url, ttl_s=KEPT_S)
    async with fleet.client() as client:
        me = fleet.machine(0)
        assert (await claim(client, me, Vacancy("web"), 3)).ordinal == 0
        claimed = (await client.range(fleet.keys.claims("web"))).found[0][0].lease
        async with contextlib.aclosing(fleet.watcher().watch()) as stream:
            await until(stream, who(0))
            metrics = "10.0.0.1:9464"
            for _ in range(3):
                control = fleet.member(0, me)
                await until(control.watch(), lambda seen: bool(seen.members) and seen.members[0].metrics == metrics)
                await control.close(False)
            assert (await client.range(fleet.keys.claims("web"))).found[0][0].lease == claimed
            assert (await anext(stream)).members[0].metrics  # it has not been away in between


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


async def test_an_earlier_run_is_said_until_its_lease_ends(server: EtcdServer, fleets: Callable[..., Fleet]) -> None:
    """relay was started again while etcd was down, and cannot tell that it is of the same boot."""
    fleet = fleets("earlier", server.url, ttl_s=KEPT_S)
    me = fleet.machine(0)
    before = fleet.member(0, me)
    async with contextlib.aclosing(fleet.watcher().watch()) as stream, fleet.client() as client:
        await until(stream, who(0))
        await before.close(False)
        now = fleet.member(0, replace(me, daemon=replace(HERE, boot="boot unknown 10.0.0.1")))
        await until(now.watch(), lambda _: bool(now.conflict))
        assert now.conflict.startswith(
            "web_IN_0 at 10.0.0.1 is this machine itself: an earlier run of relay stands there"
        )
        assert "clone" not in now.conflict
        (found,) = (await client.range(fleet.keys.all_members)).found[0]
        await client.revoke(found.lease)  # as when it has run out
        await until(now.watch(), lambda _: not now.conflict)
