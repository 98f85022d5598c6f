"""The targets at work: who may get a connection, who is tried last, and counts that hold over two workers."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.ledger.layout import Health, Knows, TargetCount, health_at
from relay.ledger.ledger import Ledger
from relay.targets import why
from relay.targets.health import packed
from relay.targets.pool import EJECT_S, Pool
from tests.config.rig import endpoint_row
from tests.ledger.rig import new_ledger

SOURCE: Final = ip_address("203.0.113.9").packed
NOW_NS: Final = 1_000_000_000_000
FIRST_SLOT: Final = 7
HEALTH: Final = st.sampled_from([Health.UNKNOWN, Health.UP, Health.DOWN])


def row_of(count: int = 4, distribution: str = "source-ip", **keys: Any) -> EndpointRow:
    targets = tuple(
        TargetRow(f"10.0.0.{n}:80", host=f"10.0.0.{n}", port=80, slot=FIRST_SLOT + n, instance=f"web_IN_{n}")
        for n in range(count)
    )
    given: dict[str, Any] = {"listen_port": 80, "targets": targets, "distribution": distribution, **keys}
    return endpoint_row(**given)


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Two workers."""
    with new_ledger(workers=2) as made:
        yield made


def pool_of(ledger: Ledger, worker: int = 0, **keys: Any) -> Pool:
    return Pool(row_of(**keys), ledger.worker(worker))


def order_of(pool: Pool, now_ns: int = NOW_NS, source: bytes = SOURCE, port: int = 80) -> list[int]:
    """The places that one connection tries, each failing, to the end."""
    found: list[int] = []
    tried = 0
    while (place := pool.choose(source, 5, port, tried, now_ns)) is not None:
        assert place not in found, "it has been tried already"
        found.append(place)
        tried |= 1 << place
    return found


def put(ledger: Ledger, *health: int) -> None:
    for n, each in enumerate(health):
        ledger.words[health_at(FIRST_SLOT + n)] = each


def test_every_target_has_its_turn_and_then_there_is_none(ledger: Ledger) -> None:
    pool = pool_of(ledger)
    first = order_of(pool)
    assert sorted(first) == [0, 1, 2, 3]
    assert order_of(pool) == first, "the same client, the same order"
    assert len({order_of(pool, source=ip_address(f"192.0.2.{n}").packed)[0] for n in range(64)}) == 4
    assert pool.choose(SOURCE, 5, 80, 0b1111, NOW_NS) is None


def test_one_that_is_down_is_never_chosen(ledger: Ledger) -> None:
    pool = pool_of(ledger)
    first, *others = order_of(pool)
    put(ledger, *[Health.DOWN if n == first else Health.UP for n in range(4)])
    assert order_of(pool) == others
    put(ledger, *[Health.DOWN] * 4)
    assert order_of(pool) == []
    assert not pool.any_left()
    put(ledger, *[Health.DOWN] * 3, Health.UNKNOWN)
    assert order_of(pool) == [3], "whom nobody has asked yet may get connections"
    assert pool.any_left()


def test_an_ejected_one_is_tried_last_for_a_while(ledger: Ledger) -> None:
    pool = pool_of(ledger)
    first, *others = order_of(pool)
    pool.failed(first, NOW_NS, why.RESET)
    assert order_of(pool) == [*others, first]
    end_ns = NOW_NS + int(EJECT_S[0] * 1e9)
    assert order_of(pool, end_ns - 1) == [*others, first]
    assert order_of(pool, end_ns) == [first, *others]


def test_all_ejected_is_none_ejected(ledger: Ledger) -> None:
    """The last one standing gets connections, and so does everybody when nobody stands."""
    pool = pool_of(ledger)
    before = order_of(pool)
    for place in range(4):
        pool.failed(place, NOW_NS, why.RESET)
    assert order_of(pool) == before
    put(ledger, *[Health.DOWN if n != before[2] else Health.UP for n in range(4)])
    assert order_of(pool) == [before[2]], "ejected is better than down"


def test_one_workers_failures_are_its_own(ledger: Ledger) -> None:
    mine, other = pool_of(ledger, 0), pool_of(ledger, 1)
    first, *others = order_of(mine)
    mine.failed(first, NOW_NS, why.RESET)
    assert order_of(mine) == [*others, first]
    assert order_of(other) == [first, *others]


