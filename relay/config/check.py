"""What no single key can tell: the errors across a whole service. What is only doubtful is in lint.py."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any

from relay.config.admission import drop_filter, envelope_rules
from relay.config.bare import bare_errors
from relay.config.document import Document, KeyPath
from relay.config.endpoint import Endpoint
from relay.config.model import Door, Service
from relay.config.roster import EDGE, Roster, split_instance
from relay.config.settings import Settings
from relay.config.values import HostPort, Ports
from relay.config.wording import nearest, shown
from relay.errors import Problem, WrongValue

__all__ = ["check_pair", "check_service", "endpoints"]

_Port = tuple[KeyPath, int]
"""One port of the endpoint at a place in the file."""


def check_service(service: Service, document: Document) -> list[Problem]:
    """Errors across the keys of `service`, in the order of the file; `document` tells their places.

    What cannot stand beside an edge; an instance address, a role's port or a public port that is used twice; fewer
    instance ports than instances; a `relay_port` that is an endpoint's; a `from` that names no role, an `access` that names
    no list; a target on another machine; targets that lead back into their own listener; more networks than `deny: drop`
    has room for; a door out that leads nowhere, or that its endpoint does not admit, or whose port is taken.
    """
    found = [
        *_addresses(service, document),
        *_edge(service, document),
        *_ports(service, document),
        *_public_ports(service, document),
        *_instance_ports(service, document),
        *_relay_port(service, document),
        *_from(service, document),
        *_access(service, document),
        *_targets(service, document),
        *_loops(service, document),
        *_filters(service, document),
        *_uses(service, document),
        *bare_errors(service, document),
    ]
    return sorted(found)


def check_pair(service: Service, settings: Settings, document: Document) -> Iterator[Problem]:
    """Errors of settings beside the service that they are for; `document` tells their places."""
    roles = service.roles
    role, key = settings.role, "role"
    if settings.id is not None:
        role, key = split_instance(settings.id)[0], "id"
    if role is None or (role == EDGE and service.edge is not None):
        return
    if role not in roles:
        yield document.problem(
            (key,), f"`{role}` is no role of service {service.service}", _meant(role, list(roles), "roles")
        )
    elif roles[role].counted and settings.registry is None:
        what = f"role `{role}` has a count of instances, and no registry says where they are"
        yield document.problem((key,), what, "write `registry`, or list the addresses in the service file")
    elif key == "role" and not roles[role].counted:
        what = f"role `{role}` lists its addresses, so there is no number to take"
        yield document.problem((key,), what, "remove it: this machine is the one whose address is listed")


def endpoints(service: Service) -> Iterator[tuple[str, str, Endpoint, KeyPath]]:
    """Every endpoint of the service: its role, its name, itself, its place."""
    for role_name, role in service.roles.items():
        for name, endpoint in role.endpoints.items():
            yield role_name, name, endpoint, ("roles", role_name, "endpoints", name)


def _port_path(document: Document, path: KeyPath) -> KeyPath:
    """Where an endpoint's private port is written: `port`, or `public_port` that stands for it."""
    written = (*path, "port")
    return written if written in document.values else (*path, "public_port")


def _addresses(service: Service, document: Document) -> Iterator[Problem]:
    """Who has a relay is known by its address. Of roles without any, several may be on one machine."""
    first: dict[tuple[str, str], str] = {}
    for role_name, role in service.roles.items():
        for index, each in enumerate(role.items):
            kind = f"{role_name} {each.kind}" if role.bare else each.kind
            holder = first.setdefault((kind, each.text), instance := f"{role_name}_IN_{index}")
            if holder != instance:
                what = f"{each} is written twice" if role.bare else f"{each} is the address of {holder} already"
                yield document.problem(("roles", role_name, "instances", index), what, "write another address")


