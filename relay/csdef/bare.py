"""What mapping.py makes, for machines that stay what they are: no relay runs there, and an edge has the public ports.

docs/why/import-decisions.md has the reasons.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import ClassVar

from relay.config.roster import EDGE
from relay.config.wording import brief, shown
from relay.csdef.bare_ports import bare_cannot, bare_place
from relay.csdef.configuration import INSTANCES_MAX, Configuration
from relay.csdef.definition import DefinedProbe, DefinedRole, Definition, Endpoint, InputEndpoint
from relay.csdef.mapping import FIRST_LINE, EndpointKey, Mapping, instances, probe_keys
from relay.csdef.ports import PlacedEndpoint
from relay.csdef.substitutes import further_name
from relay.csdef.yamltext import Block, Comment, Key
from relay.errors import ConfigError, Problem

__all__ = ["BareMapping"]

_HEAD = (
    FIRST_LINE,
    "Imported from {files} for machines that stay what they are: relay runs on the edge alone. What must be done before it "
    "is used:",
    "* The addresses below `instances` belong to no machine (RFC 5737, RFC 2544), because the source has the number of "
    "instances only. Write those of your machines, and of the edge.",
    "* Let the firewall of each machine admit the edge alone to the `port` of an input endpoint and of its probe, and the "
    "service's own machines alone to that of an internal one. The edge enforces `access`, and nobody else does; nobody "
    "enforces `from`.",
    "* The applications see the edge's address in place of the client's. One that reads the PROXY protocol is told by "
    "`send_proxy: v2` at its endpoint.",
    "* Read the comments, above all those that begin with `left out` or `warning`.",
)
_EDGE_IS = (
    "what the platform's load balancer did: it has the public ports, probes the instances and spreads clients over them"
)
# Of RFC 5737's three networks the one that the placeholders of instances are not from.
_EDGE_ADDRESS = "198.51.100.10"


class BareMapping(Mapping):
    """One import of a service on whose machines no relay will run."""

    head = _HEAD
    taken_names: ClassVar[frozenset[str]] = frozenset({EDGE})

    def __init__(self, definition: Definition, configuration: Configuration | None) -> None:
        super().__init__(definition, configuration)
        self.taken = set(self.roles.values())
        self.numbers: Counter[str] = Counter()
        self.count = 0

    def edge(self) -> Block:
        """The edge, with an address that no machine has; or a warning that there is nothing for it to do."""
        if not self.has_public:
            text = "nothing of this service is public: there is no port for an edge, and no machine in this file has a relay"
            return (self._note("warning", self.definition.at, text),)
        address = Key("instances", [_EDGE_ADDRESS], "a placeholder: write the address of your edge")
        return (Key("edge", (Comment(_EDGE_IS), address)),)

    def role(self, role: DefinedRole) -> Iterator[Key]:
        """A bare role, and one more of the same machines for each further endpoint on one port.

        Raises ConfigError where no port is left to guess, or these are too many instances.
        """
        first, *further = bare_place(role, self.definition.file, partial(self._access_of, role))
        self._count(role, 1 + len(further))
        name, addresses = self.roles[role.name], list(islice(self.addresses, self.count_of(role)))
        bare = Key("bare", True, "no relay on these machines")
        yield Key(name, (bare, *self.machines(role, addresses), *self.endpoints(role, first)))
        for placed in further:
            part = replace(role, endpoints=tuple(each.endpoint for each in placed))
            text = (
                f"the machines of {name} once more, because a role has one endpoint on a port: write the same addresses"
            )
            again = self._note("warning", placed[0].endpoint.at, text)
            block = (bare, again, instances(addresses), *self.endpoints(part, placed))
            yield Key(further_name(name, self.taken, self.numbers), block)

    def _count(self, role: DefinedRole, times: int) -> None:
        """Refuse what would be written so often that nobody could read it."""
        self.count += times * self.count_of(role)
        if self.count > INSTANCES_MAX:
            what = f"{shown(role.name)} has up to {times} endpoints on one port, and is written once for each of them: "
            what += f"{self.count} instances, and relay imports {INSTANCES_MAX} at most"
            raise ConfigError(
                [Problem(self.definition.file, *role.at, "Endpoints", what, "let fewer endpoints lead to one port")]
            )

    def cannot(self, endpoint: Endpoint) -> str:
        """Why a bare role cannot have the endpoint; "" where it can."""
        return bare_cannot(endpoint)

    def way(self, placed: PlacedEndpoint) -> tuple[Key, ...]:
        """Where the application takes an endpoint's connections."""
        return (Key("port", placed.target[0]),)

    def probe(self, endpoint: InputEndpoint, probe: DefinedProbe, port: int) -> Iterator[Key | Comment]:
        """How the edge asks the machine: at the probe's own port too."""
        keys: dict[str, str | int] = {}
        if probe.port not in (None, port):
            keys["port"] = probe.port
            if endpoint.protocol == "https" and probe.path is not None:
                keys["tls"] = False  # the platform spoke none; relay does to an https endpoint where nothing is said
        yield Key("probe", probe_keys(probe) | keys)

    def sources(self, key: EndpointKey) -> Iterator[Key | Comment]:
        """Who shall connect to an internal endpoint, and that nobody sees to it."""
        for part in super().sources(key):
            if isinstance(part, Key):
                why = "no relay is there to enforce `from`, so a firewall must"
                yield self._note("warning", self.allowed[key].at, f"traffic rules for {brief(key[1])}: {why}")
            yield part
