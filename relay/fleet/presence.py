"""Keeping this machine in etcd: its number on a lease of `hold`, and that it is there on a lease of `ttl`."""

import asyncio
import contextlib
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from relay.config.roster import Member
from relay.errors import RegistryError
from relay.fleet.claim import Claimant, have, in_the_way, may_replace
from relay.fleet.entries import Entry, EntryKeys, KeyValue, claim_value, read_claim, read_entry
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Compare, absent, get, holds, put, unchanged

# An etcd that is started again takes a second: one of a few attempts meets its first moment.
_BACKOFF_MIN_S: Final = 0.1
_BACKOFF_MAX_S: Final = 5.0  # and later than this nobody should hear of it
# Of the `hold` (1 h by default) that a number stays its machine's, so much may be missing.
_CLAIM_RENEWAL_S: Final = 60.0
# Whoever writes there at the same time is read of at the second look, and is gone or stays.
_LOOKS: Final = 3


def backoff_s(failures: int, ttl_s: float) -> float:
    """How long to wait after so many failures in a row: longer each time, and not as long as all others wait.

    Never as long as half a lease: whoever is back in time keeps it.
    """
    most_s = min(_BACKOFF_MAX_S, ttl_s / 3, _BACKOFF_MIN_S * 2.0 ** min(failures, 16))
    return most_s * random.uniform(0.5, 1.0)