def _edge(service: Service, document: Document) -> Iterator[Problem]:
    """What cannot stand beside an edge."""
    if service.edge is None:
        return
    if "edge" in service.roles:
        what = "`edge` is what the edge's own machines are called, `edge_IN_0`"
        yield document.problem(("roles", "edge"), what, "give the role another name")
    holders = {
        address: f"{name}_IN_{n}"
        for name, role in service.roles.items()
        for n, address in enumerate(() if role.bare else role.instances)
    }
    for index, address in enumerate(service.edge.instances):
        holder = holders.setdefault(address, instance := f"edge_IN_{index}")
        if holder != instance:
            what = f"{address} is the address of {holder} already"
            yield document.problem(("edge", "instances", index), what, "write another address")
    for role_name, role in service.roles.items():
        # The edge dials from its own address, which is how the instances know it.
        versions = {address.version for address in role.instances}
        apart = next((each for each in service.edge.instances if versions - {each.version}), None)
        if (
            apart is not None
            and not role.bare
            and any(endpoint.type == "input" for endpoint in role.endpoints.values())
        ):
            what = f"the edge's address {apart} is IPv{apart.version}, and reaches no instance of another version"
            fix = (
                f"write addresses of IPv{apart.version}; an edge may listen on others by `address` in its instance.yaml"
            )
            yield document.problem(("roles", role_name, "instances"), what, fix)
    for _, _, endpoint, path in endpoints(service):
        if endpoint.type == "input" and len(endpoint.listen_ports) > 1:
            what = "the edge leads to one port of an instance, and this is a range"
            yield document.problem((*path, "port"), what, "declare an endpoint for each of its ports")


def _ports(service: Service, document: Document) -> Iterator[Problem]:
    first: dict[tuple[str, int], tuple[str, KeyPath]] = {}
    for role_name, name, endpoint, path in endpoints(service):
        mine = (name, _port_path(document, path))
        holders = [(first.setdefault((role_name, port), mine), port) for port in endpoint.listen_ports.numbers]
        for (holder, written), port in [each for each in holders if each[0] != mine][:1]:
            if not mine[1][-1] == written[-1] == "public_port":  # which is a problem of its own
                what = f"port {port} is a port of `{holder}` (line {document.mark(written)[0]}) already"
                fix = "give each endpoint of a role a `port` of its own"
                if service.roles[role_name].bare:  # whose application is where it is
                    fix = "declare this endpoint in a further bare role that has the same `instances`"
                yield document.problem(mine[1], what, fix)


def _public_ports(service: Service, document: Document) -> Iterator[Problem]:
    first: dict[int, tuple[str, KeyPath]] = {}
    for role_name, name, endpoint, path in endpoints(service):
        single = Ports(endpoint.public_port, endpoint.public_port) if endpoint.public_port else None
        for key, ports in (("public_port", single), ("instance_ports", endpoint.instance_ports)):
            mine = (f"{role_name}/{name}", (*path, key))
            holders = [(first.setdefault(port, mine), port) for port in (ports.numbers if ports else ())]
            for (holder, written), port in [each for each in holders if each[0] != mine][:1]:
                what = f"{port} is a public port of `{holder}` (line {document.mark(written)[0]}) already"
                yield document.problem(mine[1], what, "a public port is unique in the service: write another one")


def _instance_ports(service: Service, document: Document) -> Iterator[Problem]:
    for role_name, _, endpoint, path in endpoints(service):
        needed = service.roles[role_name].count
        counts = not service.roles[role_name].named  # else nobody knows how many there are
        if endpoint.instance_ports and counts and len(endpoint.instance_ports) < needed:
            what = f"{len(endpoint.instance_ports)} ports are too few for the {needed} instances of `{role_name}`"
            first = endpoint.instance_ports.first
            fix = f"write one for each, such as `{Ports(first, first + needed - 1)}`"
            yield document.problem((*path, "instance_ports"), what, fix)


def _relay_port(service: Service, document: Document) -> Iterator[Problem]:
    """Every instance listens there, so it is no endpoint's, and no endpoint leads there."""
    port = service.relay_port
    if port is None:
        return
    for role_name, name, endpoint, path in endpoints(service):
        public = (endpoint.public_port, *(endpoint.instance_ports.numbers if endpoint.instance_ports else ()))
        where = f"`{role_name}/{name}` (line {document.mark(path, key=True)[0]})"
        if service.roles[role_name].bare:
            continue
        here = set(map(str, service.roles[role_name].instances))
        to_relay = any(
            target.port <= port < target.port + target.port_count and here.intersection(target.addresses)
            for target in endpoint.targets
        )
        if port in endpoint.listen_ports.numbers:
            what = f"{port} is a port of {where}"
        elif port in public:
            what = f"{port} is a public port of {where}"
        elif to_relay:
            what = f"{port} is the target of {where}"
        else:
            continue
        yield document.problem(("relay_port",), what, "write a port that nothing else has on any instance")
        return


