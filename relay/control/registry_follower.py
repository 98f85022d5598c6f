"""The roster at work: whom the registry tells of comes into force, and the registry is told how this machine does."""

import asyncio
import contextlib
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self

from relay.config.roster import Member, split_instance
from relay.config.settings import Settings
from relay.control import answers
from relay.control.faults import own_faults
from relay.control.in_force import InForce
from relay.control.status import is_busy, is_draining
from relay.errors import IdentityError, OperatorError
from relay.fleet.claim import Claimant
from relay.fleet.directory import Directory
from relay.fleet.last_roster import Memory
from relay.fleet.machine_id import Daemon, machine_hash
from relay.fleet.registry import Etcd, RegistryClient, Seen
from relay.kernel.aside import aside
from relay.kernel.pace import to_next
from relay.ledger import clocks
from relay.ledger.layout import DaemonWord
from relay.ledger.ledger import Ledger
from relay.log import Logger

_TICK_S: Final = 1.0  # what is told is at most so old, and what did not come into force is tried again
# Between two rosters that come into force: when a thousand instances start at once, each would decide on every connection
# again for each of them.
_SETTLE_S: Final = 0.2
_AGAIN_S: Final = 5.0  # after a mistake of our own, and where the registry's own files cannot be read
# From etcd's word that it has what is told until all who follow go by it: they are told within milliseconds, and then work
# on one change every `_SETTLE_S`.
_HEARD_S: Final = 1.0
_LEAVE_S: Final = 3.0  # to tell the registry at the end, of a busy machine too; the lease ends by itself

Put = Callable[[tuple[Member, ...], tuple[str, ...]], Awaitable[str]]
"""What brings into force who is registered, and the addresses of those who are gone."""


