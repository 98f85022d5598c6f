"""Whole services: what is compiled of a file, and what `explain` says of it, against a loop over the file's own data."""

from collections import Counter
from ipaddress import IPv4Address, ip_address
from typing import Any, Final

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from relay.address import packed_host
from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.model import Service
from relay.config.settings import Settings
from relay.config.snapshot import Snapshot
from relay.control.explain import explain, find_source, matrix, who_is_cut
from tests.envelope import reference
from tests.envelope.reference import Decision, Place, decide, lets_in
from tests.harness import examples

pytestmark = pytest.mark.timeout(1200)  # an example that fails is made as small as it gets, which takes minutes

ROLES: Final = ("web", "store", "app", "job")
LISTS: Final = ("office", "partners", "nobody")

# Few distinct addresses, so that networks overlap, hold instances and hold one another.
BYTE = st.sampled_from([1, 2, 127, 128, 254])
V4 = st.builds("10.{}.{}.{}".format, st.sampled_from([0, 1]), BYTE, BYTE)
V6 = st.builds("2001:db8:{}::{:x}".format, st.sampled_from(["0", "1", "8000"]), BYTE)
ADDRESS = V4 | V6
V4_NETWORK = st.builds("{}/{}".format, V4, st.sampled_from([0, 1, 7, 8, 15, 16, 23, 24, 25, 31, 32]))
V6_NETWORK = st.builds("{}/{}".format, V6, st.sampled_from([0, 1, 32, 33, 47, 48, 64, 121, 127, 128]))
NETWORK = ADDRESS | V4_NETWORK | V6_NETWORK
RULE = st.tuples(st.sampled_from(["permit", "deny"]), NETWORK).map(lambda rule: {rule[0]: rule[1]})
RULES = st.lists(RULE, max_size=8)
# What no file of these names: another network, loopback, forms that hold an IPv4 address and are none, a zone.
STRANGERS: Final = ("203.0.113.9", "127.0.0.1", "::1", "::10.0.1.1", "64:ff9b::10.0.1.1", "fe80::1", "fe80::1%2")


@st.composite
def services(draw: st.DrawFn) -> dict[str, Any]:
    """The data of a right service file."""
    roles = draw(st.lists(st.sampled_from(ROLES), min_size=1, unique=True))
    lists = draw(st.dictionaries(st.sampled_from(LISTS), RULES))
    addresses = iter(draw(st.lists(ADDRESS, min_size=8, max_size=8, unique=True)))
    ports = iter(range(1, 65536))
    made: dict[str, Any] = {}
    for role in roles:
        instances = [next(addresses) for _ in range(draw(st.integers(0, 2)))]
        names = draw(st.lists(st.sampled_from("abcd"), max_size=4, unique=True))
        made[role] = {
            "instances": instances,
            "endpoints": {name: draw(endpoint(next(ports), roles, lists)) for name in names},
        }
    service = {"version": 1, "service": "shop", "roles": made}
    return service | ({"access_lists": lists} if lists else {})


@st.composite
def endpoint(draw: st.DrawFn, port: int, roles: list[str], lists: dict[str, Any]) -> dict[str, Any]:
    """The keys of an endpoint on `port`."""
    keys: dict[str, Any] = {"target": "127.0.0.1:1"}
    if draw(st.booleans()):
        keys["enforce"] = draw(st.sampled_from(["strict", "audit"]))
    if draw(st.booleans()):
        keys |= {"type": "internal", "port": port}
        if draw(st.booleans()):
            keys["from"] = draw(st.lists(st.sampled_from(roles), min_size=1, max_size=3))
        return keys
    keys |= {"type": "input", "public_port": port}
    access = draw(st.none() | RULES | (st.sampled_from(sorted(lists)) if lists else st.none()))
    return keys if access is None else keys | {"access": access}


