"""From the layout before to this one, without losing a count or a connection: for `relay upgrade`.

A worker of the program before goes on writing in its layout until its holder is succeeded. So the ledger grows at its
end by parts in this layout, and what was there stays where it is:

    header | health | parts in the layout before | parts in this layout | tables of sources

Header and health are the same in both. Until a worker's part is `finish`ed, the one in this layout is a copy for
readers that `refresh` makes again and again. The new program's worker begins after `finish`, when the old one has
ended.
"""

import mmap
import os
from typing import Final

from relay.ledger import source_tables
from relay.ledger.layout import (
    FIRST_WORKER,
    RECORD_BYTES,
    SLOTS,
    SOURCE_WORDS,
    TARGETS,
    VERSION,
    WORD_BYTES,
    Count,
    DaemonWord,
    TargetCount,
    Word,
    layout_version,
)
from relay.ledger.ledger import Ledger, WorkerLedger, worker_bytes

BEFORE: Final = 4
"""The layout that can be converted."""

# As layout 4 has it: relay 0.1.0.
_WORKER_WORDS: Final = 512
_SLOT_WORDS: Final = 64
_TARGET_WORDS: Final = 8
_HOLDER: Final = 9  # of an endpoint's row, and where that of a target is
_TARGET_HOLDER: Final = 7
# Of an endpoint's row: where they were, how many there were, where they are now.
_COUNTS: Final = (
    (0, 10, Count.ACCEPTED),
    (10, 7, Count.DENIED),
    (17, 14, Count.CLOSED),
    (31, 14, Count.CONNECT_BUCKETS),
    (45, 14, Count.DURATION_BUCKETS),
    (59, 2, Count.WOULD_DENY),
)


def take_over(fd: int) -> Ledger:
    """The ledger in a memory file that the program before made, in this layout from now on.

    Raises RelayBug for one that is not known.
    """
    if layout_version(fd) == BEFORE:
        _grow(fd)
    if layout_version(fd) == VERSION:
        source_tables.append(fd)  # none are in a ledger that was made before there were any
    return Ledger.attach(fd)


def is_known(fd: int) -> bool:
    """Whether `take_over` can take it."""
    return layout_version(fd) in (VERSION, BEFORE)


def pending(ledger: Ledger) -> list[int]:
    """Workers that still write in the layout before."""
    return [n for n in range(ledger.workers) if ledger.worker(n)[Word.LAYOUT] != VERSION]


def refresh(ledger: Ledger) -> None:
    """Bring the copies up to date."""
    for n in pending(ledger):
        _copy(ledger, ledger.worker(n))


def finish(ledger: Ledger, index: int) -> None:
    """Worker `index` has ended, and the next one writes in this layout."""
    part = ledger.worker(index)
    if part[Word.LAYOUT] != VERSION:
        _copy(ledger, part)
        part[Word.LAYOUT] = VERSION  # last: cut off before, it is done again


def _grow(fd: int) -> None:
    size = os.fstat(fd).st_size
    first = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    with mmap.mmap(fd, FIRST_WORKER * WORD_BYTES) as head:
        words = memoryview(head).cast("Q")
        workers, flows = words[DaemonWord.WORKERS], words[DaemonWord.FLOWS_PER_WORKER]
        os.ftruncate(fd, first + workers * worker_bytes(flows))
        words[DaemonWord.WORKERS_AT] = first // WORD_BYTES
        words[DaemonWord.VERSION] = VERSION
        words.release()
    refresh(Ledger.attach(fd))


def _copy(ledger: Ledger, part: WorkerLedger) -> None:
    """All of a worker's part, from the layout before to this one. What is empty is not touched: it costs no memory."""
    words, flows = ledger.words, ledger.flows_per_worker
    rows = _WORKER_WORDS
    targets = rows + SLOTS * _SLOT_WORDS + SOURCE_WORDS  # counts by source are made anew by the next worker
    records = targets + TARGETS * _TARGET_WORDS
    part_bytes = -(-(records * WORD_BYTES + flows * RECORD_BYTES) // mmap.PAGESIZE) * mmap.PAGESIZE
    base = FIRST_WORKER + part.index * (part_bytes // WORD_BYTES)
    for slot in range(SLOTS):
        old = base + rows + slot * _SLOT_WORDS
        if words[old + _HOLDER]:
            new = part.counts_at(slot)
            for at, count, to in _COUNTS:
                words[new + to : new + to + count] = words[old + at : old + at + count]
    for slot in range(TARGETS):
        old = base + targets + slot * _TARGET_WORDS
        if words[old + _TARGET_HOLDER]:
            new = part.target_counts_at(slot)[part.index]
            words[new : new + TargetCount.HOLDER + 1] = words[old : old + _TARGET_WORDS]
    old, new = base, part.word_index(Word.PID)
    high = words[old + Word.FLOWS_HIGH]
    size = high * RECORD_BYTES // WORD_BYTES
    at = part.records_at
    words[at : at + size] = words[base + records : base + records + size]
    words[new : new + Word.LAYOUT] = words[old : old + Word.LAYOUT]
