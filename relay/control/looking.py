"""Looking at targets: control finds out how they are, where connections alone do not tell, and writes down what it found.

Targets with a probe are asked all the time. One without is not bothered while it is well, for a bare connection has
effects of its own: MySQL blocks a host that only connects, and systemd starts a socket's service. From the dial that failed
until it is back it is asked every second.

An edge asks all its instances: with a probe by way of their relays and through them, without one their relays alone. An
application that no relay stands before is asked by whoever leads to it.
"""

import asyncio
import random
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.control.faults import reason_of
from relay.control.judge import Judge
from relay.control.probe import Answer, ask_at_relay_port, ask_direct, ask_door, ask_instance, ask_own
from relay.kernel.pace import to_next
from relay.ledger.layout import Count, Health, Knows, TargetCount, health_at
from relay.ledger.ledger import Ledger
from relay.log import Logger
from relay.targets import health, why
from relay.targets.health import TargetHealth

JITTER: Final = 0.1  # of the interval, either way: or all probes of all edges come to beat together
_FIRST_WITHIN_S: Final = 1.0  # the first probes of a start or a reload are spread over this time
_DOWN_S: Final = 1.0  # from one look at a target that is down to the next, at the most
_HELD_S: Final = 0.2  # while connections wait for it
_RELAY_S: Final = 2.0  # from one look for a relay's own port to the next
_NOTICE_S: Final = 0.5  # a dial that failed is noticed so late at the most
# So many relays an edge asks by itself, without a probe, in a second: each takes it some 0.2 ms. With many instances each is
# asked more seldom.
RELAYS_PER_S: Final = 100


@dataclass(frozen=True, slots=True)
class Subject:
    """Whom to look at: `target`, one of several that `row` leads to; None: this machine's own applications behind `row`."""

    row: EndpointRow
    target: TargetRow | None

    @property
    def who(self) -> tuple[object, ...]:
        """Who it is, and where the ledger has it."""
        if self.target is None:
            return self.row.name, self.row.slot, self.row.targets
        # Another share of the connections makes nobody another.
        same = replace(self.target, relay_port=0, weight=1, backup=False, declared_weight=None)
        return self.row.name, self.row.slot, same

    @property
    def key(self) -> tuple[object, ...]:
        """All that a look depends on: who has the same is the same after a reload."""
        row = self.row
        relay_port = self.target.relay_port if self.target is not None else 0
        return self.who, relay_port, row.probe, row.protocol, row.dial_from, row.send_proxy, row.connect_s, row.direct

    @property
    def is_judged(self) -> bool:
        """Whether its probes alone decide how it is, and a dial that failed only has it asked at once."""
        row = self.row
        return row.is_judged if self.target is not None else row.is_decided

    @property
    def is_probed(self) -> bool:
        """Whether it is asked all the time."""
        return self.row.probe is not None and not self.row.is_let_be

    def is_awaited(self, ledger: Ledger) -> bool:
        """Whether connections wait for it, or for another of the same endpoint."""
        return bool(ledger.total(self.row.slot, Count.HELD))

    def lacks_relay(self, ledger: Ledger) -> bool:
        """Whether it is a door's, and may have a relay that a connection is named to, which nobody has found yet.

        Without it a door cannot know that an application is gone before a connection is lost.
        """
        if self.target is None or self.row.type != "door" or not self.target.relay_port:
            return False
        return not ledger.words[self.knows_at(ledger)] & Knows.NAMES

    def knows_at(self, ledger: Ledger) -> int:
        """The ledger's word of what the target's relay knows."""
        assert self.target is not None  # else it is this machine's own
        return health.knows_at(ledger.worker(0), self.target.slot)

    def health(self, ledger: Ledger) -> TargetHealth:
        """How it is, by all that counts."""
        return self.seen(ledger) if self.target is not None else health.of_endpoint(ledger, self.row)

    def seen(self, ledger: Ledger) -> TargetHealth:
        """What was found last, by a look or a dial, whether or not it decides."""
        if self.target is None:
            return health.of_endpoint(ledger, self.row, by_dials=True)
        return health.of_target(ledger, self.row, self.target)

    def places(self, ledger: Ledger) -> tuple[int, int]:
        """The ledger's words of what control found, and when."""
        part = ledger.worker(0)
        if self.target is None:
            at = part.counts_at(self.row.slot)
            return at + Count.HEALTH, at + Count.LOOKED_NS
        at = part.target_counts_at(self.target.slot)[0]
        return health_at(self.target.slot), at + TargetCount.LOOKED_NS

    async def ask(self, ledger: Ledger) -> Answer | None:
        """Ask it once: see probe.py. None: nothing was found out."""
        if self.target is None:
            return await ask_own(self.row, health.failed_port(ledger, self.row))
        if self.row.direct:
            return await ask_direct(self.row, self.target)
        if self.row.type != "door":
            return await ask_instance(self.row, self.target)
        if self.health(ledger).health != Health.DOWN:  # an application that is well is not bothered
            return await ask_at_relay_port(self.row, self.target)
        return await ask_door(self.row, self.target)


