"""Instances of a fleet as tasks of one process, each with relay's own client of etcd; fleet.py starts some such processes.

What is real: the claim of a number, the presence on leases, the watch, and what it makes a roster of. Each instance has a
client of its own, so it has as many connections as a relay has. What is not there: the files, the snapshot, the workers.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any
from unittest import mock

from relay.config.roster import Member
from relay.errors import RegistryError, RelayError
from relay.fleet import etcd
from relay.fleet.claim import Claimant, claim
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Batch, read_batch
from relay.fleet.identity import Vacancy
from relay.fleet.machine_id import Daemon
from relay.fleet.presence import Presence, backoff_s
from relay.fleet.registry import Etcd, Seen
from relay.kernel.loop import loop_factory

HOLD_S = 3600.0
REACH_S = 120.0  # a bound for hanging: `join.REACH_S` is 15 s, after which systemd starts relay again
NICE = 3  # their CPU time is that of a thousand other machines: etcd and the daemon under test come first


@dataclass(frozen=True, slots=True)
class Plan:
    """What all instances of the fleet have in common: `counts` is how many a role may have, by role."""

    url: str
    service: str
    counts: dict[str, int]
    ttl_s: float


@dataclass(frozen=True, slots=True)
class View:
    """How one instance sees the fleet: `there`, its own place, and `tries` before it had one.

    `right`: as the truth has it, and no trouble; `since_s`: since when it has not changed (time.monotonic). Since the phase
    began: `least`, the smallest fleet that it saw, and `fewer_s`, when it first saw no more than it should see.
    """

    there: Member
    claimed_s: float
    tries: int
    right: bool
    since_s: float
    least: int
    fewer_s: float | None
    trouble: str


@dataclass(frozen=True, slots=True)
class Report:
    """What a process says of its instances: those that have a number, the `errors` of those that failed, and what came
    by all their watches so far.
    """

    views: list[View]
    errors: list[str]
    messages: int
    events: int
    received_bytes: int


@dataclass(slots=True)
class Tally:
    """What came by the watches of this process: messages, the changes in them, and bytes as JSON has them."""

    messages: int = 0
    events: int = 0
    received_bytes: int = 0

    def read(self, status: int, line: bytes) -> Batch:
        """Count, and do what `read_batch` does."""
        batch = read_batch(status, line)
        self.received_bytes += len(line) + 1
        self.messages += bool(batch.events)
        self.events += len(batch.events)
        return batch


@dataclass(slots=True)
class Instance:
    """One machine of the fleet, from its start on."""

    plan: Plan
    number: int
    role: str
    error: str = ""
    there: Member | None = None
    claimed_s: float = 0.0
    tries: int = 0
    registry: Etcd | None = None
    seen: Seen = field(default_factory=Seen)
    since_s: float = 0.0
    least: int = 0
    enough: int = 0
    fewer_s: float | None = None
    _judged: tuple[Any, ...] = ()
    _right: bool = False

    @property
    def address(self) -> str:
        """A loopback address that no other instance has."""
        return f"127.100.{self.number // 250}.{1 + self.number % 250}"

    async def live(self, after_s: float) -> None:
        """Take a number, say that it is there, and follow who else is, until cancelled."""
        await asyncio.sleep(after_s)
        try:
            await self._follow(await self._join())
        except RelayError as error:
            self.error = f"instance {self.number}: {error}"

    async def _join(self) -> Claimant:
        machine, plan = secrets.token_hex(16), self.plan
        daemon = Daemon(f"bench-{machine}", 1, 1, 1)  # of a boot of its own, as on a machine of its own
        me = Claimant(plan.service, machine, daemon, self.address, plan.ttl_s, HOLD_S)
        began_s = time.monotonic()
        async with self._client() as client:
            while True:
                self.tries += 1
                try:
                    ordinal = (await claim(client, me, Vacancy(self.role), plan.counts[self.role])).ordinal
                    break
                except RegistryError:
                    if time.monotonic() - began_s > REACH_S:
                        raise
                await asyncio.sleep(backoff_s(self.tries, plan.ttl_s))
        self.there, self.claimed_s = Member(self.role, ordinal, self.address), time.monotonic()
        return me

    async def _follow(self, me: Claimant) -> None:
        assert self.there is not None
        client = self._client()
        presence = Presence(client, me, self.there.role, self.there.ordinal)
        self.registry = Etcd(client, self.plan.service, self.plan.ttl_s, presence)
        self.registry.announce("", False, {})
        async with contextlib.aclosing(self.registry.watch()) as watching:
            async for seen in watching:
                self._take(seen)

    def _client(self) -> EtcdClient:
        return EtcdClient([self.plan.url], timeout_s=min(etcd.REQUEST_S, self.plan.ttl_s / 3))  # as `EtcdClient.of`

    def _take(self, seen: Seen) -> None:
        self.seen, self.since_s = seen, time.monotonic()
        if seen.confirmed_ns:
            self.least = min(self.least, len(seen.members))
            if self.fewer_s is None and len(seen.members) <= self.enough:
                self.fewer_s = self.since_s

    def mark(self, enough: int) -> None:
        """A phase begins, in which the view should come down to so many."""
        self.least, self.enough, self.fewer_s = len(self.seen.members), enough, None

    def view(self, truth: tuple[Member, ...]) -> View | None:
        """How it sees the fleet; None: it has no number yet."""
        if self.there is None:
            return None
        trouble = self.registry.current.trouble or self.registry.conflict if self.registry is not None else ""
        judged = self.seen.members, self.seen.trouble, truth
        # Comparing a thousand with a thousand takes a while, so one that has not changed is not compared again.
        if not self._judged or any(one is not other for one, other in zip(judged, self._judged, strict=True)):
            self._judged, self._right = judged, not self.seen.trouble and self.seen.members == truth
        return View(
            self.there, self.claimed_s, self.tries, self._right, self.since_s, self.least, self.fewer_s, trouble
        )


class Machines:
    """The instances of this process, and what fleet.py may ask of them."""

    def __init__(self, plan: Plan, tally: Tally) -> None:
        self._plan, self._tally = plan, tally
        self._all: dict[int, Instance] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._truth: tuple[Member, ...] = ()

    async def join(self, numbers: Sequence[int], over_s: float) -> None:
        """Start these instances, evenly over so long a time; 0: all at once."""
        roles = list(self._plan.counts)
        for n, number in enumerate(numbers):
            instance = self._all[number] = Instance(self._plan, number, roles[number % len(roles)])
            self._tasks[number] = asyncio.create_task(instance.live(over_s * n / len(numbers)))

    async def leave(self, cleanly: Sequence[int], lost: Sequence[int]) -> None:
        """Stop these: some say so, and of the others nothing is heard any more."""

        async def stop(number: int, leave: bool) -> None:
            instance = self._all.pop(number)
            task = self._tasks.pop(number)
            task.cancel()
            await asyncio.wait([task])
            if instance.registry is not None:
                await instance.registry.close(leave)

        mine = self._all.keys()
        going = [(n, True) for n in cleanly if n in mine] + [(n, False) for n in lost if n in mine]
        await asyncio.gather(*(stop(number, leave) for number, leave in going))

    async def mark(self, enough: int) -> None:
        """A phase begins, in which the views should come down to so many."""
        for instance in self._all.values():
            instance.mark(enough)

    async def report(self, truth: tuple[Member, ...]) -> Report:
        """How the instances see the fleet, beside the truth."""
        if truth != self._truth:
            self._truth = truth
        views = [view for each in self._all.values() if (view := each.view(self._truth)) is not None]
        errors = [each.error for each in self._all.values() if each.error]
        tally = self._tally
        return Report(views, errors, tally.messages, tally.events, tally.received_bytes)


async def _serve(plan: Plan, questions: Connection, tally: Tally) -> None:
    machines = Machines(plan, tally)
    while True:
        try:
            # In a thread: a loop that watched the descriptor would make it one that does not block.
            name, *arguments = await asyncio.to_thread(questions.recv)
        except EOFError:
            return  # whoever asked is gone
        act: Callable[..., Awaitable[Any]] = getattr(machines, name)
        questions.send(await act(*arguments))


def main(plan: Plan, questions: Connection) -> None:
    """Be a process with instances: answers each question with what the method of `Machines` of that name gives."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for fleet.py, which ends us
    os.nice(NICE)
    tally = Tally()
    with mock.patch.object(etcd, "read_batch", tally.read), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_serve(plan, questions, tally))
