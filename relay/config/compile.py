"""Compile service + settings + roster + identity into a snapshot.

Nothing here looks anything up: what comes out was decided in the file and by the roster.
"""

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import blake2b
from typing import Final, Literal, TypeVar

from relay.address import join_host_port
from relay.config.admission import drop_filter, envelope_rules
from relay.config.endpoint import Endpoint, Timeouts
from relay.config.fields import PerSource
from relay.config.model import Door, Role, Service
from relay.config.named import targets_here
from relay.config.probe import Probe
from relay.config.roster import EDGE, Member, Roster
from relay.config.settings import Settings
from relay.config.snapshot import (
    BY_INSTANCE,
    NO_SLOTS,
    RELAY,
    SLOTS_MAX,
    EndpointRow,
    ProbeRow,
    Slots,
    Snapshot,
    TargetRow,
)
from relay.config.values import Target
from relay.envelope.rules import RuleRow, compile_rules
from relay.errors import ConfigError, Problem, RelayBug, WrongValue

# The targets of a door out at the most; 32 random ones of any number of instances spread the load of a role well enough.
_DOOR_TARGETS_MAX = 32
DEFAULT_PROBE = ProbeRow("", Probe().interval_s, Probe().timeout_s)
"""Of an endpoint that declares none."""

_TLS: Final[dict[object, Literal["auto", "off", "on", "verify"]]] = {
    None: "auto",
    False: "off",
    True: "on",
    "verify": "verify",
}
_ADDRESS: Final = PerSource(limit=1)  # each address is a source, where nothing else is declared

_Name = TypeVar("_Name", str, tuple[str, str])  # an endpoint's, or an endpoint's with a target's


def compile_snapshot(
    service: Service,
    settings: Settings,
    instance: str,
    *,
    generation: int,
    file: str,
    slots: Slots = NO_SLOTS,
    roster: Roster | None = None,
) -> Snapshot:
    """The snapshot of `instance` (such as `web_IN_0`, which must be in the roster).

    `roster` is by default what the service file lists. `slots` are those of the snapshot before: an endpoint that stays
    keeps its counters. `file` names the service file in rules' sources. Raises ConfigError when there are more endpoints than
    rows of counters.
    """
    roster = Roster.of_service(service) if roster is None else roster
    me = roster.get(instance)
    if me is None:
        raise RelayBug(f"{instance} is not in the roster")
    host = str(settings.address) if settings.address is not None else me.address
    if me.role == EDGE:
        rows = _edge_rows(service, roster, host, me.address, file)
    else:
        role = service.roles[me.role]
        rows = [
            _endpoint(service, roster, f"{me.role}/{name}", endpoint, host, file)
            for name, endpoint in role.endpoints.items()
        ]
        rows += [_door(service, roster, name, door, me) for name, door in role.uses.items()]
        if service.relay_port is not None:
            rows.append(_relay(service, roster, me.role, host, service.relay_port))
    return Snapshot(
        generation=generation,
        service=service.service,
        instance=instance,
        endpoints=_with_slots(targets_here(service, roster, me, rows, slots), slots, file),
        drain_s=settings.drain_s,
        log_level=settings.log.level,
        roster=roster,
    )


def _edge_rows(service: Service, roster: Roster, host: str, address: str, file: str) -> list[EndpointRow]:
    """What an edge listens on: the public port of every input endpoint, and one port more for each instance."""
    rows = []
    for role_name, role in service.roles.items():
        for name, endpoint in role.endpoints.items():
            # A role that may have instances has its public ports open, or whoever comes first would find them closed.
            if endpoint.type != "input" or not role.count:
                continue
            row = _endpoint(service, roster, f"{role_name}/{name}", endpoint, host, file, dropping=True)
            row = replace(
                row if role.bare else _before_relays(row, endpoint, address),
                targets=tuple(_instances(service, role, roster.of(role_name), endpoint)),
                edges=(),
                direct=role.bare,
                slow_start_s=endpoint.slow_start_s,
                lifetime_s=endpoint.timeouts.lifetime_s,
            )
            if endpoint.public_port is not None:
                port, distribution = endpoint.public_port, endpoint.distribution
                rows.append(replace(row, listen_port=port, port_count=1, distribution=distribution))
            if endpoint.instance_ports is not None:
                name, port = f"{row.name}{BY_INSTANCE}", endpoint.instance_ports.first
                # One port for each number, whoever of them is there.
                row = replace(row, name=name, listen_port=port, port_count=role.count)
                rows.append(replace(row, distribution="instance"))
    return rows


