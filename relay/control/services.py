"""Which of this machine's own services do not answer: what a registry is told, so that nobody is sent to them.

Connections find it out: a dial that failed stands in the ledger. Only then, and until it answers again, we ask the service
ourselves, once a second. One that works is never bothered.
"""

import asyncio
import contextlib
import time
from typing import Final

from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.ledger.ledger import Ledger

_ASK_S: Final = 1.0  # a local service answers within a millisecond, or is in trouble


class Services:
    """What the ledger says of the services behind this machine's endpoints, and what was found out since."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._answered_ns: dict[str, int] = {}  # by endpoint: when it answered us (CLOCK_MONOTONIC)

    def down(self, snapshot: Snapshot) -> tuple[str, ...]:
        """The names of the endpoints, inside their role, whose service did not answer when it was last asked."""
        return tuple(sorted(row.endpoint for row in snapshot.endpoints if self._is_down(row)))

    async def ask(self, snapshot: Snapshot) -> None:
        """Ask the services that are down whether they answer again."""
        down = [row for row in snapshot.endpoints if self._is_down(row)]
        for row, answers in zip(down, await asyncio.gather(*map(_answers, down)), strict=True):
            if answers:
                self._answered_ns[row.name] = time.monotonic_ns()

    def _is_down(self, row: EndpointRow) -> bool:
        if row.distribution is not None:  # other machines, which tell of themselves
            return False
        last = self._ledger.last_dial(row.slot)
        return last is not None and not last[1] and last[0] > self._answered_ns.get(row.name, 0)


async def _answers(row: EndpointRow) -> bool:
    """Whether one of its targets takes a connection, as one client's would be tried."""
    for target in row.targets:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(_ASK_S):
                await _connect(target)
                return True
    return False


async def _connect(target: TargetRow) -> None:
    if target.path:
        _, writer = await asyncio.open_unix_connection(target.path)
    else:
        _, writer = await asyncio.open_connection(target.host, target.port)
    writer.close()
