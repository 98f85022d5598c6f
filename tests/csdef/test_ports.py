"""Ports of a role: which endpoint keeps its own, which gets another, and which relay cannot have."""

import pytest

from relay.csdef.definition import DefinedRole, Endpoint
from relay.csdef.ports import PlacedEndpoint, cannot, place
from relay.errors import ConfigError
from tests.csdef.rig import instance, internal, public


def opened(*endpoints: Endpoint, access: dict[str, str] | None = None) -> list[PlacedEndpoint]:
    return place(
        DefinedRole("web", (1, 1), endpoints, ()), "f.csdef", lambda endpoint: (access or {}).get(endpoint.name)
    )


def way(*endpoints: Endpoint) -> list[tuple[int, int]]:
    """The first ports of `listen` and `target` of each endpoint."""
    return [(each.listen[0], each.target[0]) for each in opened(*endpoints)]


def test_own_ports() -> None:
    assert way(public(80, 80), public(81, 8081), internal((9, 9)), instance(10)) == [
        (80, 80),
        (8081, 8081),
        (9, 9),
        (10, 10),
    ]
    assert [each.why for each in opened(public(80, 80), internal((1, 9)), instance(10))] == ["", "", ""]


def test_internal_ports_come_first_wherever_they_stand() -> None:
    assert way(public(80, 8080), internal((8080, 8089))) == [(20_000, 8080), (8080, 8080)]


def test_the_first_of_two_on_one_local_port_keeps_it() -> None:
    assert way(public(80, 80), public(81, 80), instance(80), instance(80)) == [(80, 80), (20_000, 80), (20_001, 80)]


def test_ports_that_the_platform_chose() -> None:
    assert way(public(80, None)) == [(80, 80)]
    assert way(public(80, None), public(81, 80)) == [(20_000, 20_000), (80, 80)]
    assert way(public(80, None), internal((80, 80))) == [(20_000, 20_000), (80, 80)]
    assert way(internal(None), internal((20_000, 20_004)), internal(None)) == [
        (20_005, 20_005),
        (20_000, 20_000),
        (20_006, 20_006),
    ]


def test_what_is_not_as_written_is_said() -> None:
    with_reasons = opened(public(80, None), public(81, 80), internal(None), public(82, 80))
    assert [each.why.partition(":")[2].strip() or each.why for each in with_reasons] == [
        "the application must listen on 20000",
        "",
        "the application must listen on 20001",
        "port 80 is another endpoint's, so relay listens on 20002 and still leads to 80",
    ]


def test_ports_below_are_used_when_those_above_are_gone() -> None:
    ranges = [internal((start, start + 1023)) for start in range(20_000, 64_000, 1024)] + [
        internal((64_032, 65_535 - 512))
    ]
    ranges.append(internal((65_535 - 511, 65_535)))
    assert way(*ranges, internal(None), internal(None))[-2:] == [(1, 1), (2, 2)]


def test_no_port_left() -> None:
    ranges = [internal((max(1, start), start + 1023)) for start in range(0, 65_536, 1024)]
    with pytest.raises(ConfigError, match=r"f\.csdef:1:1: .*no port left.*`web`"):
        opened(*ranges, internal(None))


def test_an_instance_endpoint_becomes_one_with_an_input_endpoint() -> None:
    first, second = instance(80), instance(80)
    found = opened(first, public(80, 80), public(81, 80), second, public(82, None), instance(82))
    assert [(each.endpoint.name, each.joined) for each in found] == [
        ("in80", first),
        ("in81", None),
        ("instance80", None),
        ("in82", None),
        ("instance82", None),
    ]


def test_but_not_where_they_admit_others() -> None:
    both = (public(80, 80), instance(80))
    assert len(opened(*both)) == 1
    assert len(opened(*both, access={"in80": "a", "instance80": "a"})) == 1
    assert len(opened(*both, access={"in80": "a"})) == 2
    assert len(opened(*both, access={"in80": "a", "instance80": "b"})) == 2


def test_datagrams_are_in_nobodys_way() -> None:
    found = opened(
        public(80, 80, "udp"),
        internal((81, 81), "udp"),
        instance(82, "udp"),
        public(83, 80),
        public(84, 81),
        instance(82),
    )
    assert [(each.listen, each.joined) for each in found] == [((80, 80), None), ((81, 81), None), ((82, 82), None)]


@pytest.mark.parametrize(
    ("endpoint", "words"),
    [
        (public(1, 1), ""),
        (internal((1, 1024)), ""),
        (internal((1, 1024), "any"), ""),
        (internal(None, "http"), ""),
        (public(1, 1, "udp"), "udp: relay forwards TCP"),
        (internal(None, "udp"), "udp: relay forwards TCP"),
        (instance(1, "udp"), "udp: relay forwards TCP"),
        (internal(None, "any"), "such as `port: 1-1024` with `target: 127.0.0.1:1-1024`"),
        (internal((1, 1025)), "1025 ports, and a range has at most 1024"),
    ],
)
def test_what_relay_cannot_have(endpoint: Endpoint, words: str) -> None:
    reason = cannot(endpoint)
    assert words in reason
    assert bool(words) == bool(reason)
