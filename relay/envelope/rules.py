"""The envelope of one endpoint: who may connect, and which rule said so. Pure."""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from relay.envelope.cidr import Table


@dataclass(frozen=True, slots=True)
class RuleRow:
    """One rule of an envelope, in the order of writing. `origin` says where it is written, or whose address it is."""

    permit: bool
    network: str
    origin: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """May this source connect; `rule` is the index of the rule that decided, None when no rule matched."""

    permit: bool
    rule: int | None


class Envelope:
    """An endpoint's rules, compiled. The first rule in the order of writing that matches decides."""

    def __init__(self, table: Table, permit_unmatched: bool) -> None:
        """`table` is one of `compile_rules`."""
        self._table = table
        self._unmatched = Verdict(permit_unmatched, None)

    @classmethod
    def of(cls, table: bytes, rules: Iterable[RuleRow], *, permit_unmatched: bool) -> Self:
        """The envelope of these rules. `table` is what `compile_rules` made of them; empty: it is made now."""
        return cls(Table.from_bytes(table) if table else compile_rules(rules), permit_unmatched)

    def decide(self, packed: bytes) -> Verdict:
        """The verdict on a source: its address as 4 or 16 bytes, network order (a v4-mapped one counts as v4)."""
        found = self._table.find(packed)
        return self._unmatched if found is None else Verdict(bool(found & 1), found >> 1)


def compile_rules(rules: Iterable[RuleRow]) -> Table:
    """The table of an endpoint's rules: an address leads to twice the index of the rule that decides, plus 1 for a permit."""
    networks = ((ipaddress.ip_network(rule.network), 2 * n + rule.permit) for n, rule in enumerate(rules))
    return Table.build((network.network_address.packed, network.prefixlen, value) for network, value in networks)
