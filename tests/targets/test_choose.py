"""Which target a client meets: the same on every edge, evenly, and no one else's change moves it."""

import random
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.targets.choose import BUCKETS, Distribution, Ranking, bucket

DISTRIBUTIONS: tuple[Distribution, ...] = ("five-tuple", "source-ip", "least-connections")
CLIENTS = 10_000
ADDRESSES = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
PORTS = st.integers(0, 65535)
NAMES = st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=12, unique=True)


def names_of(count: int) -> list[str]:
    return [f"10.0.{n // 200}.{n % 200 + 4}:8080" for n in range(count)]


def clients(count: int, seed: int = 5) -> list[tuple[bytes, int]]:
    """Addresses and ports, the same in each run."""
    some = random.Random(seed)
    return [(some.randbytes(4), some.randrange(1024, 65536)) for _ in range(count)]


@cache
def buckets(distribution: Distribution) -> list[int]:
    return [bucket(distribution, source, port, 80) for source, port in clients(CLIENTS)]


@cache
def ranking(names: tuple[str, ...]) -> Ranking:
    """One for all tests: to work out its orders is most of what they do."""
    return Ranking(names)


def chosen(names: Sequence[str], which: Iterable[int]) -> list[str]:
    """The name of the target for each of these buckets."""
    orders = ranking(tuple(names))
    return [names[orders.order(each)[0]] for each in which]


@given(NAMES, st.randoms(use_true_random=False), ADDRESSES, PORTS, st.sampled_from(DISTRIBUTIONS))
def test_every_edge_has_the_same_order(
    names: list[str], some: random.Random, source: bytes, port: int, distribution: Distribution
) -> None:
    """However their files list the instances, and whatever they were asked before."""
    shuffled = some.sample(names, len(names))
    one, other = Ranking(names), Ranking(shuffled)
    at = bucket(distribution, source, port, 443)
    other.order((at + 1) % BUCKETS)
    order = one.order(at)
    assert [names[n] for n in order] == [shuffled[n] for n in other.order(at)]
    assert sorted(order) == list(range(len(names))), "each of them once"
    assert one.order(at) == order


@given(NAMES, st.data())
def test_the_order_of_those_who_stay_stays(names: list[str], data: st.DataObject) -> None:
    """So a target's clients go to their second choice, and nobody else moves."""
    gone = data.draw(st.sampled_from(names))
    at = data.draw(st.integers(0, BUCKETS - 1))
    left = [name for name in names if name != gone]
    before = [names[n] for n in Ranking(names).order(at)]
    assert [left[n] for n in Ranking(left).order(at)] == [name for name in before if name != gone]


@pytest.mark.parametrize("count", range(2, 21))
@pytest.mark.parametrize("distribution", ["five-tuple", "source-ip"])
def test_a_change_of_one_moves_its_share_and_no_more(count: int, distribution: Distribution) -> None:
    """One of `count` goes, or comes: at most 1/count + 5 % of all clients move, all of them from or to that one."""
    which, names = buckets(distribution), names_of(count)
    whole = chosen(names, which)
    for changing in {names[0], names[count // 2], names[-1]}:
        without = chosen([name for name in names if name != changing], which)
        moved = [(more, less) for more, less in zip(whole, without, strict=True) if more != less]
        assert {more for more, _ in moved} == {changing}
        assert 0 < len(moved) / CLIENTS <= 1 / count + 0.05
        if count > 2:
            assert len({less for _, less in moved}) == count - 1, "its clients are spread over all others"


@pytest.mark.parametrize(("count", "off"), [(2, 0.06), (4, 0.09), (10, 0.2), (20, 0.3)])
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_shares_are_even(count: int, off: float, distribution: Distribution) -> None:
    """No target's share is further than this from the mean: 4,096 buckets over so many targets, and 10,000 clients."""
    shares = Counter(chosen(names_of(count), buckets(distribution)))
    assert len(shares) == count
    for share in shares.values():
        assert abs(share * count / CLIENTS - 1) <= off


def test_neighbours_are_spread_like_anybody() -> None:
    """One customer's network, one port after the other: not more to one target than the bound above allows strangers."""
    network = [(ip_address(f"203.0.{n // 256}.{n % 256}").packed, 40000) for n in range(CLIENTS)]
    ports = [(ip_address("203.0.113.9").packed, 20000 + n) for n in range(CLIENTS)]
    for who in (network, ports):
        shares = Counter(chosen(names_of(4), [bucket("five-tuple", source, port, 80) for source, port in who]))
        assert max(shares.values()) < 0.25 * 1.09 * CLIENTS


@given(ADDRESSES, PORTS, PORTS, PORTS, PORTS)
def test_source_ip_goes_by_nothing_but_the_address(source: bytes, port: int, to: int, port_2: int, to_2: int) -> None:
    assert bucket("source-ip", source, port, to) == bucket("source-ip", source, port_2, to_2)
    assert 0 <= bucket("five-tuple", source, port, to) < BUCKETS


def test_five_tuple_goes_by_both_ports() -> None:
    source = ip_address("203.0.113.9").packed
    assert len({bucket("five-tuple", source, port, 80) for port in range(1024, 2024)}) > 800
    assert len({bucket("five-tuple", source, 40000, port) for port in range(1, 1001)}) > 800
    assert len({bucket("source-ip", ip_address(f"10.0.{n // 256}.{n % 256}").packed, 1, 1) for n in range(1000)}) > 800


@pytest.mark.parametrize(
    ("distribution", "source", "port", "to", "expected"),
    [
        ("five-tuple", "203.0.113.9", 40000, 80, 2305),
        ("five-tuple", "203.0.113.9", 40001, 80, 3807),
        ("five-tuple", "203.0.113.9", 40000, 443, 1745),
        ("five-tuple", "2001:db8::9", 40000, 443, 1773),
        ("least-connections", "203.0.113.9", 40000, 80, 2305),
        ("source-ip", "203.0.113.9", 40000, 80, 1725),
        ("source-ip", "2001:db8::9", 1, 65535, 507),
    ],
)
def test_a_later_version_of_relay_agrees_on_the_bucket(
    distribution: Distribution, source: str, port: int, to: int, expected: int
) -> None:
    """Two edges are not upgraded at the same moment. These numbers may change only with all edges at once."""
    assert bucket(distribution, ip_address(source).packed, port, to) == expected


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        (0, (3, 1, 0, 2)),
        (1, (3, 0, 2, 1)),
        (2, (2, 1, 3, 0)),
        (3, (3, 1, 2, 0)),
        (2047, (1, 2, 0, 3)),
        (4095, (0, 1, 2, 3)),
    ],
)
def test_a_later_version_of_relay_agrees_on_the_order(at: int, expected: tuple[int, ...]) -> None:
    assert Ranking(["10.0.0.4:8080", "10.0.0.5:8080", "10.0.0.6:8080", "[2001:db8::7]:8080"]).order(at) == array(
        "H", expected
    )


def test_the_only_target_is_everybodys() -> None:
    assert {tuple(Ranking(["10.0.0.4:80"]).order(at)) for at in range(BUCKETS)} == {(0,)}
