"""Random services of every shape that the two schemas allow, and how they may be written as XML."""

from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from random import Random
from xml.sax.saxutils import quoteattr

import jsonschema  # type: ignore[import-untyped]
from hypothesis import strategies as st

from relay.config.schema import service_schema
from relay.csdef import configuration, definition

Place = tuple[int, int]
"""A role and an endpoint of it, by their numbers."""

# Public ports, and ports of a role, lie in slots of their own: so they never overlap, however wide the ranges are.
SLOT_PORTS = 2100
FIRST_SLOT = 1000
WIDTHS = (1, 2, 9, 50, 1023, 1024, 1025, SLOT_PORTS)


@dataclass
class Endpoint:
    """One endpoint of a definition. `local` None: not written; `span`: public ports, or internal ones."""

    kind: str
    name: str
    protocol: str
    port: int = 0
    local: int | str | None = None
    span: tuple[int, int] | None = None
    idle_min: int | None = None
    probe: int | None = None
    distribution: str | None = None

    @property
    def is_udp(self) -> bool:
        """UDP, in whatever case."""
        return self.protocol.lower() == "udp"


@dataclass
class Role:
    """One role. `count` None: not in the configuration."""

    name: str
    endpoints: list[Endpoint]
    count: int | None


@dataclass
class Rule:
    """An OnlyAllowTrafficTo: with `everyone`, AllowAllTraffic is in it; with `sources`, WhenSource."""

    destinations: list[Place]
    sources: list[int]
    everyone: bool


@dataclass
class AccessRule:
    """A rule of an access list."""

    order: int
    action: str
    network: str
    description: str | None


@dataclass
class Service:
    """A whole service. `acls`: the number of an endpoint's access list."""

    name: str
    roles: list[Role]
    rules: list[Rule]
    lists: list[tuple[str, list[AccessRule]]]
    acls: dict[Place, int]
    probes: list[dict[str, str]]
    has_configuration: bool
    extras: list[str] = field(default_factory=list)


WORDS = st.sampled_from(
    [
        "web",
        "edge",
        "Front",
        "store",
        "Partition.Simulator",
        "My_Role",
        "my-role",
        "null",
        "true",
        "off",
        "42",
        "a b",
        "A/B",
        "#",
        "ж",
    ]
)
# What an attribute can hold: no control characters but tab and line breaks, no surrogates, no non-characters.
ANYTHING = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cn")) | st.sampled_from("\t\n\r\"'&<>“"), max_size=80)
NAMES = WORDS | ANYTHING.filter(bool)


def names(count: int) -> st.SearchStrategy[list[str]]:
    """So many names, no two of them alike."""
    return st.lists(NAMES, min_size=count, max_size=count, unique=True)


@st.composite
def _endpoint(draw: st.DrawFn, name: str, slot: int, public_slot: int, count: int, probes: int) -> Endpoint:
    first, public = FIRST_SLOT + slot * SLOT_PORTS, FIRST_SLOT + public_slot * SLOT_PORTS
    kind = draw(st.sampled_from(["InputEndpoint", "InputEndpoint", "InternalEndpoint", "InstanceInputEndpoint"]))
    # Ports that many share, a port that an internal endpoint may have, and one of the endpoint's own.
    local = st.sampled_from([80, 443, FIRST_SLOT, FIRST_SLOT + SLOT_PORTS, 20_000, first + 7])
    match kind:
        case "InputEndpoint":
            return Endpoint(
                kind,
                name,
                draw(st.sampled_from(["tcp", "http", "https", "udp", "TCP", "Http"])),
                port=public + draw(st.integers(0, SLOT_PORTS - 1)),
                local=draw(st.none() | st.just("*") | local),
                idle_min=draw(st.none() | st.integers(4, 30)),
                probe=draw(st.none() | st.integers(0, probes - 1)) if probes else None,
                distribution=draw(st.sampled_from([None, "sourceIP", "sourceIPProtocol", "none"])),
            )
        case "InternalEndpoint":
            width = draw(st.sampled_from([None, *WIDTHS]))
            span = None if width is None else (first, first + width - 1)
            return Endpoint(kind, name, draw(st.sampled_from(["tcp", "http", "udp", "any", "ANY"])), span=span)
        case _:
            width = draw(st.sampled_from([each for each in WIDTHS if each >= count]))
            protocol = draw(st.sampled_from(["tcp", "udp", "TCP"]))
            return Endpoint(kind, name, protocol, local=draw(local), span=(public, public + width - 1))


