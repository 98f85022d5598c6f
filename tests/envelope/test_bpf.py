"""The kernel's program against the envelope that it is made from, run by a machine of our own."""

import math
import random
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.envelope.bpf import PROGRAM_MAX_BYTES, compile_filter, newcomers_filter
from relay.envelope.rules import Envelope, RuleRow, compile_rules
from tests.envelope.interpreter import header, instructions, keeps, run
from tests.envelope.promises import PATIENT
from tests.envelope.rig import NETWORK, SOURCE

Rules = list[tuple[bool, str]]


def compiled(rules: Rules, permit_unmatched: bool, version: Literal[4, 6]) -> bytes:
    parsed = [(permit, ip_network(network, strict=False)) for permit, network in rules]
    return compile_filter(parsed, permit_unmatched, version)


def decides(rules: Rules, permit_unmatched: bool) -> Envelope:
    rows = [RuleRow(permit, str(ip_network(network, strict=False)), "f:1") for permit, network in rules]
    return Envelope(compile_rules(rows), permit_unmatched)


def edges(rules: Rules) -> set[IPv4Address | IPv6Address]:
    """The first and last address of every network, and those just outside."""
    found: set[IPv4Address | IPv6Address] = set()
    for _, text in rules:
        network = ip_network(text, strict=False)
        for number in (int(network[0]) - 1, int(network[0]), int(network[-1]), int(network[-1]) + 1):
            if 0 <= number < 1 << network.max_prefixlen:
                found.add(type(network[0])(number))
    return found


def agrees(rules: Rules, permit_unmatched: bool, sources: set[IPv4Address | IPv6Address]) -> None:
    """The program keeps exactly whom the envelope permits, but for mapped addresses, which `decide` is left to refuse."""
    envelope = decides(rules, permit_unmatched)
    programs = {4: compiled(rules, permit_unmatched, 4), 6: compiled(rules, permit_unmatched, 6)}
    for source in sources:
        mapped = isinstance(source, IPv6Address) and source.ipv4_mapped is not None
        expected = mapped or envelope.decide(source.packed).permit
        assert keeps(programs[source.version], source) == expected, (source, rules, permit_unmatched)


@settings(PATIENT, max_examples=150)
@given(
    rules=st.lists(st.tuples(st.booleans(), NETWORK), max_size=10),
    sources=st.lists(SOURCE.map(ip_address), max_size=10),
    permit_unmatched=st.booleans(),
)
def test_it_keeps_exactly_whom_the_envelope_permits(
    rules: Rules, sources: list[IPv4Address | IPv6Address], permit_unmatched: bool
) -> None:
    agrees(rules, permit_unmatched, {*sources, *edges(rules)})


@st.composite
def crowded(draw: st.DrawFn) -> Rules:
    """Hundreds of networks of few prefixes, so that jumps are far and many intervals meet inside one word's value."""
    seed = random.Random(draw(st.integers(0, 2**32)))
    some = []
    for _ in range(seed.randrange(200, 700)):
        if seed.random() < 0.5:
            some.append(
                (seed.random() < 0.5, f"10.{seed.randrange(3)}.{seed.randrange(256)}.0/{seed.randrange(16, 33)}")
            )
        else:
            groups = [0x2001, 0xDB8, *(seed.choice([0, 1, 0xFFFF, seed.randrange(0x10000)]) for _ in range(6))]
            text = ":".join(f"{group:x}" for group in groups)
            some.append((seed.random() < 0.5, f"{text}/{seed.choice([32, 33, 48, 63, 64, 65, 96, 97, 127, 128])}"))
    return some


@settings(PATIENT, max_examples=15)
@given(rules=crowded(), permit_unmatched=st.booleans())
def test_many_networks(rules: Rules, permit_unmatched: bool) -> None:
    agrees(rules, permit_unmatched, edges(rules))