def _before_relays(row: EndpointRow, endpoint: Endpoint, address: str) -> EndpointRow:
    """An endpoint's row on an edge at this address whose instances have a relay: what that one does is left to it."""
    return replace(
        row,
        send_proxy="v2",
        transparent=False,
        dial_from=address,
        # Limits are an instance's own, and it counts by the client's address.
        connections=None,
        per_source=None,
        per_source_ipv4_bits=_ADDRESS.ipv4,
        per_source_ipv6_bits=_ADDRESS.ipv6,
        rate_per_s=None,
        held_max=endpoint.limits.connections,  # but who waits here is counted nowhere else
        probe=_probe_before_relays(endpoint),
        path_behind=next((target.path for target in endpoint.targets), ""),
    )


def _instances(service: Service, role: Role, members: Iterable[Member], endpoint: Endpoint) -> Iterable[TargetRow]:
    relay_port = 0 if role.bare else service.relay_port or 0
    for member in members:
        port = member.port or endpoint.listen_ports.first
        yield TargetRow(
            join_host_port(member.address, port),
            host=member.address,
            port=port,
            instance=member.id,
            relay_port=relay_port,
            weight=member.weight,
            backup=member.backup,
            # Of a record, a file, or several: whose certificate is not known.
            name="" if " " in member.name else member.name,
        )


def _relay(service: Service, roster: Roster, role: str, host: str, port: int) -> EndpointRow:
    """Where the relays of the service's other machines talk to this one, each for its endpoints or its doors."""
    members = (member for member in roster if member.role == EDGE or not service.roles[member.role].bare)
    rules = tuple(RuleRow(True, str(ipaddress.ip_network(member.address)), member.id) for member in members)
    return _machines_row(f"{role}/{RELAY}", "relay", host, port, rules, Timeouts())


def _machines_row(
    name: str, kind: Literal["relay", "door"], host: str, port: int, rules: tuple[RuleRow, ...], waits: Timeouts
) -> EndpointRow:
    """A port for these machines alone, which no endpoint's keys are about: no limits, and no idle time."""
    return EndpointRow(
        name=name,
        slot=-1,
        type=kind,
        protocol="tcp",
        listen_host=host,
        listen_port=port,
        port_count=1,
        targets=(),
        rules=rules,
        permit_unmatched=False,
        denied_reason="roster",
        enforce="strict",
        deny="reset",
        drop_filter="",
        connections=None,
        per_source=None,
        rate_per_s=None,
        connect_s=waits.connect_s,
        first_byte_s=waits.first_byte_s,
        idle_s=None,  # the endpoint's own relay has a limit, and one is enough
        send_proxy=None,
        keepalive_s=waits.keepalive_s,
        dead_s=waits.dead_s,
        table=compile_rules(rules).to_bytes(),
    )