class Presence:
    """This machine's entries in etcd. `run` keeps them, from the first `announce` on, until it is cancelled.

    `conflict` says who else is there by this machine's number, if somebody is, and `trouble` why etcd does not answer.
    """

    def __init__(self, client: EtcdClient, me: Claimant, role: str, ordinal: int) -> None:
        self.conflict = ""
        self.trouble = ""
        self.busy_since_s: float | None = None  # since when etcd has it that this machine is busy (CLOCK_MONOTONIC)
        self._client, self._me, self._keys = client, me, EntryKeys(me.service)
        self._member = Member(role, ordinal, me.address)
        self._claim_key, self._key = self._keys.claim(role, ordinal), self._keys.member(role, ordinal)
        self._written: Member | None = None  # what etcd has, as far as we know
        self._lease = self._claim_lease = 0
        self._claim_until_s = 0.0
        self._announced = False
        self._woken = asyncio.Event()

    @property
    def key(self) -> str:
        """The key that says that this machine is there."""
        return self._key

    def announce(self, metrics: str, busy: bool, down: Mapping[str, str]) -> None:
        """Say this of the machine from now on. `down`: its endpoints whose application is down, with the reason."""
        self._member = replace(self._member.with_faults(down), metrics=metrics, busy=busy)
        self._announced = True
        if self._member != self._written:
            self._woken.set()

    def look_at(self, event: KeyValue) -> None:
        """The key that says that this machine is there has changed: by us, or there is something to see to."""
        entry = self._entry(event)
        if entry is None or entry.daemon != str(self._me.daemon):
            self.look()

    def look(self) -> None:
        """See to it now that the entries are there: something has changed in etcd."""
        self._written = None
        self._woken.set()

    async def run(self, answered: Callable[[], None]) -> None:
        """Keep the entries. Calls `answered` after each time that etcd has confirmed them, or has not."""
        failures = 0
        while True:
            wait_s = self._me.ttl_s / 3
            if self._announced:
                try:
                    await self._renew()
                    self.trouble, failures = "", 0
                except RegistryError as error:
                    self.trouble, failures = str(error), failures + 1
                    wait_s = backoff_s(failures, self._me.ttl_s)
                answered()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._woken.wait()
            self._woken.clear()

    async def leave(self) -> None:
        """The machine is not there any more, and says so first; its number stays its own for `hold` from now."""
        with contextlib.suppress(RegistryError):
            if not self._lease:
                await self._find_leases()
            if self._lease:
                await self._mark()
                await self._client.revoke(self._lease)
            if self._claim_lease:
                await self._client.keep_alive(self._claim_lease)

    async def _mark(self) -> None:
        """Say that the lease is about to be ended: to those who watch, one that runs out looks the same."""
        for _ in range(_LOOKS):
            _, there = await self._found()
            entry = self._entry(there) if there is not None else None
            if there is None or entry is None or there.lease != self._lease:
                return
            mark = put(self._key, replace(entry, leaving=True).to_value(), self._lease)
            if (await self._client.txn([unchanged(there)], [mark])).succeeded:
                return

    async def _find_leases(self) -> None:
        """The leases of what stands there as ours: whoever claimed the number, or ran before us, has put it there."""
        claimed, there = await self._found()
        if there is not None and (entry := self._entry(there)) and entry.daemon == str(self._me.daemon):
            self._lease = there.lease
        if claimed is not None and claimed.value == claim_value(self._me.machine):
            self._claim_lease = claimed.lease

    async def _found(self) -> tuple[KeyValue | None, KeyValue | None]:
        """What stands there now: the number's owner, and who is there by it."""
        claims, presences = (await self._client.txn((), [get(self._claim_key), get(self._key)])).found
        return next(iter(claims), None), next(iter(presences), None)

    def _entry(self, there: KeyValue) -> Entry | None:
        return read_entry((self._member.role, self._member.ordinal), there.value or b"")

    async def _renew(self) -> None:
        if self._lease and not await self._client.keep_alive(self._lease):
            self._lease, self._written = 0, None
        if self._claim_lease and time.monotonic() > self._claim_until_s:
            if not await self._client.keep_alive(self._claim_lease):
                self._claim_lease, self._written = 0, None
            self._claim_until_s = time.monotonic() + min(self._me.hold_s / 3, max(self._me.ttl_s / 3, _CLAIM_RENEWAL_S))
        for _ in range(_LOOKS):
            if self._written == self._member or await self._write():
                return

    async def _write(self) -> bool:
        """Put the entries. True: they are there, or are somebody else's, which `conflict` says."""
        claimed, there = await self._found()
        member, mine = self._member, claim_value(self._me.machine)
        self.conflict = self._conflict(claimed, there)
        if self.conflict:
            self._lease = self._claim_lease = 0  # the keys are not on them any more
            return True
        self._claim_lease = await self._granted(self._claim_lease, claimed, self._me.hold_s)
        self._lease = await self._granted(self._lease, there, self._me.ttl_s)
        compare: list[Compare] = [
            absent(self._claim_key) if claimed is None else holds(self._claim_key, mine),
            absent(self._key) if there is None else unchanged(there),
        ]
        value = Entry(member, self._me.machine, str(self._me.daemon)).to_value()
        then = [
            *have(self._keys, member.role, member.ordinal, self._me.machine, self._claim_lease),
            put(self._key, value, self._lease),
        ]
        if not (await self._client.txn(compare, then)).succeeded:
            return False
        self._written = member
        self.busy_since_s = (self.busy_since_s or time.monotonic()) if member.busy else None
        return True

    def _conflict(self, claimed: KeyValue | None, there: KeyValue | None) -> str:
        entry = self._entry(there) if there is not None else None
        if entry is not None and not may_replace(entry, self._me.machine, self._me.daemon):
            return in_the_way(entry, self._me)
        if claimed is not None and claimed.value != claim_value(self._me.machine):
            owner = read_claim(claimed.value or b"")[:8] or "unknown"
            return (
                f"{self._member.id} has become the number of another machine ({owner}); start relay again for a new one"
            )
        return ""

    async def _granted(self, lease: int, found: KeyValue | None, ttl_s: float) -> int:
        """A lease for a key: the one that it had, also from before this process was started, or a new one."""
        for former in (lease, found.lease if found is not None else 0):
            if former and await self._client.granted_s(former) == ttl_s and await self._client.keep_alive(former):
                return former
        return await self._client.grant(ttl_s)