def edges(service: dict[str, Any]) -> set[str]:
    """For every network and instance of the service the addresses on both sides of both its ends; v4 ones mapped too."""
    found: set[str] = set(STRANGERS) | set(reference.roster(service).values())
    networks = [
        network
        for name in reference.endpoints(service)
        if reference.find(service, name)["type"] == "input"
        for _, _, network in reference.rules_of(service, name)
    ]
    for text in networks:
        network = reference.network_of(text)
        first, last = int(network[0]), int(network[-1])
        kind = type(network[0])
        ends = {first - 1, first, first + 1, last - 1, last, last + 1}
        found |= {str(kind(end)) for end in ends if 0 <= end < 1 << network.max_prefixlen}
    return found | {f"::ffff:{address}" for address in found if isinstance(ip_address(address), IPv4Address)}


def dumped(service: dict[str, Any], *, flow: bool) -> tuple[str, Any]:
    """The service as a file's text, and its nodes, which know their lines."""
    text = yaml.safe_dump(service, sort_keys=False, default_flow_style=None if flow else False)
    return text, yaml.compose(text, Loader=yaml.SafeLoader)


def read(text: str) -> Service:
    return parse_service(parse(text.encode(), "service.yaml")).value


def compiled(service: Service, instance: str) -> Snapshot:
    return compile_snapshot(service, Settings(), instance, generation=1, file="service.yaml")


def at(node: Any, place: Place) -> Any:
    """The node at a place."""
    for step in place:
        found = node.value if isinstance(step, int) else {key.value: value for key, value in node.value}
        node = found[step]
    return node


def told(service: dict[str, Any], nodes: Any, place: Place) -> dict[str, str]:
    """A rule, or the admission of an instance, as `explain` shall tell it."""
    if place[-2] == "instances":
        address = ip_address(service["roles"][place[1]]["instances"][place[3]])
        bits = address.max_prefixlen
        return {"action": "permit", "network": f"{address}/{bits}", "source": f"{place[1]}_IN_{place[3]}"}
    node = at(nodes, place)
    [(action, network)] = [(key.value, value.value) for key, value in node.value]
    network = str(reference.network_of(network))
    return {"action": action, "network": network, "source": f"service.yaml:{node.start_mark.line + 1}"}


def explained(service: dict[str, Any], nodes: Any, decision: Decision, declared: dict[str, Any]) -> dict[str, Any]:
    """What `explain` shall say besides its words."""
    looked_at = [told(service, nodes, place) for place in decision.looked_at]
    reason = "access" if declared["type"] == "input" else "roster"
    return {
        "verdict": "permit" if decision.permit else "deny",
        "reason": None if decision.permit else reason,
        "enforce": declared.get("enforce", "strict"),
        "rule": looked_at[-1] if decision.decided else None,
        "looked_at": looked_at,
    }


@examples(100)
@given(service=services(), flow=st.booleans())
def test_every_endpoint_of_every_instance(service: dict[str, Any], flow: bool) -> None:
    text, nodes = dumped(service, flow=flow)
    model = read(text)
    sources = edges(service)
    for instance in reference.roster(service):
        snapshot = compiled(model, instance)
        sent = Snapshot.from_json(snapshot.for_workers().to_json())
        kept = Snapshot.from_json(snapshot.to_json())
        assert [row.name for row in snapshot.endpoints] == reference.endpoints(service, instance.partition("_IN_")[0])
        for row, of_worker, of_control in zip(snapshot.endpoints, sent.endpoints, kept.endpoints, strict=True):
            envelopes = [each.envelope for each in (row, of_worker, of_control)]
            for source in sources:
                expected = decide(service, row.name, source)
                number = len(expected.looked_at) - 1 if expected.decided else None
                for envelope in envelopes:
                    verdict = envelope.decide(packed_host(source))
                    assert (verdict.permit, verdict.rule) == (expected.permit, number), (row.name, source, text)
                answer: Any = explain(of_control, source)
                shall = explained(service, nodes, expected, reference.find(service, row.name))
                assert {key: answer[key] for key in shall} == shall, (row.name, source, text)