def test_each_failure_ejects_for_longer_and_an_answer_ends_it(ledger: Ledger) -> None:
    pool = pool_of(ledger)
    first, *_ = order_of(pool)
    now_ns = NOW_NS
    assert sorted(EJECT_S) == list(EJECT_S)
    assert len(set(EJECT_S)) == len(EJECT_S)
    for rest_s in (*EJECT_S, EJECT_S[-1], EJECT_S[-1]):
        assert order_of(pool, now_ns)[0] == first, "then a dial asks again"
        pool.failed(first, now_ns, why.RESET)
        end_ns = now_ns + int(rest_s * 1e9)
        assert order_of(pool, end_ns - 1)[-1] == first
        now_ns = end_ns
    pool.failed(first, now_ns, why.RESET)
    pool.answered(first, 0.5, NOW_NS)
    pool.proved(first, NOW_NS)
    assert order_of(pool, now_ns)[0] == first, "it answered: its rest is over"
    pool.failed(first, now_ns, why.RESET)
    assert order_of(pool, now_ns + int(EJECT_S[0] * 1e9))[0] == first, "and it begins from the first step again"


def test_what_is_counted(ledger: Ledger) -> None:
    pool = pool_of(ledger)
    pool.failed(2, NOW_NS, why.RESET)
    pool.failed(2, NOW_NS + 1, why.RESET)  # a second dial that had begun before
    pool.answered(2, 0.25, NOW_NS)
    pool.proved(2, NOW_NS)
    pool.failed(2, NOW_NS + 2, why.RESET)
    pool.answered(2, 0.5, NOW_NS)
    pool.proved(2, NOW_NS)
    for other in pool_of(ledger, 1), pool:
        other.enter(2, 1)

    def total(count: int) -> int:
        return ledger.target_total(FIRST_SLOT + 2, count)

    assert (total(TargetCount.FAILURES), total(TargetCount.EJECTIONS)) == (3, 2), "one ejection of two failures at once"
    assert (total(TargetCount.CONNECTED), total(TargetCount.CONNECT_SUM_NS)) == (2, 750_000_000)
    assert total(TargetCount.ACTIVE) == pool.active(2) == 2
    assert [ledger.target_total(FIRST_SLOT + n, TargetCount.FAILURES) for n in range(4)] == [0, 0, 3, 0]


def test_least_connections_goes_by_what_all_workers_have(ledger: Ledger) -> None:
    mine, other = (pool_of(ledger, n, count=3, distribution="least-connections") for n in (0, 1))
    other.enter(0, 2)
    mine.enter(1, 1)
    other.enter(2, 3)
    assert order_of(mine) == order_of(other) == [1, 0, 2]
    mine.enter(1, 2)
    assert order_of(other)[0] == 0
    mine.enter(1, -3)
    assert order_of(other)[0] == 1
    mine.failed(1, NOW_NS, why.RESET)
    assert order_of(mine) == [0, 2, 1], "the one that has none, for its failures"


def test_least_connections_fills_up_evenly(ledger: Ledger) -> None:
    pools = [pool_of(ledger, n, count=3, distribution="least-connections") for n in (0, 1)]
    for n in range(300):
        place = pools[n % 2].choose(ip_address(f"192.0.2.{n % 200}").packed, n, 80, 0, NOW_NS)
        assert place is not None
        pools[n % 2].enter(place, 1)
    assert [pools[0].active(place) for place in range(3)] == [100, 100, 100]


def test_equals_of_least_connections_are_spread_by_the_hash(ledger: Ledger) -> None:
    pool = pool_of(ledger, distribution="least-connections")
    assert {pool.choose(ip_address(f"192.0.2.{n}").packed, 5, 80, 0, NOW_NS) for n in range(64)} == {0, 1, 2, 3}


def test_a_port_leads_to_the_instance_with_its_number_whoever_else_is_there(ledger: Ledger) -> None:
    targets = (row_of().targets[1], row_of().targets[3])
    pool = pool_of(ledger, distribution="instance", listen_port=10105, port_count=4, targets=targets)
    orders = [order_of(pool, port=10105 + number) for number in range(4)]
    assert orders == [[], [0], [], [1]]


def test_each_instance_has_a_port(ledger: Ledger) -> None:
    pool = pool_of(ledger, distribution="instance", listen_port=10105, port_count=4)
    for n in range(4):
        assert order_of(pool, port=10105 + n) == [n], "no other one stands in for it"
    pool.failed(2, NOW_NS, why.RESET)
    put(ledger, Health.UP, Health.DOWN, Health.UP, Health.UP)
    assert [order_of(pool, port=10105 + n) for n in range(4)] == [[0], [], [2], [3]]


