"""Who is down, and why, as this machine knows it: what `relay instances`, names and the registry are told."""

from relay.config.snapshot import BY_INSTANCE, EndpointRow, Snapshot, TargetRow
from relay.ledger.layout import Health
from relay.ledger.ledger import Ledger
from relay.targets import health, why
from relay.targets.health import TargetHealth


def reason_of(row: EndpointRow, target: TargetRow | None, found: TargetHealth) -> str:
    """Why a target is down, in words; empty: it is not. `target`: one of several, None: this machine's own."""
    own = row.distribution is None or row.is_own
    one = target or (row.targets[0] if own and row.targets else None)
    path = (one.path if one is not None else "") or row.path_behind
    # Whoever is asked at another port is not to be found at that path.
    return why.text_of(found.why, "" if row.probe is not None and row.probe.port else path)


def own_faults(ledger: Ledger, snapshot: Snapshot, *, telling: bool = False) -> dict[str, str]:
    """The endpoints of this machine, by their name inside their role, whose application is down, with the reason.

    `telling`: less those of which others are not told, because nobody would find out that they are back (`probe: false`).
    """
    faults = {}
    for row in snapshot.endpoints:
        is_own = row.distribution is None or row.is_own
        if not is_own or (telling and row.is_let_be):
            continue
        found = health.of_endpoint(ledger, row)
        if found.health == Health.DOWN:
            faults[row.endpoint] = reason_of(row, None, found)
    return faults


def avoided(ledger: Ledger, snapshot: Snapshot) -> dict[str, str]:
    """The ids of other machines' instances that are down, as an edge's probes or a door's dials found them.

    With each the endpoint that was asked, and the reason.
    """
    faults: dict[str, str] = {}
    for row in snapshot.endpoints:
        for target in row.targets if row.distribution is not None and not row.is_own else ():
            found = health.of_target(ledger, row, target)
            if found.health == Health.DOWN:
                endpoint = row.leads_to.partition("/")[2] or row.endpoint.removesuffix(BY_INSTANCE)
                faults.setdefault(target.instance, f"{endpoint} ({reason_of(row, target, found)})")
    return faults
