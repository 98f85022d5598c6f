"""The end of a machine's presence in etcd. What it does until then: test_registry.py."""

import os
from collections.abc import Iterator
from dataclasses import replace

import pytest

from relay.fleet.claim import Claimant, claim
from relay.fleet.entries import EntryKeys
from relay.fleet.etcd import EtcdClient
from relay.fleet.identity import Vacancy
from relay.fleet.machine_id import Daemon
from relay.fleet.presence import Presence
from tests.fleet.etcds import EtcdServer, shared

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