@examples(30)
@given(service=services())
def test_an_instance_is_asked_about_by_its_id(service: dict[str, Any]) -> None:
    model = read(dumped(service, flow=True)[0])
    roster = reference.roster(service)
    for instance in roster:
        snapshot = compiled(model, instance)
        for other, address in roster.items():
            assert ip_address(find_source(snapshot, None, other)) == ip_address(address)
    yes = {row["endpoint"]: row["roles"] for row in matrix(model)}
    assert list(yes) == [name for name in reference.endpoints(service) if f"{name.partition('/')[0]}_IN_0" in roster]
    for name, roles in yes.items():
        assert roles == {role: share(service, name, keys["instances"]) for role, keys in service["roles"].items()}


def share(service: dict[str, Any], endpoint: str, addresses: list[str]) -> str:
    """How many of these may connect, in a word."""
    permits = {decide(service, endpoint, address).permit for address in addresses}
    return {frozenset(): "-", frozenset({True}): "yes", frozenset({False}): "no"}.get(frozenset(permits), "some")


@examples(30)
@given(old=services(), new=services())
def test_who_would_be_cut(old: dict[str, Any], new: dict[str, Any]) -> None:
    """Connections that the old file let in, to whatever endpoints it had, under the new one."""
    model = read(dumped(new, flow=True)[0])
    flows = [
        (name, source)
        for name in reference.endpoints(old)
        for source in sorted(edges(old) | edges(new))
        if lets_in(old, name, source)
    ]
    for instance in reference.roster(new):
        mine = reference.endpoints(new, instance.partition("_IN_")[0])
        expected = Counter(name for name, source in flows if name not in mine or not lets_in(new, name, source))
        found: Counter[str] = Counter()
        for line in who_is_cut(flows, compiled(model, instance)):
            found[line["endpoint"]] += line["connections"]
        assert found == expected


@pytest.mark.parametrize(
    ("rules", "source", "permit", "decided"),
    [
        # The platform's own example: these not, the rest of the /8 yes, all others no.
        ([{"deny": "175.1.0.1/24"}, {"permit": "175.0.0.0/8"}], "175.1.0.200", False, True),
        ([{"deny": "175.1.0.1/24"}, {"permit": "175.0.0.0/8"}], "175.1.1.1", True, True),
        ([{"deny": "175.1.0.1/24"}, {"permit": "175.0.0.0/8"}], "8.8.8.8", False, False),
        ([{"deny": "0.0.0.0/0"}], "8.8.8.8", False, True),
        ([{"deny": "0.0.0.0/0"}], "::ffff:8.8.8.8", False, True),
        ([{"deny": "0.0.0.0/0"}], "2001:db8::1", True, False),
        ([{"permit": "fe80::/10"}], "fe80::1%2", True, True),
        ([], "8.8.8.8", True, False),
    ],
)
def test_the_reference_itself(rules: list[dict[str, str]], source: str, permit: bool, decided: bool) -> None:
    endpoints = {"own": {"type": "input", "access": rules}, "shared": {"type": "input", "access": "list"}}
    service = {"access_lists": {"list": rules}, "roles": {"web": {"instances": [], "endpoints": endpoints}}}
    for name in ("web/own", "web/shared"):
        found = decide(service, name, source)
        assert (found.permit, found.decided) == (permit, decided)


def test_the_reference_itself_within_a_service() -> None:
    store = {"all": {"type": "internal"}, "some": {"type": "internal", "from": ["web"]}}
    service = {
        "roles": {
            "web": {"instances": ["10.0.0.4", "2001:db8::5"]},
            "store": {"instances": ["10.0.1.4"], "endpoints": store},
        }
    }
    sources = ("10.0.0.4", "::ffff:10.0.0.4", "2001:db8::5", "10.0.1.4", "10.0.0.5", "127.0.0.1")
    admitted = {
        name: [decide(service, name, source).permit for source in sources] for name in ("store/all", "store/some")
    }
    assert admitted == {
        "store/all": [True, True, True, True, False, False],
        "store/some": [True, True, True, False, False, False],
    }
    assert decide(service, "store/some", "2001:db8::5").looked_at[-1] == ("roles", "web", "instances", 1)
