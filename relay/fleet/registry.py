"""Who is in the service: one small interface, and etcd behind it. A directory of files is in directory.py.

A registry is believed as long as it answers. When it does not, what it said last stands, and `Seen` says since when: nobody
is cut off because a registry is down.
"""

import asyncio
import contextlib
import math
import secrets
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncGenerator, Coroutine, Mapping
from dataclasses import dataclass, replace
from random import uniform
from typing import Any, Final, Self

from relay.config import settings as configured
from relay.config.roster import Member
from relay.errors import RegistryError
from relay.fleet.believed import Believed, grace_s
from relay.fleet.claim import Claimant
from relay.fleet.entries import EntryKeys, KeyValue
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Batch, Reply, absent, get, get_all, put
from relay.fleet.presence import Presence, backoff_s
from relay.fleet.search import Search

# A watch that says nothing for so much of a lease is opened anew: a dead path is noticed, and another endpoint asked,
# before a lease has run out.
_SILENCE_LEASES: Final = 0.6
# A quiet watch is opened anew before this. Who has heard nothing for longer was cut off, as others may have been: then they
# could not renew their leases. One that had to try again has noticed it sooner.
_AWAY_LEASES: Final = 0.75
_RETRIED_LEASES: Final = 1 / 3
# So many revisions behind the store, reading all members costs etcd less than looking through what happened since.
_BEHIND_MAX: Final = 1000
# So many changes in so short a time are a fleet that starts or stops. etcd sends each of them to each instance in a message
# of its own, but all that an instance has missed in one: so the watch is closed for a while, and goes on from where it was.
_CROWD_EVENTS: Final = 16
_CROWD_S: Final = 0.5
# With what else it takes, less than the second in which one who joins is admitted. As long as the crowd lasts, twice as long
# each time: to open a watch costs etcd two requests, and a thousand that do so twice a second leave it no time for leases.
_PAUSE_S: Final = 0.5
_PAUSE_MAX_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Seen:
    """Who is there, when the registry said so last, and what is wrong with it ("": nothing).

    `confirmed_ns` is CLOCK_MONOTONIC, below 0 where that was before this boot; 0: never. `gone` are the addresses of those
    whose lease ran out not long ago.
    """

    members: tuple[Member, ...] = ()
    confirmed_ns: int = 0
    trouble: str = ""
    gone: tuple[str, ...] = ()


class Crowd:
    """Whether changes come in crowds. Pure: the time is told."""

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=_CROWD_EVENTS)
        self._pauses = 0  # in a row

    def pause_s(self, open_for_s: float, ttl_s: float) -> float:
        """How long to stay away now, after a watch that was open for so long; never for as long as a lease."""
        self._pauses = self._pauses + 1 if open_for_s < 2 * _CROWD_S else 0
        return min(_PAUSE_S * 2.0 ** min(self._pauses, 8), _PAUSE_MAX_S, ttl_s / 4)

    def has_come(self, events: int, now_s: float) -> bool:
        """So many changes have come now: whether it is a crowd, with those just before."""
        self._times_s.extend([now_s] * min(events, _CROWD_EVENTS))
        return len(self._times_s) == _CROWD_EVENTS and now_s - self._times_s[0] < _CROWD_S and events > 0


class RegistryClient(ABC):
    """Who tells which instances are there. Made and used in one event loop; work starts with `watch` or `announce`."""

    def __init__(self, known: Seen) -> None:
        self._seen = known
        self._told = known.members, bool(known.trouble), ""
        self._watchers: set[asyncio.Event] = set()
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def current(self) -> Seen:
        """What is known now."""
        return self._seen

    @property
    def conflict(self) -> str:
        """Who else is there by this machine's number, by what the registry says; empty when nobody is."""
        return ""

    @property
    def busy_since_s(self) -> float | None:
        """Since when (CLOCK_MONOTONIC) it tells others that this machine asks for no new connections; None: it does not."""
        return None

    @property
    def rejected(self) -> int:
        """How many entries made no sense, and were left out."""
        return 0

    @property
    def complaint(self) -> str:
        """What somebody should see to, though all goes on; empty: nothing."""
        return ""

    async def watch(self) -> AsyncGenerator[Seen]:
        """What is known, at once; and again whenever members or `conflict` have changed, or trouble has come or gone.

        Never raises for trouble of the registry. Close it (contextlib.aclosing) when it is of no use any more.
        """
        self._begin()
        changed = asyncio.Event()
        self._watchers.add(changed)
        try:
            while True:
                changed.clear()
                yield self._seen
                await changed.wait()
                for task in self._tasks:
                    if task.done() and not task.cancelled():
                        task.result()  # it never ends but by a mistake of ours, which must be seen
        finally:
            self._watchers.discard(changed)

    @abstractmethod
    def announce(self, metrics: str, busy: bool, down: Mapping[str, str]) -> None:
        """Say this of this machine from now on: where its metrics are, and what others should not send it."""

    async def close(self, leave: bool) -> None:
        """End all work. `leave`: this machine is not there any more, and others are told at once."""
        tasks, self._tasks = self._tasks, []
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    @abstractmethod
    def _work(self) -> list[Coroutine[Any, Any, None]]:
        """What goes on while it is in use."""

    def _begin(self) -> None:
        if not self._tasks:
            loop = asyncio.get_running_loop()
            self._tasks = [loop.create_task(each, name="registry") for each in self._work()]
            for task in self._tasks:
                task.add_done_callback(lambda _: self._wake())

    def _wake(self) -> None:
        for each in self._watchers:
            each.set()

    def _publish(self, seen: Seen) -> None:
        self._seen = seen
        told, self._told = self._told, (seen.members, bool(seen.trouble), self.conflict)
        if self._told != told:
            self._wake()


