"""How many connections each source has open, over all workers: `limits.per_source` is one limit, not one for each worker.

A source is called by a 64-bit name, made of its endpoint, its address and a random key, so that nobody can choose
addresses that meet in the table. A worker knows its own counts, and publishes each in a table that it alone writes
(source_tables.py): the whole count, stored anew at every change. So nothing is ever taken from a count that was not
added to it, and a source that found no place is counted right as soon as it finds one.

A name stands in one of two buckets, the emptier one: 1e8 random comings and goings in a table of 524,288 places, half of
it taken at any time, never had more than 12 of 16 in one. Who leaves is taken out, so looking a name up is two looks.
"""

import time
from hashlib import blake2b
from typing import Final

from relay.ledger import source_tables
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import WorkerLedger
from relay.ledger.source_tables import BUCKET_WORDS, HEAD_WORDS, WIDTH
from relay.log import Logger

_SAID_S: Final = 10.0  # that there is no place is logged no more often than this
_ROOM: Final = WIDTH // 2  # free places in the first bucket that make a look at the second one needless
_SLOT_BITS: Final = 16


class SourceCounts:
    """What one worker has open, by source, and the reading of the others' tables. Its own is wiped first (`clear`)."""

    def __init__(self, ledger: WorkerLedger, log: Logger | None = None) -> None:
        self._ledger = ledger
        self._words = ledger.words
        self._own = ledger.all_sources_at[ledger.index]
        self._others = [at for at in ledger.all_sources_at if at != self._own]
        self._mask = ledger.words[DaemonWord.SOURCES_ENTRIES] // WIDTH - 1
        self._key = source_tables.key(ledger.words)
        self._counts: dict[int, int] = {}  # by name
        self._places: dict[int, int] = {}  # index into `words` of the name in the own table, of those who have a place
        self._uncounted_at = ledger.word_index(Word.SOURCES_UNCOUNTED)
        self._log = log
        self._said_s = -_SAID_S

    def name(self, slot: int, packed: bytes) -> int:
        """What this source of the endpoint in `slot` is called. Never 0."""
        if not self._others:  # no table, no bits that must be random
            return len(packed) << 160 | int.from_bytes(packed, "little") << _SLOT_BITS | slot
        salt = slot.to_bytes(4, "little")
        return int.from_bytes(blake2b(packed, digest_size=8, key=self._key, salt=salt).digest(), "little") or 1

    def total(self, name: int) -> int:
        """Connections that all workers have open for it."""
        total, words = self._counts.get(name, 0), self._words
        for table in self._others:
            if words[table]:  # it was used
                total += self._published(table, name)
        return total

    def add(self, name: int, change: int) -> None:
        """One more or one less in this worker. Less than none is none."""
        count = self._counts.get(name, 0) + change
        if count > 0:
            self._counts[name] = count
        else:
            self._counts.pop(name, None)
        if self._others:
            self._publish(name, count)

    def clear(self) -> None:
        """Forget a predecessor's counts: its flows are about to be counted anew."""
        source_tables.wipe(self._ledger.memory, self._words, self._own)

    def _publish(self, name: int, count: int) -> None:
        words, at = self._words, self._places.get(name)
        if at is not None:
            if count > 0:
                words[at + WIDTH] = count
            else:
                del self._places[name]
                words[at] = 0
        elif count > 0:
            if (at := self._free_place(name)) is None:
                self._say_uncounted()
                return
            if not words[self._own]:
                words[self._own] = 1  # before anything is in it
            words[at + WIDTH] = count
            words[at] = name  # last: with a name an entry is whole
            self._places[name] = at

    def _buckets(self, table: int, name: int) -> tuple[int, int]:
        first, mask = table + HEAD_WORDS, self._mask
        return first + (name & mask) * BUCKET_WORDS, first + (name >> 32 & mask) * BUCKET_WORDS

    def _free_place(self, name: int) -> int | None:
        place, most = None, 0
        for at in self._buckets(self._own, name):
            names = self._words[at : at + WIDTH].tolist()
            if (free := names.count(0)) > most:
                place, most = at + names.index(0), free
            if free >= _ROOM:
                break
        return place

    def _published(self, table: int, name: int) -> int:
        for at in self._buckets(table, name):
            names = self._words[at : at + WIDTH].tolist()
            if name in names:
                return int(self._words[at + WIDTH + names.index(name)])
        return 0

    def _say_uncounted(self) -> None:
        self._words[self._uncounted_at] += 1
        now_s = time.monotonic()
        if self._log is not None and now_s - self._said_s >= _SAID_S:
            self._said_s = now_s
            message = (
                "no place for one more source: until others end, `limits.per_source` holds for it in this worker alone; "
                "the table grows with the descriptors that relay may have (LimitNOFILE= of the unit, at the next start)"
            )
            self._log.event("warning", "source uncounted", message=message, sources=len(self._counts))
