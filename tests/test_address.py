"""An address and its text."""

import socket
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.address import Address, host_text, join_host_port, map_host, network_of, packed_host, unmap

PORT = st.integers(0, 65535)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("192.0.2.1", "c0000201"),
        ("2001:db8::1", "20010db8000000000000000000000001"),
        ("fe80::1%eth0", "fe800000000000000000000000000001"),
        ("::ffff:192.0.2.1", "c0000201"),
        ("::ffff:c000:201", "c0000201"),
    ],
)
def test_addresses_as_accept_gives_them(source: str, expected: str) -> None:
    assert packed_host(source).hex() == expected


@pytest.mark.parametrize("source", ["", "1.2.3", "1.2.3.4.5", "1.2.3.256", "web", "::g", "1:2"])
def test_what_is_no_address(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        packed_host(source)


@given(st.ip_addresses(v=4))
def test_packed_as_the_kernel_packs(address: IPv4Address) -> None:
    assert packed_host(str(address)) == socket.inet_pton(socket.AF_INET, str(address))


@given(st.ip_addresses(), st.integers(1, 32), st.integers(1, 128))
def test_the_network_that_an_address_is_in(address: IPv4Address | IPv6Address, ipv4_bits: int, ipv6_bits: int) -> None:
    packed = packed_host(str(address))
    bits = ipv4_bits if len(packed) == 4 else ipv6_bits
    assert network_of(packed, ipv4_bits, ipv6_bits) == ip_network((packed, bits), strict=False).network_address.packed


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)), PORT)
def test_its_text_and_back(host: IPv4Address | IPv6Address, port: int) -> None:
    address = Address(str(host), port)
    assert Address.parse(str(address)) == address
    assert address.packed == packed_host(str(host))


def test_host_and_port() -> None:
    assert (join_host_port("10.0.0.1", 80), join_host_port("::1", 80)) == ("10.0.0.1:80", "[::1]:80")
    assert Address.parse("[fe80::1%eth0]:9") == ("fe80::1%eth0", 9)


@pytest.mark.parametrize("text", ["", "10.0.0.1", "10.0.0.1:", "10.0.0.1:http"])
def test_what_has_no_port(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Address.parse(text)


PACKED = st.binary(min_size=4, max_size=4) | st.binary(min_size=16, max_size=16)
SPARSE = st.lists(st.sampled_from([0, 0, 0, 1, 255]), min_size=16, max_size=16).map(bytes)


COMPATIBLE = st.binary(min_size=4, max_size=4).map(bytes(12).__add__)


@given(PACKED | SPARSE | COMPATIBLE)
def test_the_text_of_a_packed_address_is_the_kernels(packed: bytes) -> None:
    """A client has one text, whoever tells of it: it is counted by that."""
    own = unmap(packed)
    expected = socket.inet_ntop(socket.AF_INET if len(own) == 4 else socket.AF_INET6, own)
    assert host_text(packed) == expected
    assert packed_host(expected) == own


@given(PACKED)
def test_an_address_inside_sixteen_bytes(packed: bytes) -> None:
    assert len(map_host(packed)) == 16
    assert unmap(map_host(packed)) == unmap(packed)
