"""What a name, a service record or a file says of where instances are. Pure: plain data, and what of it can be believed."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from typing import Final

SHARE_MAX: Final = 256
"""Of a weight in the service file, and so of a share here: a service record has 65,535."""

_BROADCAST: Final = "255.255.255.255"


@dataclass(frozen=True, slots=True, order=True)
class Place:
    """Where an instance is. `share` is of its source's weight; `port` 0 is the endpoint's own."""

    version: int  # of IP; first, for the order: IPv4 before IPv6, and then by number and not by text
    number: int
    address: str
    port: int = 0
    share: float = 1.0
    backup: bool = False

    @classmethod
    def of(cls, address: str, port: int = 0, share: float = 1.0, backup: bool = False) -> "Place":
        """At this address. Raises ValueError for a text that is none."""
        found = ip_address(address)
        return cls(found.version, int(found), str(found), port, share, backup)


@dataclass(frozen=True, slots=True)
class SourceAnswer:
    """What a source says now, each place once and in one order; it may be asked again after `ttl_s` seconds.

    `unsure` are the IP versions of which not all could be asked, and `trouble` why. `left_out` are addresses that can be no
    target, each with the reason.
    """

    places: tuple[Place, ...]
    ttl_s: float
    unsure: frozenset[int] = frozenset()
    trouble: str = ""
    left_out: tuple[str, ...] = ()


def usable(text: str, *, by_dns: bool) -> tuple[str, str]:
    """The address as it can be dialled, or "" and why it can be no target. An IPv4-mapped one is the IPv4 address.

    `by_dns`: a server somewhere says so, and no file of this machine. It must not lead into this machine itself (DNS
    rebinding).
    """
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return "", f"{text} is of one interface alone"
        address = address.ipv4_mapped or address
    if address.is_unspecified:
        return "", f"{text} is no machine's"
    if address.is_multicast:
        return "", f"{text} is a multicast address"
    if str(address) == _BROADCAST:
        return "", f"{text} is the broadcast address"
    if by_dns and (address.is_loopback or (address.version == 4 and str(address).startswith("0."))):
        return "", f"{text} is this machine itself, which DNS must not lead to"
    if by_dns and address.is_link_local:
        return "", f"{text} is link-local, which DNS must not lead to"
    return str(address), ""


def in_order(places: Iterable[Place]) -> tuple[Place, ...]:
    """Each address and port once, as it comes first; in an order that does not change when a server's does."""
    once: dict[tuple[str, int], Place] = {}
    for place in places:
        once.setdefault((place.address, place.port), place)
    return tuple(sorted(once.values()))


def shares(weights: Iterable[int]) -> list[int]:
    """Weights of service records (RFC 2782: 0 to 65,535) as shares of 1 to 256, in the same proportions; 0 counts as 1."""
    given = [max(1, weight) for weight in weights]
    most = max(given, default=1)
    return given if most <= SHARE_MAX else [max(1, round(weight * SHARE_MAX / most)) for weight in given]
