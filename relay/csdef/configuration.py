"""A service configuration (.cscfg) as frozen values that know their lines.

Sources: "Azure Cloud Services Config Schema", its page on NetworkConfiguration, and "What is an endpoint Access Control
List?". Of settings and certificates only the names are read.
"""

from dataclasses import dataclass
from typing import Literal

from relay.config import values
from relay.config.values import IPNetwork
from relay.config.wording import brief
from relay.csdef.homes import OF_A_CONFIGURATION
from relay.csdef.read import UNKNOWN, Note, Place, Reader
from relay.csdef.tree import Element
from relay.errors import Problem, WrongValue

__all__ = [
    "INSTANCES_MAX",
    "NAMESPACE",
    "ROOT",
    "AccessControl",
    "Configuration",
    "ConfiguredRule",
    "EndpointAcl",
    "RoleSettings",
    "configuration_of",
]

ROOT = "ServiceConfiguration"
NAMESPACE = "http://schemas.microsoft.com/ServiceHosting/2008/10/ServiceConfiguration"

# Of a whole service. No deployment came near, and the placeholder addresses last for ten times as many: substitutes.py.
INSTANCES_MAX = 10_000
# Of a rule: far above any that was written, and a number that prints.
_ORDER_MAX = 2**31 - 1

_NOWHERE = values.network("0.0.0.0/32")  # for a network that is wrong, and reported

_ROLE_PARTS = {
    "ConfigurationSettings": ("Setting", "they are the application's own"),
    "Certificates": ("Certificate", "TLS passes through, and the certificate stays with the application"),
}
_NETWORK_PARTS = {
    "Dns": ("DnsServer", "relay looks no names up"),
    "VirtualNetworkSite": ("VirtualNetworkSite", "a machine's network is its own"),
    "LoadBalancers": ("LoadBalancer", "a machine's network is its own"),
}
_ADDRESS_PARTS = {
    "ReservedIPs": ("ReservedIP", "public addresses belong to the machines that carry them"),
    "PublicIPs": ("PublicIP", "public addresses belong to the machines that carry them"),
    "Subnets": ("Subnet", "a machine's network is its own"),
}


@dataclass(frozen=True, slots=True)
class RoleSettings:
    """A role's part. `count` of its instances."""

    name: str
    at: Place
    count: int
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class ConfiguredRule:
    """A rule of an access list; the lower `order` is asked first. `text` is the network as written."""

    at: Place
    order: int
    action: Literal["deny", "permit"]
    network: IPNetwork
    text: str
    description: str


@dataclass(frozen=True, slots=True)
class AccessControl:
    """A named access list. Its rules are in the order of the file."""

    name: str
    at: Place
    rules: tuple[ConfiguredRule, ...]


@dataclass(frozen=True, slots=True)
class EndpointAcl:
    """Which list an endpoint has."""

    role: str
    endpoint: str
    access_control: str
    at: Place


@dataclass(frozen=True, slots=True)
class Configuration:
    """A whole configuration. `addresses` are notes on a role's addresses, each with the name of the role."""

    file: str
    name: str
    at: Place
    roles: tuple[RoleSettings, ...]
    access_controls: tuple[AccessControl, ...]
    acls: tuple[EndpointAcl, ...]
    addresses: tuple[tuple[str, Note], ...]
    notes: tuple[Note, ...]


def configuration_of(root: Element, file: str, problems: list[Problem]) -> Configuration:
    """The configuration in a document. Mistakes go to `problems`; with any, the result is good only to look for more."""
    return _Configuration(file, problems).configuration(root)


