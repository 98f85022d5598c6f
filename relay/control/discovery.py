"""What the discovery API tells: who is in the service, where, and what each of them has. Pure: plain data from plain data."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from typing import Final

from relay.address import join_host_port
from relay.config import values
from relay.config.endpoint import Endpoint
from relay.config.model import Role, Service
from relay.config.roster import EDGE, Member, Roster
from relay.config.settings import Metrics
from relay.config.snapshot import BY_INSTANCE
from relay.config.values import HostPort, Ports
from relay.config.wording import nearest
from relay.control import answers
from relay.errors import UnknownError

_NAMED_MAX: Final = 20  # names in a message; more of them nobody reads


@dataclass(frozen=True, slots=True)
class Fleet:
    """All that the answers are made of: the service, who is there, and what this machine knows beside that."""

    service: Service
    roster: Roster
    instance: str  # this machine's id
    metrics: HostPort | None = None  # where this machine's own metrics are
    avoided: Mapping[str, str] = field(default_factory=dict)  # ids of those that are down for this machine, and why


def identity(fleet: Fleet) -> answers.Identity:
    """Which instance this machine is."""
    me = _me(fleet)
    return {
        "service": fleet.service.service,
        "instance": me.id,
        "role": me.role,
        "ordinal": me.ordinal,
        "address": me.address,
    }


# --- roles and instances ------------------------------------------------------------------------------------------------


def roles(fleet: Fleet) -> list[answers.RoleAnswer]:
    """Every role in the file's order, then the edge where there is one."""
    found: list[answers.RoleAnswer] = [
        {
            "name": name,
            "kind": "counted" if role.counted else "named" if role.named else "listed",
            "bare": role.bare,
            "count": role.count,
            "instances": [member.id for member in fleet.roster.of(name)],
            "endpoints": list(role.endpoints),
            "uses": {
                use: {"endpoint": "/".join(door.endpoint), "listen": str(door.listen)}
                for use, door in role.uses.items()
            },
        }
        for name, role in fleet.service.roles.items()
    ]
    if fleet.service.edge is not None:
        there = [member.id for member in fleet.roster.of(EDGE)]
        count = len(fleet.service.edge.instances)
        found.append(
            {
                "name": EDGE,
                "kind": "listed",
                "bare": False,
                "count": count,
                "instances": there,
                "endpoints": [],
                "uses": {},
            }
        )
    return found


def instances(fleet: Fleet, role: str | None = None, *, healthy: bool = False) -> list[answers.InstanceAnswer]:
    """The instances, of one role or of all; only the healthy ones if so asked. Raises UnknownError for no role of it."""
    members = fleet.roster if role is None else fleet.roster.of(_known_role(fleet, role, edge=True))
    return [instance_view(fleet, member) for member in members if not healthy or is_healthy(fleet, member)]


def instance(fleet: Fleet, name: str) -> answers.InstanceAnswer:
    """The instance with this id. Raises UnknownError."""
    member = fleet.roster.get(name)
    if member is None:
        there = [each.id for each in fleet.roster]
        raise UnknownError(f"no instance `{name}` in service {fleet.service.service}; {_advice(name, there)}")
    return instance_view(fleet, member)


def instance_view(fleet: Fleet, member: Member) -> answers.InstanceAnswer:
    """One instance as the API tells it."""
    return {
        "id": member.id,
        "role": member.role,
        "ordinal": member.ordinal,
        "address": member.address,
        "name": member.name,
        "metrics": metrics_of(fleet, member),
        "healthy": is_healthy(fleet, member),
        "busy": member.busy,
        "down": list(member.down),
        "reasons": _reasons(fleet, member),
        "self": member.id == fleet.instance,
        "endpoints": list(_edge_endpoints(fleet, member) if member.role == EDGE else _endpoints(fleet, member)),
    }


def _reasons(fleet: Fleet, member: Member) -> dict[str, str]:
    """Why it is not healthy: by endpoint what it tells of itself, and under its id what this machine found."""
    told = {name: reason for name, reason in member.faults.items() if reason}
    return told | ({member.id: fleet.avoided[member.id]} if fleet.avoided.get(member.id) else {})


def is_healthy(fleet: Fleet, member: Member) -> bool:
    """Whether nobody says otherwise: neither the instance itself (busy, an endpoint down) nor who dialled it from here."""
    role = fleet.service.roles.get(member.role)
    down = role is not None and any(name in role.endpoints for name in member.down)
    return not member.busy and not down and member.id not in fleet.avoided