@st.composite
def services(draw: st.DrawFn) -> Service:
    """Services whose definition and configuration are right."""
    probes = draw(_probes())
    has_configuration = draw(st.booleans())
    roles: list[Role] = []
    public_slots = iter(range(30))
    for name in draw(names(draw(st.integers(1, 4)))):
        count = draw(st.sampled_from([None, 0, 1, 2, 9, 300])) if has_configuration else None
        endpoint_names = draw(names(draw(st.integers(0, 7))))
        endpoints = [
            draw(_endpoint(each, slot, next(public_slots), 1 if count is None else count, len(probes)))
            for slot, each in enumerate(endpoint_names)
        ]
        roles.append(Role(name, endpoints, count))
    places = [(at, slot) for at, role in enumerate(roles) for slot, _ in enumerate(role.endpoints)]
    lists: list[tuple[str, list[AccessRule]]] = draw(_lists()) if has_configuration else []
    with_list = draw(st.lists(st.sampled_from(places), unique=True)) if lists and places else []
    acls = {place: draw(st.integers(0, len(lists) - 1)) for place in with_list}
    rules = draw(st.lists(_rule(places, len(roles)), max_size=5)) if places else []
    extras = draw(st.lists(st.sampled_from(EXTRAS), unique=True))
    return Service(draw(NAMES), roles, rules, lists, acls, probes, has_configuration, extras)


@st.composite
def _probes(draw: st.DrawFn) -> list[dict[str, str]]:
    found = []
    for name in draw(names(draw(st.integers(0, 3)))):
        http = draw(st.booleans())
        path = st.sampled_from(["/", "Probe.aspx", "/a?b=1&c=\"#,{}'", "x" * 255])
        probe = {"name": name, "protocol": "http", "path": draw(path)} if http else {"name": name, "protocol": "TCP"}
        if draw(st.booleans()):
            probe["port"] = str(draw(st.sampled_from([80, 443, FIRST_SLOT]) | st.integers(1, 65535)))
        for attribute, lowest in (("intervalInSeconds", 5), ("timeoutInSeconds", 11)):
            if draw(st.booleans()):
                probe[attribute] = str(draw(st.integers(lowest, 65535)))
        found.append(probe)
    return found


@st.composite
def _lists(draw: st.DrawFn) -> list[tuple[str, list[AccessRule]]]:
    rule = st.builds(
        AccessRule,
        st.integers(0, 5),
        st.sampled_from(["permit", "deny", "Deny"]),
        st.tuples(st.ip_addresses(v=4), st.integers(0, 32)).map(lambda each: f"{each[0]}/{each[1]}")
        | st.integers(0, 2**32 - 1).map(lambda number: str(IPv4Address(number))),
        st.none() | ANYTHING,
    )
    found = draw(names(draw(st.integers(0, 3))))
    return [(name, draw(st.lists(rule, min_size=1, max_size=6))) for name in found]


@st.composite
def _rule(draw: st.DrawFn, places: list[Place], roles: int) -> Rule:
    sources = draw(st.lists(st.integers(0, roles - 1), max_size=3))
    return Rule(
        draw(st.lists(st.sampled_from(places), min_size=1, max_size=3)), sources, not sources or draw(st.booleans())
    )


