"""Keys and values: each means one thing, or nothing."""

import json
from dataclasses import replace

import pytest

from relay.config.roster import Member
from relay.fleet.entries import Entry, EntryKeys, claim_value, ordinal_of, read_claim, read_entry

KEYS = EntryKeys("shop")
MEMBER = Member("web", 12, "2001:db8::4", "[2001:db8::4]:9464", True, ("http-in", "x.y_z"))


def test_an_entry_and_back() -> None:
    entry = Entry(MEMBER, "machine", "daemon")
    assert read_entry(("web", 12), entry.to_value()) == entry
    told = Entry(replace(MEMBER, reasons=("connection refused", "")), "machine", "daemon")
    assert read_entry(("web", 12), told.to_value()) == told
    later = json.loads(entry.to_value()) | {"zone": "b"}
    assert read_entry(("web", 12), json.dumps(later).encode()) == entry


def test_the_mark_of_one_that_leaves() -> None:
    entry = Entry(MEMBER, "machine", "daemon")
    leaving = replace(entry, leaving=True)
    assert read_entry(("web", 12), leaving.to_value()) == leaving
    assert b"leaving" not in entry.to_value()
    strange = json.loads(entry.to_value()) | {"leaving": "soon"}
    assert read_entry(("web", 12), json.dumps(strange).encode()) == entry, "what is no mark costs nobody its place"


@pytest.mark.parametrize(
    ("told", "reasons"),
    [
        (None, ()),
        (["x"], ()),
        ({}, ()),
        ({"http-in": 5, "x.y_z": ""}, ()),
        ({"http-in": "a\nb\x1b[31m", "other": "x"}, ("a\\nb\\x1b[31m", "")),
        ({"http-in": "long" * 1000, "x.y_z": "y"}, ("long" * 50, "y")),
    ],
)
def test_reasons_are_shown_as_far_as_they_can_be(told: object, reasons: tuple[str, ...]) -> None:
    plain = json.loads(Entry(MEMBER, "machine", "daemon").to_value()) | {"reasons": told}
    entry = read_entry(("web", 12), json.dumps(plain).encode())
    assert entry is not None
    assert (entry.member.down, entry.member.reasons) == (MEMBER.down, reasons)


@pytest.mark.parametrize(
    "wrong",
    [
        {"address": "0.0.0.0"},
        {"address": "web-12"},
        {"address": 7},
        {"address": None},
        {"metrics": "9464"},
        {"metrics": None},
        {"busy": "no"},
        {"busy": 0},
        {"down": "http-in"},
        {"down": ["/"]},
        {"down": [1]},
        {"down": None},
        {"machine": 1},
        {"daemon": None},
    ],
)
def test_an_entry_that_makes_no_sense(wrong: dict[str, object]) -> None:
    plain = json.loads(Entry(MEMBER, "machine", "daemon").to_value())
    assert read_entry(("web", 12), json.dumps(plain | wrong).encode()) is None
    for key in wrong:
        del plain[key]
    assert read_entry(("web", 12), json.dumps(plain).encode()) is None


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"7", b"null", b"[" * 100_000, b" " * 100_000 + b"{}"])
def test_garbage(value: bytes) -> None:
    assert read_entry(("web", 0), value) is None
    assert read_claim(value) == ""


def test_a_slot() -> None:
    assert read_claim(claim_value("abc")) == "abc"
    assert claim_value("abc") == claim_value("abc")
    assert read_claim(b'{"machine": 7}') == ""
    assert KEYS.claim("web", 7) == "/relay/shop/slots/web/000007"
    assert KEYS.number("web", "abc") == "/relay/shop/numbers/web/abc"


@pytest.mark.parametrize(
    ("key", "place"),
    [
        (KEYS.member("web", 0), ("web", 0)),
        (KEYS.member("Web-2", 999_999), ("Web-2", 999_999)),
        ("/relay/shop/members/web/01", None),
        ("/relay/shop/members/web/-1", None),
        ("/relay/shop/members/web/1000000", None),
        ("/relay/shop/members/web/one", None),
        ("/relay/shop/members/web/", None),
        ("/relay/shop/members/web", None),
        ("/relay/shop/members//1", None),
        ("/relay/shop/members/we_b/1", None),
        ("/relay/shop/members/web/1/2", None),
        ("/relay/shop/slots/web/1", None),
        ("/relay/shops/members/web/1", None),
    ],
)
def test_what_a_key_means(key: str, place: tuple[str, int] | None) -> None:
    assert KEYS.place_of(key) == place


def test_a_number_has_one_way_to_be_written() -> None:
    assert [ordinal_of(text) for text in ("0", "10", "00", "+1", "١", "", "1\n")] == [0, 10, *[None] * 5]
