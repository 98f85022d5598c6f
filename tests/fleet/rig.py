"""Helpers of the tests here."""

import asyncio
import os
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace

import pytest

from relay.fleet.claim import Claimant
from relay.fleet.entries import EntryKeys
from relay.fleet.etcd import REQUEST_S, EtcdClient
from relay.fleet.machine_id import Daemon
from relay.fleet.presence import Presence
from relay.fleet.registry import Etcd, RegistryClient, Seen

LONG_S = 120.0  # a bound for hanging


TTL_S = 2.0  # where a lease runs out, or may run out and be taken anew


KEPT_S = 30.0  # a lease that does not run out, and a watch that is not opened anew meanwhile


HERE = Daemon.of(os.getpid(), "10.0.0.4")


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
        etcd.announce(f"10.0.0.{n + 1}:9464", False, {})
        return etcd

    def watcher(self, known: Seen | None = None) -> Etcd:
        """The registry of a machine without a number."""
        etcd = Etcd(self._hasty(), self.service, self.ttl_s, known=known)
        self.made.append(etcd)
        return etcd

    def _hasty(self) -> EtcdClient:
        """With a bound that a path that has died does not outlast a lease."""
        return EtcdClient(self.urls, timeout_s=min(REQUEST_S, self.ttl_s / 2))


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


def noted(registry: RegistryClient, monkeypatch: pytest.MonkeyPatch) -> list[Seen]:
    """All that it comes to know from now on: who watches it is told the last of it, and may miss what was between."""
    known: list[Seen] = []
    publish = registry._publish

    def note(seen: Seen) -> None:
        known.append(seen)
        publish(seen)

    monkeypatch.setattr(registry, "_publish", note)
    return known


def is_back(known: list[Seen]) -> Callable[[Seen], bool]:
    """Whether number 0 was lost, by what was known, and all are there again who are to be sent connections."""
    return lambda seen: any(map(is_lost(0), known)) and not any(member.busy for member in seen.members)


def is_lost(ordinal: int) -> Callable[[Seen], bool]:
    """Whether this instance is missing, and is looked for: it is there, and nobody is to be sent to it."""
    return lambda seen: any(member.ordinal == ordinal and member.busy for member in seen.members)
