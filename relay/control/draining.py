"""Whom `relay drain` tells, and who has heard it: from the ledger, the service and the roster. Asks nobody."""

from relay.config.compile import DEFAULT_PROBE
from relay.config.model import Service
from relay.config.roster import Roster
from relay.config.snapshot import Snapshot
from relay.control.in_force import InForce
from relay.control.looking import JITTER, RELAYS_PER_S
from relay.control.senders import ToldStatus, senders, told_by_line
from relay.ledger.layout import State
from relay.ledger.ledger import Ledger


def told(ledger: Ledger, in_force: InForce, registry: bool | None) -> ToldStatus:
    """Who could send connections here, and who of them knows that none are wanted. `registry`: see `senders`."""
    service, snapshot = in_force.service, in_force.snapshot
    lines = told_by_line(ledger.flows(State.LINE))
    return {
        "senders": senders(service, snapshot.roster, snapshot.instance, lines, registry),
        "untold_s": round(_untold_s(service, snapshot.roster, snapshot), 3),
    }


def _untold_s(service: Service, roster: Roster, snapshot: Snapshot) -> float:
    """How long (s) it takes an edge's looks at the most to find out by themselves how this machine is."""
    public = [
        (endpoint, len(roster.of(role)) * sum((endpoint.public_port is not None, endpoint.instance_ports is not None)))
        for role, declared in service.roles.items()
        for endpoint in declared.endpoints.values()
        if endpoint.type == "input"
    ]
    # Whose relay alone is asked.
    relays = sum(count for endpoint, count in public if not endpoint.probe or endpoint.probe.of_own_machine)
    own = [row.probe or DEFAULT_PROBE for row in snapshot.endpoints if row.edges] or [DEFAULT_PROBE]
    return max(max(probe.interval_s, relays / RELAYS_PER_S) * (1 + JITTER) + probe.timeout_s for probe in own)
