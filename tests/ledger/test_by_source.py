"""Counts by source: right over all workers, never below zero, whatever is lost, and whoever comes."""

import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import log as logging
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger
from relay.ledger.source_tables import WIDTH
from relay.log import Logger
from tests.harness import examples
from tests.ledger.rig import new_ledger
from tests.logs import waiting

ENTRIES: Final = 256  # the smallest table: so are those of all ledgers here


@pytest.fixture
def two() -> Iterator[Ledger]:
    """A ledger of two workers."""
    with new_ledger(workers=2) as made:
        assert made.words[DaemonWord.SOURCES_ENTRIES] == ENTRIES
        yield made


def both(ledger: Ledger) -> tuple[SourceCounts, SourceCounts]:
    return SourceCounts(ledger.worker(0)), SourceCounts(ledger.worker(1))


def meeting(count: int) -> list[int]:
    """So many names that have the same two buckets."""
    return [n << 40 | 3 << 32 | 5 for n in range(count)]


def test_a_total_is_over_all_workers(two: Ledger) -> None:
    one, other = both(two)
    one.add(77, 1)
    other.add(77, 1)
    other.add(77, 1)
    assert (one.total(77), other.total(77), one.total(78)) == (3, 3, 0)
    one.add(77, -1)
    assert (one.total(77), other.total(77)) == (2, 2)


def test_an_end_that_was_never_counted_takes_from_nobody(two: Ledger) -> None:
    one, other = both(two)
    other.add(77, 1)
    one.add(77, -1)
    one.add(78, -1)
    assert (one.total(77), other.total(77), one.total(78)) == (1, 1, 0)
    one.add(78, 1)
    assert other.total(78) == 1


def test_who_found_no_place_counts_here_at_once_and_everywhere_as_soon_as_there_is_one(two: Ledger) -> None:
    one, other = both(two)
    *fillers, late = meeting(2 * WIDTH + 1)
    for name in fillers:
        one.add(name, 1)
    one.add(late, 1)
    assert (one.total(late), other.total(late)) == (1, 0)
    assert two.worker(0)[Word.SOURCES_UNCOUNTED] == 1
    one.add(fillers[0], -1)
    one.add(late, 1)
    assert (one.total(late), other.total(late)) == (2, 2), "the one that was not counted is"
    one.add(late, -1)
    assert (one.total(late), other.total(late)) == (1, 1)
    one.add(late, -1)
    assert (one.total(late), other.total(late)) == (0, 0)
    assert {other.total(name) for name in fillers[1:]} == {1}
    assert two.worker(0)[Word.SOURCES_UNCOUNTED] == 1


def test_who_finds_no_place_is_said_now_and_then(two: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    sink, source = logging.channel()
    with sink, source:
        made = SourceCounts(two.worker(0), Logger(sink, "worker-0", "info"))
        names = iter(meeting(2 * WIDTH + 4))
        for _ in range(2 * WIDTH):
            made.add(next(names), 1)
        assert waiting(source) == []
        made.add(next(names), 1)
        made.add(next(names), 1)
        now_s += 9.9
        made.add(next(names), 1)
        [line] = waiting(source)
        now_s += 0.2
        made.add(next(names), 1)
        assert len(waiting(source)) == 1
    assert '"event": "source uncounted"' in line
    assert "LimitNOFILE" in line
    assert two.worker(0)[Word.SOURCES_UNCOUNTED] == 4


def test_a_table_as_full_as_flows_can_make_it_has_a_place_for_everybody() -> None:
    """As many clients at once as a worker has flows, without anybody who means harm, and each again and again."""
    flows, rng = 16_384, random.Random(1)
    with new_ledger(workers=2, flows=flows) as ledger:
        one, other = both(ledger)
        names = [one.name(0, (0x0A000000 + n).to_bytes(4, "big")) for n in range(4 * flows)]
        here = names[:flows]
        for name in here:
            one.add(name, 1)
        for _ in range(2 * flows):
            place = rng.randrange(flows)
            one.add(here[place], -1)
            here[place] = rng.choice(names)
            one.add(here[place], 1)
        assert ledger.worker(0)[Word.SOURCES_UNCOUNTED] == 0
        counts = Counter(here)
        assert {name: other.total(name) for name in names} == {name: counts[name] for name in names}


def test_addresses_that_meet_in_one_ledger_do_not_in_another() -> None:
    """So nobody can look for them beforehand."""
    addresses = [n.to_bytes(4, "big") for n in range(4096)]
    groups = []
    for _ in range(2):
        with new_ledger(workers=2) as ledger:
            made = SourceCounts(ledger.worker(0))
            groups.append({address for address in addresses if made.name(0, address) % 64 == 0})
    assert min(map(len, groups)) > 20
    assert len(groups[0] & groups[1]) < len(groups[0]) / 2


@pytest.mark.parametrize("workers", [1, 2])
def test_sources_and_endpoints_have_names_of_their_own(workers: int) -> None:
    with new_ledger(workers=workers) as ledger:
        made = SourceCounts(ledger.worker(0))
        packed = [bytes(4), bytes(16), b"\1\2\3\4", bytes(12) + b"\4\3\2\1", b"\1\2\3\4" + bytes(12), b"\xff" * 16]
        names = {made.name(slot, each) for slot in (0, 1, 1023) for each in packed}
        assert len(names) == 3 * len(packed)
        assert 0 not in names


STEPS: Final = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 39), st.sampled_from([1, 1, -1])), max_size=300)