class _Looked:
    """A subject, and what is being done about it."""

    def __init__(self, subject: Subject, judge: Judge | None) -> None:
        self.subject = subject
        self.judge = judge
        self.task: asyncio.Task[None] | None = None
        self.hurry = asyncio.Event()  # a dial has failed: do not wait for the interval's end
        self.trouble = False  # this machine could not ask it the last time


class Looker:
    """Looks at every target of the snapshot in force."""

    def __init__(self, ledger: Ledger, log: Logger) -> None:
        self._ledger = ledger
        self._log = log
        self._looked: dict[tuple[object, ...], _Looked] = {}
        self._relays = 0

    def follow(self, snapshot: Snapshot) -> None:
        """Look at what this snapshot names from now on. Who stays is not asked anew."""
        wanted = {subject.key: subject for subject in subjects(snapshot)}
        for key in [key for key in self._looked if key not in wanted]:
            if (task := self._looked.pop(key).task) is not None:
                task.cancel()
        for key, subject in wanted.items():
            if key not in self._looked:
                self._looked[key] = _Looked(subject, self._judge(subject))
        relays = (each.row.probe for each in wanted.values() if each.is_judged)
        self._relays = sum(probe is not None and probe.kind == "relay" for probe in relays)
        self.notice()

    def _judge(self, subject: Subject) -> Judge | None:
        """What an earlier control process found out stands until something else is found."""
        if not subject.is_judged or subject.row.probe is None:
            return None
        return Judge(subject.row.probe, health.state_in(self._ledger.words[subject.places(self._ledger)[0]]))

    async def run(self) -> None:
        """Notice what dials find, until cancelled."""
        while True:
            await asyncio.sleep(to_next(_NOTICE_S))
            self.notice()

    def notice(self) -> None:
        """Take in what dials have found since, and see to it that those are asked that must be."""
        for looked in self._looked.values():
            subject = looked.subject
            found = subject.seen(self._ledger)
            is_down = found.health == Health.DOWN
            if found.dialled and not subject.is_judged:  # what a look has found was written then
                self._write(subject, found)
            elif is_down and (found.dialled or subject.is_awaited(self._ledger)):
                looked.hurry.set()
            wanted = subject.is_probed or is_down or subject.lacks_relay(self._ledger)
            if looked.task is None and wanted and not subject.row.is_let_be:
                looked.task = asyncio.create_task(self._guarded(looked), name=f"look at {subject.row.name}")

    def busy(self, instance: str) -> None:
        """This instance says that it asks for no new connections: as if a look at each of its targets had found that out."""
        for looked in self._of(instance):
            self._found(looked, Answer(why.BUSY), time.monotonic_ns())

    def hurry(self, instance: str) -> None:
        """Something has changed at this instance: look at it now."""
        for looked in self._of(instance):
            looked.hurry.set()

    def _of(self, instance: str) -> Iterator[_Looked]:
        for looked in self._looked.values():
            if looked.subject.target is not None and looked.subject.target.instance == instance:
                yield looked

    async def end(self) -> None:
        """Look no more."""
        tasks = [looked.task for looked in self._looked.values() if looked.task is not None]
        self._looked.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _guarded(self, looked: _Looked) -> None:
        """A mistake of ours with one target is told, and keeps it from being asked no longer than until it is noticed."""
        try:
            await self._look(looked)
        except Exception:
            name = looked.subject.row.name
            self._log.event("error", "bug", message=f"relay cannot look at {name}", traceback=traceback.format_exc())
            await asyncio.sleep(_DOWN_S)
        looked.task = None

    async def _look(self, looked: _Looked) -> None:
        """Ask it again and again; one without a probe until it is back."""
        subject = looked.subject
        if subject.is_probed:
            await asyncio.sleep(random.uniform(0, min(_FIRST_WITHIN_S, self.interval_s(subject))))
        while True:
            looked.hurry.clear()  # before it is asked: what changes meanwhile, the answer may not know
            began_ns = time.monotonic_ns()
            if (answer := await subject.ask(self._ledger)) is not None:
                self._found(looked, answer, began_ns)
            is_down = subject.health(self._ledger).health == Health.DOWN
            if not is_down and not subject.is_probed and not subject.lacks_relay(self._ledger):
                return
            interval_s = self.interval_s(subject, is_down=is_down)
            interval_s *= random.uniform(1 - JITTER, 1 + JITTER)
            try:
                async with asyncio.timeout(max(0.0, interval_s - (time.monotonic_ns() - began_ns) / 1e9)):
                    await looked.hurry.wait()
            except TimeoutError:
                continue

    def interval_s(self, subject: Subject, *, is_down: bool = False) -> float:
        """From one look at it to the next."""
        probe, most_s = subject.row.probe, _HELD_S if is_down and subject.is_awaited(self._ledger) else _DOWN_S
        if probe is None:
            return most_s if is_down else _RELAY_S
        interval_s = min(probe.interval_s, most_s) if is_down else probe.interval_s
        return max(interval_s, self._relays / RELAYS_PER_S) if probe.kind == "relay" else interval_s

    def _found(self, looked: _Looked, answer: Answer, began_ns: int) -> None:
        """A look that began then has found this."""
        subject, fault = looked.subject, answer.fault
        if subject.target is not None and answer.knows is not None:
            self._ledger.words[subject.knows_at(self._ledger)] = answer.knows
        if fault is None:
            if not looked.trouble:
                message = "this machine is in no state to ask: see the lines of `dial` where a connection was lost"
                self._log.event("error", "dial", **_facts(subject), message=message)
            looked.trouble = True
            return
        looked.trouble = False
        state = Health.DOWN if fault else Health.UP
        if looked.judge is not None:
            state = looked.judge.hear(fault, time.monotonic())
        now_ns = time.monotonic_ns()
        at, _ = subject.places(self._ledger)
        was, why_was, was_since_ns = health.unpacked(self._ledger.words[at])
        since_ns = was_since_ns if was == state and was_since_ns else now_ns
        number = (fault or why_was) if state == Health.DOWN else why.NOTHING
        self._write(subject, TargetHealth(state, number, since_ns, began_ns))

    def _write(self, subject: Subject, found: TargetHealth) -> None:
        """Write down how it is, and say so where that has changed."""
        at, looked_at = subject.places(self._ledger)
        words = self._ledger.words
        if found.looked_ns <= words[looked_at]:
            return  # it stands there, or something newer does
        was = health.state_in(words[at])
        words[at] = health.packed(found.health, found.why, found.since_ns)
        words[looked_at] = found.looked_ns
        if was == found.health:
            return
        if found.health == Health.DOWN:
            reason = reason_of(subject.row, subject.target, found)
            self._log.event("warning", "target down", **_facts(subject), reason=reason)
        elif found.health == Health.UP and (was == Health.DOWN or subject.is_probed):
            self._log.event("info", "target up", **_facts(subject))


def subjects(snapshot: Snapshot) -> Iterator[Subject]:
    """Whom a machine can know of by itself."""
    for row in snapshot.endpoints:
        if row.distribution is None and row.targets:
            yield Subject(row, None)
        else:
            yield from (Subject(row, target) for target in row.targets)


def _facts(subject: Subject) -> dict[str, str]:
    target = subject.target
    if target is None:
        return {"endpoint": subject.row.name, "target": subject.row.targets[0].text}
    facts = {"endpoint": subject.row.name, "target": target.text}
    return facts | {"instance": target.instance} if target.instance else facts


def forget_newcomers(ledger: Ledger, old: Snapshot | None, new: Snapshot) -> None:
    """A target that is new, or takes another's place in the ledger, has not been looked at yet.

    As if we had looked just now and seen nothing: what dials of the former one found is older.
    """
    before = {subject.who for subject in subjects(old)} if old else set()
    for subject in subjects(new):
        if subject.who not in before:
            at, looked_at = subject.places(ledger)
            ledger.words[at], ledger.words[looked_at] = Health.UNKNOWN, time.monotonic_ns()
            if subject.target is not None:
                ledger.words[subject.knows_at(ledger)] = 0