def _from(service: Service, document: Document) -> Iterator[Problem]:
    # The file's roles, not the model's: a role that has problems of its own is still there to be named.
    known = list(document.data["roles"])
    for _, _, endpoint, path in endpoints(service):
        for index, role_name in enumerate(endpoint.from_roles or ()):
            if role_name not in known:
                what, fix = f"`{role_name}` is no role of this service", _meant(role_name, known, "roles")
                yield document.problem((*path, "from", index), what, fix)


def _access(service: Service, document: Document) -> Iterator[Problem]:
    known = document.data.get("access_lists", {})  # the file's, as above
    if not isinstance(known, dict):
        return  # which is a problem of its own
    for _, _, endpoint, path in endpoints(service):
        if isinstance(endpoint.access, str) and endpoint.access not in known:
            what, fix = (
                f"there is no access list `{endpoint.access}`",
                _meant(endpoint.access, list(known), "access lists"),
            )
            yield document.problem((*path, "access"), what, fix)


def _meant(name: str, known: list[str], kind: str) -> str:
    if near := nearest(name, known):
        return f"did you mean {shown(near)}?"
    if not known:
        return f"write it below `{kind.replace(' ', '_')}` at the top of the file"
    return f"the {kind} are {', '.join(map(shown, known))}"


def _targets(service: Service, document: Document) -> Iterator[Problem]:
    """A target elsewhere is reached by everybody there without relay, whatever the endpoint says."""
    for role_name, _, endpoint, path in endpoints(service):
        here = service.roles[role_name].instances
        for target in endpoint.targets:
            for address in map(ip_address, target.addresses):
                if not endpoint.unsafe_target and not address.is_loopback and address not in here:
                    what = f"`{target}` is on another machine, where relay does not decide who may connect"
                    fix = "write a service of this machine, or `unsafe_target: true` beside it"
                    yield document.problem((*path, "target"), what, fix)


def _uses(service: Service, document: Document) -> Iterator[Problem]:
    """A door out needs a name and a port that nothing else of its role has, and an endpoint that lets its role in."""
    known = {
        name: role.get("endpoints") or {} for name, role in document.data["roles"].items() if isinstance(role, dict)
    }
    for role_name, role in service.roles.items():
        listening: dict[HostPort, str] = {}
        for name, door in role.uses.items():
            path: KeyPath = ("roles", role_name, "uses", name)
            if name in role.endpoints:
                what = f"`{name}` is an endpoint of this role already, and both are called `{role_name}/{name}`"
                yield document.problem(path, what, "give the door another name")
            if (holder := listening.setdefault(door.listen, name)) != name:
                what = f"{door.listen} is where the door `{holder}` listens already"
                yield document.problem((*path, "listen"), what, "write another port")
            for endpoint_name, endpoint in role.endpoints.items():
                if any(
                    door.listen.host in target.addresses
                    and target.port <= door.listen.port < target.port + target.port_count
                    for target in endpoint.targets
                ):
                    what = f"{door.listen} is the target of this role's endpoint `{endpoint_name}`"
                    yield document.problem((*path, "listen"), what, "write another port")
            yield from _door(service, document, role_name, door, known, (*path, "endpoint"))


def _door(
    service: Service, document: Document, role_name: str, door: Door, known: dict[str, Any], path: KeyPath
) -> Iterator[Problem]:
    role, name = door.endpoint
    if role not in known:
        yield document.problem(path, f"`{role}` is no role of this service", _meant(role, list(known), "roles"))
        return
    if name not in known[role]:
        names = list(known[role]) if isinstance(known[role], dict) else []
        fix = f"did you mean {shown(f'{role}/{near}')}?" if (near := nearest(name, names)) else _listed(names)
        yield document.problem(path, f"role `{role}` has no endpoint `{name}`", fix)
        return
    if role not in service.roles or name not in service.roles[role].endpoints:
        return  # it has problems of its own
    endpoint = service.roles[role].endpoints[name]
    where = f"`{role}/{name}`"
    if endpoint.from_roles is not None and role_name not in endpoint.from_roles:
        fix = f"write `{role_name}` into its `from`, or remove the door"
        yield document.problem(path, f"{where} does not admit the role `{role_name}`", fix)
    if endpoint.type == "input" and service.edge is not None:
        fix = "declare an internal endpoint for the instances of this service"
        yield document.problem(path, f"{where} is behind the edge, and admits the edge alone", fix)
    here, there = ({each.version for each in service.roles[name].instances} for name in (role_name, role))
    if here and there and not here & there and not service.roles[role].bare:
        fix = "write addresses of one IP version"
        yield document.problem(path, f"no instance of `{role_name}` has an address that reaches one of `{role}`", fix)
    if len(endpoint.listen_ports) > 1:
        fix = "declare an endpoint for the one that it shall lead to"
        yield document.problem(path, f"{where} has {len(endpoint.listen_ports)} ports, and a door leads to one", fix)


