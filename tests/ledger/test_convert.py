"""A ledger of the layout before: everything in it is in this layout afterwards, and until then what its worker writes."""

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from relay.errors import RelayBug
from relay.ledger import convert
from relay.ledger.layout import (
    ENVELOPE_REASONS,
    FIRST_WORKER,
    MAGIC,
    REASONS,
    SOURCE_WORDS,
    VERSION,
    Count,
    DaemonWord,
    Health,
    Word,
    health_at,
)
from relay.ledger.ledger import Ledger

WORKERS, FLOWS = 2, 40
# Layout 4, in numbers of its own: nothing of the code is asked.
CAUSES_BEFORE = 14
STRIDE = -(-((512 + 1024 * 64 + SOURCE_WORDS + 1024 * 8) * 8 + FLOWS * 128) // 4096) * 512
ROWS, SOURCES = 512, 512 + 1024 * 64
TARGETS, RECORDS = SOURCES + SOURCE_WORDS, SOURCES + SOURCE_WORDS + 1024 * 8


@contextmanager
def before() -> Iterator[tuple[int, Any]]:
    """A memory file with an empty ledger of layout 4, and its words."""
    fd = os.memfd_create("before", os.MFD_CLOEXEC)
    size = FIRST_WORKER * 8 + WORKERS * STRIDE * 8
    os.ftruncate(fd, size)
    with mmap.mmap(fd, size) as memory:
        words = memoryview(memory).cast("Q")
        words[:4] = memoryview(bytearray(b"".join(n.to_bytes(8, "little") for n in (MAGIC, 4, WORKERS, FLOWS)))).cast(
            "Q"
        )
        try:
            yield fd, words
        finally:
            words.release()
            os.close(fd)


def filled(words: Any, n: int) -> None:
    """Worker `n`, with a value of its own in every word that has a meaning."""
    base = FIRST_WORKER + n * STRIDE
    for word in range(Word.LAYOUT):
        words[base + word] = 1000 * (n + 1) + word
    words[base + 9] = 3  # FLOWS_HIGH
    for slot in (0, 5, 1023):
        for count in range(61):
            words[base + ROWS + slot * 64 + count] = 10_000 * (n + 1) + slot + count
        for count in range(8):
            words[base + TARGETS + slot * 8 + count] = 20_000 * (n + 1) + slot + count
    words[base + SOURCES], words[base + SOURCES + 1] = 77, n + 1
    for index in (0, 2):
        record(words, n, index, f"192.0.2.{n}:{index}")


def record(words: Any, n: int, index: int, peer: str) -> None:
    at = (FIRST_WORKER + n * STRIDE + RECORDS) * 8 + index * 128
    memory = words.cast("B")
    memory[at : at + 16] = b"".join(v.to_bytes(4, "little") for v in (3, 5, 40 + index, 50 + index))
    memory[at + 64 : at + 128] = peer.encode().ljust(64, b"\0")


def check(ledger: Ledger, n: int) -> None:
    """What `filled` wrote."""
    part = ledger.worker(n)
    assert [part[word] for word in range(Word.LAYOUT) if word != Word.FLOWS_HIGH] == [
        1000 * (n + 1) + word for word in range(Word.LAYOUT) if word != Word.FLOWS_HIGH
    ]
    for slot in (0, 5, 1023):
        row, first = part.counts_at(slot), 10_000 * (n + 1) + slot
        read = [(Count.ACCEPTED, 0, 10), (Count.DENIED, 10, len(REASONS)), (Count.CLOSED, 17, CAUSES_BEFORE)]
        read += [(Count.CONNECT_BUCKETS, 31, 14), (Count.DURATION_BUCKETS, 45, 14)]
        read += [(Count.WOULD_DENY, 59, len(ENVELOPE_REASONS))]
        for now, was, count in read:
            assert list(part.words[row + now : row + now + count]) == [first + was + each for each in range(count)]
        row = part.target_counts_at(slot)[n]
        assert list(part.words[row : row + 8]) == [20_000 * (n + 1) + slot + count for count in range(8)]
    assert [(flow.index, flow.client_fd, flow.peer) for flow in part.flows()] == [
        (index, 40 + index, f"192.0.2.{n}:{index}") for index in (0, 2)
    ]


def test_everything_is_there() -> None:
    with before() as (fd, words):
        for n in range(WORKERS):
            filled(words, n)
        words[DaemonWord.RELOADS_FAILED], words[health_at(7)] = 12, Health.DOWN
        assert convert.is_known(fd)
        ledger = convert.take_over(fd)
        for n in range(WORKERS):
            check(ledger, n)
        assert (ledger.words[DaemonWord.VERSION], ledger.words[DaemonWord.RELOADS_FAILED]) == (VERSION, 12)
        assert ledger.words[health_at(7)] == Health.DOWN
        assert convert.pending(ledger) == [0, 1]
        assert ledger.words[DaemonWord.SOURCES_AT] * 8 >= FIRST_WORKER * 8 + 2 * WORKERS * STRIDE * 8, "behind all else"
        assert Ledger.attach(fd).total(5, Count.ACCEPTED) == 10_005 + 20_005


def test_who_works_in_the_layout_before_is_followed_until_its_end() -> None:
    with before() as (fd, words):
        filled(words, 0)
        filled(words, 1)
        ledger = convert.take_over(fd)
        convert.finish(ledger, 0)
        assert convert.pending(ledger) == [1]
        mine, theirs = ledger.worker(0), ledger.worker(1)
        add_before(words, 0, 5, 100)
        add_before(words, 1, 5, 200)
        mine.words[mine.counts_at(5) + Count.SENT] += 7
        convert.refresh(ledger)
        assert mine.words[mine.counts_at(5) + Count.SENT] == 10_000 + 5 + 2 + 7, "its own by now"
        assert theirs.words[theirs.counts_at(5) + Count.SENT] == 20_000 + 5 + 2 + 200
        record(words, 1, 1, "192.0.2.9:9")
        convert.finish(ledger, 1)
        assert [flow.index for flow in theirs.flows()] == [0, 1, 2]
        add_before(words, 1, 5, 1000)
        convert.finish(ledger, 1)
        convert.refresh(ledger)
        assert theirs.words[theirs.counts_at(5) + Count.SENT] == 20_000 + 5 + 2 + 200, "finished once and for all"
        assert convert.pending(ledger) == []


def add_before(words: Any, n: int, slot: int, value: int) -> None:
    words[FIRST_WORKER + n * STRIDE + ROWS + slot * 64 + 2] += value  # SENT


def test_header_and_health_are_one_for_both() -> None:
    with before() as (fd, words):
        ledger = convert.take_over(fd)
        ledger.words[DaemonWord.DRAIN_UNTIL_NS], ledger.words[health_at(1023)] = 5, Health.UP
        assert (words[DaemonWord.DRAIN_UNTIL_NS], words[health_at(1023)]) == (5, Health.UP)


def test_what_is_empty_takes_no_memory() -> None:
    with before() as (fd, _words):
        convert.take_over(fd)
        after = os.fstat(fd).st_blocks * 512
        assert after < WORKERS * STRIDE * 8 * 3 / 2


def test_one_of_this_layout_is_taken_as_it_is() -> None:
    ledger = Ledger.create(WORKERS, FLOWS, 1)
    try:
        size = os.fstat(ledger.fd).st_size
        assert convert.is_known(ledger.fd)
        assert convert.pending(convert.take_over(ledger.fd)) == []
        assert os.fstat(ledger.fd).st_size == size
    finally:
        os.close(ledger.fd)


@pytest.mark.parametrize("version", [0, 3, VERSION + 1])
def test_any_other_is_refused(version: int) -> None:
    with before() as (fd, words):
        words[DaemonWord.VERSION] = version
        assert not convert.is_known(fd)
        with pytest.raises(RelayBug, match=f"layout {version}"):
            convert.take_over(fd)
