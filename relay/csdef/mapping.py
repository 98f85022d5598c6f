"""A definition and its configuration as service.yaml: every key, and a comment for all that has no counterpart.

docs/why/import-decisions.md has the reasons for what is decided here where the files leave it open.
"""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain, islice
from typing import ClassVar, Final, Literal

from relay.config.values import PORTS_MAX
from relay.config.wording import brief
from relay.csdef.configuration import AccessControl, Configuration
from relay.csdef.definition import (
    DefinedProbe,
    DefinedRole,
    Definition,
    Endpoint,
    InputEndpoint,
    InstanceEndpoint,
    InternalEndpoint,
    Span,
)
from relay.csdef.ports import PlacedEndpoint, cannot, place
from relay.csdef.read import Note, Place
from relay.csdef.substitutes import endpoint_names, placeholders, role_names, service_name
from relay.csdef.traffic import allowed_roles
from relay.csdef.yamltext import Block, Comment, Key

__all__ = ["FIRST_LINE", "EndpointKey", "Mapping", "instances", "probe_keys"]

FIRST_LINE: Final = "yaml-language-server: $schema=service.schema.json"
"""By which an editor knows what the file may hold."""

_HEAD = (
    FIRST_LINE,
    "Imported from {files}. What must be done before it is used:",
    "* The addresses below `instances` belong to no machine (RFC 5737, RFC 2544), because the source has the number of "
    "instances only. Write those of your machines.",
    "* Each application must listen on 127.0.0.1 only, on the port of its `target`: relay itself listens on the address of "
    "the instance, and cannot where an application listens on all addresses.",
    "* Read the comments, above all those that begin with `left out` or `warning`.",
)
# A comment, because the files do not have it: the load balancer was the platform's. 198.51.100.0/24 is RFC 5737's too.
_EDGE = (
    "What the platform's load balancer did, an edge does: it has the public ports, probes the instances and spreads clients "
    "over them. Write the addresses of its machines here, and remove the `#`; without an edge, clients reach the instances "
    "themselves, each endpoint on its `port`.",
    "edge: {instances: [198.51.100.10]}",
)

# A probe whose timeout is more intervals than this. The defaults, 31 s and 15 s, are two and a bit.
_ROUNDS_MAX = 3

EndpointKey = tuple[str, str]
"""A role and an endpoint by their names in the definition."""