def _listed(names: list[str]) -> str:
    return f"it has {', '.join(map(shown, names))}" if names else "declare it there"


def _filters(service: Service, document: Document) -> Iterator[Problem]:
    roster = Roster.of_service(service)
    for role_name, _, endpoint, path in endpoints(service):
        known = not isinstance(endpoint.access, str) or endpoint.access in service.access_lists
        roles = endpoint.from_roles or ()
        if endpoint.deny != "drop" or not known or not all(role in service.roles for role in roles):
            continue  # what is not known is a problem of its own
        rules, unmatched = envelope_rules(service, roster, endpoint, "")
        for version in sorted({address.version for address in service.roles[role_name].instances}):
            try:
                drop_filter(rules, unmatched, version, len(endpoint.listen_ports))
            except WrongValue as error:
                yield document.problem((*path, "deny"), error.what, error.remedy)


def _loops(service: Service, document: Document) -> Iterator[Problem]:
    """One problem for each ring of endpoints that lead into one another, at the one that is written first.

    All instances of an endpoint lead to the same targets, so a ring of listening sockets is a ring of endpoints' ports.
    Each is walked once however many there are.
    """
    graph = _PortGraph(service)
    walked: set[_Port] = set()
    reported: set[KeyPath] = set()
    for start in graph.leading_on():
        trail: dict[_Port, Iterator[_Port]] = {}
        here: _Port | None = None if start in walked else start
        while here is not None:
            if here not in walked:
                walked.add(here)
                trail[here] = iter(graph.leads_to(here))
            there = next(trail[here], None)
            if there is None:
                del trail[here]
                here = next(reversed(trail), None)
            elif there in trail:
                ring = [path for path, _ in list(trail)[list(trail).index(there) :]]
                if reported.isdisjoint(ring):
                    yield _loop(document, ring, graph)
                reported.update(ring)
            elif there not in walked:
                here = there


class _PortGraph:
    """Where each port of the service leads."""

    def __init__(self, service: Service) -> None:
        self._role_at = {
            address: name for name, role in service.roles.items() if not role.bare for address in role.instances
        }
        self.endpoints = {
            path: endpoint for name, _, endpoint, path in endpoints(service) if not service.roles[name].bare
        }
        self._at: dict[tuple[str, int], KeyPath] = {}
        for path, endpoint in self.endpoints.items():
            for port in endpoint.listen_ports.numbers:
                self._at[str(path[1]), port] = path

    def leading_on(self) -> Iterable[_Port]:
        """Every port of an endpoint with a target that is an instance of the service."""
        for path, endpoint in self.endpoints.items():
            if any(ip_address(each) in self._role_at for target in endpoint.targets for each in target.addresses):
                yield from ((path, port) for port in endpoint.listen_ports.numbers)

    def leads_to(self, from_port: _Port) -> Iterator[_Port]:
        """The ports of the service that are this one's targets."""
        path, port = from_port
        endpoint = self.endpoints[path]
        for target in endpoint.targets:
            target_port = endpoint.target_port(port, target)
            roles = (self._role_at.get(ip_address(address)) for address in target.addresses)
            found = (self._at.get((role_name, target_port)) for role_name in roles if role_name is not None)
            yield from ((each, target_port) for each in found if each is not None)


def _loop(document: Document, ring: list[KeyPath], graph: _PortGraph) -> Problem:
    first = min(range(len(ring)), key=lambda at: document.mark(ring[at], key=True))
    path, others = ring[first], dict.fromkeys(ring[first + 1 :] + ring[:first])
    target = ", ".join(map(str, graph.endpoints[path].targets))
    way = ", ".join(f"`{other[1]}/{other[3]}`" for other in others if other != path)
    what = f"`{target}` is this endpoint's own listener" if not way else f"`{target}` leads back here by way of {way}"
    return document.problem((*path, "target"), what, "write the address of the service behind it")
