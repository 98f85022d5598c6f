"""The envelope of one endpoint: who may connect, and which rule said so. Pure."""

from dataclasses import dataclass

from relay.config.snapshot import EndpointRow, compile_rules
from relay.envelope.cidr import Table


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
    def of(cls, row: EndpointRow) -> "Envelope":
        """The envelope that a snapshot's row declares."""
        return cls(Table.from_bytes(row.table) if row.table else compile_rules(row.rules), row.permit_unmatched)

    def decide(self, packed: bytes) -> Verdict:
        """The verdict on a source: its address as 4 or 16 bytes, network order (a v4-mapped one counts as v4)."""
        found = self._table.find(packed)
        return self._unmatched if found is None else Verdict(bool(found & 1), found >> 1)