class _Configuration(Reader):
    """Reads a .cscfg, element by element; the order of children counts nowhere."""

    homes = OF_A_CONFIGURATION

    def __init__(self, file: str, problems: list[Problem]) -> None:
        super().__init__(file, problems)
        self.roles: list[RoleSettings] = []
        self.controls: list[AccessControl] = []
        self.acls: list[EndpointAcl] = []
        self.addresses: list[tuple[str, Note]] = []

    def configuration(self, root: Element) -> Configuration:
        self.attributes(root, "serviceName", "osFamily", "osVersion", "schemaVersion")
        if written := [name for name in ("osFamily", "osVersion") if name in root.attributes]:
            self.left_out(root, f"{' and '.join(written)}: a machine has its own system")
        for part in root.children:
            if part.name == "Role":
                self.roles.append(self._role(part))
            elif part.name == "NetworkConfiguration":
                self._network(part)
            elif not self.misspelt(part, ("Role", "NetworkConfiguration")):
                self.part_left_out(part, "", UNKNOWN)
        return Configuration(
            self.file,
            self.text(root, "serviceName"),
            root.at,
            tuple(self.roles),
            tuple(self.controls),
            tuple(self.acls),
            tuple(self.addresses),
            tuple(self.notes),
        )

    def _role(self, role: Element) -> RoleSettings:
        counts: list[int] = []
        with self.noted() as notes:
            self.attributes(role, "name", "vmName")
            if "vmName" in role.attributes:
                self.left_out(role, f"vmName {brief(role.attributes['vmName'])}: a machine has its own name")
            for part in role.children:
                if part.name == "Instances":
                    self.leaf(part, "count")
                    counts.append(self.needed(part, "count", 0, INSTANCES_MAX, 2))
                elif part.name in _ROLE_PARTS:
                    self.part_left_out(part, *_ROLE_PARTS[part.name])
                elif not self.misspelt(part, ("Instances", *_ROLE_PARTS)):
                    self.part_left_out(part, "", UNKNOWN)
        if len(counts) != 1:
            what = "has no `<Instances …/>`" if not counts else "has more than one `<Instances …/>`"
            self.problem(role, "", what, 'write one `<Instances count="…"/>` in it')
        return RoleSettings(self.text(role, "name"), role.at, counts[0] if counts else 0, tuple(notes))

    def _network(self, network: Element) -> None:
        self.attributes(network)
        for part in network.children:
            if part.name == "AccessControls":
                self.attributes(part)
                self.controls += [self._access_control(each) for each in self.children(part, "AccessControl")]
            elif part.name == "EndpointAcls":
                self.attributes(part)
                self.acls += [self._acl(each) for each in self.children(part, "EndpointAcl")]
            elif part.name == "AddressAssignments":
                self._addresses(part)
            elif part.name in _NETWORK_PARTS:
                self.part_left_out(part, *_NETWORK_PARTS[part.name])
            elif not self.misspelt(part, ("AccessControls", "EndpointAcls", "AddressAssignments", *_NETWORK_PARTS)):
                self.part_left_out(part, "", UNKNOWN)

    def _addresses(self, assignments: Element) -> None:
        self.attributes(assignments)
        for part in assignments.children:
            if part.name != "InstanceAddress":
                self.part_left_out(part, *_ADDRESS_PARTS.get(part.name, ("", UNKNOWN)))
                continue
            with self.noted() as notes:
                self.attributes(part, "roleName")
                for each in part.children:
                    self.part_left_out(each, *_ADDRESS_PARTS.get(each.name, ("", UNKNOWN)))
            self.addresses += [(part.attributes.get("roleName", ""), note) for note in notes]

    def _access_control(self, element: Element) -> AccessControl:
        self.attributes(element, "name")
        rules = [self._access_rule(each) for each in self.children(element, "Rule")]
        if not rules:
            self.problem(element, "", "has no rule", "write one, or remove the list")
        return AccessControl(self.text(element, "name"), element.at, tuple(rules))

    def _access_rule(self, element: Element) -> ConfiguredRule:
        self.leaf(element, "order", "action", "remoteSubnet", "description")
        text = self.text(element, "remoteSubnet").strip()
        network = _NOWHERE
        try:
            network = values.network(text)
        except WrongValue as error:
            if text:
                self.problem(element, "remoteSubnet", error.what, error.remedy)
        return ConfiguredRule(
            element.at,
            self.needed(element, "order", 0, _ORDER_MAX, 100),
            "permit" if self.word(element, "action", "permit", "deny") == "permit" else "deny",
            network,
            text,
            element.attributes.get("description", ""),
        )

    def _acl(self, element: Element) -> EndpointAcl:
        # The schema's page and published configurations differ in the spelling.
        spellings = [name for name in ("endpoint", "endPoint") if name in element.attributes]
        self.leaf(element, "role", "accessControl", *(spellings or ["endpoint"]))
        if len(spellings) > 1:
            self.problem(element, "endPoint", "is written twice, as `endpoint` too", "keep one of the two")
        return EndpointAcl(
            self.text(element, "role"),
            self.text(element, spellings[0] if spellings else "endpoint"),
            self.text(element, "accessControl"),
            element.at,
        )
