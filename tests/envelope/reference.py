"""The envelope as the platform's documents put it: a loop over the file's own data, with the standard library alone.

Slow, and right at a glance. Nothing of relay is used here, so that nothing of relay can be wrong here in the same way.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

Service = dict[str, Any]
"""A service file's data, as YAML has it."""

Place = tuple[str | int, ...]
"""The keys and indexes that lead to a rule, or to an instance's address, from the top of the file."""


@dataclass(frozen=True)
class Decision:
    """May a source connect; the rules that were looked at, in their order; and whether the last of them decided."""

    permit: bool
    looked_at: tuple[Place, ...]
    decided: bool


def decide(service: Service, endpoint: str, source: str) -> Decision:
    """May `source` (an address as text) connect to `endpoint` (role/name)?

    An input endpoint: the first rule that holds the address decides. No rule at all: everyone may. Any `permit`: everyone
    else may not. Only `deny`: everyone else may. An internal endpoint: the instances of the roles in `from` (default:
    every role), and nobody else.
    """
    declared = find(service, endpoint)
    address = as_decided_on(source)
    looked_at = []
    if declared["type"] == "internal":
        for place, instance in instances_admitted(service, declared):
            looked_at.append(place)
            if address == as_decided_on(instance):
                return Decision(True, tuple(looked_at), True)
        return Decision(False, tuple(looked_at), False)
    rules = list(rules_of(service, endpoint))
    for place, action, network in rules:
        looked_at.append(place)
        if address in network_of(network):
            return Decision(action == "permit", tuple(looked_at), True)
    return Decision(all(action == "deny" for _, action, _ in rules), tuple(looked_at), False)


def lets_in(service: Service, endpoint: str, source: str) -> bool:
    """Whether a connection is let in, or may stay: where the envelope is not enforced, everyone is."""
    return find(service, endpoint).get("enforce") == "audit" or decide(service, endpoint, source).permit


def find(service: Service, endpoint: str) -> dict[str, Any]:
    """The endpoint's keys."""
    role, _, name = endpoint.partition("/")
    declared: dict[str, Any] = service["roles"][role]["endpoints"][name]
    return declared


def endpoints(service: Service, role: str | None = None) -> list[str]:
    """Every endpoint of the service, or of one role, as role/name."""
    roles = service["roles"] if role is None else [role]
    return [f"{each}/{name}" for each in roles for name in service["roles"][each].get("endpoints", {})]


def roster(service: Service) -> dict[str, str]:
    """The address of every instance by its id."""
    return {
        f"{role}_IN_{number}": address
        for role, keys in service["roles"].items()
        for number, address in enumerate(keys["instances"])
    }


def rules_of(service: Service, endpoint: str) -> Iterator[tuple[Place, str, str]]:
    """An input endpoint's rules: where each stands, its action, its network. They stand at the endpoint or in a list."""
    role, _, name = endpoint.partition("/")
    place: Place = ("roles", role, "endpoints", name, "access")
    rules = find(service, endpoint).get("access", [])
    if isinstance(rules, str):
        place, rules = ("access_lists", rules), service["access_lists"][rules]
    for number, rule in enumerate(rules):
        [(action, network)] = rule.items()
        yield (*place, number), action, network


def instances_admitted(service: Service, declared: dict[str, Any]) -> Iterator[tuple[Place, str]]:
    """The instances that an internal endpoint admits: where each address stands, and the address."""
    for role in declared["from"] if "from" in declared else service["roles"]:
        for number, address in enumerate(service["roles"][role]["instances"]):
            yield ("roles", role, "instances", number), address


@cache
def network_of(text: str) -> IPv4Network | IPv6Network:
    """A rule's network. Host bits do not count."""
    return ip_network(text, strict=False)


@cache
def as_decided_on(source: str) -> IPv4Address | IPv6Address:
    """The address that rules are held against: without a zone, and an IPv4-mapped one is the IPv4 address in it."""
    address = ip_address(source.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