class Etcd(RegistryClient):
    """The instances by etcd. `presence`: this machine's own entries, where it has a number."""

    def __init__(
        self,
        client: EtcdClient,
        service: str,
        ttl_s: float,
        presence: Presence | None = None,
        known: Seen | None = None,
    ) -> None:
        super().__init__(known or Seen())
        self._client, self._keys, self._ttl_s, self._presence = client, EntryKeys(service), ttl_s, presence
        self._believed = Believed(self._keys, grace_s(ttl_s), self._seen.members)
        self._confirmed_s = self._seen.confirmed_ns / 1e9 if self._seen.confirmed_ns else -math.inf
        self._cluster, self._store, self._latest = "", "", 0  # what tells another store: its ids, and a lower revision
        self._revision: int | None = None  # of the last change that was seen; None: all must be read anew
        self._open = False  # the watch is there
        self._failures = 0
        self._doubtful_until_s = 0.0  # leases that run out before that say nothing of their machines
        self._trouble = ""
        self._crowd = Crowd()
        self._search = Search(client, self._keys, self._believed, ttl_s, self._is_of_other, self._looked)

    @classmethod
    def of(
        cls, registry: configured.Registry, service: str, me: Claimant | None, own: tuple[str, int] | None, known: Seen
    ) -> Self:
        """As the settings say. `own`: the role and number that the machine `me` has claimed."""
        client = EtcdClient.of(registry)
        presence = Presence(client, me, *own) if me is not None and own is not None else None
        return cls(client, service, registry.ttl_s, presence, known)

    @property
    def rejected(self) -> int:
        """How many entries made no sense, and were left out."""
        return self._believed.rejected

    @property
    def complaint(self) -> str:
        """Which of etcd's files could not be read lately; empty: none."""
        return self._client.complaint

    @property
    def conflict(self) -> str:
        """Who else is there by this machine's number, by what the registry says; empty when nobody is."""
        return self._presence.conflict if self._presence is not None else ""

    @property
    def busy_since_s(self) -> float | None:
        """Since when (CLOCK_MONOTONIC) it tells others that this machine asks for no new connections; None: it does not."""
        return self._presence.busy_since_s if self._presence is not None else None

    def announce(self, metrics: str, busy: bool, down: Mapping[str, str]) -> None:
        """Say this of this machine from now on: where its metrics are, and what others should not send it."""
        if self._presence is not None:
            self._presence.announce(metrics, busy, down)
            self._begin()

    async def close(self, leave: bool) -> None:
        """End all work. `leave`: this machine is not there any more, and others are told at once."""
        await super().close(leave)
        if leave and self._presence is not None:
            await self._presence.leave()
        await self._client.close()

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        following = [self._follow(), self._search.run()]
        return following if self._presence is None else [*following, self._presence.run(self._answered)]

    def _answered(self) -> None:
        """The presence has heard of etcd, or has not."""
        if self._open and self._presence is not None and not self._presence.trouble:
            self._confirm()
        else:
            self._tell()

    # --- following ---------------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        while True:
            try:
                await self._watch_once()
            except RegistryError as error:
                self._trouble = str(error)
                self._failures += 1
                self._believed.postpone(time.monotonic())
                self._tell()
                await asyncio.sleep(backoff_s(self._failures, self._ttl_s))

    async def _watch_once(self) -> None:
        """Watch until the watch has been silent for a while, too much comes by it, or it must be begun with a full read.

        Raises RegistryError.
        """
        if self._revision is None or self._was_away():
            self._revision = await self._read_all()
        silence_s = _SILENCE_LEASES * self._ttl_s * uniform(0.9, 1.1)  # so that not all machines ask in the same moment
        began_s = time.monotonic()
        stream = self._client.watch(self._keys.all_members, self._revision + 1, silence_s=silence_s)
        try:
            async with contextlib.aclosing(stream):
                async for batch in stream:
                    if batch.compacted or (not self._open and not await self._same_store()):
                        self._revision = None
                        return
                    self._open = True
                    self._take(batch)
                    # One that is never silent may be far behind: an etcd with a thousand watches to serve sends what
                    # happened minutes ago. Opened anew, all that is missing comes at once.
                    open_for_s = (now_s := time.monotonic()) - began_s
                    if self._crowd.has_come(len(batch.events), now_s) or open_for_s > silence_s:
                        break
                else:
                    return
        finally:
            self._open = False
        await asyncio.sleep(self._crowd.pause_s(open_for_s, self._ttl_s) * uniform(0.8, 1.2))

    def _take(self, batch: Batch) -> None:
        now_s = time.monotonic()
        self._doubt(now_s)
        self._trouble, self._failures = "", 0
        sure = now_s >= self._doubtful_until_s
        self._believed.change(batch.events, now_s, sure=sure)
        for event in batch.events:
            self._revision = max(self._revision or 0, event.mod_revision)
            if self._presence is not None and event.key == self._presence.key:
                self._presence.look_at(event)
        self._latest = max(self._latest, self._revision or 0)
        self._confirm()

    def _doubt(self, now_s: float) -> None:
        """etcd answers. If it did not for a while, others that are there lose their leases as well, up to one lease later."""
        leases = _RETRIED_LEASES if self._failures else _AWAY_LEASES
        if (self._failures or self._cluster) and now_s - self._confirmed_s > leases * self._ttl_s:
            self._doubtful_until_s = now_s + self._ttl_s

    def _was_away(self) -> bool:
        """Whether etcd has not been heard of for as long as a lease: then others may have lost theirs as well."""
        return time.monotonic() - self._confirmed_s > self._ttl_s

    async def _same_store(self) -> bool:
        """Whether the store behind a new watch is the one that was read, and not far ahead. Raises RegistryError.

        A member that lags behind is told from a store that was restored by asking the cluster.
        """
        answer = await self._client.txn((), [get(self._keys.store)])
        store = _word(answer.found[0])
        if self._is_other(answer.cluster, store, answer.revision):
            return False
        self._store = self._store or store  # which the first machine of a service writes, maybe after we have read
        self._latest = answer.revision
        return answer.revision - (self._revision or 0) <= _BEHIND_MAX

    def _is_of_other(self, answer: Reply) -> bool:
        return self._is_other(answer.cluster, _word(answer.found[0]), answer.revision)

    def _looked(self) -> None:
        """Those who were lost have been looked for."""
        now_s = time.monotonic()
        self._seen_now(replace(self._seen, members=self._believed.members(now_s), gone=self._believed.gone(now_s)))

    def _is_other(self, cluster: str, store: str, revision: int) -> bool:
        return self._cluster != "" and (
            cluster != self._cluster or revision < self._latest or (self._store != "" and store != self._store)
        )

    async def _read_all(self) -> int:
        """Read all members; the revision of it. Raises RegistryError."""
        look = [get(self._keys.store), get_all(self._keys.all_members)]
        answer = await self._client.txn((), look)
        store = _word(answer.found[0])
        other = self._is_other(answer.cluster, store, answer.revision)
        if not store and self._presence is not None:
            # Whoever writes there sees to it that the store can be told from another one.
            word = secrets.token_hex(8).encode()
            again = await self._client.txn([absent(self._keys.store)], [put(self._keys.store, word), *look], look)
            answer, store = again, _word(again.found[0])
        self._doubt(time.monotonic())
        self._believed.reread(answer.found[1], time.monotonic(), keep=other or self._was_away())
        self._cluster, self._store, self._latest = answer.cluster, store, answer.revision
        if self._presence is not None:
            own = [each for each in answer.found[1] if each.key == self._presence.key]
            self._presence.look_at(own[0] if own else KeyValue(self._presence.key, None))
        self._confirm()
        return answer.revision

    def _confirm(self) -> None:
        """The registry stands by what is known."""
        self._confirmed_s = time.monotonic()
        members = self._believed.members(self._confirmed_s)
        self._search.wake()
        self._seen_now(Seen(members, time.monotonic_ns(), gone=self._believed.gone(self._confirmed_s)))

    def _tell(self) -> None:
        self._seen_now(self._seen)

    def _seen_now(self, seen: Seen) -> None:
        trouble = self._trouble or (self._presence.trouble if self._presence is not None else "")
        self._publish(replace(seen, trouble=trouble))


def _word(found: tuple[KeyValue, ...]) -> str:
    return (found[0].value or b"").decode(errors="replace") if found else ""
