"""The warnings: what may stand, and should be looked at."""

import time
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config.document import Document
from relay.config.lint import lint_service
from relay.config.model import Service
from relay.errors import Problem
from tests.config.rig import service_of_roles
from tests.harness import heap_set_aside


def lint(roles: str, lists: str = "") -> list[Problem]:
    """The warnings about a service as `read` takes it."""
    found = lint_service(*service_of_roles(roles, lists))
    assert {problem.severity for problem in found} <= {"warning"}
    return found


def test_warnings_of_rules() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a:
              type: input
              public_port: 80
              target: unix:/x
              access:
                - deny: 10.1.2.3/8
                - permit: 10.0.0.0/8
                - deny: 10.0.0.1
                - deny: "2001:DB8::/32"
                - deny: 2001:db8::1/32
    """
    assert [str(problem) for problem in lint(roles)] == [
        "service.yaml:12:19: warning: roles.web.endpoints.a.access[0].deny: `10.1.2.3/8` has host bits; "
        "it is read as `10.0.0.0/8`: write that",
        "service.yaml:13:21: warning: roles.web.endpoints.a.access[1].permit: "
        "never matches: the rule on line 12 decides for all of 10.0.0.0/8; remove it, or write it further up",
        "service.yaml:14:19: warning: roles.web.endpoints.a.access[2].deny: "
        "never matches: the rule on line 12 decides for all of 10.0.0.1/32; remove it, or write it further up",
        "service.yaml:16:19: warning: roles.web.endpoints.a.access[4].deny: `2001:db8::1/32` has host bits; "
        "it is read as `2001:db8::/32`: write that",
        "service.yaml:16:19: warning: roles.web.endpoints.a.access[4].deny: "
        "never matches: the rule on line 15 decides for all of 2001:db8::/32; remove it, or write it further up",
    ]


def test_rules_of_a_shared_list_are_looked_at_once_and_where_they_stand() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: input, public_port: 80, target: unix:/x, access: office}
            b: {type: input, public_port: 81, target: unix:/x, access: office}
    """
    [problem] = lint(roles, "office: [{deny: 10.1.2.3/8}]")
    assert (problem.line, problem.path) == (11, "access_lists.office[0].deny")


def test_a_list_that_nobody_names() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: input, public_port: 80, target: unix:/x, access: office}
    """
    [problem] = lint(roles, "office: []\nhome: [{deny: 10.0.0.0/8}]")
    assert (problem.line, problem.column, problem.path) == (11, 3, "access_lists.home")
    assert (problem.what, problem.fix) == ("no endpoint names this list", "write `access: home` at one, or remove it")


# --- rules that never match -------------------------------------------------------------------------------------------


def shadowed(*networks: IPv4Network | IPv6Network) -> list[int]:
    """The indexes of the rules for these networks that never match."""
    rules = [{"deny" if n % 2 else "permit": str(network)} for n, network in enumerate(networks)]
    endpoint = {"type": "input", "public_port": 80, "target": "unix:/x", "access": rules}
    service = {"version": 1, "service": "s", "roles": {"web": {"instances": [], "endpoints": {"in": endpoint}}}}
    found = lint_service(Service.model_validate(service), Document("f.yaml", service, {}, {}))
    return sorted(int(each.path.partition("[")[2].partition("]")[0]) for each in found if "never" in each.what)


# Few and small networks of either family, so that they hold one another and halves meet.
SMALL = st.one_of(
    st.integers(0, 5).flatmap(
        lambda length: st.integers(0, 2**length - 1).map(
            lambda key: ip_network((bytes([10, 0, 0, key << (5 - length) if length else 0]), 27 + length))
        )
    ),
    st.integers(124, 128).flatmap(
        lambda length: st.integers(0, 2 ** (length - 124) - 1).map(
            lambda key: ip_network((bytes([*bytes(15), key << (128 - length)]), length))
        )
    ),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(SMALL, max_size=14))
def test_exactly_the_rules_that_never_match(networks: list[IPv4Network | IPv6Network]) -> None:
    """Against every single address: a rule matches when one is left to it."""
    decided: set[object] = set()
    expected = []
    for index, network in enumerate(networks):
        addresses = set(network)
        if addresses <= decided:
            expected.append(index)
        decided |= addresses
    assert shadowed(*networks) == expected


def test_halves_that_hold_it_together() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a:
              type: input
              public_port: 80
              target: unix:/x
              access:
                - deny: 10.128.0.0/9
                - permit: 10.0.0.0/10
                - deny: 10.64.0.0/10
                - permit: 10.0.0.0/8
    """
    [problem] = lint(roles)
    assert (problem.line, problem.path) == (15, "roles.web.endpoints.a.access[3].permit")
    assert problem.what == "never matches: the rules above decide for all of 10.0.0.0/8"


