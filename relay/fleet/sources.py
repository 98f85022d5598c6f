"""The sources of a service at work: asked, judged, and what stands of each. And all of them asked at once, before a start."""

import asyncio
import math
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from relay.config.instances import SOURCES_MAX, Listed
from relay.config.model import Service
from relay.config.roster import Member
from relay.config.settings import Settings
from relay.errors import SourceError
from relay.fleet.local_names import LocalNames
from relay.fleet.looking_up import LookUp
from relay.fleet.numbering import Key, known, numbered, sources_of
from relay.fleet.places import Place, SourceAnswer
from relay.fleet.standing_answer import StandingAnswer, Verdict

AT_ONCE_S: Final = 2.0
"""All sources that are new have so long, together, before a configuration comes into force without them."""
_AGAIN_S: Final = 1.0  # after a failure; then twice as long each time
_AGAIN_MAX_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Heard:
    """What one question came to. `verdict` None: there was no answer. `trouble`: why none, or none that is whole.

    `left_out` is what the answer before did not have.
    """

    verdict: Verdict | None
    trouble: str = ""
    left_out: tuple[str, ...] = ()


class Source:
    """One item of a role's `instances` that is not a plain address. Times are CLOCK_MONOTONIC, in seconds."""

    def __init__(
        self, role: str, item: Listed, look_up: LookUp, stands: tuple[Place, ...] | None, good_at_s: float
    ) -> None:
        """`stands` is what it said before, `good_at_s` when; None: nothing."""
        self.role = role
        self.item = item
        self.good_at_s = good_at_s if stands is not None else -math.inf
        self.ttl_s: float | None = None  # of the last answer
        self.trouble = ""
        self.failures = 0
        self.was_asked = False
        self._look_up = look_up
        self._standing = StandingAnswer(stands)
        self._failures_in_a_row = 0
        self._said_left_out: frozenset[str] = frozenset()

    @property
    def places(self) -> tuple[Place, ...]:
        """What stands."""
        return self._standing.places

    @property
    def is_doubting(self) -> bool:
        """Whether it has said something that is not believed yet."""
        return self._standing.is_doubting

    @property
    def has_answered(self) -> bool:
        """Whether anything it said stands, now or before."""
        return self.good_at_s > -math.inf

    async def ask(self) -> Heard:
        """Ask once. Raises nothing: what fails is told."""
        try:
            answer = await self._look_up.ask()
        except SourceError as error:
            self.trouble = str(error)
            self._failed()
            return Heard(None, self.trouble)
        finally:
            self.was_asked = True
        return self._heard(answer)

    def _heard(self, answer: SourceAnswer) -> Heard:
        now_s = time.monotonic()
        verdict = self._standing.hear(answer, now_s)
        self.ttl_s, self.trouble = answer.ttl_s, answer.trouble
        fresh = tuple(why for why in answer.left_out if why not in self._said_left_out)
        self._said_left_out = frozenset(answer.left_out)
        if answer.trouble:
            self._failed()
            if answer.places and not self.has_answered:
                self.good_at_s = now_s  # some are better than none; from here on it ages
        else:
            self._failures_in_a_row = 0
            if verdict != "doubted":
                self.good_at_s = now_s
        return Heard(verdict, answer.trouble, fresh)

    def _failed(self) -> None:
        self.failures += 1
        self._failures_in_a_row += 1

    def wait_s(self) -> float:
        """How long to wait until it is asked again."""
        if self._failures_in_a_row:
            return min(_AGAIN_S * 2.0 ** min(self._failures_in_a_row - 1, 8), _AGAIN_MAX_S)
        return self._standing.wait_s(self.ttl_s or _AGAIN_MAX_S, time.monotonic())


def sources(
    service: Service,
    settings: Settings,
    path: str,
    before: Iterable[Member] = (),
    good_at_s: float = -math.inf,
    names: LocalNames | None = None,
) -> Iterator[tuple[str, Key, Source]]:
    """Each source of the service whose file is at `path`, with its role and key. `before` are who is there.

    Those of which somebody is there answered last at `good_at_s`.
    """
    there = list(before)
    local = names or LocalNames(settings.names.resolvers)
    for name in service.named:
        role = service.roles[name]
        stands = known(role, (member for member in there if member.role == name))
        for key, item in sources_of(role).items():
            look_up = LookUp(local, item, os.path.dirname(path))
            yield name, key, Source(name, item, look_up, stands.get(key), good_at_s)


def members_at_once(
    service: Service, settings: Settings, path: str, before: Iterable[Member] = ()
) -> tuple[tuple[Member, ...], tuple[str, ...]]:
    """Who is in the named roles of the service, whose file is at `path`; and what to say of sources that gave no answer.

    Those by which somebody was there `before` are not asked: what they said stands. All others have 2 s together. Runs an
    event loop of its own, and leaves nothing behind. Raises nothing.
    """
    if not service.named:
        return (), ()
    there = list(before)
    found = asyncio.run(_asked(service, settings, path, there))
    members: list[Member] = []
    notes: list[str] = []
    for name in service.named:
        role = service.roles[name]
        of_role = {key: source for role_name, key, source in found if role_name == name}
        answers = {key: source.places for key, source in of_role.items()}
        told, too_many = numbered(name, role, answers, there)
        members += told
        for source in of_role.values():
            if not source.has_answered:
                why = source.trouble or f"no answer within {AT_ONCE_S:g} s"
                notes.append(f"role {name}: `{source.item}`: {why}; its instances come as soon as it answers")
        if too_many:
            notes.append(f"role {name}: {too_many_text(too_many)}")
    return tuple(members), tuple(notes)


def too_many_text(count: int) -> str:
    """What is said of so many addresses that have no number."""
    have = "1 address has" if count == 1 else f"{count} addresses have"
    return f"{have} no place, for a role has {SOURCES_MAX} instances at most; split the role"


async def _asked(
    service: Service, settings: Settings, path: str, before: list[Member]
) -> list[tuple[str, Key, Source]]:
    found = list(sources(service, settings, path, before, time.monotonic()))
    asking = [asyncio.ensure_future(source.ask()) for _, _, source in found if not source.has_answered]
    if asking:
        _, late = await asyncio.wait(asking, timeout=AT_ONCE_S)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
    return found
