"""Names, service records and files at work: control asks them, and who they say is there comes into force.

Nobody else asks: workers get addresses. What stands is in the roster in force, so a control that is started anew goes on
from there, with the same numbers.
"""

import asyncio
import contextlib
import math
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from typing import Final, Literal

from relay.config.model import Service
from relay.config.named import left_out
from relay.config.roster import Member
from relay.config.settings import Settings
from relay.control.in_force import InForce
from relay.control.source_status import SourceStatus
from relay.fleet.local_names import LocalNames
from relay.fleet.numbering import Key, numbered, sources_of
from relay.fleet.sources import AT_ONCE_S, Heard, Source, sources, too_many_text
from relay.kernel.pace import to_next
from relay.ledger.layout import DaemonWord
from relay.ledger.ledger import Ledger
from relay.log import Logger

_TICK_S: Final = 1.0  # what did not come into force is tried again
_SETTLE_S: Final = 0.2  # between two rosters that come into force, as where a registry tells them
_AGAIN_S: Final = 5.0  # after a mistake of our own

Put = Callable[[], Awaitable[str]]
"""What brings into force who `members` says is there, and says why not where it cannot."""


class SourcesFollower:
    """Follows the sources of the service in force. `follow` is told when another one is."""

    def __init__(self, settings: Settings, in_force: InForce, ledger: Ledger, log: Logger, put: Put) -> None:
        self._settings = settings
        self._in_force = in_force
        self._ledger = ledger
        self._log = log
        self._put = put
        self._names = LocalNames(settings.names.resolvers)
        self._sources: dict[tuple[str, Key], Source] = {}
        self._tasks: dict[tuple[str, Key], asyncio.Task[None]] = {}
        self._changed = asyncio.Event()
        self._began_s = math.inf
        self._too_many: dict[str, int] = {}  # by role: how many have no number
        self._unreached: dict[str, list[str]] = {}  # by role: who of it is no target here, and why
        self._hindrance = ""
        self._said: dict[str, str] = {}  # of roles: what is wrong with them

    # --- who is there -------------------------------------------------------------------------------------------

    def members(self, service: Service) -> tuple[Member, ...]:
        """Who is in the service's named roles, by all that stands. Of a role that is not followed yet, who is there."""
        there = self._in_force.roster
        found: list[Member] = []
        for name in service.named:
            role = service.roles[name]
            keys = sources_of(role)
            if not all((name, key) in self._sources for key in keys):
                found += there.of(name)
                continue
            told = {key: self._sources[name, key].places for key in keys}
            members, self._too_many[name] = numbered(name, role, told, there.of(name))
            found += members
        return tuple(found)

    def follow(self) -> None:
        """Go by the service in force: begin with new sources, end those that it has no more. The others go on."""
        service, roster = self._in_force.service, self._in_force.roster
        found = {
            (role, key): source
            for role, key, source in sources(
                service, self._settings, self._in_force.snapshot.file, roster, self._answered_at_s(), self._names
            )
        }
        for at in self._sources.keys() - found.keys():
            del self._sources[at]
            if (task := self._tasks.pop(at, None)) is not None:
                task.cancel()
        self._sources = found | self._sources
        self._too_many = {name: count for name, count in self._too_many.items() if name in service.named}
        if self._began_s < math.inf:
            self._begin()
        self._changed.set()

    def _begin(self) -> None:
        for at, source in self._sources.items():
            if at not in self._tasks:
                self._tasks[at] = asyncio.get_running_loop().create_task(self._ask(source), name="source")

    # --- at work ------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Ask and bring into force until cancelled."""
        self._began_s = time.monotonic()
        try:
            self._begin()
            await self._bring()
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _ask(self, source: Source) -> None:
        while True:
            try:
                before = source.trouble
                was_doubting = source.is_doubting
                self._say(source, await source.ask(), before, was_doubting)
                self._changed.set()
                wait_s = source.wait_s()
            except Exception as error:  # ours; but a source must not take the admin API and the metrics down with it
                source.trouble = f"relay cannot read its answer ({type(error).__name__})"
                self._log.event("error", "bug", message=source.trouble, traceback=traceback.format_exc())
                wait_s = _AGAIN_S
            await asyncio.sleep(wait_s)

    async def _bring(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(to_next(_TICK_S) if self._in_force.service.named else None):
                    await self._changed.wait()
            self._changed.clear()
            self._note()
            if not (service := self._in_force.service).named:
                continue
            # At a start all that were not asked yet may be about to answer: one roster is better than one for each.
            waiting = time.monotonic() - self._began_s < AT_ONCE_S and not self._have_been_asked()
            if not waiting:
                there = [member for member in self._in_force.roster if member.role in service.named]
                self._hindrance = await self._put() if sorted(self.members(service)) != sorted(there) else ""
                self._complain()
            await asyncio.sleep(_SETTLE_S)

    def _have_been_asked(self) -> bool:
        return all(source.was_asked for source in self._sources.values())

    # --- what is said of it -------------------------------------------------------------------------------------

    def _say(self, source: Source, heard: Heard, before: str, was_doubting: bool) -> None:
        """A line of the log for what is new."""

        def tell(level: Literal["info", "warning"], message: str) -> None:
            self._log.event(level, "source", role=source.role, source=str(source.item), message=message)

        count = _counted(len(source.places))
        for why in heard.left_out:
            tell("warning", f"{why}; it is left out")
        if heard.trouble and not before:
            tell("warning", f"{heard.trouble}; what it said last stays in force ({count})")
        elif before and not heard.trouble:
            tell("info", "it answers again")
        if heard.verdict == "changed":
            tell("info", f"it has {count} now")
        elif heard.verdict == "believed":
            tell("warning", f"it has stayed so, and is believed: it has {count} now")
        elif heard.verdict == "doubted" and not was_doubting:
            tell(
                "warning",
                f"it says that half of its addresses or more are gone; until it stays so, all stand ({count})",
            )
        elif heard.verdict == "same" and was_doubting:
            tell("info", f"it has {count} as before")

    def _complain(self) -> None:
        """What is wrong with whole roles, once each."""
        now: dict[str, str] = {}
        for name, count in self._too_many.items():
            if count:
                now[f"{name}: numbers"] = f"role {name}: {too_many_text(count)}"
        several: dict[tuple[str, str, str], list[str]] = {}
        for each in left_out(self._in_force.service, self._in_force.snapshot):
            several.setdefault((each.role, each.endpoint, each.why), []).append(each.target)
        self._unreached = {}
        for (role, endpoint, why), targets in several.items():
            who = targets[0] if len(targets) == 1 else f"{targets[0]} (and {len(targets) - 1} more)"
            message = f"{endpoint}: {who} is no target: {why}"
            now[message] = message
            self._unreached.setdefault(role, []).append(message)
        if self._hindrance:
            now[""] = f"who is there by names and files does not come into force: {self._hindrance}"
        for key, message in now.items():
            if key not in self._said:
                self._log.event("error", "source", message=message)
        self._said = now

    def _note(self) -> None:
        """The oldest last good answer into the ledger, for the control after this one."""
        answered = [source.good_at_s for source in self._sources.values() if source.has_answered]
        self._ledger.words[DaemonWord.ANSWERED_AT_MONOTONIC_NS] = int(min(answered) * 1e9) if answered else 0

    def _answered_at_s(self) -> float:
        """When those of which somebody is there answered last, as far as it is known: by the control before, or just now."""
        at_ns = self._ledger.words[DaemonWord.ANSWERED_AT_MONOTONIC_NS]
        return at_ns / 1e9 if at_ns and self._began_s == math.inf else time.monotonic()

    def status(self) -> list[SourceStatus]:
        """Its part of `relay status`, in the file's order."""
        return list(self._statuses())

    def _statuses(self) -> Iterator[SourceStatus]:
        now_s, service = time.monotonic(), self._in_force.service
        for name in service.named:
            for key, item in sources_of(service.roles[name]).items():
                source = self._sources.get((name, key))
                if source is None or item.kind == "address":
                    continue
                too_many = self._too_many.get(name, 0)
                of_role = [*self._unreached.get(name, ()), *([too_many_text(too_many)] if too_many else [])]
                troubles = (source.trouble, *of_role, self._hindrance)
                yield {
                    "role": name,
                    "source": str(item),
                    "kind": item.kind,
                    "targets": len(source.places),
                    "age_s": round(now_s - source.good_at_s, 3) if source.has_answered else None,
                    "ttl_s": source.ttl_s,
                    "doubted": source.is_doubting,
                    "trouble": "; ".join(filter(None, troubles)),
                    "failures": source.failures,
                    "left_out": too_many,
                }


def _counted(count: int) -> str:
    return "1 address" if count == 1 else f"{count} addresses"
