"""Where the tables of sources stand in the ledger (by_source.py): behind all else, one for each worker.

    a page, whose first word says whether the table was used | buckets: WIDTH names, then the count of each

A table has two places for each flow that its worker can have. A ledger that the program before made has none yet: then
the header's word is 0, and the keeper appends them. Their pages cost memory once they are looked at.
"""

import mmap
import os
from typing import Final

from relay.ledger.layout import WORD_BYTES, DaemonWord

WIDTH: Final = 16
"""Names of a bucket."""

BUCKET_WORDS: Final = 2 * WIDTH
HEAD_WORDS: Final = mmap.PAGESIZE // WORD_BYTES
"""In front of the buckets."""

_KEY_BYTES: Final = 8
_ENTRIES_MIN: Final = mmap.PAGESIZE // (2 * WORD_BYTES)  # whole pages, so that a table can be given back


def append(fd: int) -> None:
    """Grow the ledger in a memory file by empty tables and a new key, if it has none. Raises OSError."""
    with mmap.mmap(fd, mmap.PAGESIZE) as head, memoryview(head) as raw, raw.cast("Q") as words:
        if words[DaemonWord.SOURCES_AT]:
            return
        entries = max(_ENTRIES_MIN, 1 << (2 * words[DaemonWord.FLOWS_PER_WORKER] - 1).bit_length())
        first = -(-os.fstat(fd).st_size // mmap.PAGESIZE) * mmap.PAGESIZE
        os.ftruncate(fd, first + words[DaemonWord.WORKERS] * (HEAD_WORDS + 2 * entries) * WORD_BYTES)
        words[DaemonWord.SOURCES_ENTRIES] = entries
        words[DaemonWord.SOURCES_KEY] = int.from_bytes(os.urandom(_KEY_BYTES), "little")
        words[DaemonWord.SOURCES_AT] = first // WORD_BYTES  # last: cut off before, it is done again


def tables_at(words: memoryview) -> tuple[int, ...]:
    """Index into `words` of each worker's table."""
    first, stride = words[DaemonWord.SOURCES_AT], HEAD_WORDS + 2 * words[DaemonWord.SOURCES_ENTRIES]
    return tuple(first + n * stride for n in range(words[DaemonWord.WORKERS]))


def key(words: memoryview) -> bytes:
    """With what names are made: as random as this ledger."""
    return int(words[DaemonWord.SOURCES_KEY]).to_bytes(_KEY_BYTES, "little")


def wipe(memory: mmap.mmap, words: memoryview, table: int) -> None:
    """Zero a table. Cut off anywhere it still counts as used, and is wiped again."""
    if not words[table]:
        return  # no endpoint has such a limit, as usual, and a new worker has no time to lose
    first, count = table + HEAD_WORDS, 2 * words[DaemonWord.SOURCES_ENTRIES]
    try:
        memory.madvise(mmap.MADV_REMOVE, first * WORD_BYTES, count * WORD_BYTES)  # the pages go, and none are made
    except OSError:  # madvise(2): not with memory that is locked
        nothing = memoryview(bytes(mmap.PAGESIZE)).cast("Q")
        for at in range(first, first + count, HEAD_WORDS):
            words[at : at + HEAD_WORDS] = nothing
    words[table] = 0