@pytest.mark.parametrize("port", [10104, 10109, 80])
def test_a_port_that_leads_nowhere_any_more(port: int, ledger: Ledger) -> None:
    """Its ports were changed while the client's first bytes were waited for, by a worker that started in between."""
    assert order_of(pool_of(ledger, distribution="instance", listen_port=10105, port_count=4), port=port) == []


def test_the_place_of_a_target_by_its_row_in_the_ledger(ledger: Ledger) -> None:
    pool = pool_of(ledger)
    assert [pool.place_in(FIRST_SLOT + n) for n in range(-1, 5)] == [None, 0, 1, 2, 3, None]


@pytest.mark.parametrize(
    ("there", "slot", "place"),
    [
        (TargetRow("10.0.0.2:80", host="10.0.0.2", port=80), 2, 2),
        (TargetRow("10.0.0.2:80", host="10.0.0.2", port=80), 1, 2),  # the row is another one's by now
        (TargetRow("10.0.0.2:80", host="10.0.0.2", port=80), -1, 2),
        (TargetRow("10.0.0.2:7400", host="10.0.0.2", port=7400), 1, 2),  # its relay
        (TargetRow("10.0.0.9:80", host="10.0.0.9", port=80), 1, None),
        (TargetRow("10.0.0.1:81", host="10.0.0.1", port=81), 1, None),
        (TargetRow("[::ffff:10.0.0.1]:80", host="::ffff:10.0.0.1", port=80), 1, 1),
        (TargetRow("unix:/run/app", path="/run/app"), 4, 4),
        (TargetRow("unix:app", path="app"), 4, 4),  # as the service has named it in its own directory
        (TargetRow("unix:app", path="app"), 1, None),
        (TargetRow("unix:app", path="app"), -1, None),
    ],
)
def test_the_place_of_a_target_by_where_a_socket_is_connected(
    there: TargetRow, slot: int, place: int | None, ledger: Ledger
) -> None:
    tcp = [replace(each, relay_port=7400) for each in row_of().targets]
    unix = TargetRow("unix:/run/app", path="/run/app", slot=FIRST_SLOT + 4)
    pool = pool_of(ledger, targets=(*tcp, unix))
    assert pool.place_of(there, slot if slot < 0 else FIRST_SLOT + slot) == place


def test_a_worker_that_starts_again_counts_its_connections_anew_and_remembers_failures(ledger: Ledger) -> None:
    before, other = pool_of(ledger, 0), pool_of(ledger, 1)
    first, *others = order_of(before)
    before.enter(first, 5)
    other.enter(first, 3)
    before.failed(first, NOW_NS, why.RESET)
    after = pool_of(ledger, 0)
    assert after.active(first) == 8, "another declaration forgets nobody"
    after.recount()
    assert after.active(first) == other.active(first) == 3
    after.enter(first, 4)
    assert other.active(first) == 7
    assert order_of(after) == [*others, first]


def test_a_row_that_another_target_had_begins_at_nought(ledger: Ledger) -> None:
    before = pool_of(ledger)
    before.enter(1, 5)
    before.failed(1, NOW_NS, why.RESET)
    after = pool_of(ledger, targets=(TargetRow("10.0.0.99:80", slot=FIRST_SLOT + 1), *row_of().targets[2:]))
    assert after.active(0) == 0
    assert ledger.target_total(FIRST_SLOT + 1, TargetCount.FAILURES) == 0


@pytest.mark.parametrize("again", [False, True])
def test_who_went_to_a_target_before_it_left_takes_nobody_from_it_when_it_is_back(again: bool, ledger: Ledger) -> None:
    """Its connections go on when it has left the set, and its row was another one's meanwhile."""
    part = ledger.worker(0)
    before = Pool(row_of(), part)
    before.enter(1, 3)
    Pool(row_of(targets=(TargetRow("10.0.0.99:80", slot=FIRST_SLOT + 1),)), part)
    back = Pool(row_of(), part)
    if again:
        back.enter(1, 1)
    for _ in range(3):
        before.enter(1, -1)
    assert back.active(1) == int(again)
    assert Pool(row_of(), part).active(1) == int(again), "a reload that changes nothing leaves the counts"


