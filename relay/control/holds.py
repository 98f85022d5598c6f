"""Holding an endpoint's new connections by hand, for a planned restart: `relay hold` and `relay release`.

It stands in the ledger, where every worker sees it, now and after its death.
"""

import time

from relay.config.snapshot import BY_INSTANCE, EndpointRow, Snapshot
from relay.control import done
from relay.control.in_force import InForce
from relay.errors import OperatorError
from relay.ledger.layout import Count
from relay.ledger.ledger import Ledger
from relay.log import Logger


def hold(ledger: Ledger, in_force: InForce, log: Logger, name: str, for_s: float) -> done.Hold:
    """Have new connections of the endpoint, or the door out, wait for so long; 0: no more. Raises OperatorError."""
    rows = _rows(in_force.snapshot, name)
    until_ns = time.monotonic_ns() + int(for_s * 1e9) if for_s else 0
    for row in rows:
        ledger.words[_place(ledger, row)] = until_ns
    log.event("info", "hold" if for_s else "release", endpoint=name, for_s=for_s)
    return {"endpoint": name, "hold_for_s": for_s, "held": sum(ledger.total(row.slot, Count.HELD) for row in rows)}


def hold_for_s(ledger: Ledger, row: EndpointRow) -> float:
    """For how long new connections of the endpoint still wait; 0: they do not."""
    left_ns = ledger.words[_place(ledger, row)] - time.monotonic_ns()
    return round(max(0, left_ns) / 1e9, 3)


def _place(ledger: Ledger, row: EndpointRow) -> int:
    return ledger.worker(0).counts_at(row.slot) + Count.HOLD_UNTIL_NS


def _rows(snapshot: Snapshot, name: str) -> list[EndpointRow]:
    found = [row for row in snapshot.endpoints if row.name in (name, name + BY_INSTANCE)]
    if not found:
        here = ", ".join(row.name for row in snapshot.endpoints) or "none"
        raise OperatorError(f"no endpoint `{name}` on {snapshot.instance}, which has {here}")
    return found
