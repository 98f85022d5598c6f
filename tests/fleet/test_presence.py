"""The end of a machine's presence in etcd. What it does until then: test_registry.py."""

import asyncio
import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from relay.fleet.claim import Claimant, claim
from relay.fleet.entries import EntryKeys, KeyValue, read_entry
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import put
from relay.fleet.identity import Vacancy
from relay.fleet.machine_id import Daemon
from relay.fleet.presence import Presence
from tests.fleet.etcds import EtcdServer, shared
from tests.fleet.rig import KEPT_S, LONG_S

pytestmark = pytest.mark.real("etcd", "etcdctl")

HERE = Daemon.of(os.getpid(), "10.0.0.4")
WEB = Vacancy("web")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    yield from shared(tmp_path_factory)


def machine(service: str) -> Claimant:
    """A machine whose lease outlasts every test."""
    return Claimant(service, "1" * 32, HERE, "10.0.0.4", ttl_s=600, hold_s=900)


async def is_there(client: EtcdClient, service: str) -> tuple[bool, bool]:
    """Whether somebody is there by the number 0, and whether it is somebody's."""
    keys = EntryKeys(service)
    present, held = [(await client.range(key)).found[0] for key in (keys.member("web", 0), keys.claim("web", 0))]
    return bool(present), bool(held)


async def test_a_machine_that_stops_before_it_has_announced_is_gone_at_once(server: EtcdServer) -> None:
    """Its number was claimed before, and who claimed it is another process: it must be found whose lease it is."""
    async with EtcdClient([server.url]) as client:
        me = machine("early")
        assert (await claim(client, me, WEB, 1)).ordinal == 0
        assert await is_there(client, "early") == (True, True)
        await Presence(client, me, "web", 0).leave()
        assert await is_there(client, "early") == (False, True), "the number stays its own"


async def test_who_leaves_takes_nobody_else_away(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        assert (await claim(client, machine("other"), WEB, 1)).ordinal == 0
        clone = replace(machine("other"), daemon=replace(HERE, boot="another"))
        await Presence(client, clone, "web", 0).leave()
        stranger = replace(machine("other"), machine="2" * 32, daemon=replace(HERE, boot="a third"))
        await Presence(client, stranger, "web", 0).leave()
        assert await is_there(client, "other") == (True, True)


async def test_who_leaves_a_place_that_nobody_has(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        await Presence(client, machine("nobody"), "web", 0).leave()
        assert await is_there(client, "nobody") == (False, False)


async def events(client: EtcdClient, service: str, revision: int, count: int) -> list[KeyValue]:
    """The first so many things that befell presences of the service, from that revision on."""
    found: list[KeyValue] = []
    stream = client.watch(EntryKeys(service).all_members, revision, silence_s=KEPT_S)
    async with asyncio.timeout(LONG_S), contextlib.aclosing(stream):
        async for batch in stream:
            found += batch.events
            if len(found) >= count:
                break
    return found


@pytest.mark.parametrize("announced", [False, True], ids=["it has yet to announce", "it has announced"])
async def test_who_leaves_says_so_first(server: EtcdServer, announced: bool) -> None:
    service = f"leaves{announced}"
    async with EtcdClient([server.url]) as client:
        assert (await claim(client, machine(service), WEB, 1)).ordinal == 0
        presence, answered = Presence(client, machine(service), "web", 0), asyncio.Event()
        if announced:
            presence.announce("10.0.0.4:9464", False, {})
            work = asyncio.create_task(presence.run(answered.set))
            await asyncio.wait_for(answered.wait(), LONG_S)
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        before = await client.range(EntryKeys(service).all_members)
        await presence.leave()
        told, removed = await events(client, service, before.revision + 1, 2)
        entry, said = (read_entry(("web", 0), each.value or b"") for each in (before.found[0][0], told))
        assert entry is not None
        assert said == replace(entry, leaving=True)
        assert (said.member.metrics, said.member.busy) == (("10.0.0.4:9464", False) if announced else ("", True))
        assert removed.value is None


async def test_the_mark_is_for_its_own_entry_alone(server: EtcdServer) -> None:
    """Somebody else writes there meanwhile: it is read of at the second look, and left alone."""
    async with EtcdClient([server.url]) as client:
        assert (await claim(client, machine("taken"), WEB, 1)).ordinal == 0
        presence = Presence(client, machine("taken"), "web", 0)
        await presence._find_leases()
        key, lease = EntryKeys("taken").member("web", 0), await client.grant(600)
        (there,) = (await client.range(key)).found[0]
        await client.txn((), [put(key, there.value or b"", lease)])
        await presence.leave()
        (after,) = (await client.range(key)).found[0]
        assert (after.lease, after.value) == (lease, there.value)


async def test_since_when_etcd_has_it_that_the_machine_is_busy(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        assert (await claim(client, machine("busy"), WEB, 1)).ordinal == 0
        presence, answered = Presence(client, machine("busy"), "web", 0), asyncio.Event()
        presence.announce("", False, {})
        work = asyncio.create_task(presence.run(answered.set))
        since: list[float | None] = []
        for busy, down in ((False, {}), (True, {}), (True, {"in": "x"}), (False, {})):
            answered.clear()
            presence.announce("", busy, down)
            await asyncio.wait_for(answered.wait(), LONG_S)
            since.append(presence.busy_since_s)
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)
        assert since[0] is since[3] is None
        assert since[1] is not None
        assert since[1] == since[2]
