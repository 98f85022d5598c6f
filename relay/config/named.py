"""What is no target of this machine, of roles whose instances DNS or a file tells: itself, and what finds no room.

Whoever writes a zone, or such a file, may be mistaken, and must not bring down what others need. Pure.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

from relay.config.model import Service
from relay.config.roster import EDGE, Member, Roster
from relay.config.snapshot import SLOTS_MAX, EndpointRow, Slots, Snapshot, TargetRow

Where = tuple[str, int]
"""An address and a port."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """An instance of the role that no connection through the endpoint of this name is led to, and why."""

    role: str
    endpoint: str
    target: str
    why: str


def targets_here(
    service: Service, roster: Roster, me: Member, rows: Iterable[EndpointRow], before: Slots
) -> list[EndpointRow]:
    """The rows of the machine `me` less those targets in named roles that would lead back to it, or have no room.

    A connection to one of the former would come in again, and again. Of the latter those stay that are in use (`before`).
    """
    there = list(rows)
    if not service.named:
        return there
    own = _own(roster, me, there)
    there = [
        replace(row, targets=tuple(each for each in row.targets if not _leads_back(each, own)))
        if _role_of(service, row)
        else row
        for row in there
    ]
    return _fitting(service, there, before)


def left_out(service: Service, snapshot: Snapshot) -> Iterator[LeftOut]:
    """The instances of named roles that a machine knows of, and leads nobody to. Of its own snapshot."""
    me = snapshot.roster.get(snapshot.instance)
    assert me is not None, "a machine is always in its own roster"
    own = _own(snapshot.roster, me, snapshot.endpoints) if service.named else frozenset()
    for row in snapshot.endpoints:
        if not (role := _role_of(service, row)):
            continue
        there = {target.instance for target in row.targets}
        port = service.roles[role].endpoints[row.endpoint_there.split("/", 1)[1]].listen_ports.first
        for member in snapshot.roster.of(role):
            if member.id not in there:
                where = member.address, member.port or port
                why = "that is this machine itself" if where in own else f"a machine has {SLOTS_MAX} targets at most"
                yield LeftOut(role, row.name, f"{member.id} at {where[0]} port {where[1]}", why)


def _role_of(service: Service, row: EndpointRow) -> str:
    """The named role whose instances the row leads to; empty: it leads to none."""
    role = row.endpoint_there.split("/", 1)[0]
    leads = row.distribution is not None and (row.type == "door" or row.direct)
    return role if leads and role in service.roles and service.roles[role].named else ""


def _own(roster: Roster, me: Member, rows: Iterable[EndpointRow]) -> frozenset[Where]:
    """Where this machine listens; an edge also where the other ones do, which would send it back."""
    edges = [member.address for member in roster.of(EDGE)] if me.role == EDGE else []
    return frozenset(
        (host, port)
        for row in rows
        for host in _hosts(row, me, edges)
        for port in range(row.listen_port, row.listen_port + row.port_count)
    )


def _hosts(row: EndpointRow, me: Member, edges: list[str]) -> Iterator[str]:
    yield row.listen_host
    if row.type != "door":
        yield me.address
        yield from edges
    if ip_address(row.listen_host).is_unspecified:
        yield from ("127.0.0.1", "::1")


def _leads_back(target: TargetRow, own: frozenset[Where]) -> bool:
    return bool(target.instance) and (target.host, target.port) in own


def _fitting(service: Service, rows: list[EndpointRow], before: Slots) -> list[EndpointRow]:
    """The rows less so many targets of named roles that each of all others has a row of counters; the newest first."""
    names = [(row.name, target.text) for row in rows if row.distribution is not None for target in row.targets]
    excess = len(names) - SLOTS_MAX
    if excess <= 0:
        return rows
    named = {row.name for row in rows if _role_of(service, row)}
    spare = [name for name in reversed(names) if name[0] in named]
    dropped = set(sorted(spare, key=lambda name: name in before.targets)[:excess])
    return [
        replace(row, targets=tuple(each for each in row.targets if (row.name, each.text) not in dropped))
        for row in rows
    ]