def unhealthy(fleet: Fleet) -> frozenset[str]:
    """The ids of those that are not healthy."""
    return frozenset(member.id for member in fleet.roster if not is_healthy(fleet, member))


def _endpoints(fleet: Fleet, member: Member) -> Iterator[answers.EndpointOfInstance]:
    for name, endpoint in fleet.service.roles[member.role].endpoints.items():
        healthy = member.serves(name) and member.id not in fleet.avoided
        ports = Ports(member.port, member.port) if member.port else endpoint.listen_ports
        yield _port(f"{member.role}/{name}", endpoint, member.address, ports, healthy)


def _edge_endpoints(fleet: Fleet, member: Member) -> Iterator[answers.EndpointOfInstance]:
    healthy = is_healthy(fleet, member)
    for role_name, role in fleet.service.roles.items():
        for name, endpoint in role.endpoints.items():
            if endpoint.public_port is not None and role.count:
                ports = Ports(endpoint.public_port, endpoint.public_port)
                yield _port(f"{role_name}/{name}", endpoint, member.address, ports, healthy)
            if (ports_each := _instance_ports(role, endpoint)) is not None:
                yield _port(f"{role_name}/{name}{BY_INSTANCE}", endpoint, member.address, ports_each, healthy)


def _port(name: str, endpoint: Endpoint, address: str, ports: Ports, healthy: bool) -> answers.EndpointOfInstance:
    return {
        "name": name,
        "type": endpoint.type,
        "protocol": endpoint.protocol,
        "address": join_host_port(address, ports.first),
        "ports": _range(ports),
        "healthy": healthy,
    }


def _instance_ports(role: Role, endpoint: Endpoint) -> Ports | None:
    """Those that an edge has open: one for each number that an instance may have."""
    if endpoint.instance_ports is None or not role.count:
        return None
    first = endpoint.instance_ports.first
    return Ports(first, first + role.count - 1)


# --- endpoints ----------------------------------------------------------------------------------------------------------


def endpoints(fleet: Fleet, role: str | None = None) -> list[answers.EndpointAnswer]:
    """The declared endpoints with who has them, of one role or of all. Raises UnknownError for no role of the service."""
    names = fleet.service.roles if role is None else (_known_role(fleet, role),)
    return [
        _endpoint_view(fleet, name, fleet.service.roles[name], endpoint_name, endpoint)
        for name in names
        for endpoint_name, endpoint in fleet.service.roles[name].endpoints.items()
    ]


def _endpoint_view(fleet: Fleet, role_name: str, role: Role, name: str, endpoint: Endpoint) -> answers.EndpointAnswer:
    internal = endpoint.type == "internal"
    return {
        "name": f"{role_name}/{name}",
        "role": role_name,
        "endpoint": name,
        "type": endpoint.type,
        "protocol": endpoint.protocol,
        "ports": _range(endpoint.listen_ports),
        "public_port": endpoint.public_port,
        "instance_ports": None if endpoint.instance_ports is None else _range(endpoint.instance_ports),
        "from": list(fleet.service.roles if endpoint.from_roles is None else endpoint.from_roles) if internal else None,
        "instances": [
            {
                "instance": member.id,
                "address": join_host_port(member.address, member.port or endpoint.listen_ports.first),
                "healthy": member.serves(name) and member.id not in fleet.avoided,
            }
            for member in fleet.roster.of(role_name)
        ],
        "edges": [] if internal or not role.count else list(_edges(fleet, role_name, role, endpoint)),
    }


def _edges(fleet: Fleet, role_name: str, role: Role, endpoint: Endpoint) -> Iterator[answers.EdgeOfEndpoint]:
    ports = _instance_ports(role, endpoint)
    public = endpoint.public_port
    for edge in fleet.roster.of(EDGE):
        yield {
            "instance": edge.id,
            "address": None if public is None else join_host_port(edge.address, public),
            "instances": [
                {"instance": member.id, "address": join_host_port(edge.address, ports.first + member.ordinal)}
                for member in fleet.roster.of(role_name)
                if ports is not None
            ],
            "healthy": is_healthy(fleet, edge),
        }


def _range(ports: Ports) -> answers.PortRange:
    return {"first": ports.first, "last": ports.last}


