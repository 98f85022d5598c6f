"""What of a source's word can be a target, in which order, and with which share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.fleet.places import SHARE_MAX, Place, in_order, shares, usable


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.4", "10.0.0.4"),
        ("2001:DB8::5", "2001:db8::5"),
        ("::ffff:10.0.0.4", "10.0.0.4"),
        ("169.254.1.1", "169.254.1.1"),
        ("fe80::1", "fe80::1"),
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
    ],
)
def test_what_a_file_may_say(text: str, address: str) -> None:
    assert usable(text, by_dns=False) == (address, "")


@pytest.mark.parametrize(
    "text", ["0.0.0.0", "::", "224.0.0.1", "ff02::1", "255.255.255.255", "fe80::1%eth0", "::ffff:0.0.0.0"]
)
@pytest.mark.parametrize("by_dns", [False, True])
def test_what_nobody_can_dial(text: str, by_dns: bool) -> None:
    address, why = usable(text, by_dns=by_dns)
    assert not address
    assert why.startswith(text) or text.startswith("::ffff")


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1",
        "127.9.9.9",
        "::1",
        "::ffff:127.0.0.1",
        "0.0.0.5",
        "169.254.169.254",
        "fe80::1",
        "::ffff:169.254.1.1",
    ],
)
def test_dns_leads_nobody_into_this_machine(text: str) -> None:
    address, why = usable(text, by_dns=True)
    assert not address
    assert why.endswith("DNS must not lead to")


def test_an_address_and_port_is_there_once_and_the_order_is_always_the_same() -> None:
    first, second, other = Place.of("10.0.0.10"), Place.of("10.0.0.9", share=3), Place.of("10.0.0.9", share=5)
    six, port = Place.of("2001:db8::1"), Place.of("10.0.0.9", 81)
    assert in_order([six, first, second, other, port]) == (second, port, first, six)


def test_shares_of_service_records() -> None:
    assert shares([0, 1, 256]) == [1, 1, 256]
    assert shares([0, 65535]) == [1, 256]
    assert shares([300, 600]) == [128, 256]
    assert shares([]) == []


@given(st.lists(st.integers(0, 65535), min_size=1, max_size=20))
def test_shares_keep_their_order_and_their_bounds(weights: list[int]) -> None:
    found = shares(weights)
    assert all(1 <= share <= SHARE_MAX for share in found)
    assert all(
        (a <= b) or (w > v) for a, w in zip(found, weights, strict=True) for b, v in zip(found, weights, strict=True)
    )
