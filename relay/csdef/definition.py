"""A service definition (.csdef) as frozen values that know their lines.

Sources: "Azure Cloud Services Definition Schema" and its pages for WebRole, WorkerRole, LoadBalancerProbe and
NetworkTrafficRules. Values are checked here one by one; check.py checks what they say of each other.
"""

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from relay.config.values import PROBE_PATH_PATTERN
from relay.config.wording import brief, shown
from relay.csdef.homes import ENDPOINT_KINDS, OF_A_DEFINITION
from relay.csdef.read import UNKNOWN, Note, Place, Reader
from relay.csdef.tree import Element
from relay.errors import Problem

__all__ = [
    "NAMESPACE",
    "ROOT",
    "DefinedProbe",
    "DefinedRole",
    "Definition",
    "Endpoint",
    "InputEndpoint",
    "InstanceEndpoint",
    "InternalEndpoint",
    "Reference",
    "Span",
    "TrafficRule",
    "definition_of",
]

ROOT = "ServiceDefinition"
NAMESPACE = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceDefinition"

Span = tuple[int, int]
"""The first and the last port of a range."""

# What else an element may hold, where the names that it is known by stand, and why it is left out.
_ROLE_PARTS = {
    "Sites": ("Site", "the bindings of a web server are its own"),
    "Certificates": ("Certificate", "TLS passes through, and the certificate stays with the application"),
    "ConfigurationSettings": ("Setting", "they are the application's own"),
    "LocalResources": ("LocalStorage", "storage is the machine's own"),
    "Startup": ("", "the machine's service manager starts programs"),
    "Runtime": ("", "the machine's service manager starts programs"),
    "Contents": ("", "files are the machine's own"),
}

_INPUT_ATTRIBUTES = (
    "name",
    "protocol",
    "port",
    "localPort",
    "certificate",
    "ignoreRoleInstanceStatus",
    "loadBalancer",
    "loadBalancerProbe",
    "loadBalancerDistribution",
    "idleTimeoutInMinutes",
)

# A day: relay takes no longer duration.
_SECONDS_MAX = 24 * 3600

_PLUG_INS = {
    "RemoteAccess": "which adds the internal endpoint Microsoft.WindowsAzure.Plugins.RemoteAccess.Rdp, tcp 3389",
    "RemoteForwarder": "which adds the input endpoint Microsoft.WindowsAzure.Plugins.RemoteForwarder.RdpInput, tcp 3389",
}
_OTHER_PLUG_IN = "whose .csplugin file says which endpoints it adds"


@dataclass(frozen=True, slots=True)
class InputEndpoint:
    """A port of the service's address that leads to all instances. `local_port` None: `*`, the platform chooses."""

    element: ClassVar[str] = "InputEndpoint"
    name: str
    at: Place
    protocol: str  # tcp | http | https | udp
    port: int
    local_port: int | None
    probe: str | None
    distribution: Literal["source-ip"] | None
    idle_min: int | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class InternalEndpoint:
    """Ports for the service's own roles. `ports` None: the platform assigns one, or, for `any`, opens all."""

    element: ClassVar[str] = "InternalEndpoint"
    name: str
    at: Place
    protocol: str  # tcp | http | udp | any
    ports: Span | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class InstanceEndpoint:
    """Ports of the service's address, each of which leads to one instance."""

    element: ClassVar[str] = "InstanceInputEndpoint"
    name: str
    at: Place
    protocol: str  # tcp | udp
    local_port: int
    public: Span
    notes: tuple[Note, ...]


Endpoint = InputEndpoint | InternalEndpoint | InstanceEndpoint


@dataclass(frozen=True, slots=True)
class DefinedRole:
    """A WebRole or WorkerRole."""

    name: str
    at: Place
    endpoints: tuple[Endpoint, ...]
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class DefinedProbe:
    """A LoadBalancerProbe. `port` None: the endpoint's."""

    name: str
    at: Place
    protocol: str  # http | tcp
    path: str | None
    port: int | None
    interval_s: int
    timeout_s: int


@dataclass(frozen=True, slots=True)
class Reference:
    """A role, or an endpoint of a role, that a rule names."""

    role: str
    endpoint: str
    at: Place


@dataclass(frozen=True, slots=True)
class TrafficRule:
    """An OnlyAllowTrafficTo. `from_roles` None: every role may; `both`: it has AllowAllTraffic as well."""

    at: Place
    destinations: tuple[Reference, ...]
    from_roles: tuple[Reference, ...] | None
    both: bool


@dataclass(frozen=True, slots=True)
class Definition:
    """A whole definition. `others` are the names of parts that may be roles and are not imported."""

    file: str
    name: str
    at: Place
    roles: tuple[DefinedRole, ...]
    probes: tuple[DefinedProbe, ...]
    rules: tuple[TrafficRule, ...]
    others: tuple[str, ...]
    notes: tuple[Note, ...]


