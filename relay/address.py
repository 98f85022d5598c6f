"""A host's address with a port, and its one text: `host:port`, or `[host]:port` of IPv6. Pure.

Text is put together and taken apart here and nowhere else.
"""

from ipaddress import IPv6Address
from typing import Final, NamedTuple, Self

_IPV4_BYTES: Final = 4
_MAPPED: Final = bytes(10) + b"\xff\xff"  # ::ffff:0:0/96, RFC 4291 section 2.5.5.2
_COMPATIBLE: Final = bytes(12)  # ::/96, RFC 4291 section 2.5.5.1


class Address(NamedTuple):
    """One end of a connection. `host` is an IP address as accept(2) gives it; `str()` is the text of both."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The address of such a text. Raises ValueError when there is no port in it."""
        host, _, port = text.rpartition(":")
        return cls(host.strip("[]"), int(port))

    def __str__(self) -> str:
        return join_host_port(self.host, self.port)

    @property
    def packed(self) -> bytes:
        """The host's address: see `packed_host`."""
        return packed_host(self.host)


def join_host_port(host: str, port: int) -> str:
    """`host:port`, with the brackets that an IPv6 address needs."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def packed_host(host: str) -> bytes:
    """An address as accept(2) gives it, as 4 or 16 bytes: an IPv4-mapped one is IPv4, and a link-local one has no zone.

    Raises ValueError for anything else.
    """
    if ":" in host:
        return unmap(IPv6Address(host.partition("%")[0]).packed)
    one, two, three, four = host.split(".")
    return bytes((int(one), int(two), int(three), int(four)))


def network_of(packed: bytes, ipv4_bits: int, ipv6_bits: int) -> bytes:
    """The first address of the network with so many leading bits that a packed address (see `packed_host`) is in."""
    dropped = len(packed) * 8 - (ipv4_bits if len(packed) == _IPV4_BYTES else ipv6_bits)
    return (int.from_bytes(packed, "big") >> dropped << dropped).to_bytes(len(packed), "big") if dropped else packed


def unmap(packed: bytes) -> bytes:
    """The IPv4 address (4 bytes) inside an IPv4-mapped IPv6 address; any other address as it is."""
    return packed[12:] if len(packed) == 16 and packed.startswith(_MAPPED) else packed


def map_host(packed: bytes) -> bytes:
    """An address of 4 or 16 bytes as 16: IPv4 inside IPv6, which `unmap` takes out again."""
    return _MAPPED + packed if len(packed) == 4 else packed


def host_text(packed: bytes) -> str:
    """An address of 4 or 16 bytes as accept(2) would give it; an IPv4-mapped one as IPv4."""
    packed = unmap(packed)
    if len(packed) == _IPV4_BYTES:
        return f"{packed[0]}.{packed[1]}.{packed[2]}.{packed[3]}"
    if packed.startswith(_COMPATIBLE) and packed[12:14] != b"\0\0":  # inet_ntop(3) writes their tail with dots
        return f"::{packed[12]}.{packed[13]}.{packed[14]}.{packed[15]}"
    return str(IPv6Address(packed))