# Parts that have no counterpart, by the element that they may stand in.
EXTRAS = [
    "role:<Sites><Site name='a'><Bindings><Binding name='b' endpointName='c'/></Bindings></Site></Sites>",
    "role:<ConfigurationSettings><Setting name='a'/></ConfigurationSettings>",
    "role:<Imports><Import moduleName='RemoteAccess'/><Import moduleName='x'/></Imports>",
    "role:<Startup><Task commandLine='a' executionContext='b' taskType='c'/></Startup>",
    "role:<Whatever x='y'><Deeper/></Whatever>",
    "role:<Endpoints/>",
    "definition:<Whatever/>",
    "definition:<NetworkTrafficRules/>",
    "settings:<ConfigurationSettings><Setting name='a' value='b'/></ConfigurationSettings>",
    "settings:<Certificates><Certificate name='a' thumbprint='b' thumbprintAlgorithm='sha1'/></Certificates>",
    "network:<Dns><DnsServers><DnsServer name='a' IPAddress='10.0.0.4'/></DnsServers></Dns>",
    "network:<VirtualNetworkSite name='a'/>",
    "network:<AddressAssignments><ReservedIPs><ReservedIP name='a'/></ReservedIPs></AddressAssignments>",
    "network:<AddressAssignments><InstanceAddress roleName='web'><Subnets><Subnet name='a'/></Subnets></InstanceAddress>"
    "</AddressAssignments>",
    "network:<LoadBalancers><LoadBalancer name='a'/></LoadBalancers>",
]