def _door(service: Service, roster: Roster, name: str, door: Door, me: Member) -> EndpointRow:
    """A door out: listens for this machine alone, and leads to the instances of another role's endpoint."""
    role_name, leads_to = door.endpoint
    role, endpoint = service.roles[role_name], service.roles[role_name].endpoints[leads_to]
    # With net.ipv4.conf.*.route_localnet a loopback address is open to the network beside it, as CVE-2020-8558 had it.
    here = ("::1/128" if ":" in door.listen.host else "127.0.0.0/8", str(ipaddress.ip_network(me.address)))
    rules = tuple(RuleRow(True, network, "this machine") for network in here)
    # What the endpoint's own relay looks at, need not be looked at twice. But where that says when its application has taken
    # the connection, a program that has yet to speak would be taken for an instance that does not answer.
    looks = service.relay_port is not None or role.bare
    waits = endpoint.timeouts
    row = replace(
        _machines_row(f"{me.role}/{name}", "door", door.listen.host, door.listen.port, rules, waits),
        protocol=endpoint.protocol if looks else "tcp",
        connect_s=door.connect_s,
        first_byte_s=waits.first_byte_s if looks else door.connect_s,
        distribution="least-connections",
        leads_to=f"{role_name}/{leads_to}",
        hold_s=waits.hold_s,
        held_max=endpoint.limits.connections,
        slow_start_s=endpoint.slow_start_s,
    )
    if role.bare:  # what an endpoint's own relay does for it, nobody does but the door
        return replace(
            row,
            targets=tuple(_instances(service, role, roster.of(role_name), endpoint)),
            direct=True,
            probe=_probe(endpoint),
            send_proxy=endpoint.send_proxy,
            idle_s=waits.idle_s,
            lifetime_s=waits.lifetime_s,
        )
    # Of many instances each machine takes a few of its own, so that all of them together take all: each is a row of counters.
    # An instance knows this machine by its address in the roster, which reaches no address of the other IP version.
    reached = [member for member in roster.of(role_name) if (":" in member.address) is (":" in me.address)]
    members = sorted(reached, key=lambda member: blake2b(f"{me.id} {member.id}".encode()).digest())
    serving = [member for member in members if member.serves(leads_to)]
    # When none wants more, some are better than nobody: what they tell may be old.
    some = sorted((serving or members)[:_DOOR_TARGETS_MAX])
    return replace(row, targets=tuple(_instances(service, role, some, endpoint)), dial_from=me.address)


def _endpoint(
    service: Service, roster: Roster, name: str, endpoint: Endpoint, host: str, file: str, *, dropping: bool = False
) -> EndpointRow:
    rules, unmatched = envelope_rules(service, roster, endpoint, file)
    program, deny, per_source = b"", endpoint.deny, endpoint.limits.per_source
    edges = tuple(map(str, service.edge.instances)) if service.edge is not None and endpoint.type == "input" else ()
    # Behind an edge the packets are the edge's own, and it drops.
    if endpoint.deny == "drop" and endpoint.enforce == "strict" and (dropping or not edges):
        try:
            program = drop_filter(rules, unmatched, 6 if ":" in host else 4, len(endpoint.listen_ports))
        except WrongValue as error:
            if endpoint.type != "internal":
                where = f"roles.{name.replace('/', '.endpoints.', 1)}.deny"
                raise ConfigError([Problem(file, 0, 0, where, error.what, error.remedy)]) from None
            deny = "reset"  # a roster grows, and must come into force
    return EndpointRow(
        name=name,
        slot=-1,
        type=endpoint.type,
        protocol=endpoint.protocol,
        listen_host=host,
        listen_port=endpoint.listen_ports.first,
        port_count=len(endpoint.listen_ports),
        targets=tuple(each for target in endpoint.targets for each in _targets(target)),
        rules=rules,
        permit_unmatched=unmatched,
        denied_reason="roster" if endpoint.type == "internal" else "access",
        enforce=endpoint.enforce,
        deny=deny,
        drop_filter=program.hex(),
        connections=endpoint.limits.connections,
        per_source=None if per_source is None else per_source.limit,
        per_source_ipv4_bits=(per_source or _ADDRESS).ipv4,
        per_source_ipv6_bits=(per_source or _ADDRESS).ipv6,
        rate_per_s=endpoint.limits.rate_per_s,
        connect_s=endpoint.timeouts.connect_s,
        first_byte_s=endpoint.timeouts.first_byte_s,
        idle_s=endpoint.timeouts.idle_s,
        send_proxy=endpoint.send_proxy,
        transparent=endpoint.transparent,
        many_sources=endpoint.source_addresses == "auto",
        edges=edges,
        distribution=(endpoint.target_distribution or "least-connections") if len(endpoint.targets) > 1 else None,
        probe=_probe(endpoint),
        keepalive_s=endpoint.timeouts.keepalive_s,
        dead_s=endpoint.timeouts.dead_s,
        hold_s=endpoint.timeouts.hold_s,
        direct=len(endpoint.targets) > 1,
        slow_start_s=endpoint.slow_start_s if len(endpoint.targets) > 1 else None,
        lifetime_s=None if edges else endpoint.timeouts.lifetime_s,  # the edge cuts, where the client comes in
        table=compile_rules(rules).to_bytes(),
    )