class Mapping:
    """One import, of two files that are without errors (check.py). `notes` grows while the file is made.

    What is different where the machines have no relay stands in bare.py.
    """

    head: ClassVar[tuple[str, ...]] = _HEAD
    taken_names: ClassVar[frozenset[str]] = frozenset()
    """Names that no role may have."""

    def __init__(self, definition: Definition, configuration: Configuration | None) -> None:
        self.definition = definition
        self.configuration = configuration or Configuration("", definition.name, (0, 0), (), (), (), (), ())
        self.notes: list[Note] = []
        self.has_public = any(map(_is_public, chain.from_iterable(role.endpoints for role in definition.roles)))
        self.roles = role_names(
            (role.name for role in definition.roles), self.taken_names if self.has_public else frozenset()
        )
        self.lists = endpoint_names(control.name for control in self.configuration.access_controls)
        self.settings = {settings.name: settings for settings in self.configuration.roles}
        self.acls = {(acl.role, acl.endpoint): acl for acl in self.configuration.acls}
        self.probes = {probe.name: probe for probe in definition.probes}
        self.allowed = allowed_roles(definition)
        self.addresses = placeholders()
        self.addresses_of: dict[str, list[Note]] = defaultdict(list)  # "": of roles that are not imported
        for role, note in self.configuration.addresses:
            self.addresses_of[role if role in self.roles else ""].append(note)

    def service(self) -> Block:
        """The whole file. Raises ConfigError where a role has more endpoints than ports."""
        name = service_name(self.definition.name)
        was = "" if name == self.definition.name else f"{brief(self.definition.name)} in the source"
        files = " and ".join(os.path.basename(each.file) for each in (self.definition, self.configuration) if each.file)
        whole = self._noted(self.definition.notes, self.configuration.notes, self.addresses_of[""])
        if not self.configuration.file:
            whole.append(
                self._note("warning", self.definition.at, "no configuration: one instance is assumed for each role")
            )
        lists = tuple(Key(self.lists[each.name], self._list(each)) for each in self.configuration.access_controls)
        roles = tuple(chain.from_iterable(map(self.role, self.definition.roles)))
        return (
            *(Comment(line.format(files=files)) for line in self.head),
            *whole,
            Key("version", 1),
            Key("service", name, was),
            *self.edge(),
            *([Key("access_lists", lists)] if lists else []),
            Key("roles", roles),
        )

    def edge(self) -> Block:
        """Who carries the public ports, if there are any."""
        return tuple(map(Comment, _EDGE)) if self.has_public else ()

    def role(self, role: DefinedRole) -> Iterator[Key]:
        """What a role of the source becomes."""
        placed = place(role, self.definition.file, partial(self._access_of, role))
        machines = self.machines(role, list(islice(self.addresses, self.count_of(role))))
        yield Key(self.roles[role.name], (*machines, *self.endpoints(role, placed)))

    def _noted(self, *notes: Iterable[Note]) -> list[Comment]:
        """Keep the notes, and give their comments. What both files say of a thing is said once."""
        once: dict[str, Note] = {}
        for note in chain.from_iterable(notes):
            once.setdefault(note.text, note)
        self.notes += once.values()
        return [Comment(note.comment) for note in once.values()]

    def _note(self, kind: Literal["left out", "warning", "note"], at: Place, text: str, file: str = "") -> Comment:
        """A comment of the mapping's own, on a place in the definition if no other `file` is given."""
        note = Note(file or self.definition.file, *at, kind, text)
        self.notes.append(note)
        return Comment(note.comment)

    def _list(self, control: AccessControl) -> Block:
        block: list[Key | Comment] = []
        name = self.lists[control.name]
        if name != control.name:
            block.append(self._renamed(control.name, control.at, self.configuration.file))
        rules = sorted(control.rules, key=lambda rule: rule.order)
        for before, rule in zip([None, *rules], rules, strict=False):
            if before is not None and before.order == rule.order:
                text = f"two rules have the order {rule.order}: the one that is first in the source is asked first"
                block.append(self._note("warning", rule.at, text, self.configuration.file))
            is_exact = rule.text.partition("/")[0] == str(rule.network.network_address)
            said = [f"order {rule.order}", "" if is_exact else f"{rule.text} in the source", rule.description]
            network = rule.text if is_exact else str(rule.network)
            block.append(Key(rule.action, network, "; ".join(filter(None, said)), item=True))
        return tuple(block)

    def _renamed(self, name: str, at: Place, file: str = "") -> Comment:
        return self._note("warning", at, f"its name in the source is {brief(name)}, which relay does not take", file)

    def count_of(self, role: DefinedRole) -> int:
        """How many instances the configuration says; 1 where it says nothing."""
        settings = self.settings.get(role.name)
        return settings.count if settings else 1

    def machines(self, role: DefinedRole, addresses: list[str]) -> Block:
        """The notes on a role, and its instances at these addresses."""
        settings = self.settings.get(role.name)
        block: list[Key | Comment] = []
        if self.roles[role.name] != role.name:
            block.append(self._renamed(role.name, role.at))
        block += self._noted(role.notes, settings.notes if settings else (), self.addresses_of[role.name])
        if settings is None and self.configuration.file:
            block.append(
                self._note("warning", role.at, "the configuration does not have this role: one instance is assumed")
            )
        return (*block, instances(addresses))

    def endpoints(self, role: DefinedRole, placed: Iterable[PlacedEndpoint]) -> Block:
        """The role's endpoints, those that are left out as comments."""
        names = endpoint_names(endpoint.name for endpoint in role.endpoints)
        found = {each.endpoint.at: each for each in placed}
        block: list[Key | Comment] = []
        for endpoint in role.endpoints:
            if reason := self.cannot(endpoint):
                what = f"{endpoint.element} {brief(endpoint.name)}: {reason}"
                block.append(self._note("left out", endpoint.at, what))
            elif each := found.get(endpoint.at):
                name = names[endpoint.name]
                block.append(Key(name, self._endpoint((role.name, endpoint.name), name, each)))
        return (Key("endpoints", tuple(block)),) if any(isinstance(each, Key) for each in block) else tuple(block)

    def cannot(self, endpoint: Endpoint) -> str:
        """Why relay cannot have the endpoint; "" where it can."""
        return cannot(endpoint)

    def _access_of(self, role: DefinedRole, endpoint: Endpoint) -> str | None:
        acl = self.acls.get((role.name, endpoint.name))
        return acl.access_control if acl else None

    def _endpoint(self, key: EndpointKey, name: str, placed: PlacedEndpoint) -> Block:
        endpoint, joined = placed.endpoint, placed.joined
        head: list[Comment] = []
        if name != endpoint.name:
            head.append(self._renamed(endpoint.name, endpoint.at))
        head += self._noted(endpoint.notes, joined.notes if joined else ())
        if placed.why:
            head.append(self._note("warning", endpoint.at, placed.why))
        if joined:
            text = f"one with the InstanceInputEndpoint {brief(joined.name)}, which leads to the same local port"
            head.append(self._note("note", joined.at, text))
        if isinstance(endpoint, InternalEndpoint):
            return (*head, *self._internal(key, endpoint, placed))
        return (*head, *self._input(key, endpoint, placed))

    def _input(self, key: EndpointKey, endpoint: InputEndpoint | InstanceEndpoint, placed: PlacedEndpoint) -> Block:
        block: list[Key | Comment] = [Key("type", "input"), Key("protocol", endpoint.protocol)]
        if isinstance(endpoint, InputEndpoint):
            block.append(Key("public_port", endpoint.port))
        several = endpoint if isinstance(endpoint, InstanceEndpoint) else placed.joined
        if several:
            block += self._instance_ports(several)
        block += self.way(placed)
        if key in self.acls:
            remark = "for the ports of the instances too, which the documentation leaves open" if several else ""
            block.append(Key("access", self.lists[self.acls[key].access_control], remark))
        for name in (endpoint.name, placed.joined.name if placed.joined else ""):
            if allowed := self.allowed.get((key[0], name)):
                why = "an input endpoint is open to the outside, and `access` says to whom"
                block.append(self._note("left out", allowed.at, f"a network traffic rule for {brief(name)}: {why}"))
        return (*block, *self._balancing(endpoint, placed)) if isinstance(endpoint, InputEndpoint) else tuple(block)

    def _instance_ports(self, instance: InstanceEndpoint) -> Iterator[Key | Comment]:
        first, last = instance.public
        if last - first >= PORTS_MAX:
            text = (
                f"the source has the range {first}-{last}, and relay takes {PORTS_MAX} ports: those after are left out"
            )
            yield self._note("warning", instance.at, text)
            last = first + PORTS_MAX - 1
        yield Key(
            "instance_ports",
            _ports((first, last)),
            "in the order of the instances, which the documentation leaves open",
        )

    def _balancing(self, endpoint: InputEndpoint, placed: PlacedEndpoint) -> Iterator[Key | Comment]:
        if endpoint.distribution is not None:
            yield Key("distribution", endpoint.distribution)
        if endpoint.probe is not None:
            probe = self.probes[endpoint.probe]
            if probe.timeout_s > _ROUNDS_MAX * probe.interval_s:
                other = f"{2 * probe.interval_s}s may have been enough"
                text = f"the documentation disagrees with itself on so long a timeout: {other}"
                yield self._note("note", probe.at, text)
            yield from self.probe(endpoint, probe, placed.target[0])
        if endpoint.idle_min is not None:
            yield Key("timeouts", {"idle": f"{endpoint.idle_min}m"})

    def probe(self, endpoint: InputEndpoint, probe: DefinedProbe, port: int) -> Iterator[Key | Comment]:
        """How the endpoint, whose application listens on this port, is probed."""
        if probe.port not in (None, port):
            what = f"the port {probe.port} of the probe {brief(probe.name)}"
            asked = f"relay asks {brief(endpoint.name)} itself, through the instance's relay to the application"
            must = "take connections" if probe.path is None else "answer with 200"
            yield self._note("left out", probe.at, f"{what}: {asked}, which must {must} on {port}")
        yield Key("probe", probe_keys(probe))

    def way(self, placed: PlacedEndpoint) -> tuple[Key, ...]:
        """Where an instance takes an endpoint's connections, and where it leads them."""
        return Key("port", _ports(placed.listen)), Key("target", f"127.0.0.1:{_ports(placed.target)}")

    def _internal(self, key: EndpointKey, endpoint: InternalEndpoint, placed: PlacedEndpoint) -> Block:
        block: list[Key | Comment] = []
        if endpoint.protocol == "any":
            text = "what is not TCP: the protocol `any` is imported as tcp, and UDP is not forwarded"
            block.append(self._note("left out", endpoint.at, text))
        protocol = "tcp" if endpoint.protocol == "any" else endpoint.protocol
        block += [Key("type", "internal"), Key("protocol", protocol), *self.way(placed)]
        if key in self.acls:
            acl = self.acls[key]
            text = f"the access list {brief(acl.access_control)}: an internal endpoint has `from`, and no access rules"
            block.append(self._note("left out", acl.at, text, self.configuration.file))
        return (*block, *self.sources(key))

    def sources(self, key: EndpointKey) -> Iterator[Key | Comment]:
        """Who may connect to an internal endpoint."""
        allowed = self.allowed.get(key)
        if allowed is None:
            return
        if allowed.both is not None:
            text = "a rule for it has AllowAllTraffic beside WhenSource: it is read as WhenSource alone"
            yield self._note("warning", allowed.both, text)
        if allowed.everyone and allowed.roles:
            text = "one rule for it lists roles, and another has AllowAllTraffic alone: every role may connect"
            yield self._note("warning", allowed.at, text)
        if not allowed.everyone:
            yield Key("from", [self.roles[role] for role in allowed.roles])


def _is_public(endpoint: Endpoint) -> bool:
    """Whether the edge would have a port for it."""
    return not isinstance(endpoint, InternalEndpoint) and not cannot(endpoint)


def _ports(span: Span) -> str | int:
    return span[0] if span[0] == span[1] else f"{span[0]}-{span[1]}"


def instances(addresses: list[str]) -> Key:
    """A role's instances at these placeholders."""
    several = f"placeholders: write the addresses of your {len(addresses)} machines"
    remark = several if len(addresses) > 1 else "a placeholder: write the address of your machine"
    return Key("instances", addresses, remark if addresses else "")


def probe_keys(probe: DefinedProbe) -> dict[str, str | int]:
    """What a probe of the source says but for its port."""
    path = {} if probe.path is None else {"path": probe.path}
    return {
        "protocol": probe.protocol,
        **path,
        "interval": f"{probe.interval_s}s",
        "timeout": f"{probe.timeout_s}s",
    }
