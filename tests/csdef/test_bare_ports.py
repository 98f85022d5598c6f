"""Ports of a role without relay: each endpoint has its application's own, and roles are as many as one port has endpoints."""

import pytest

from relay.csdef.bare_ports import bare_cannot, bare_place
from relay.csdef.definition import DefinedRole, Endpoint
from relay.errors import ConfigError
from tests.csdef.rig import instance, internal, public


def placed(*endpoints: Endpoint, access: dict[str, str] | None = None) -> list[list[tuple[str, int]]]:
    """By role, the names of the endpoints and their ports."""
    role = DefinedRole("web", (1, 1), endpoints, ())
    roles = bare_place(role, "f.csdef", lambda endpoint: (access or {}).get(endpoint.name))
    assert all(each.listen == each.target and each.listen[0] == each.listen[1] for some in roles for each in some)
    return [[(each.endpoint.name, each.listen[0]) for each in some] for some in roles]


def test_every_port_is_the_applications_own() -> None:
    found = placed(public(80, 80), public(81, 8081), internal((9, 9)), instance(10))
    assert found == [[("in80", 80), ("in81", 8081), ("internal(9, 9)", 9), ("instance10", 10)]]


def test_a_role_without_endpoints_is_one_all_the_same() -> None:
    assert placed() == [[]]
    assert placed(internal((1, 9)), public(53, 53, "udp")) == [[]]


def test_as_many_roles_as_one_port_has_endpoints() -> None:
    found = placed(public(80, 80), public(81, 80), public(82, 90), internal((80, 80)), public(83, 90))
    assert found == [[("in80", 80), ("in82", 90)], [("in81", 80), ("in83", 90)], [("internal(80, 80)", 80)]]


def test_one_with_an_instance_endpoint_where_both_admit_the_same_clients() -> None:
    both = (public(80, 80), instance(80))
    assert placed(*both) == [[("in80", 80)]]
    assert placed(*both, access={"in80": "a", "instance80": "a"}) == [[("in80", 80)]]
    assert placed(*both, access={"in80": "a"}) == [[("in80", 80)], [("instance80", 80)]]


def test_a_port_that_the_platform_chose_is_guessed_where_nothing_else_listens() -> None:
    assert placed(public(80, None)) == [[("in80", 80)]]
    assert placed(public(80, None), public(81, 80)) == [[("in80", 20_000), ("in81", 80)]]
    assert placed(internal(None), internal((20_000, 20_004)), internal(None)) == [
        [("internalNone", 20_005), ("internalNone", 20_006)]
    ]
    assert placed(public(20_000, None), internal(None)) == [[("in20000", 20_000), ("internalNone", 20_001)]]


def test_a_guess_is_said_to_be_one() -> None:
    role = DefinedRole("web", (1, 1), (public(80, None), internal(None), public(81, 8081), instance(9)), ())
    (found,) = bare_place(role, "f.csdef", lambda _: None)
    assert [each.why for each in found] == [
        "the platform chose its port, and no file says which: 80 is a guess, write the application's",
        "the platform chose its port, and no file says which: 20000 is a guess, write the application's",
        "",
        "",
    ]


def test_no_port_left_to_guess() -> None:
    ranges = [internal((max(1, start), start + 1023)) for start in range(0, 65_536, 1024)]
    with pytest.raises(ConfigError, match=r"f\.csdef:1:1: .*no port left.*`web`"):
        placed(*ranges, internal(None))
    assert placed(*ranges, public(80, 80)) == [[("in80", 80)]]


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (public(1, 1), ""),
        (instance(1), ""),
        (internal((9, 9)), ""),
        (internal((9, 9), "any"), ""),
        (internal(None), ""),
        (public(1, 1, "udp"), "udp: relay forwards TCP"),
        (internal((1, 9), "udp"), "udp: relay forwards TCP"),
        (internal((1, 2)), "ports 1-2: an endpoint of machines without relay has one port"),
        (internal((1, 2), "any"), "ports 1-2: an endpoint of machines without relay has one port"),
        (internal((1, 5000)), "ports 1-5000: an endpoint of machines without relay has one port"),
        (internal(None, "any"), "any protocol on any port: an endpoint of machines without relay has one port"),
    ],
)
def test_what_a_role_without_relay_cannot_have(endpoint: Endpoint, words: str) -> None:
    reason = bare_cannot(endpoint)
    assert reason.startswith(words)
    assert bool(words) == bool(reason)