@examples(50)
@given(STEPS, st.booleans())
def test_whatever_happens_totals_are_right_and_never_below_zero(
    steps: list[tuple[int, int, int]], crowded: bool
) -> None:
    """Against a count by hand, of which a worker's own part is always right, and so is the rest where there was room."""
    names = meeting(40) if crowded else [n * 0x9E3779B97F4A7C15 % 2**64 for n in range(1, 41)]
    with new_ledger(workers=2) as ledger:
        counts, by_hand = both(ledger), (Counter[int](), Counter[int]())
        for worker, n, change in steps:
            counts[worker].add(names[n], change)
            by_hand[worker][n] = max(0, by_hand[worker][n] + change)
        for n, name in enumerate(names):
            for me, other in ((0, 1), (1, 0)):
                low, high = by_hand[me][n], by_hand[0][n] + by_hand[1][n]
                total = counts[me].total(name)
                assert total == high or (crowded and total == low)
                if not ledger.worker(other)[Word.SOURCES_UNCOUNTED]:
                    assert total == high


class Killed(Exception):
    """Stands for SIGKILL."""


class FewStores:
    """The ledger's words for a worker that is killed instead of its store with this number."""

    def __init__(self, words: Any, stores: int) -> None:
        self.words, self.stores = words, stores

    def __getitem__(self, at: Any) -> Any:
        return self.words[at]

    def __setitem__(self, at: Any, value: int) -> None:
        if not self.stores:
            raise Killed
        self.stores -= 1
        self.words[at] = value


@examples(50)
@given(STEPS, st.integers(0, 60))
def test_whenever_a_worker_is_killed_its_successor_begins_at_nought(
    steps: list[tuple[int, int, int]], stores: int
) -> None:
    names = meeting(40)
    with new_ledger(workers=2) as ledger:
        doomed, other = both(ledger)
        words: Any = FewStores(ledger.words, stores)
        doomed._words = words
        try:
            for _, n, change in steps:
                doomed.add(names[n], change)
        except Killed:
            pass
        assert all(other.total(name) >= 0 for name in names)
        after = SourceCounts(ledger.worker(0))
        after.clear()
        assert {other.total(name) for name in names} == {0}
        after.add(names[7], 1)
        assert [other.total(name) for name in names] == [int(n == 7) for n in range(40)]


def test_a_worker_alone_needs_no_table() -> None:
    with new_ledger() as ledger:
        made = SourceCounts(ledger.worker(0))
        name = made.name(3, b"\1\2\3\4")
        made.add(name, 1)
        made.add(name, 1)
        made.add(name, -1)
        assert made.total(name) == 1
        [table] = ledger.worker(0).all_sources_at
        assert not ledger.words[table]
