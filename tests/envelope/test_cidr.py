"""The table against the slow way: every network in order, with the standard library's own arithmetic."""

import time
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.address import unmap
from relay.envelope.cidr import Table
from tests.envelope.promises import PATIENT
from tests.harness import heap_set_aside

Rule = tuple[bytes, int, int]

MAPPED = bytes(10) + b"\xff\xff"


def v4(text: str) -> bytes:
    return ip_address(text).packed


def linear(rules: list[Rule], packed: bytes) -> int | None:
    """The smallest value among the networks that hold the address, one after the other."""
    address = ip_address(packed)
    if address.version == 6 and address.ipv4_mapped:
        address = address.ipv4_mapped
    return min((value for network, length, value in rules if address in as_network(network, length)), default=None)


def as_network(packed: bytes, length: int) -> IPv4Network | IPv6Network:
    network = ip_network((packed, length), strict=False)
    if isinstance(network, IPv6Network) and length >= 96 and (mapped := network.network_address.ipv4_mapped):
        return IPv4Network((mapped, length - 96))
    return network


# Few distinct bytes, so that networks overlap and addresses fall into them.
BYTE = st.sampled_from([0, 1, 10, 127, 128, 192, 254, 255])
ADDRESS_V4 = st.lists(BYTE, min_size=4, max_size=4).map(bytes)
ADDRESS_V6 = st.lists(BYTE, min_size=16, max_size=16).map(bytes) | st.builds(
    lambda head, tail: head + bytes(16 - len(head) - len(tail)) + tail,
    st.lists(BYTE, max_size=3).map(bytes),
    st.lists(BYTE, max_size=3).map(bytes),
)
ADDRESS_MAPPED = ADDRESS_V4.map(lambda packed: MAPPED + packed)
ADDRESS = ADDRESS_V4 | ADDRESS_V6 | ADDRESS_MAPPED


@st.composite
def rule_lists(draw: st.DrawFn) -> list[Rule]:
    """Networks with their index as value, as relay writes them, or with any values in any order."""
    packed = draw(st.lists(ADDRESS, max_size=40))
    lengths = [draw(st.sampled_from([0, 8 * len(one)]) | st.integers(0, 8 * len(one))) for one in packed]
    values = draw(
        st.just(list(range(len(packed)))) | st.lists(st.integers(0, 60), min_size=len(packed), max_size=len(packed))
    )
    return list(zip(packed, lengths, values, strict=True))


@PATIENT
@given(rule_lists(), st.lists(ADDRESS, min_size=1, max_size=20))
def test_finds_what_the_linear_scan_finds(rules: list[Rule], addresses: list[bytes]) -> None:
    table = Table.build(rules)
    assert Table.from_bytes(table.to_bytes()) == table
    inside = [packed for packed, _, _ in rules]
    for packed in addresses + inside:
        assert table.find(packed) == linear(rules, packed)


@PATIENT
@given(rule_lists(), ADDRESS_V4)
def test_a_mapped_address_is_the_ipv4_address(rules: list[Rule], packed: bytes) -> None:
    table = Table.build(rules)
    assert table.find(MAPPED + packed) == table.find(packed)


def test_the_first_rule_wins_over_the_longer_prefix() -> None:
    wide, narrow = v4("10.0.0.0"), v4("10.1.0.0")
    assert Table.build([(wide, 8, 0), (narrow, 16, 1)]).find(v4("10.1.2.3")) == 0
    assert Table.build([(narrow, 16, 0), (wide, 8, 1)]).find(v4("10.1.2.3")) == 0
    assert Table.build([(narrow, 16, 0), (wide, 8, 1)]).find(v4("10.2.2.3")) == 1


def test_a_network_written_twice_keeps_its_first_rule() -> None:
    assert (
        Table.build([(v4("10.0.0.0"), 8, 3), (v4("10.9.9.9"), 8, 1), (v4("10.0.0.0"), 8, 2)]).find(v4("10.0.0.1")) == 1
    )


def test_the_ends_of_the_prefix_range() -> None:
    everyone, one = (v4("0.0.0.0"), 0, 1), (v4("192.0.2.1"), 32, 0)
    table = Table.build([everyone, one, (bytes(15) + b"\1", 128, 2), (bytes(16), 0, 3)])
    assert table.find(v4("192.0.2.1")) == 0
    assert table.find(v4("192.0.2.2")) == 1
    assert table.find(v4("255.255.255.255")) == 1
    assert table.find(bytes(15) + b"\1") == 2
    assert table.find(bytes(15) + b"\2") == 3


def test_ipv6_everyone_does_not_hold_mapped_addresses() -> None:
    assert Table.build([(bytes(16), 0, 0)]).find(MAPPED + v4("192.0.2.1")) is None
    assert Table.build([(MAPPED + bytes(4), 96, 0)]).find(v4("192.0.2.1")) == 0


def test_an_empty_table_finds_nothing() -> None:
    assert Table.build([]).find(v4("192.0.2.1")) is None
    assert Table.build([]).find(bytes(16)) is None


@pytest.mark.parametrize(
    ("packed", "length", "says"),
    [
        (bytes(4), 33, "between 0 and 32"),
        (bytes(4), -1, "between 0 and 32"),
        (bytes(16), 129, "between 0 and 128"),
        (bytes(5), 8, "4 or 16 bytes, not 5"),
        (b"", 0, "4 or 16 bytes, not 0"),
    ],
)
def test_refuses_what_is_no_network(packed: bytes, length: int, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Table.build([(packed, length, 0)])


@pytest.mark.parametrize("length", [0, 3, 5, 15, 17])
def test_refuses_what_is_no_address(length: int) -> None:
    with pytest.raises(ValueError, match=f"not {length}"):
        Table.build([(bytes(4), 0, 0)]).find(bytes(length))


def test_unmap_takes_the_ipv4_address_out_and_leaves_the_rest() -> None:
    assert unmap(MAPPED + v4("192.0.2.1")) == v4("192.0.2.1")
    assert unmap(v4("192.0.2.1")) == v4("192.0.2.1")
    assert unmap(bytes(16)) == bytes(16)


@pytest.mark.alone
def test_twenty_thousand_networks_are_built_at_once_and_found() -> None:
    random = Random(20_000)
    rules = [(random.randbytes(4), random.randint(8, 32), value) for value in range(20_000)]
    with heap_set_aside():
        began_s = time.thread_time()  # of this thread alone: a busy machine takes no part in it
        table = Table.build(rules)
        # A table that scans on building would take minutes; a slow machine takes 30 ms.
        assert time.thread_time() - began_s < 0.5
    addresses = [packed for packed, _, _ in rules[-3:]] + [random.randbytes(4) for _ in range(3)]
    for packed in addresses:
        assert table.find(packed) == linear(rules, packed)
