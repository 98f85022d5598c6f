"""An edge's probing: one task for each target, which asks now and then and writes into the ledger what came of it."""

import asyncio
import random
import time
from typing import Final

from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.control.probe import Judge, ProbeAnswer, ask
from relay.ledger.layout import Health, health_at
from relay.ledger.ledger import Ledger
from relay.log import Logger

_JITTER: Final = 0.1  # of the interval, either way: or all probes of all edges come to beat together
_FIRST_WITHIN_S: Final = 1.0  # the first probes of a start or a reload are spread over this time


class Prober:
    """Probes every target of the snapshot in force."""

    def __init__(self, ledger: Ledger, log: Logger) -> None:
        self._ledger = ledger
        self._log = log
        self._tasks: dict[tuple[str, object, TargetRow], asyncio.Task[None]] = {}

    def follow(self, snapshot: Snapshot) -> None:
        """Probe what this snapshot names from now on. Who stays is not asked anew."""
        wanted = {
            (f"{row.name} {target.text}", _what_counts(row), target): row
            for row in snapshot.endpoints
            if row.probe is not None
            for target in row.targets
        }
        for key in [key for key in self._tasks if key not in wanted]:
            self._tasks.pop(key).cancel()
        for key, row in wanted.items():
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._watch(row, key[2]), name=f"probe {key[0]}")

    async def end(self) -> None:
        """Probe no more."""
        tasks = list(self._tasks.values())
        self._tasks.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _watch(self, row: EndpointRow, target: TargetRow) -> None:
        assert row.probe is not None  # `follow` looked
        words, at = self._ledger.words, health_at(target.slot)
        # What an earlier control process found out stands until something else is found.
        judge = Judge(row.probe, time.monotonic(), words[at])
        await asyncio.sleep(random.uniform(0, min(_FIRST_WITHIN_S, row.probe.interval_s)))
        while True:
            began_s = time.monotonic()
            answer = await ask(row, target)
            before, after = words[at], judge.hear(answer, time.monotonic())
            if after != before and after != Health.UNKNOWN:
                words[at] = after
                self._say(row, target, after, answer)
            interval_s = row.probe.interval_s * random.uniform(1 - _JITTER, 1 + _JITTER)
            await asyncio.sleep(max(0.0, began_s + interval_s - time.monotonic()))

    def _say(self, row: EndpointRow, target: TargetRow, health: int, answer: ProbeAnswer) -> None:
        facts = {"endpoint": row.name, "target": target.text, "instance": target.instance}
        if health == Health.UP:
            self._log.event("info", "target up", **facts)
        else:
            why = "no answer in time" if answer is ProbeAnswer.NONE else "a wrong answer, or none to be had"
            self._log.event("warning", "target down", message=why, **facts)


def _what_counts(row: EndpointRow) -> tuple[object, ...]:
    return row.probe, row.protocol, row.dial_from


def forget_newcomers(ledger: Ledger, old: Snapshot | None, new: Snapshot) -> None:
    """A target that is new, or takes another's place in the ledger, has not been probed yet."""
    before = old.slots.targets if old is not None else {}
    for target, slot in new.slots.targets.items():
        if before.get(target) != slot:
            ledger.words[health_at(slot)] = Health.UNKNOWN