def definition_of(root: Element, file: str, problems: list[Problem]) -> Definition:
    """The definition in a document. Mistakes go to `problems`; with any, the result is good only to look for more."""
    return _Definition(file, problems).definition(root)


class _Definition(Reader):
    """Reads a .csdef, element by element; the order of children counts nowhere."""

    homes = OF_A_DEFINITION

    def definition(self, root: Element) -> Definition:
        known = ("LoadBalancerProbes", "WebRole", "WorkerRole", "NetworkTrafficRules")
        self.attributes(root, "name", "upgradeDomainCount", "topologyChangeDiscovery", "schemaVersion")
        if "upgradeDomainCount" in root.attributes:
            self.left_out(root, "upgradeDomainCount: relay updates no machines")
        if "topologyChangeDiscovery" in root.attributes:
            self.left_out(root, "topologyChangeDiscovery: each machine reads its own file when it is told to")
        roles: list[DefinedRole] = []
        probes: list[DefinedProbe] = []
        rules: list[TrafficRule] = []
        others: list[str] = []
        for part in root.children:
            match part.name:
                case "WebRole" | "WorkerRole":
                    roles.append(self._role(part))
                case "LoadBalancerProbes":
                    self.attributes(part)
                    probes += [self._probe(each) for each in self.children(part, "LoadBalancerProbe")]
                case "NetworkTrafficRules":
                    self.attributes(part)
                    rules += [self._rule(each) for each in self.children(part, "OnlyAllowTrafficTo")]
                case _ if not self.misspelt(part, known):
                    others.append(part.attributes.get("name", ""))
                    self.part_left_out(part, "", UNKNOWN)
        return Definition(
            self.file,
            self.text(root, "name"),
            root.at,
            tuple(roles),
            tuple(probes),
            tuple(rules),
            tuple(others),
            tuple(self.notes),
        )

    def _role(self, role: Element) -> DefinedRole:
        known = ("Endpoints", "InputEndpoints", "Imports", *_ROLE_PARTS)
        endpoints: list[Endpoint] = []
        with self.noted() as notes:
            self.attributes(role, "name", "vmsize", "enableNativeCodeExecution")
            if "vmsize" in role.attributes:
                self.left_out(role, f"vmsize {brief(role.attributes['vmsize'])}: a machine has its own size")
            if "enableNativeCodeExecution" in role.attributes:
                self.left_out(role, "enableNativeCodeExecution: relay runs no applications")
            for part in role.children:
                if part.name in ("Endpoints", "InputEndpoints"):  # the latter in files of the first SDKs
                    endpoints += self._endpoints(part)
                elif part.name == "Imports":
                    self._plug_ins(part)
                elif part.name in _ROLE_PARTS:
                    self.part_left_out(part, *_ROLE_PARTS[part.name])
                elif not self.misspelt(part, known):
                    self.part_left_out(part, "", UNKNOWN)
        return DefinedRole(self.text(role, "name"), role.at, tuple(endpoints), tuple(notes))

    def _plug_ins(self, part: Element) -> None:
        self.attributes(part)
        for each in self.children(part, "Import"):
            self.leaf(each, "moduleName")
            module = self.text(each, "moduleName")
            self.left_out(each, f"the plug-in {brief(module)}, {_PLUG_INS.get(module, _OTHER_PLUG_IN)}")

    def _endpoints(self, part: Element) -> list[Endpoint]:
        self.attributes(part)
        found: list[Endpoint] = []
        for each in self.children(part, *ENDPOINT_KINDS):
            with self.noted() as notes:
                match each.name:
                    case "InputEndpoint":
                        found.append(self._input(each, notes))
                    case "InternalEndpoint":
                        found.append(self._internal(each, notes))
                    case _:
                        found.append(self._instance(each, notes))
        return found

    def _input(self, element: Element, notes: list[Note]) -> InputEndpoint:
        self.leaf(element, *_INPUT_ATTRIBUTES)
        written = element.attributes
        if "certificate" in written:
            why = "TLS passes through, and the certificate stays with the application"
            self.left_out(element, f"certificate {brief(written['certificate'])}: {why}")
        if self.word(element, "ignoreRoleInstanceStatus", "true", "false", "1", "0", default="0") in ("true", "1"):
            self.left_out(element, "ignoreRoleInstanceStatus: relay knows no status of a role")
        if "loadBalancer" in written:
            what = f"loadBalancer {brief(written['loadBalancer'])}: it was open to one network, and is to everyone now"
            self.warning(element, f"{what}, unless `access` permits that network alone")
        port = self.port(element, "port")
        # Either of the two binds a client's address to an instance: relay's connections are of one protocol.
        affine = self.word(element, "loadBalancerDistribution", "sourceIP", "sourceIPProtocol", "none", default="none")
        return InputEndpoint(
            self.text(element, "name"),
            element.at,
            self.word(element, "protocol", "http", "https", "tcp", "udp"),
            port,
            self._local_port(element, port),
            written.get("loadBalancerProbe"),
            "source-ip" if affine in ("sourceip", "sourceipprotocol") else None,
            self.number(element, "idleTimeoutInMinutes", 4, 30),
            tuple(notes),
        )

    def _local_port(self, element: Element, port: int) -> int | None:
        if element.attributes.get("localPort", "").strip() == "*":
            return None
        local_port = self.number(element, "localPort", 1, 65535)
        return port if local_port is None else local_port

    def _internal(self, element: Element, notes: list[Note]) -> InternalEndpoint:
        self.attributes(element, "name", "protocol", "port")
        spans: list[Span] = []
        if "port" in element.attributes:
            port = self.port(element, "port")
            spans.append((port, port))
        for child in self.children(element, "FixedPort", "FixedPortRange"):
            if spans:
                self.problem(child, "", "is a second port of this endpoint", "write an endpoint for each")
            if child.name == "FixedPort":
                self.leaf(child, "port")
                port = self.port(child, "port")
                spans.append((port, port))
            else:
                spans.append(self.span(child))
        return InternalEndpoint(
            self.text(element, "name"),
            element.at,
            self.word(element, "protocol", "http", "tcp", "udp", "any"),
            spans[0] if spans else None,
            tuple(notes),
        )

    def _instance(self, element: Element, notes: list[Note]) -> InstanceEndpoint:
        self.attributes(element, "name", "protocol", "localPort")
        spans: list[Span] = []
        for child in self.children(element, "AllocatePublicPortFrom"):
            self.attributes(child)
            for each in self.children(child, "FixedPortRange"):
                if spans:
                    self.problem(each, "", "is a second range of this endpoint", "write an endpoint for each")
                spans.append(self.span(each))
        if not spans:
            fix = 'write `<AllocatePublicPortFrom><FixedPortRange min="…" max="…"/></AllocatePublicPortFrom>` in it'
            self.problem(element, "", "has no range of public ports", fix)
        return InstanceEndpoint(
            self.text(element, "name"),
            element.at,
            self.word(element, "protocol", "tcp", "udp"),
            self.port(element, "localPort"),
            spans[0] if spans else (0, 0),
            tuple(notes),
        )

    def _probe(self, element: Element) -> DefinedProbe:
        self.leaf(element, "name", "protocol", "path", "port", "intervalInSeconds", "timeoutInSeconds")
        protocol, path = self.word(element, "protocol", "http", "tcp"), element.attributes.get("path")
        if protocol == "http" and not path:
            self.problem(element, "path", "is missing", 'write `path="/"`, or the path that the application answers')
        if protocol == "tcp" and path is not None:
            self.problem(element, "path", "a tcp probe has no path", 'remove it, or write `protocol="http"`')
        asked = path if path is None or path.startswith("/") else f"/{path}"
        if asked and not re.fullmatch(PROBE_PATH_PATTERN, asked):
            fix = "write other characters as `%XX`, and at most 256 in all"
            self.problem(element, "path", f"{shown(path)} is no path of a URL", fix)
        interval_s = self.number(element, "intervalInSeconds", 5, _SECONDS_MAX)
        timeout_s = self.number(element, "timeoutInSeconds", 11, _SECONDS_MAX)
        return DefinedProbe(
            self.text(element, "name"),
            element.at,
            protocol,
            asked,
            self.number(element, "port", 1, 65535),
            15 if interval_s is None else interval_s,
            31 if timeout_s is None else timeout_s,
        )

    def _rule(self, element: Element) -> TrafficRule:
        self.attributes(element)
        destinations: list[Reference] = []
        from_roles: list[Reference] = []
        everyone = False
        for part in self.children(element, "Destinations", "AllowAllTraffic", "WhenSource"):
            match part.name:
                case "Destinations":
                    self.attributes(part)
                    destinations += [self._destination(each) for each in self.children(part, "RoleEndpoint")]
                case "AllowAllTraffic":
                    self.leaf(part)
                    everyone = True
                case _:
                    from_roles += self._from_roles(part)
        if not destinations:
            self.problem(element, "", "has no destination", "write `<Destinations>` with a `<RoleEndpoint …/>` in it")
        if not everyone and all(part.name != "WhenSource" for part in element.children):
            fix = "write `<WhenSource>` with a `<FromRole …/>` in it, or `<AllowAllTraffic/>`"
            self.problem(element, "", "has no source", fix)
        return TrafficRule(element.at, tuple(destinations), tuple(from_roles) or None, everyone and bool(from_roles))

    def _destination(self, element: Element) -> Reference:
        self.leaf(element, "endpointName", "roleName")
        return Reference(self.text(element, "roleName"), self.text(element, "endpointName"), element.at)

    def _from_roles(self, element: Element) -> list[Reference]:
        self.attributes(element, "matches")
        self.word(element, "matches", "AnyRule", default="anyrule")
        found = []
        for each in self.children(element, "FromRole"):
            self.leaf(each, "roleName")
            found.append(Reference(self.text(each, "roleName"), "", each.at))
        if not found:
            self.problem(element, "", "names no role", 'write `<FromRole roleName="…"/>` in it')
        return found