def test_of_several_rules_the_one_that_decides_is_named() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a:
              type: input
              public_port: 80
              target: unix:/x
              access:
                - deny: 11.0.0.0/8
                - deny: 10.0.0.0/16
                - permit: 10.0.0.0/8
                - deny: 10.0.7.0/24
    """
    [problem] = lint(roles)
    assert problem.what == "never matches: the rule on line 13 decides for all of 10.0.7.0/24"


@pytest.mark.alone
def test_twenty_thousand_rules() -> None:
    """Far from the square of their number: that would be two hundred million comparisons."""
    v4 = [ip_network((n << 12, 20 + n % 13)) for n in range(10_000)]
    v6 = [ip_network(((0x2001 << 112) + (n << 100), 28 + n % 100)) for n in range(10_000)]
    with heap_set_aside():
        began_s = time.thread_time()
        found = shadowed(*v4, *v6, v4[5], v6[-1])
        assert time.thread_time() - began_s < 15
    assert found == [20_000, 20_001]


# --- who is let in ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ("[{permit: 0.0.0.0/0}]", ["`0.0.0.0/0` permits every IPv4 address"]),
        ('[{deny: 10.0.0.0/8}, {permit: "::/0"}]', ["`::/0` permits every IPv6 address"]),
        ("[{deny: 0.0.0.0/0}]", []),
        ("[{permit: 0.0.0.0/1}, {permit: 128.0.0.0/1}]", []),
    ],
)
def test_a_permit_for_everyone(rules: str, said: list[str]) -> None:
    found = lint(f"""
        web:
          instances: []
          endpoints:
            a: {{type: input, public_port: 80, target: unix:/x, access: {rules}}}
    """)
    assert [problem.what for problem in found] == said


def test_an_envelope_that_is_not_enforced() -> None:
    roles = """
        web:
          instances: []
          endpoints:
            a: {type: input, public_port: 80, target: unix:/x, enforce: audit}
            b: {type: internal, port: 81, target: unix:/x, enforce: strict}
    """
    [problem] = lint(roles)
    assert (problem.line, problem.path) == (7, "roles.web.endpoints.a.enforce")
    assert "let in" in problem.what


@pytest.mark.parametrize(
    ("rules", "is_internal"),
    [
        ("[{permit: 10.0.0.4}, {permit: 10.0.1.4}]", True),
        ("[{permit: 10.0.0.4/31}]", True),
        ('[{permit: "2001:db8::4"}, {deny: 10.0.0.0/8}]', True),
        ("[{permit: 10.0.0.4}, {permit: 10.0.0.6}]", False),
        ("[{permit: 10.0.0.4/30}]", False),
        ("[{permit: 10.0.0.0/8}]", False),
        ("[{deny: 10.0.0.4}]", False),
        ("[]", False),
        ("ours", True),
    ],
)
def test_internal_traffic_declared_as_input(rules: str, is_internal: bool) -> None:
    roles = f"""
        web:
          instances: [10.0.0.4, 10.0.0.5, "2001:db8::4"]
          endpoints:
            a: {{type: input, public_port: 80, target: unix:/x, access: {rules}}}
        store:
          instances: [10.0.1.4]
    """
    found = lint(roles, "ours: [{permit: 10.0.0.5}]" if rules == "ours" else "")
    assert [(problem.path, problem.line) for problem in found] == [("roles.web.endpoints.a.type", 7)] * is_internal
    assert all("`type: internal`" in problem.fix for problem in found)
