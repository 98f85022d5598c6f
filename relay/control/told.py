"""Whom the ledger, the registry and the roster together name as told that this instance wants no connections."""

from relay.control.in_force import InForce
from relay.control.looking import untold_s
from relay.control.senders import ToldStatus, senders, told_by_line
from relay.ledger.layout import State
from relay.ledger.ledger import Ledger


def who_is_told(ledger: Ledger, in_force: InForce, registry: bool | None) -> ToldStatus:
    """Who could send connections here, and whether each knows. `registry`: as `senders` takes it."""
    service, snapshot = in_force.service, in_force.snapshot
    lines = told_by_line(ledger.flows(State.LINE))
    return {
        "senders": senders(service, snapshot.roster, snapshot.instance, lines, registry),
        "untold_s": round(untold_s(service, snapshot.roster, snapshot), 3),
    }
