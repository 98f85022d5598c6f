"""What the registry goes through: deaths, wiped stores, dead paths, garbage."""

import asyncio
import contextlib
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from relay.config.roster import Member
from relay.fleet.believed import Believed
from relay.fleet.claim import Claimant
from relay.fleet.entries import Entry
from relay.fleet.gateway import delete, put
from relay.fleet.registry import Etcd, Seen
from tests.fleet.etcds import EtcdServer, Forwarder, settings
from tests.fleet.rig import HERE, KEPT_S, LONG_S, TTL_S, Fleet, is_back, noted, until, who
from tests.ports import free_port

pytestmark = pytest.mark.real("etcd", "etcdctl")

GRACE_S = 60.0


async def test_the_lease_was_lost(
    server: EtcdServer, fleets: Callable[..., Fleet], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = fleets("lost", server.url, ttl_s=KEPT_S)
    fleet.member(0)
    watcher = fleet.watcher()
    async with contextlib.aclosing(watcher.watch()) as stream, fleet.client() as client:
        await until(stream, who(0))
        known = noted(watcher, monkeypatch)
        (found,) = (await client.range(fleet.keys.all_members)).found[0]
        await client.revoke(found.lease)
        await until(stream, is_back(known))
        (slot,) = (await client.range(fleet.keys.claims("web"))).found[0]
        known.clear()
        await client.txn((), [delete(slot.key), delete(found.key)])  # by the hand of somebody
        await until(stream, is_back(known))
        assert len((await client.range(fleet.keys.claims("web"))).found[0]) == 1


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
                assert len((await client.range(near.keys.claims("web"))).found[0]) == 3
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
    old = Seen(known, time.monotonic_ns() - int(3600e9))
    metrics = "10.0.0.1:9464"
    await until(fleet.watcher(old).watch(), lambda seen: who(0, 1)(seen) and seen.members[0].metrics == metrics)
    fresh = Seen(known, time.monotonic_ns())
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
    etcd.announce("", False, {"http-in": "HTTP 503"})
    seen = await until(etcd.watch(), who(2))
    assert seen.members == (Member("web", 2, "10.0.0.4", down=("http-in",), reasons=("HTTP 503",)),)
    await etcd.close(True)
    edge = Etcd.of(registry, "settings", None, None, Seen())  # which has no number, and is nobody by the registry
    edge.announce("", False, {})
    await until(edge.watch(), who())
    await edge.close(True)