class Xml:
    """Writes a service as its two files, in an order and with spellings that `random` decides."""

    def __init__(self, service: Service, random: Random) -> None:
        self.service = service
        self.random = random

    def definition(self) -> bytes:
        """The .csdef."""
        probes = [self.element("LoadBalancerProbe", each) for each in self.service.probes]
        parts = [
            *([self.element("LoadBalancerProbes", {}, probes)] if probes else []),
            *self.kept([self._role(role) for role in self.service.roles]),
            *self._rules(),
            *self.extras("definition"),
        ]
        return self.document(definition.ROOT, definition.NAMESPACE, {"name": self.service.name}, parts)

    def configuration(self) -> bytes:
        """The .cscfg."""
        roles = []
        for role in self.service.roles:
            if role.count is not None:
                instances = self.element("Instances", {"count": str(role.count)})
                roles.append(self.element("Role", {"name": role.name}, [instances, *self.extras("settings")]))
        lists = [
            self.element("AccessControl", {"name": name}, self.kept([self._access_rule(rule) for rule in rules]))
            for name, rules in self.service.lists
        ]
        acls = [
            self.element(
                "EndpointAcl",
                {
                    "role": self.service.roles[role].name,
                    self.random.choice(["endpoint", "endPoint"]): self.service.roles[role].endpoints[slot].name,
                    "accessControl": self.service.lists[number][0],
                },
            )
            for (role, slot), number in self.service.acls.items()
        ]
        network = [
            self.element("AccessControls", {}, self.kept(lists)),
            self.element("EndpointAcls", {}, acls),
            *self.extras("network"),
        ]
        parts = [*roles, self.element("NetworkConfiguration", {}, network)]
        root, namespace = configuration.ROOT, configuration.NAMESPACE
        return self.document(root, namespace, {"serviceName": self.service.name, "osFamily": "6"}, parts)

    def _role(self, role: Role) -> str:
        endpoints = self.element("Endpoints", {}, self.kept([self._endpoint(each) for each in role.endpoints]))
        kind = self.random.choice(["WebRole", "WorkerRole"])
        return self.element(kind, {"name": role.name, "vmsize": "Small"}, [endpoints, *self.extras("role")])

    def _endpoint(self, endpoint: Endpoint) -> str:
        written: dict[str, str | int | None] = {
            "name": endpoint.name,
            "protocol": endpoint.protocol,
            "port": endpoint.port or None,
            "localPort": endpoint.local,
            "idleTimeoutInMinutes": endpoint.idle_min,
            "loadBalancerDistribution": endpoint.distribution,
            "loadBalancerProbe": None if endpoint.probe is None else self.service.probes[endpoint.probe]["name"],
        }
        children: list[str] = []
        if endpoint.span is not None:
            low, high = map(str, endpoint.span)
            children = [self.element("FixedPortRange", {"min": low, "max": high})]
            if endpoint.kind == "InstanceInputEndpoint":
                children = [self.element("AllocatePublicPortFrom", {}, children)]
            elif low == high and self.random.random() < 0.7:
                children = [self.element("FixedPort", {"port": low})] if self.random.random() < 0.5 else []
                written["port"] = None if children else low
        return self.element(
            endpoint.kind, {key: str(value) for key, value in written.items() if value is not None}, children
        )

    def _access_rule(self, rule: AccessRule) -> str:
        written = {"order": str(rule.order), "action": rule.action, "remoteSubnet": rule.network}
        return self.element(
            "Rule", written | ({"description": rule.description} if rule.description is not None else {})
        )

    def _rules(self) -> list[str]:
        """One NetworkTrafficRules with all of them, or one each: in the order of the service."""
        rules = [self._rule(rule) for rule in self.service.rules]
        if self.random.random() < 0.5:
            return self.kept([self.element("NetworkTrafficRules", {}, [rule]) for rule in rules])
        return [self.element("NetworkTrafficRules", {}, self.kept(rules))] if rules else []

    def _rule(self, rule: Rule) -> str:
        roles = self.service.roles
        destinations = [
            self.element(
                "RoleEndpoint", {"roleName": roles[role].name, "endpointName": roles[role].endpoints[slot].name}
            )
            for role, slot in rule.destinations
        ]
        parts = [self.element("Destinations", {}, destinations)]
        if rule.everyone:
            parts.append(self.element("AllowAllTraffic", {}))
        if rule.sources:
            sources = self.kept([self.element("FromRole", {"roleName": roles[each].name}) for each in rule.sources])
            parts.append(self.element("WhenSource", {"matches": "AnyRule"}, sources))
        return self.element("OnlyAllowTrafficTo", {}, parts)

    def extras(self, where: str) -> list[str]:
        """The parts without counterpart that stand there."""
        return [each.partition(":")[2] for each in self.service.extras if each.startswith(f"{where}:")]

    def kept(self, parts: list[str]) -> list[str]:
        """Parts whose order counts: as one, so that they are not shuffled."""
        return ["".join(parts)] if parts else []

    def element(self, name: str, attributes: dict[str, str], children: list[str] | None = None) -> str:
        """An element, its attributes and children in any order, with space, comments and either form of an end."""
        written = [f"{key}={quoteattr(value)}" for key, value in attributes.items()]
        self.random.shuffle(written)
        inner = list(children or [])
        self.random.shuffle(inner)
        space = self.random.choice(["", " ", "\n  ", "\r\n\t", "<!-- <x> -->"])
        start = " ".join([name, *written])
        if not inner and self.random.random() < 0.8:
            return f"<{start}/>{space}"
        return f"<{start}>{space}{''.join(inner)}</{name}>{space}"

    def document(self, root: str, namespace: str, attributes: dict[str, str], parts: list[str]) -> bytes:
        """A whole file, in one of the encodings, with or without a declaration and a namespace."""
        if self.random.random() < 0.8:
            attributes = {"xmlns": namespace, **attributes}
        text = self.element(root, attributes, parts)
        if self.random.random() < 0.8:
            text = f'<?xml version="1.0" encoding="{self.random.choice(["utf-8", "utf-16"])}"?>\n{text}'
        return text.encode(self.random.choice(["utf-8", "utf-8-sig", "utf-16"]))


CORPUS = Path(__file__).parents[1] / "corpus" / "csdef"


SCHEMA = jsonschema.Draft7Validator(service_schema())


def write(folder: Path, definition: bytes, configuration: bytes | None) -> tuple[str, str | None]:
    (folder / "a.csdef").write_bytes(definition)
    (folder / "a.cscfg").write_bytes(configuration or b"")
    return str(folder / "a.csdef"), None if configuration is None else str(folder / "a.cscfg")
