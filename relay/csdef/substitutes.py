"""Names and addresses that the files do not have in the form that relay takes."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network

from relay.config.values import ENDPOINT_NAME_PATTERN, ROLE_NAME_PATTERN

__all__ = ["endpoint_names", "further_name", "placeholders", "role_names", "service_name"]

_LENGTH_MAX = 63  # of a DNS label (RFC 1035 section 2.3.4), and of every name in service.yaml

# Addresses that no machine has: documentation (RFC 5737, TEST-NET-1), then benchmarks (RFC 2544) for more than it holds.
_NETWORKS = (IPv4Network("192.0.2.0/24"), IPv4Network("198.18.0.0/15"))


def service_name(name: str) -> str:
    """A DNS label in lower case, made from the name of a service."""
    return _dashed(name.lower())[:_LENGTH_MAX].rstrip("-") or "service"


def role_names(names: Iterable[str], taken: frozenset[str] = frozenset()) -> dict[str, str]:
    """A name for each role: its own where relay takes it, else a similar one that no other role has. None of `taken`."""
    return _named(names, ROLE_NAME_PATTERN, lambda name: _lettered(_dashed(name), "role"), taken)


def endpoint_names(names: Iterable[str]) -> dict[str, str]:
    """As `role_names`, for the endpoints of a role, and for access lists."""
    return _named(names, ENDPOINT_NAME_PATTERN, lambda name: _lettered(re.sub(r"[^A-Za-z0-9._-]+", "-", name), "e"))


def further_name(name: str, taken: set[str], numbers: Counter[str]) -> str:
    """The name, or with the first number from 2 on that makes it one that is not in `taken`; there it is put.

    `numbers` has the last number of each name, so that many are not looked for from the beginning.
    """
    found = _unique(name, taken, numbers)
    taken.add(found)
    return found


def placeholders() -> Iterator[str]:
    """Addresses for instances, each given once. 131,324 of them."""
    for network in _NETWORKS:
        for number in range(1, network.num_addresses - 1):
            yield str(IPv4Address(int(network.network_address) + number))


def _dashed(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")


def _lettered(name: str, prefix: str) -> str:
    return name if re.match("[A-Za-z]", name) else f"{prefix}-{name}".rstrip("-")


def _named(
    names: Iterable[str], pattern: str, made: Callable[[str], str], not_these: frozenset[str] = frozenset()
) -> dict[str, str]:
    every = list(dict.fromkeys(names))
    right = (name for name in every if re.fullmatch(pattern, name))
    found = {name: name for name in right if name not in not_these}  # a name that is right stays
    taken = {*found, *not_these}
    numbers: Counter[str] = Counter()
    for name in every:
        if name not in found:
            found[name] = further_name(made(name)[:_LENGTH_MAX].rstrip("-"), taken, numbers)
    return found


def _unique(name: str, taken: set[str], numbers: Counter[str]) -> str:
    candidate = name
    while candidate in taken:
        numbers[name] += 1
        suffix = f"-{numbers[name] + 1}"
        candidate = name[: _LENGTH_MAX - len(suffix)].rstrip("-") + suffix
    return candidate
