"""What is right and still doubtful: the warnings across a whole service."""

from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

from relay.config.bare import bare_warnings
from relay.config.check import endpoints
from relay.config.document import Document, KeyPath
from relay.config.fields import Rule
from relay.config.model import Service
from relay.config.values import IPAddress, IPNetwork
from relay.errors import Problem

__all__ = ["lint_service"]


def lint_service(service: Service, document: Document) -> list[Problem]:
    """Warnings about `service`, in the order of the file; `document` tells their places.

    An access list that no endpoint names; a rule that never matches; a network with host bits; a permit for everyone;
    an input endpoint that only instances of the service may reach; an endpoint whose envelope is not enforced;
    one that dials from the client's address, which this machine must be made ready for.
    """
    found = [
        *_unused_lists(service, document),
        *_internal_as_input(service, document),
        *_audits(service, document),
        *_transparent(service, document),
        *bare_warnings(service, document),
    ]
    for path, rules in _lists(service):
        found += _rules(path, rules, document)
    return sorted(found)


def _warning(document: Document, path: KeyPath, what: str, fix: str, *, key: bool = False) -> Problem:
    return replace(document.problem(path, what, fix, key=key), severity="warning")


def _lists(service: Service) -> Iterator[tuple[KeyPath, tuple[Rule, ...]]]:
    """Every list of rules that is written out, and its place."""
    for name, rules in service.access_lists.items():
        yield ("access_lists", name), rules
    for _, _, endpoint, path in endpoints(service):
        if not isinstance(endpoint.access, str):
            yield (*path, "access"), endpoint.access


def _unused_lists(service: Service, document: Document) -> Iterator[Problem]:
    # By the file, not the model: an endpoint that has problems of its own still names its list.
    named = {value for value in _named(document.data) if isinstance(value, str)}
    for name in service.access_lists:
        if name not in named:
            what, fix = "no endpoint names this list", f"write `access: {name}` at one, or remove it"
            yield _warning(document, ("access_lists", name), what, fix, key=True)


def _named(data: object) -> Iterator[object]:
    """The value of every endpoint's `access`, in data of any shape."""
    roles = data.get("roles") if isinstance(data, dict) else None
    for role in roles.values() if isinstance(roles, dict) else ():
        declared = role.get("endpoints") if isinstance(role, dict) else None
        for endpoint in declared.values() if isinstance(declared, dict) else ():
            yield endpoint.get("access") if isinstance(endpoint, dict) else None


def _internal_as_input(service: Service, document: Document) -> Iterator[Problem]:
    roster = {address for role in service.roles.values() for address in role.instances}
    for _, _, endpoint, path in endpoints(service):
        if isinstance(endpoint.access, str) and endpoint.access not in service.access_lists:
            continue  # the list has problems of its own
        permitted = [rule.network for rule in service.rules_of(endpoint) if rule.action == "permit"]
        if permitted and all(_within(network, roster) for network in permitted):
            what = "only instances of this service may reach this input endpoint"
            fix = "write `type: internal`, and `from` with their roles: then it follows the roster"
            yield _warning(document, (*path, "type"), what, fix)


def _audits(service: Service, document: Document) -> Iterator[Problem]:
    for _, _, endpoint, path in endpoints(service):
        if endpoint.enforce == "audit":
            what = "whom the endpoint's envelope refuses is let in, and only counted"
            yield _warning(
                document, (*path, "enforce"), what, "write `enforce: strict` once the counts are as you expect"
            )


def _transparent(service: Service, document: Document) -> Iterator[Problem]:
    for role_name, _, endpoint, path in endpoints(service):
        if endpoint.transparent and not service.roles[role_name].bare:
            elsewhere = [
                target
                for target in endpoint.targets
                if not all(ip_address(address).is_loopback for address in target.addresses)
            ]
            script = "systemd/transparent up" + (f" 4711 {elsewhere[0]}" if elsewhere else "")
            what = "it needs CAP_NET_RAW (or CAP_NET_ADMIN), and routing rules by which the target's answers come back"
            fix = f"run `{script}` as root on each instance, and grant the capability: see systemd/README.md"
            yield _warning(document, (*path, "transparent"), what, fix)


def _within(network: IPNetwork, roster: set[IPAddress]) -> bool:
    """Whether every address of the network is in the roster."""
    return network.num_addresses <= len(roster) and all(address in roster for address in network)


def _rules(path: KeyPath, rules: tuple[Rule, ...], document: Document) -> Iterator[Problem]:
    decided = _Decided()
    for index, rule in enumerate(rules):
        where = (*path, index, rule.action)
        if (earlier := decided.by(rule.network)) is not None:
            before = (
                f"rule on line {document.mark((*path, earlier))[0]} decides" if earlier >= 0 else "rules above decide"
            )
            what = f"never matches: the {before} for all of {rule.network}"
            yield _warning(document, where, what, "remove it, or write it further up")
        else:
            decided.add(rule.network, index)
        if _has_host_bits(rule):
            yield _warning(
                document, where, f"`{rule.text}` has host bits", f"it is read as `{rule.network}`: write that"
            )
        if rule.action == "permit" and rule.network.prefixlen == 0:
            what = f"`{rule.text}` permits every IPv{rule.network.version} address"
            fix = "write the networks that may connect; or only `deny` rules, with which everyone else may"
            yield _warning(document, where, what, fix)


class _Decided:
    """The networks that some rules decide for. What it costs to ask does not grow with their number."""

    _TOGETHER = -1

    def __init__(self) -> None:
        # By family and prefix length: the network's leading bits, and the index of the rule that is the first to hold it.
        self._levels: dict[int, dict[int, dict[int, int]]] = {4: {}, 6: {}}

    def by(self, network: IPNetwork) -> int | None:
        """The index of the first rule whose network holds this one, negative when only several do together; else None."""
        number, bits = int(network.network_address), network.max_prefixlen
        levels = self._levels[network.version].items()
        holding = (each.get(number >> (bits - length)) for length, each in levels if length <= network.prefixlen)
        found = {index for index in holding if index is not None}
        return min(found - {self._TOGETHER}, default=self._TOGETHER) if found else None

    def add(self, network: IPNetwork, index: int) -> None:
        """From now on the rule `index` decides for this network, which no rule before does."""
        levels, length = self._levels[network.version], network.prefixlen
        key = int(network.network_address) >> (network.max_prefixlen - length)
        levels.setdefault(length, {})[key] = index
        while length and key ^ 1 in levels[length]:  # with its other half it is the whole of a wider network
            length, key = length - 1, key >> 1
            levels.setdefault(length, {})[key] = self._TOGETHER


def _has_host_bits(rule: Rule) -> bool:
    return ip_address(rule.text.partition("/")[0]) != rule.network.network_address
