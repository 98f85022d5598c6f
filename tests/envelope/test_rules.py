"""The envelope against the platform's own words, written with the standard library and a loop."""

from ipaddress import IPv6Address, ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.settings import Settings
from relay.envelope.rules import Envelope, RuleRow, Verdict
from tests.config.rig import compiled, endpoint_row
from tests.envelope.rig import NETWORK, SOURCE
from tests.harness import examples

Rule = tuple[str, str]
"""`permit` or `deny`, and a network as the file has it."""


def as_the_platform_says(rules: list[Rule], source: str) -> Verdict:
    """No rule: everyone may connect. Any permit: everyone else is denied. Only denies: everyone else may connect.

    The first match decides. A v4-mapped address is the IPv4 address.
    """
    address = ip_address(source)
    if isinstance(address, IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    for number, (action, network) in enumerate(rules):
        if address in ip_network(network, strict=False):
            return Verdict(action == "permit", number)
    return Verdict(not any(action == "permit" for action, _ in rules), None)


def envelope(rules: list[Rule]) -> Envelope:
    """By the way that the daemon goes: file, model, snapshot, envelope."""
    access = ", ".join(f"{{{action}: '{network}'}}" for action, network in rules)
    text = (
        "version: 1\nservice: s\nroles:\n  web:\n    instances: [10.0.0.4]\n    endpoints:\n"
        f"      in: {{type: input, public_port: 80, target: '127.0.0.1:1', access: [{access}]}}\n"
    )
    service = parse_service(parse(text.encode(), "service.yaml")).value
    [row] = compile_snapshot(service, Settings(), "web_IN_0", generation=1, file="service.yaml").endpoints
    return row.envelope


RULES = st.lists(st.tuples(st.sampled_from(["permit", "deny"]), NETWORK), max_size=8)


@examples(60)
@given(rules=RULES, sources=st.lists(SOURCE, min_size=1, max_size=20))
def test_against_the_platforms_words(rules: list[Rule], sources: list[str]) -> None:
    made = envelope(rules)
    for source in sources:
        assert made.decide(ip_address(source).packed) == as_the_platform_says(rules, source), (rules, source)


@pytest.mark.parametrize(
    ("rules", "source", "verdict"),
    [
        ([], "203.0.113.1", Verdict(True, None)),
        ([("deny", "203.0.113.0/24")], "203.0.113.1", Verdict(False, 0)),
        ([("deny", "203.0.113.0/24")], "203.0.114.1", Verdict(True, None)),
        ([("permit", "203.0.113.0/24")], "203.0.113.1", Verdict(True, 0)),
        ([("permit", "203.0.113.0/24")], "203.0.114.1", Verdict(False, None)),
        ([("deny", "203.0.113.0/24"), ("permit", "203.0.0.0/8")], "203.0.113.1", Verdict(False, 0)),
        ([("permit", "203.0.0.0/8"), ("deny", "203.0.113.0/24")], "203.0.113.1", Verdict(True, 0)),
        ([("deny", "203.0.113.0/24"), ("permit", "203.0.0.0/8")], "::ffff:203.0.113.1", Verdict(False, 0)),
        ([("deny", "0.0.0.0/0")], "2001:db8::1", Verdict(True, None)),
        ([("deny", "::/0")], "192.0.2.1", Verdict(True, None)),
        ([("deny", "::/0")], "::ffff:192.0.2.1", Verdict(True, None)),
        ([("permit", "2001:db8::/32")], "2001:db8:1::1", Verdict(True, 0)),
    ],
)
def test_examples(rules: list[Rule], source: str, verdict: Verdict) -> None:
    assert as_the_platform_says(rules, source) == verdict
    assert envelope(rules).decide(ip_address(source).packed) == verdict


def test_an_internal_endpoint_admits_the_roster_alone() -> None:
    postgres, own = (row.envelope for row in compiled("store_IN_0").endpoints)
    store, web, other = (ip_address(text).packed for text in ("10.0.1.4", "2001:db8::5", "127.0.0.1"))
    assert [postgres.decide(source) for source in (store, web, other)] == [
        Verdict(False, None), Verdict(True, 1), Verdict(False, None),
    ]  # fmt: skip
    assert [own.decide(source).permit for source in (store, web, other)] == [True, True, False]


def test_a_row_decides_where_no_rule_does() -> None:
    rules = (RuleRow(True, "192.0.2.0/24", "f:1"),)
    for permit in (True, False):
        made = endpoint_row(rules=rules, permit_unmatched=permit).envelope
        assert made.decide(bytes([192, 0, 2, 1])) == Verdict(True, 0)
        assert made.decide(bytes([192, 0, 3, 1])) == Verdict(permit, None)