@pytest.mark.parametrize(
    ("rules", "permit_unmatched", "kept", "dropped"),
    [
        (
            [(False, "203.0.113.0/24")],
            True,
            ["203.0.112.255", "203.0.114.0", "0.0.0.0"],
            ["203.0.113.0", "203.0.113.255"],
        ),
        (
            [(True, "203.0.113.7")],
            False,
            ["203.0.113.7"],
            ["203.0.113.6", "203.0.113.8", "255.255.255.255", "2001:db8::1"],
        ),
        ([(False, "0.0.0.0/0")], True, ["2001:db8::1"], ["0.0.0.0", "255.255.255.255"]),
        ([(False, "255.255.255.255")], True, ["255.255.255.254"], ["255.255.255.255"]),
        ([(False, "2001:db8::/32")], True, ["2001:db7:ffff::", "2001:db9::"], ["2001:db8::", "2001:db8:ffff::ffff"]),
        ([(True, "2001:db8::1:0:0:1")], False, ["2001:db8::1:0:0:1"], ["2001:db8::1:0:0:2", "::", "192.0.2.1"]),
        (
            [(False, "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff")],
            True,
            ["ffff::"],
            ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"],
        ),
        ([(True, "192.0.2.1")], False, ["::ffff:192.0.2.1", "::ffff:192.0.2.2"], ["::fffe:192.0.2.1", "::1"]),
        ([], False, ["::ffff:0.0.0.0"], ["0.0.0.0", "255.255.255.255", "::", "ffff::"]),
    ],
)
def test_examples(rules: Rules, permit_unmatched: bool, kept: list[str], dropped: list[str]) -> None:
    for texts, expected in ((kept, True), (dropped, False)):
        for source in map(ip_address, texts):
            assert keeps(compiled(rules, permit_unmatched, source.version), source) is expected, source


@pytest.mark.parametrize(
    ("rules", "permit_unmatched"),
    [([], True), ([(True, "10.0.0.0/8")], True), ([(True, "0.0.0.0/0"), (True, "::/0"), (False, "10.0.0.0/8")], False)],
)
def test_an_envelope_that_denies_nobody_is_no_program(rules: Rules, permit_unmatched: bool) -> None:
    assert compiled(rules, permit_unmatched, 4) == compiled(rules, permit_unmatched, 6) == b""


def test_the_other_family_is_no_matter_of_this_one() -> None:
    assert compiled([(False, "10.0.0.0/8")], True, 6) == b""
    assert compiled([(False, "2001:db8::/32")], True, 4) == b""


@pytest.mark.parametrize("version", [4, 6])
def test_what_is_not_of_its_family_is_kept(version: Literal[4, 6]) -> None:
    """Whatever it is, it is not for this program to drop."""
    program = instructions(compiled([], False, version))
    other = header(ip_address("2001:db8::1" if version == 4 else "192.0.2.1"))
    for first in range(256):
        kept, _ = run(program, bytes([first]) + other[1:])
        assert (kept == 0) == (first >> 4 == version)


def isolated(count: int) -> Rules:
    """Networks that nothing joins."""
    return [(False, f"{10 + n // 65536}.{n // 256 % 256}.{n % 256}.{n % 128 * 2}/32") for n in range(count)]


def test_what_fits() -> None:
    """The tree costs hardly more than an instruction for each end of a network."""
    for count in (1, 255, 256, 1000, 1900):
        size = len(compiled(isolated(count), True, 4)) // 8
        assert size <= 2 * count * 1.03 + 10, (count, size)
    assert len(compiled(isolated(2000), True, 4)) <= PROGRAM_MAX_BYTES
    assert len(compiled(isolated(2100), True, 4)) > PROGRAM_MAX_BYTES
    one_rack: Any = [(False, f"2001:db8:0:{n * 2:x}::/64") for n in range(1900)]
    assert len(compiled(one_rack, True, 6)) <= PROGRAM_MAX_BYTES


def test_a_packet_costs_a_few_comparisons_however_many_rules_there_are() -> None:
    rules = isolated(1900)
    program = instructions(compiled(rules, True, 4))
    steps = max(run(program, header(source))[1] for source in edges(rules) if isinstance(source, IPv4Address))
    assert steps <= 4 + 2 * math.ceil(math.log2(2 * len(rules) + 1)) + 1


def test_networks_side_by_side_are_one() -> None:
    apart = [(False, f"10.0.{n}.0/24") for n in range(256)]
    assert compiled(apart, True, 4) == compiled([(False, "10.0.0.0/16")], True, 4)


def test_newcomers_are_those_who_send_a_syn_alone() -> None:
    """Of all flags that a segment may have: RFC 9293 section 3.1, and ECN's two, which a SYN has as well (RFC 3168)."""
    program = instructions(newcomers_filter())
    for flags in range(256):
        segment = bytes(13) + bytes([flags]) + bytes(6)
        kept, _ = run(program, b"", segment)
        assert (kept == 0) == (flags & 0x02 != 0 and flags & 0x10 == 0), flags