def _probe(endpoint: Endpoint) -> ProbeRow | None:
    probe = endpoint.probe
    if probe is None:
        return None
    if probe is False:
        return replace(DEFAULT_PROBE, kind="never")
    return _asking(probe)


def _probe_before_relays(endpoint: Endpoint) -> ProbeRow:
    """On an edge. Where it does not ask the application, it still asks its relay: whether that sends on."""
    if not endpoint.probe:
        return replace(DEFAULT_PROBE, kind="relay")
    probe = _asking(endpoint.probe)
    # Whose word is what comes of all answers that it counts: to count again would take as long again. See judge.py of `fall`.
    return replace(probe, kind="relay", rise=1) if endpoint.probe.of_own_machine else probe


def _asking(probe: Probe) -> ProbeRow:
    return ProbeRow(
        probe.path or "",
        probe.interval_s,
        probe.timeout_s,
        port=probe.port or 0,
        send=probe.send or "",
        expect=probe.expect if isinstance(probe.expect, str) else "",
        statuses=probe.expect if isinstance(probe.expect, tuple) else (),
        tls=_TLS[probe.tls],
        rise=probe.rise,
        fall=probe.fall,
        on_down=probe.on_down,
    )


def _targets(target: Target) -> Iterable[TargetRow]:
    """As rows: two for `localhost`, which is loopback in both families; a service may listen on either one (RFC 6761 6.3)."""
    if target.kind == "unix":
        yield TargetRow(str(target), path=target.path, weight=target.weight, backup=target.backup)
        return
    for host in target.addresses:
        text = str(replace(target, host=host))
        row = TargetRow(text, host=host, port=target.port, port_count=target.port_count)
        yield replace(row, weight=target.weight, backup=target.backup)


def _with_slots(rows: list[EndpointRow], before: Slots, file: str) -> tuple[EndpointRow, ...]:
    """The rows with their places in the ledger: an endpoint that stays, and each of its targets, keep theirs."""
    slots = _assign_slots([row.name for row in rows], before.endpoints, file)
    names = [(row.name, target.text) for row in rows if row.distribution is not None for target in row.targets]
    target_slots = _assign_slots(names, before.targets, file)
    return tuple(
        replace(
            row,
            slot=slots[row.name],
            targets=tuple(
                replace(target, slot=target_slots[row.name, target.text]) if row.distribution is not None else target
                for target in row.targets
            ),
        )
        for row in rows
    )


def _assign_slots(names: list[_Name], before: Mapping[_Name, int], file: str) -> dict[_Name, int]:
    kept = {name: before[name] for name in names if name in before}
    # A slot is not handed on at once: flows of an endpoint that is gone still count in it.
    taken = set(before.values()) | set(kept.values())
    free = [slot for slot in range(SLOTS_MAX) if slot not in taken]
    free += [slot for name, slot in before.items() if name not in kept]
    fresh = [name for name in names if name not in kept]
    if len(fresh) > len(free):
        what = f"it declares {len(names)} endpoints or their targets; one machine can have {SLOTS_MAX} of each"
        raise ConfigError([Problem(file, 0, 0, "roles", what, "split the service")])
    return kept | dict(zip(fresh, free, strict=False))
