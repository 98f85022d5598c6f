"""How many connections each source has open, over all workers: `limits.per_source` is one limit, not one for each worker.

Every worker has a table in the ledger that it alone writes; a total is the sum over the tables. An entry is two words,
a 64-bit name of (endpoint, source) and a count. Names are never removed, entries with the count 0 are used again, and
a name stands within a few places of where it hashes to, so looking one up is bounded whatever comes.
"""

from hashlib import blake2b
from typing import Final

from relay.ledger.layout import SOURCE_ENTRIES as ENTRIES
from relay.ledger.ledger import WorkerLedger
from relay.steps import step

_PROBES: Final = 32  # a source that finds no place within these counts in its own worker alone


class SourceCounts:
    """One worker's table, and the reading of the others'."""

    def __init__(self, ledger: WorkerLedger) -> None:
        self._words = ledger.words
        self._own = ledger.sources_at
        self._all = ledger.all_sources_at

    def name(self, slot: int, packed: bytes) -> int:
        """What the tables call this source of the endpoint in `slot`. Never 0."""
        return int.from_bytes(blake2b(packed, digest_size=8, salt=slot.to_bytes(4, "little")).digest(), "little") or 1

    def total(self, name: int) -> int:
        """Connections that all workers have open for it."""
        return sum(self._count(table, name) for table in self._all)

    @step
    def add(self, name: int, change: int) -> None:
        """One more or one less in this worker."""
        words, free = self._words, 0
        for place in range(_PROBES):
            at = self._own + (name + place) % ENTRIES * 2
            if words[at] == name:
                words[at + 1] += change
                return
            if not words[at + 1] and not free:
                free = at
            if not words[at]:
                break
        if change > 0 and free:
            words[free + 1] = 0
            words[free] = name
            words[free + 1] = change

    def clear(self) -> None:
        """Forget this worker's counts: its flows are about to be counted anew."""
        if self._words[self._own : self._own + ENTRIES * 2].tobytes() == bytes(ENTRIES * 2 * 8):
            return  # no endpoint has such a limit, as usual, and a new worker has no time to lose
        for at in range(self._own, self._own + ENTRIES * 2, 2):
            if self._words[at + 1]:
                self._words[at + 1] = 0

    def _count(self, table: int, name: int) -> int:
        words = self._words
        for place in range(_PROBES):
            at = table + (name + place) % ENTRIES * 2
            if words[at] == name:
                return int(words[at + 1])
            if not words[at]:
                return 0
        return 0
