"""Networks and the rules they belong to: which rule comes first for an address.

Networks either hold one another or have nothing in common, so an ordered list of them divides all addresses into
intervals, in each of which one rule comes first. Those are found once, when the configuration is compiled, and travel to the
workers as they are: a look-up is a binary search, and taking a table of 20,000 networks over costs a worker no time.
"""

import struct
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from relay.address import unmap

# RFC 4291 section 2.5.5.2. A dual-stack socket reports an IPv4 peer as ::ffff:a.b.c.d.
_MAPPED_BITS: Final = 96
_NONE: Final = -1  # in place of a value: no network holds the interval
_COUNTS: Final = struct.Struct("=II")
_HALVES: Final = struct.Struct("!QQ")


@dataclass(frozen=True, slots=True)
class Intervals:
    """All addresses of one family: from each start up to the next the value is that at the same place. The first start is 0.

    An IPv6 start has its upper 64 bits in `starts` and the others in `lower`: a number that wide is an object for each.
    """

    starts: "array[int]"
    lower: "array[int]"  # empty for IPv4
    values: "array[int]"

    def find(self, address: bytes) -> int:
        """The value at an address of this family."""
        if len(address) == 4:
            return self.values[bisect_right(self.starts, int.from_bytes(address, "big")) - 1]
        upper, lower = _HALVES.unpack(address)
        # Those that share the upper half stand together, in the order of the lower one.
        first, behind = bisect_left(self.starts, upper), bisect_right(self.starts, upper)
        return self.values[bisect_right(self.lower, lower, first, behind) - 1]


@dataclass(frozen=True, slots=True)
class Table:
    """An ordered list of networks, immutable. The first match by order of writing decides, not the longest prefix.

    Make one with `Table.build`.
    """

    v4: Intervals
    v6: Intervals

    @classmethod
    def build(cls, rules: Iterable[tuple[bytes, int, int]]) -> "Table":
        """Build from (packed network of 4 or 16 bytes, prefix length in bits, value); the value is the rule's index.

        Host bits are ignored. A network inside ::ffff:0:0/96 is the IPv4 network it maps; a shorter IPv6 prefix
        holds IPv6 addresses alone. Raises ValueError on an address or prefix length that does not fit its family.
        """
        networks: dict[int, list[tuple[int, int, int]]] = {32: [], 128: []}
        for packed, prefix_len, value in rules:
            bits = _bits(packed)
            if not 0 <= prefix_len <= bits:
                raise ValueError(f"prefix length {prefix_len} is not between 0 and {bits}")
            network = packed
            if prefix_len >= _MAPPED_BITS and (network := unmap(packed)) is not packed:
                bits, prefix_len = 32, prefix_len - _MAPPED_BITS
            size = 1 << (bits - prefix_len)
            first = int.from_bytes(network, "big") & ~(size - 1)
            networks[bits].append((first, -size, value))
        return cls(_divide(networks[32], 32), _divide(networks[128], 128))

    def find(self, packed: bytes) -> int | None:
        """The smallest value among the networks that hold the address (4 or 16 bytes), or None.

        An IPv4-mapped IPv6 address is the IPv4 address. Raises ValueError on another length.
        """
        address = unmap(packed)
        family = self.v4 if _bits(address) == 32 else self.v6
        value = family.find(address)
        return None if value == _NONE else value

    def to_bytes(self) -> bytes:
        """The table as bytes, for `from_bytes` on the same machine."""
        v4, v6 = self.v4, self.v6
        arrays = (v4.starts, v4.values, v6.starts, v6.lower, v6.values)
        return _COUNTS.pack(len(v4.values), len(v6.values)) + b"".join(each.tobytes() for each in arrays)

    @classmethod
    def from_bytes(cls, data: bytes) -> "Table":
        """The table that `to_bytes` wrote."""
        count4, count6 = _COUNTS.unpack_from(data)
        at = _COUNTS.size

        def take(kind: str, count: int) -> "array[int]":
            nonlocal at
            taken: array[int] = array(kind)
            taken.frombytes(data[at : at + count * taken.itemsize])
            at += count * taken.itemsize
            return taken

        v4 = Intervals(take("I", count4), array("Q"), take("i", count4))
        return cls(v4, Intervals(take("Q", count6), take("Q", count6), take("i", count6)))


def _divide(networks: list[tuple[int, int, int]], bits: int) -> Intervals:
    """Networks as (first address, minus their size, value) to intervals. Of equals in place the smallest value is first."""
    networks.sort()
    starts, values = [0], [_NONE]

    def boundary(at: int, value: int) -> None:
        if starts[-1] == at:
            starts.pop()
            values.pop()
        if not values or values[-1] != value:
            starts.append(at)
            values.append(value)

    open_networks: list[
        tuple[int, int]
    ] = []  # (address behind it, value that is first inside), each within the one before

    def leave_until(at: int) -> None:
        while open_networks and open_networks[-1][0] <= at:
            behind, _ = open_networks.pop()
            if behind < 1 << bits:
                boundary(behind, open_networks[-1][1] if open_networks else _NONE)

    for first, minus_size, value in networks:
        leave_until(first)
        around = open_networks[-1][1] if open_networks else value
        inside = min(around, value)
        boundary(first, inside)
        open_networks.append((first - minus_size, inside))
    leave_until(1 << bits)
    if bits == 32:
        return Intervals(array("I", starts), array("Q"), array("i", values))
    halves = [divmod(start, 1 << 64) for start in starts]
    upper, lower = array("Q", [each for each, _ in halves]), array("Q", [each for _, each in halves])
    return Intervals(upper, lower, array("i", values))


def _bits(packed: bytes) -> int:
    if len(packed) not in (4, 16):
        raise ValueError(f"a packed address has 4 or 16 bytes, not {len(packed)}")
    return len(packed) * 8