# --- metrics ------------------------------------------------------------------------------------------------------------


def prometheus(fleet: Fleet) -> list[answers.TargetGroup]:
    """Whom to scrape, as https://prometheus.io/docs/prometheus/latest/http_sd/ has it; the sick ones as well.

    No label is called `role`: the metrics have one of their own.
    """
    return [
        {
            "targets": [where],
            "labels": {
                "instance": member.id,
                "service": fleet.service.service,
                "__meta_relay_role": member.role,
                "__meta_relay_ordinal": str(member.ordinal),
            },
        }
        for member in fleet.roster
        if (where := metrics_of(fleet, member)) is not None
    ]


def metrics_of(fleet: Fleet, member: Member) -> str | None:
    """Where this machine can scrape that one's metrics, `host:port`; None: it does not know of any such place.

    Its own are where its settings say. Another's are where the registry says or, where that is a loopback address or
    nobody says, at the internal endpoint that leads to them: metrics leave a machine as everything does.
    """
    mine = member.id == fleet.instance
    told = fleet.metrics if mine else _host_port(member.metrics)
    if told is None:
        # Not told: as on this machine, or as by default.
        return None if mine else _by_endpoint(fleet, member, fleet.metrics or Metrics().listen)
    host = ip_address(told.addresses[0])
    if host.is_unspecified:
        return join_host_port(member.address, told.port)
    return str(told) if mine or not host.is_loopback else _by_endpoint(fleet, member, told)


def _by_endpoint(fleet: Fleet, member: Member, inside: HostPort) -> str | None:
    role = fleet.service.roles.get(member.role)
    for endpoint in role.endpoints.values() if role is not None else ():
        targets = [target for target in endpoint.targets if set(target.addresses) & set(inside.addresses)]
        if endpoint.type != "internal" or len(endpoint.targets) != 1 or not targets:
            continue
        for port in endpoint.listen_ports.numbers:
            if endpoint.target_port(port, targets[0]) == inside.port:
                return join_host_port(member.address, port)
    return None


def _host_port(text: str) -> HostPort | None:
    """What an instance told of itself, if it is an address and a port: a registry is not believed in everything."""
    try:
        return values.host_port(text) if text else None
    except ValueError:
        return None


# --- changes ------------------------------------------------------------------------------------------------------------


def changes(old: Fleet, new: Fleet) -> Iterator[tuple[str, answers.InstanceAnswer]]:
    """Who has `left`, `joined` or `changed` from one state to the next, with the instance (one that left: as it was)."""
    if old == new:  # a comparison of the same objects: most looks find nothing
        return
    before, after = ({member.id: member for member in fleet.roster} for fleet in (old, new))
    for name, member in before.items():
        if name not in after:
            yield "left", instance_view(old, member)
    for name, member in after.items():
        if name not in before:
            yield "joined", instance_view(new, member)
        elif not _same(old, new, before[name], member) and (view := instance_view(new, member)) != instance_view(
            old, before[name]
        ):
            yield "changed", view


def _same(old: Fleet, new: Fleet, before: Member, after: Member) -> bool:
    """Whether nothing that a view is made of has changed; it costs less than the view."""
    return (
        old.service is new.service
        and before == after
        and old.metrics == new.metrics
        and old.avoided.get(before.id) == new.avoided.get(after.id)
    )


# --- names --------------------------------------------------------------------------------------------------------------


def _me(fleet: Fleet) -> Member:
    me = fleet.roster.get(fleet.instance)
    assert me is not None, "a machine is always in its own roster"
    return me


def _known_role(fleet: Fleet, name: str, *, edge: bool = False) -> str:
    known = [*fleet.service.roles, *([EDGE] if edge and fleet.service.edge is not None else [])]
    if name not in known:
        raise UnknownError(f"no role `{name}` in service {fleet.service.service}; {_advice(name, known)}")
    return name


def _advice(name: str, known: Iterable[str]) -> str:
    """What to say after "no such thing": what was most likely meant, or what there is."""
    names = list(known)
    more = f" and {len(names) - _NAMED_MAX} more" if len(names) > _NAMED_MAX else ""
    listed = f"there are {', '.join(names[:_NAMED_MAX])}{more}" if names else "there are none"
    return f"did you mean `{near}`? {listed}" if (near := nearest(name, names)) else listed
