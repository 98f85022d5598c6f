"""Weights, backups, turns and slow starts: each target gets its share, and a change of one moves no more than that."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.ledger.layout import Health, TargetCount, health_at
from relay.ledger.ledger import Ledger
from relay.targets import why
from relay.targets.choose import BUCKETS, Ranking, Turns
from relay.targets.health import STEPS, of_endpoint, packed, risen_share
from relay.targets.pool import Pool
from tests.config.rig import endpoint_row
from tests.ledger.rig import new_ledger

NOW_NS: Final = 1_000_000_000_000
SLOW_NS: Final = 30 * 10**9
SOURCE: Final = ip_address("203.0.113.9").packed
DISTRIBUTIONS: Final = ("five-tuple", "source-ip", "least-connections", "round-robin")
WEIGHTS: Final = st.lists(st.integers(0, 256), min_size=1, max_size=9)
SOME_BUCKETS: Final = range(0, BUCKETS, 2)
OF_REFUSED: Final = why.of_error(111)


def names_of(count: int) -> list[str]:
    return [f"10.0.0.{n + 4}:8080" for n in range(count)]


def firsts(weights: Sequence[int], which: Sequence[int] = SOME_BUCKETS) -> list[int]:
    """Who comes first in each of these buckets."""
    ranking = Ranking(names_of(len(weights)), weights)
    return [ranking.order(each)[0] for each in which]


@given(st.integers(1, 256), st.integers(2, 9), st.integers(0, BUCKETS - 1))
def test_equal_weights_are_no_weights(weight: int, count: int, at: int) -> None:
    """Edges of a version that knew none, and of this one, agree."""
    assert Ranking(names_of(count), [weight] * count).order(at) == Ranking(names_of(count)).order(at)


@given(WEIGHTS, st.integers(0, BUCKETS - 1))
def test_who_has_no_weight_is_in_no_order_and_moves_nobody(weights: list[int], at: int) -> None:
    order = list(Ranking(names_of(len(weights)), weights).order(at))
    assert sorted(order) == [n for n, weight in enumerate(weights) if weight]
    without = [weight or 1 for weight in weights]  # as if they had one: the others stand as they stand
    all_of_them = Ranking(names_of(len(weights)), without).order(at)
    if len(set(without)) > 1 and len({weights[n] for n in order}) > 1:
        assert order == [n for n in all_of_them if weights[n]]


@pytest.mark.parametrize(
    "weights", [(1, 1, 2), (3, 1), (256, 1), (10, 20, 30, 40), (0, 1, 1), (5, 0, 0), (1, 2, 4, 8, 16)]
)
def test_each_gets_its_share(weights: tuple[int, ...]) -> None:
    found = Counter(firsts(weights))
    for n, weight in enumerate(weights):
        due = weight / sum(weights)
        assert abs(found[n] / len(SOME_BUCKETS) - due) <= 0.03


@given(
    st.lists(st.integers(0, 256), min_size=2, max_size=6).filter(lambda weights: sum(map(bool, weights)) > 1), st.data()
)
def test_a_change_of_one_weight_moves_its_share_alone(weights: list[int], data: st.DataObject) -> None:
    """Whoever moves, moves to the one that got more, or away from the one that got less; nobody between the others."""
    place = data.draw(st.integers(0, len(weights) - 1))
    other = data.draw(st.integers(1 if sum(map(bool, weights)) == 1 else 0, 256))
    after = [other if n == place else weight for n, weight in enumerate(weights)]
    if not any(after):
        return
    which = range(0, BUCKETS, 16)
    for old, new in zip(firsts(weights, which), firsts(after, which), strict=True):
        if old != new:
            assert place in (old, new)
            assert (new == place) == (other > weights[place])


@given(st.lists(st.integers(1, 256), min_size=1, max_size=9), st.integers(0, 50))
def test_turns_are_exact_over_a_round(shares: list[int], ahead: int) -> None:
    """And after any part of one nobody is a whole connection, or a round's worth of rounding, off."""
    turns, ready, total = Turns(len(shares)), range(len(shares)), sum(shares)
    found = Counter(turns.next(ready, shares) for _ in range(total))
    assert found == dict(enumerate(shares))
    part = Turns(len(shares))
    got = Counter(part.next(ready, shares) for _ in range(ahead))
    for n, share in enumerate(shares):
        assert abs(got[n] - ahead * share / total) < len(shares)


def test_turns_are_far_apart() -> None:
    turns = Turns(3)
    assert [turns.next(range(3), (5, 1, 1)) for _ in range(7)] == [0, 0, 1, 0, 2, 0, 0]