class Follower:
    """Follows the registry. What it knows is the registry's and the ledger's; this only carries it on."""

    def __init__(
        self,
        registry: RegistryClient,
        memory: Memory | None,
        ledger: Ledger,
        log: Logger,
        in_force: InForce,
        put: Put,
        metrics: str,
    ) -> None:
        """`put` brings a roster into force, or says why not; it is called again and again. `metrics`: host:port, or empty."""
        self._registry = registry
        self._memory = memory
        self._ledger = ledger
        self._log = log
        self._in_force = in_force
        self._put = put
        self._metrics = metrics
        self._changed = asyncio.Event()
        self._told = ("", False)
        self._complained = ""
        self._hindrance = ""  # why the roster does not come into force
        self._bug = ""  # what the registry's code has run into

    @classmethod
    def of(
        cls,
        settings: Settings,
        in_force: InForce,
        keeper_pid: int,
        ledger: Ledger,
        log: Logger,
        put: Put,
    ) -> Self:
        """As the settings say, which name a registry. Raises OperatorError for a machine id that cannot be read."""
        metrics = str(settings.metrics.listen) if settings.metrics is not None else ""
        registry, memory = _registry(settings, in_force, keeper_pid, ledger, log)
        return cls(registry, memory, ledger, log, in_force, put, metrics)

    @classmethod
    async def begun(
        cls,
        settings: Settings,
        in_force: InForce,
        keeper_pid: int,
        ledger: Ledger,
        log: Logger,
        put: Put,
    ) -> Self:
        """As `of`, as soon as the registry's own files can be read; until then the log says why not."""
        said = ""
        while True:
            try:
                return await aside(partial(cls.of, settings, in_force, keeper_pid, ledger, log, put))
            except OperatorError as error:  # they were right when the daemon started
                if str(error) != said:
                    said = str(error)
                    log.event("error", "registry", message=f"{said}; the last roster stays in force")
            await asyncio.sleep(_AGAIN_S)

    @property
    def members(self) -> tuple[Member, ...]:
        """Who is registered, as the registry said last."""
        return self._registry.current.members

    async def run(self) -> None:
        """Follow and tell until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(), name="registry")
            group.create_task(self._bring(), name="roster")
            group.create_task(self._tell(), name="presence")

    async def close(self, *, leave: bool) -> None:
        """End it. `leave`: this machine is not there any more, and others are told at once."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_S):
                await self._registry.close(leave)
        if self._memory is not None:
            await self._memory.close()

    async def _watch(self) -> None:
        while True:
            try:
                async with contextlib.aclosing(self._registry.watch()) as watching:
                    async for _ in watching:
                        self._bug = ""
                        self._changed.set()
            except Exception as error:  # ours; but a registry must not take the admin API and the metrics down with it
                self._bug = f"relay cannot read its answer ({type(error).__name__})"
                self._log.event("error", "bug", message=self._bug, traceback=traceback.format_exc())
                await RegistryClient.close(self._registry, leave=False)
                await asyncio.sleep(_AGAIN_S)

    async def _bring(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(to_next(_TICK_S)):
                    await self._changed.wait()
            self._changed.clear()
            seen = self._registry.current
            if seen.confirmed_ns:  # before that nobody is known, and what stands is by what was remembered
                self._hindrance = await self._put(seen.members, seen.gone)
            await asyncio.sleep(_SETTLE_S)

    async def _tell(self) -> None:
        while True:
            snapshot = self._in_force.snapshot
            busy = is_busy(self._ledger) or is_draining(self._ledger)
            self._registry.announce(self._metrics, busy, own_faults(self._ledger, snapshot, telling=True))
            self._note()
            seen = self._registry.current
            if self._memory is not None and seen.confirmed_ns:
                self._memory.note(seen.members)
            await asyncio.sleep(to_next(_TICK_S))

    def _trouble(self) -> str:
        seen = self._registry.current
        hindrance = f"it does not come into force: {self._hindrance}" if self._hindrance else ""
        return self._registry.conflict or self._bug or hindrance or seen.trouble

    def _note(self) -> None:
        """Age into the ledger, trouble into the log, once each."""
        seen, words, trouble = self._registry.current, self._ledger.words, self._trouble()
        if not self._hindrance:
            self._confirmed(seen.confirmed_ns)
        words[DaemonWord.ROSTER_REJECTED] = max(words[DaemonWord.ROSTER_REJECTED], self._registry.rejected)
        # Of an etcd that does not answer, the words change with every attempt.
        before, self._told = self._told, ("" if trouble == seen.trouble else trouble, bool(trouble))
        if self._told != before and trouble:
            self._log.event("warning", "registry", message=f"{trouble}; the last roster stays in force")
        elif self._told != before:
            self._log.event("info", "registry", message="the registry answers")
        complaint, self._complained = self._complained, self._registry.complaint
        if self._complained not in ("", complaint):
            self._log.event("warning", "registry", message=self._complained)
        elif complaint and not self._complained:
            self._log.event("info", "registry", message="etcd's files can be read again")

    def _confirmed(self, at_ns: int) -> None:
        """The registry stands by what is in force, as of then; an earlier word of it says nothing new."""
        words, word = self._ledger.words, DaemonWord.ROSTER_AT_MONOTONIC_NS
        if at_ns and (not words[word] or at_ns > clocks.instant_ns(words, word)):
            clocks.put_instant(words, word, at_ns)

    @property
    def tells(self) -> bool:
        """Whether others are told how this machine does."""
        return not isinstance(self._registry, Directory) and not self._trouble()

    @property
    def told_busy(self) -> bool | None:
        """Whether others know by now that this machine asks for no new connections; None: they are not told by a registry."""
        since_s = self._registry.busy_since_s
        return since_s is not None and time.monotonic() - since_s >= _HEARD_S if self.tells else None

    def left_out(self) -> list[str]:
        """The ids of those who are registered and have no place in the roster: see `Roster.of_service`."""
        there = {member.id for member in self._in_force.snapshot.roster}
        return sorted(member.id for member in self._registry.current.members if member.id not in there)

    def status(self, roles: dict[str, list[int]]) -> answers.RegistryStatus:
        """Its part of `relay status`. `roles`: how many of each are there, and may be."""
        seen, words = self._registry.current, self._ledger.words
        age_ns = clocks.age_ns(words, DaemonWord.ROSTER_AT_MONOTONIC_NS)
        return {
            "kind": "directory" if isinstance(self._registry, Directory) else "etcd",
            "members": len(seen.members),
            "age_s": round(age_ns / 1e9, 3) if age_ns is not None else None,
            "trouble": "; ".join(filter(None, (self._trouble(), self._registry.complaint))),
            "rejected": words[DaemonWord.ROSTER_REJECTED],
            "left_out": self.left_out(),
            "roles": roles,
        }


def _registry(
    settings: Settings, in_force: InForce, keeper_pid: int, ledger: Ledger, log: Logger
) -> tuple[RegistryClient, Memory | None]:
    configured = settings.registry
    service, snapshot = in_force.service, in_force.snapshot
    assert configured is not None, "the caller looked"
    if configured.directory is not None:
        return Directory(configured.directory), None
    name, place, me = service.service, split_instance(snapshot.instance), snapshot.roster.get(snapshot.instance)
    assert me is not None, "a machine is always in its own roster"
    registered = tuple(member for member in snapshot.roster if member.role in service.counted)
    known = Seen(registered, clocks.instant_ns(ledger.words, DaemonWord.ROSTER_AT_MONOTONIC_NS))
    own = place if place[0] in service.counted else None
    try:
        machine = machine_hash(settings.machine_id, name, known=own is not None)
    except IdentityError as error:
        if own is not None:  # without it the machine would not be there for others: it is tried again
            raise
        # One without a number only misses what it could remember.
        log.event("warning", "configuration", message=f"{error}; without it the roster is not kept for a restart")
        return Etcd.of(configured, name, None, None, known), None
    daemon = Daemon.of(keeper_pid, me.address)
    claimant = Claimant(name, machine, daemon, me.address, configured.ttl_s, configured.hold_s)

    def complain(message: str) -> None:
        log.event("warning", "configuration", message=message)

    memory = Memory(configured.state, name, machine, snapshot.instance, complain)
    return Etcd.of(configured, name, claimant, own, known), memory
