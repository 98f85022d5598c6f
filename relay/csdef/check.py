"""What no single element of a definition and its configuration can tell: names that are used twice or lead nowhere, and
ports that overlap."""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from typing import Protocol

from relay.config.values import PORTS_MAX
from relay.config.wording import nearest, shown
from relay.csdef.configuration import INSTANCES_MAX, Configuration
from relay.csdef.definition import (
    DefinedRole,
    Definition,
    Endpoint,
    InputEndpoint,
    InstanceEndpoint,
    InternalEndpoint,
    Span,
)
from relay.csdef.read import Place, plural
from relay.errors import Problem

__all__ = ["check_configuration", "check_definition"]


# A service had at most 25 roles, and at most as many endpoints. More would make the message longer than useful.
_SUGGESTED_MAX = 25


class _Named(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def at(self) -> Place: ...


def check_definition(definition: Definition) -> list[Problem]:
    """Errors inside a definition: role, endpoint and probe names and ports that are used twice; references to nothing."""
    file = definition.file
    found = [
        *_twice(file, "role", definition.roles),
        *_twice(file, "probe", definition.probes),
        *_public_ports(definition),
        *_probes(definition),
        *_rules(definition),
    ]
    for role in definition.roles:
        found += [*_twice(file, "endpoint of this role", role.endpoints), *_internal_ports(file, role)]
    if not definition.roles:
        fix = "write at least one `<WebRole …>` or `<WorkerRole …>`"
        found.append(Problem(file, *definition.at, "ServiceDefinition", "has no role that relay can import", fix))
    return found


def check_configuration(configuration: Configuration, definition: Definition) -> list[Problem]:
    """Errors of a configuration, by itself and beside its definition."""
    file = configuration.file
    found = [
        *_twice(file, "role", configuration.roles),
        *_twice(file, "access list", configuration.access_controls),
        *_roles(configuration, definition),
        *_instances(configuration),
        *_acls(configuration, definition),
    ]
    if configuration.name and definition.name and configuration.name != definition.name:
        what = f"{shown(configuration.name)} is another service than {shown(definition.name)}"
        fix = "give the configuration that belongs to the definition"
        found.append(Problem(file, *configuration.at, "ServiceConfiguration.serviceName", what, fix))
    return found


def _twice(file: str, kind: str, parts: Iterable[_Named]) -> Iterator[Problem]:
    first: dict[str, Place] = {}
    for part in parts:
        if part.name and first.setdefault(part.name, part.at) != part.at:
            what = f"{shown(part.name)} is the name of another {kind} already (line {first[part.name][0]})"
            yield Problem(file, *part.at, "", what, "write another name")


def _overlaps(parts: Iterable[tuple[Span, Endpoint]]) -> Iterator[tuple[Endpoint, Span, Endpoint]]:
    """Each endpoint whose ports overlap another one's, those ports, and the other. (0, 0) is no port."""
    widest: tuple[Span, Endpoint] | None = None
    for span, endpoint in sorted((part for part in parts if part[0][0]), key=lambda part: (part[0], part[1].at)):
        if widest is not None and span[0] <= widest[0][1]:
            shared = (span[0], min(span[1], widest[0][1]))
            later, earlier = sorted((endpoint, widest[1]), key=lambda each: each.at, reverse=True)
            yield later, shared, earlier
        if widest is None or span[1] > widest[0][1]:
            widest = (span, endpoint)


def _ports(span: Span) -> str:
    return f"port {span[0]}" if span[0] == span[1] else f"ports {span[0]}-{span[1]}"


def _public_ports(definition: Definition) -> Iterator[Problem]:
    # TCP and UDP have ports of their own; what is not TCP is left out, and in nobody's way.
    public: list[tuple[Span, Endpoint]] = []
    for endpoint in (each for role in definition.roles for each in role.endpoints if each.protocol != "udp"):
        if isinstance(endpoint, InputEndpoint):
            public.append(((endpoint.port, endpoint.port), endpoint))
        elif isinstance(endpoint, InstanceEndpoint):
            public.append((endpoint.public, endpoint))
    for endpoint, span, other in _overlaps(public):
        what = f"public {_ports(span)} is taken by {shown(other.name)} (line {other.at[0]}) already"
        fix = "a public port is unique in the service: write another one"
        yield Problem(definition.file, *endpoint.at, endpoint.element, what, fix)


def _internal_ports(file: str, role: DefinedRole) -> Iterator[Problem]:
    internal = [each for each in role.endpoints if isinstance(each, InternalEndpoint) and each.protocol != "udp"]
    for endpoint, span, other in _overlaps((each.ports, each) for each in internal if each.ports):
        what = f"{_ports(span)} is taken by {shown(other.name)} (line {other.at[0]}) already"
        yield Problem(file, *endpoint.at, endpoint.element, what, "give each endpoint of a role ports of its own")


def _probes(definition: Definition) -> Iterator[Problem]:
    known = {probe.name: probe for probe in definition.probes}
    for endpoint in (each for role in definition.roles for each in role.endpoints):
        if isinstance(endpoint, InputEndpoint) and endpoint.probe is not None and endpoint.probe not in known:
            what, path = f"there is no probe {shown(endpoint.probe)}", "InputEndpoint.loadBalancerProbe"
            yield Problem(definition.file, *endpoint.at, path, what, _meant(endpoint.probe, known, "probes"))


def _rules(definition: Definition) -> Iterator[Problem]:
    roles = {role.name: {each.name for each in role.endpoints} for role in definition.roles}
    for rule in definition.rules:
        for destination in rule.destinations:
            names = ("RoleEndpoint.roleName", "RoleEndpoint.endpointName")
            yield from _endpoint(definition.file, destination.at, names, destination.role, destination.endpoint, roles)
        for allowed in rule.from_roles or ():
            yield from _role(definition.file, allowed.at, "FromRole.roleName", allowed.role, roles)


def _roles(configuration: Configuration, definition: Definition) -> Iterator[Problem]:
    roles = {role.name: role for role in definition.roles}
    for settings in configuration.roles:
        if settings.name not in definition.others:
            yield from _role(configuration.file, settings.at, "Role.name", settings.name, roles)
        endpoints = roles[settings.name].endpoints if settings.name in roles else ()
        for endpoint in endpoints:
            if isinstance(endpoint, InstanceEndpoint) and endpoint.protocol != "udp" and endpoint.public[0]:
                count = min(endpoint.public[1] - endpoint.public[0] + 1, PORTS_MAX)
                if count < settings.count:
                    what = f"{plural(settings.count, 'instance')}, and {shown(endpoint.name)} has only {count} public ports"
                    fix = f"write at most {count}, or a wider range on line {endpoint.at[0]} of {definition.file}"
                    yield Problem(configuration.file, *settings.at, "Role.Instances", what, fix)


def _instances(configuration: Configuration) -> Iterator[Problem]:
    total = sum(settings.count for settings in configuration.roles)
    if total > INSTANCES_MAX:
        what = f"the roles have {total} instances together, and relay imports {INSTANCES_MAX} at most"
        yield Problem(configuration.file, *configuration.at, "Role.Instances", what, "write smaller numbers")


def _acls(configuration: Configuration, definition: Definition) -> Iterator[Problem]:
    roles = {role.name: {each.name for each in role.endpoints} for role in definition.roles}
    lists = {control.name: control for control in configuration.access_controls}
    first: dict[tuple[str, str], Place] = {}
    for acl in configuration.acls:
        if acl.role not in definition.others:
            names = ("EndpointAcl.role", "EndpointAcl.endpoint")
            yield from _endpoint(configuration.file, acl.at, names, acl.role, acl.endpoint, roles)
        if acl.access_control and acl.access_control not in lists:
            what = f"there is no access list {shown(acl.access_control)}"
            fix = _meant(acl.access_control, lists, "access lists")
            yield Problem(configuration.file, *acl.at, "EndpointAcl.accessControl", what, fix)
        where = (acl.role, acl.endpoint)
        if all(where) and first.setdefault(where, acl.at) != acl.at:
            what = f"{shown(acl.endpoint)} has an access list already (line {first[where][0]})"
            yield Problem(configuration.file, *acl.at, "EndpointAcl", what, "keep one of the two")


def _role(file: str, at: Place, path: str, name: str, roles: Collection[str]) -> Iterator[Problem]:
    if name and name not in roles:
        what = f"the definition has no WebRole or WorkerRole {shown(name)}"
        yield Problem(file, *at, path, what, _meant(name, roles, "roles"))


def _endpoint(
    file: str, at: Place, paths: tuple[str, str], role: str, name: str, roles: dict[str, set[str]]
) -> Iterator[Problem]:
    """Problems of a reference to an endpoint of a role; `paths` are the attributes that name the two."""
    if role and role not in roles:
        yield from _role(file, at, paths[0], role, roles)
    elif role and name and name not in roles[role]:
        what = f"role {shown(role)} has no endpoint {shown(name)}"
        yield Problem(file, *at, paths[1], what, _meant(name, sorted(roles[role]), "endpoints"))


def _meant(name: str, known: Iterable[str], kind: str) -> str:
    several = list(islice(known, _SUGGESTED_MAX))
    if near := nearest(name, several):
        return f"did you mean {shown(near)}?"
    return f"the {kind} are {', '.join(map(shown, several))}" if several else f"write some {kind}, or remove this"