def test_workers_begin_with_different_ones() -> None:
    assert {Turns(4, ahead).next(range(4), (1, 1, 1, 1)) for ahead in range(4)} == {0, 1, 2, 3}


def row_of(*weights: int, distribution: str = "source-ip", backups: Sequence[int] = (), **keys: Any) -> EndpointRow:
    targets = tuple(
        TargetRow(text, port=80, slot=n, weight=weight, backup=n in backups, instance=f"web_IN_{n}")
        for n, (text, weight) in enumerate(zip(names_of(len(weights)), weights, strict=True))
    )
    given: dict[str, Any] = {"targets": targets, "distribution": distribution, "direct": True, **keys}
    return endpoint_row(**given)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with new_ledger(workers=2) as made:
        yield made


def spread(pool: Pool, count: int = 3000, now_ns: int = NOW_NS, *, busy: bool = False) -> Counter[int]:
    """Where so many connections of as many clients go; `busy`: they stay."""
    some, found = random.Random(7), Counter[int]()
    for _ in range(count):
        place = pool.choose(some.randbytes(4), some.randrange(1024, 65536), 80, 0, now_ns)
        assert place is not None
        found[place] += 1
        if busy:
            pool.enter(place, 1)
    return found


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_goes_by_weights(distribution: str, ledger: Ledger) -> None:
    pool = Pool(row_of(1, 3, 0, 4, distribution=distribution), ledger.worker(0))
    found = spread(pool, busy=True)
    for n, weight in enumerate((1, 3, 0, 4)):
        assert abs(found[n] / 3000 - weight / 8) < 0.04
    assert not found[2]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_backup_gets_connections_only_when_no_other_one_is_to_be_had(distribution: str, ledger: Ledger) -> None:
    row = row_of(1, 1, 1, distribution=distribution, backups=[1], probe=ProbeRow("/", 1, 1))
    pool = Pool(row, ledger.worker(0))
    assert set(spread(pool, 200)) == {0, 2}
    pool.failed(0, NOW_NS, OF_REFUSED)  # ejected
    assert set(spread(pool, 200)) == {2}
    ledger.words[health_at(2)] = packed(Health.DOWN, OF_REFUSED, 1)
    assert set(spread(pool, 200)) == {1}, "one that is ready is better than one that has just failed"
    ledger.words[health_at(1)] = packed(Health.DOWN, OF_REFUSED, 1)
    assert set(spread(pool, 200)) == {0}
    ledger.words[health_at(2)] = packed(Health.UP, 0, 1)
    assert set(spread(pool, 200)) == {2}


def test_a_connection_tries_the_others_and_then_the_backup(ledger: Ledger) -> None:
    pool = Pool(row_of(1, 1, 1, backups=[1]), ledger.worker(0))
    tried, order = 0, []
    while (place := pool.choose(SOURCE, 5, 80, tried, NOW_NS)) is not None:
        order.append(place)
        tried |= 1 << place
    assert sorted(order[:2]) == [0, 2]
    assert order[2] == 1


def test_where_nobody_has_a_weight_nobody_is_left(ledger: Ledger) -> None:
    pool = Pool(row_of(0, 0), ledger.worker(0))
    assert not pool.any_left()
    assert pool.choose(SOURCE, 5, 80, 0, NOW_NS) is None


def test_a_port_for_one_instance_does_not_go_by_weights(ledger: Ledger) -> None:
    """Who connects there means that machine."""
    pool = Pool(row_of(1, 0, distribution="instance", listen_port=80, port_count=2), ledger.worker(0))
    assert [pool.choose(SOURCE, 5, port, 0, NOW_NS) for port in (80, 81)] == [0, 1]