def test_what_an_old_connection_finds_is_not_said_of_who_has_the_row_by_now(ledger: Ledger) -> None:
    part = ledger.worker(0)
    before = Pool(row_of(), part)
    now = Pool(row_of(targets=(TargetRow("10.0.0.99:80", slot=FIRST_SLOT + 1),)), part)
    at = part.target_counts_at(FIRST_SLOT + 1)[0]
    now.failed(0, NOW_NS, why.RESET)
    ledger.words[at + TargetCount.KNOWS] = Knows.TAKEN
    expected = list(ledger.words[at : at + TargetCount.RETRIES + 1])
    before.failed(1, 2 * NOW_NS, why.BUSY)
    before.failed(1, 2 * NOW_NS, why.RESET)
    before.answered(1, 0.1, 2 * NOW_NS)
    before.proved(1, 2 * NOW_NS)
    before.retried(1)
    before.unlearn(1, Knows.TAKEN)
    assert list(ledger.words[at : at + TargetCount.RETRIES + 1]) == expected


def test_nobody_is_counted_below_nought(ledger: Ledger) -> None:
    made = pool_of(ledger)
    made.enter(1, 1)
    made.recount()
    made.enter(1, -1)
    assert made.active(1) == 0


@settings(max_examples=50, deadline=None)
@given(
    distribution=st.sampled_from(["five-tuple", "source-ip", "least-connections"]),
    health=st.lists(HEALTH, min_size=1, max_size=6),
    steps=st.lists(
        st.tuples(st.sampled_from(["failed", "answered"]), st.integers(0, 5), st.integers(0, 40)), max_size=20
    ),
    source=st.binary(min_size=4, max_size=4),
)
def test_whatever_came_before_everyone_who_is_not_down_gets_one_try(
    distribution: str, health: list[int], steps: list[tuple[str, int, int]], source: bytes
) -> None:
    """The ones that failed lately after all others."""
    with new_ledger() as ledger:
        pool = pool_of(ledger, count=len(health), distribution=distribution)
        put(ledger, *health)
        now_ns, until_ns = NOW_NS, dict[int, int]()
        in_a_row = [0] * len(health)
        for what, at, step_s in steps:
            place = at % len(health)
            now_ns += step_s * 1_000_000_000
            if what == "answered":
                pool.answered(place, 0.1, NOW_NS)
                pool.proved(place, NOW_NS)
                in_a_row[place] = until_ns[place] = 0
            else:
                pool.failed(place, now_ns, why.RESET)
                until_ns[place] = now_ns + int(EJECT_S[min(in_a_row[place], len(EJECT_S) - 1)] * 1e9)
                in_a_row[place] += 1
        found = order_of(pool, now_ns, source)
        assert sorted(found) == [n for n, each in enumerate(health) if each != Health.DOWN]
        resting = [until_ns.get(place, 0) > now_ns for place in found]
        assert resting == sorted(resting)
        assert pool.any_left() == bool(found)


@pytest.mark.parametrize(
    ("reason", "knows", "path", "tried"),
    [
        (why.of_error(errno.ECONNREFUSED), Knows.TAKEN, "", 3),
        (why.of_error(errno.ECONNREFUSED), Knows.NAMES, "", 3),
        (why.no_answer(5.0), Knows.TAKEN, "", 3),
        (why.of_error(errno.ECONNREFUSED), 0, "", 0),
        (why.of_error(errno.ECONNREFUSED), Knows.TAKEN, "/healthz", 0),
        (why.of_relay(why.of_error(errno.ECONNREFUSED)), Knows.TAKEN, "", 0),
        (why.BUSY, Knows.TAKEN, "", 0),
        (why.HELD, Knows.TAKEN, "", 0),
    ],
)
def test_some_that_are_down_are_tried_where_all_are_and_that_loses_nothing(
    reason: int, knows: int, path: str, tried: int, ledger: Ledger
) -> None:
    pool = pool_of(ledger, probe=ProbeRow(path, 2.0, 5.0))
    order = order_of(pool)
    for n in range(4):
        ledger.words[health_at(FIRST_SLOT + n)] = packed(Health.DOWN, reason, NOW_NS)
        ledger.words[ledger.worker(0).target_counts_at(FIRST_SLOT + n)[0] + TargetCount.KNOWS] = knows
    assert order_of(pool) == order[:tried]
    assert pool.any_left() == bool(tried)
    ledger.words[health_at(FIRST_SLOT + order[3])] = Health.UP
    assert order_of(pool)[0] == order[3], "who is up comes first"
