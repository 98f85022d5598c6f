"""The tables of sources as part of the ledger: how they get there, what they cost, and how one is emptied."""

import mmap
import os
from collections.abc import Iterator
from typing import Any, Final

import pytest

from relay.ledger import convert, source_tables
from relay.ledger.layout import MAGIC, VERSION, WORD_BYTES, DaemonWord, Word
from relay.ledger.ledger import Ledger
from tests.ledger.rig import new_ledger

WORDS: Final = (DaemonWord.SOURCES_AT, DaemonWord.SOURCES_ENTRIES, DaemonWord.SOURCES_KEY)


def as_before(ledger: Ledger) -> int:
    """The ledger as the program before made it, without tables; how long it is."""
    size = ledger.words[DaemonWord.SOURCES_AT] * WORD_BYTES
    for word in WORDS:
        ledger.words[word] = 0
    return int(size)


@pytest.fixture
def grown() -> Iterator[Ledger]:
    """Room for 5,000 flows of each of two workers."""
    with new_ledger(workers=2, flows=5000) as made:
        yield made


def test_a_table_has_two_places_for_each_flow(grown: Ledger) -> None:
    assert grown.words[DaemonWord.SOURCES_ENTRIES] == 16384
    first, second = source_tables.tables_at(grown.words)
    assert second - first == source_tables.HEAD_WORDS + 2 * 16384
    assert os.fstat(grown.fd).st_size == (second + source_tables.HEAD_WORDS + 2 * 16384) * WORD_BYTES


def test_tables_cost_memory_only_when_they_are_used(grown: Ledger) -> None:
    assert os.fstat(grown.fd).st_blocks * 512 < 100_000


def test_what_sources_are_called_is_as_random_as_the_ledger() -> None:
    with new_ledger() as one, new_ledger() as other:
        keys = {source_tables.key(one.words), source_tables.key(other.words)}
        assert len(keys - {bytes(8)}) == 2


def test_a_ledger_of_the_program_before_gets_tables_and_nothing_moves(grown: Ledger) -> None:
    part = grown.worker(1)
    part[Word.ACCEPT_PAUSES] = 7
    size = as_before(grown)
    os.ftruncate(grown.fd, size)
    header = bytes(grown.words.cast("B")[: DaemonWord.SOURCES_AT * WORD_BYTES])
    after = convert.take_over(grown.fd)
    assert after.words[DaemonWord.SOURCES_AT] * WORD_BYTES == size
    assert after.words[DaemonWord.VERSION] == VERSION == 5
    assert bytes(after.words.cast("B")[: DaemonWord.SOURCES_AT * WORD_BYTES]) == header
    assert after.worker(1)[Word.ACCEPT_PAUSES] == part[Word.ACCEPT_PAUSES] == 7


def test_they_are_there_once(grown: Ledger) -> None:
    before = [grown.words[word] for word in WORDS], os.fstat(grown.fd).st_size
    after = convert.take_over(grown.fd)
    assert ([after.words[word] for word in WORDS], os.fstat(grown.fd).st_size) == before


def test_one_that_was_cut_off_while_it_grew_grows_again(grown: Ledger) -> None:
    as_before(grown)  # the file is as long as it was to be, and the header does not say so
    grown.words[DaemonWord.SOURCES_ENTRIES] = 1
    after = convert.take_over(grown.fd)
    assert after.words[DaemonWord.SOURCES_ENTRIES] == 16384
    last = source_tables.tables_at(after.words)[1] + source_tables.HEAD_WORDS + 2 * 16384
    assert last * WORD_BYTES <= os.fstat(grown.fd).st_size


def test_a_ledger_is_whole_with_its_magic(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(source_tables, "append", lambda fd: seen.append(convert.is_known(fd)))
    ledger = Ledger.create(1, 16, 7)
    os.close(ledger.fd)
    assert seen == [False]
    assert ledger.words[DaemonWord.MAGIC] == MAGIC


def fill(ledger: Ledger, worker: int) -> int:
    """Mark a table as used, write into all of it, and tell where it is."""
    table = source_tables.tables_at(ledger.words)[worker]
    ledger.words[table] = 1
    first = (table + source_tables.HEAD_WORDS) * WORD_BYTES
    size = 2 * ledger.words[DaemonWord.SOURCES_ENTRIES] * WORD_BYTES
    ledger.words.cast("B")[first : first + size] = b"\1" * size
    return table


def is_empty(ledger: Ledger, table: int) -> bool:
    first = table + source_tables.HEAD_WORDS
    return not any(ledger.words[first : first + 2 * ledger.words[DaemonWord.SOURCES_ENTRIES]])


def test_one_table_is_emptied_and_its_memory_given_back(grown: Ledger) -> None:
    other = fill(grown, 1)
    before = os.fstat(grown.fd).st_blocks
    table = fill(grown, 0)
    source_tables.wipe(grown.worker(0).memory, grown.words, table)
    assert os.fstat(grown.fd).st_blocks - before <= mmap.PAGESIZE // 512, "but for its first page"
    assert is_empty(grown, table)
    assert not grown.words[table]
    assert not is_empty(grown, other)


def test_one_that_was_not_used_is_not_even_looked_at(grown: Ledger) -> None:
    table = fill(grown, 0)
    grown.words[table] = 0
    source_tables.wipe(grown.worker(0).memory, grown.words, table)
    assert not is_empty(grown, table)


class LockedMemory:
    """As with memory that is locked, of which madvise(2) gives nothing back."""

    def madvise(self, *_: object) -> None:
        raise OSError(22, "Invalid argument")


def test_memory_that_cannot_be_given_back_is_zeroed(grown: Ledger) -> None:
    other, table = fill(grown, 1), fill(grown, 0)
    locked: Any = LockedMemory()
    source_tables.wipe(locked, grown.words, table)
    assert is_empty(grown, table)
    assert not grown.words[table]
    assert not is_empty(grown, other)
    assert grown.words[other] == 1