@given(st.integers(1, 256), st.integers(0, 2 * SLOW_NS))
def test_a_share_rises_to_the_whole(weight: int, after_ns: int) -> None:
    word = packed(Health.UP, 0, NOW_NS)
    now_ns = NOW_NS + after_ns
    share = risen_share(word, weight, now_ns, SLOW_NS, probed=True)
    assert weight <= share <= risen_share(word, weight, now_ns + 10**9, SLOW_NS, probed=True) <= STEPS * weight
    assert (share == STEPS * weight) == (after_ns >= SLOW_NS)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_who_has_just_come_up_gets_a_part_at_first(distribution: str, ledger: Ledger) -> None:
    row = row_of(1, 1, distribution=distribution, slow_start_s=30.0, probe=ProbeRow("/", 1, 1))
    pool = Pool(row, ledger.worker(0))
    ledger.words[health_at(0)] = packed(Health.UP, 0, NOW_NS - 10 * SLOW_NS)
    ledger.words[health_at(1)] = packed(Health.UP, 0, NOW_NS)
    for part, due in ((0, 1 / 11), (5, 5 / 15), (10, 1 / 2)):
        pool.recount()
        found = spread(pool, now_ns=NOW_NS + part * SLOW_NS // 10, busy=distribution == "least-connections")
        assert abs(found[1] / 3000 - due) < 0.04


def test_those_that_come_up_together_share_alike(ledger: Ledger) -> None:
    """At the daemon's start all are new, and nobody waits for anybody."""
    pool = Pool(row_of(1, 1, slow_start_s=30.0, distribution="round-robin", probe=ProbeRow("", 1, 1)), ledger.worker(0))
    assert spread(pool, 100) == {0: 50, 1: 50}
    for slot in range(2):
        ledger.words[health_at(slot)] = packed(Health.UP, 0, NOW_NS)
    assert spread(pool, 100) == {0: 50, 1: 50}


def test_one_whom_nobody_asks_has_its_whole_share(ledger: Ledger) -> None:
    row = row_of(1, 1, slow_start_s=30.0, distribution="round-robin")
    pool = Pool(row, ledger.worker(0))
    ledger.words[health_at(0)] = packed(Health.UP, 0, NOW_NS - SLOW_NS)
    assert spread(pool, 100) == {0: 50, 1: 50}


def test_a_dial_to_a_service_itself_finds_out_whether_it_is_back(ledger: Ledger) -> None:
    """No relay is between, so a connection that is refused is not lost; one that a probe by HTTP has found down may be."""
    refused = packed(Health.DOWN, OF_REFUSED, 1)
    for probe, left in ((ProbeRow("", 1, 1), True), (ProbeRow("/", 1, 1), False)):
        pool = Pool(row_of(1, 1, probe=probe), ledger.worker(0))
        for slot in range(2):
            ledger.words[health_at(slot)] = refused
        assert pool.any_left() is left
        assert (pool.choose(SOURCE, 5, 80, 0, NOW_NS) is not None) is left
        assert pool.fault() == OF_REFUSED


def test_all_are_down_only_if_each_of_them_is(ledger: Ledger) -> None:
    pool = Pool(row_of(1, 1, probe=ProbeRow("/", 1, 1)), ledger.worker(0))
    ledger.words[health_at(0)] = packed(Health.DOWN, why.http_status(503), 1)
    assert pool.fault() == why.NOTHING
    ledger.words[health_at(1)] = packed(Health.DOWN, why.http_status(500), 1)
    assert pool.fault() == why.http_status(503)
    pool.answered(1, 0.001, NOW_NS)
    assert pool.fault() == why.http_status(503), "that it takes connections proves nothing"


def test_who_gets_nobody_is_not_asked_for_when_all_are_down(ledger: Ledger) -> None:
    """Of those without a weight nobody is served: an edge is to have another instance."""
    row = row_of(1, 0, probe=ProbeRow("/", 1, 1))
    pool = Pool(row, ledger.worker(0))
    ledger.words[health_at(0)] = packed(Health.DOWN, why.http_status(503), 1)
    ledger.words[health_at(1)] = packed(Health.UP, 0, 1)
    assert pool.fault() == why.http_status(503)
    assert of_endpoint(ledger, row).health == Health.DOWN
    assert Pool(row_of(0, 0), ledger.worker(0)).fault() == why.TOLD


def test_without_a_probe_the_last_dial_tells(ledger: Ledger) -> None:
    pool = Pool(row_of(1, 1), ledger.worker(0))
    for place in range(2):
        pool.failed(place, NOW_NS, OF_REFUSED)
    assert pool.fault() == OF_REFUSED
    assert pool.any_left(), "they are tried all the same"
    pool.proved(0, NOW_NS + 1)
    assert pool.fault() == why.NOTHING


def test_changed_weights_make_another_row() -> None:
    row = row_of(1, 1)
    other = replace(row, targets=(replace(row.targets[0], weight=2), row.targets[1]))
    assert row != other


def test_counts_by_worker_do_not_matter_to_the_least_loaded(ledger: Ledger) -> None:
    """What another worker has counts as well, for its share."""
    row = row_of(2, 1, distribution="least-connections")
    mine, other = Pool(row, ledger.worker(0)), Pool(row, ledger.worker(1))
    for _ in range(3):
        other.enter(0, 1)
    assert ledger.target_total(0, TargetCount.ACTIVE) == 3
    assert mine.choose(SOURCE, 5, 80, 0, NOW_NS) == 1
    mine.enter(1, 1)
    assert mine.choose(SOURCE, 5, 80, 0, NOW_NS) in (0, 1)
    mine.enter(1, 1)
    assert mine.choose(SOURCE, 5, 80, 0, NOW_NS) == 0
