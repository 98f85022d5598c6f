"""Whether what was imported has exactly what a random service of the source has."""

import re
from collections import Counter
from collections.abc import Iterable
from ipaddress import ip_network
from itertools import islice
from typing import Any

from relay.config import endpoint, model, values
from relay.config.check import endpoints
from relay.config.probe import Probe
from relay.config.wording import brief
from tests.csdef.services import Endpoint, Service


class Comparison:
    """Whether a model has exactly what a service of the source has."""

    def __init__(self, service: Service, ours: model.Service, left_out: list[str]) -> None:
        self.service = service
        self.ours = ours
        self.left_out = left_out
        self.names = list(ours.roles)
        self.reserved: set[str] = set()
        self.by_public_port = {each.public_port: each for _, _, each, _ in endpoints(ours) if each.public_port}
        self.by_first_port = {
            each.instance_ports.first: each for _, _, each, _ in endpoints(ours) if each.instance_ports
        }

    def run(self) -> None:
        assert len(self.names) == len(self.service.roles)
        self._addresses()
        for number, role in enumerate(self.service.roles):
            if re.fullmatch(values.ROLE_NAME_PATTERN, role.name) and role.name not in self.reserved:
                assert self.names[number] == role.name
            kept = [(slot, each) for slot, each in enumerate(role.endpoints) if self.is_kept(each)]
            reached = [self._endpoint(number, slot, each) for slot, each in kept]
            assert {id(each) for each in reached} == {id(each) for each in self._endpoints(number)}
            self._joined(number, [slot for slot, _ in kept])

    def is_kept(self, theirs: Endpoint) -> bool:
        """Whether relay can have the endpoint."""
        return is_kept(theirs)

    def _endpoints(self, role: int) -> Iterable[endpoint.Endpoint]:
        """What became of a role's endpoints."""
        return self.ours.roles[self.names[role]].endpoints.values()

    def _addresses(self) -> None:
        addresses = [address for name in self.names for address in self.ours.roles[name].instances]
        assert len(set(addresses)) == len(addresses)
        for role, name in zip(self.service.roles, self.names, strict=True):
            assert len(self.ours.roles[name].instances) == (1 if role.count is None else role.count)
        for address in addresses:
            assert any(address in ip_network(each) for each in ("192.0.2.0/24", "198.18.0.0/15"))

    def _endpoint(self, role: int, slot: int, theirs: Endpoint) -> endpoint.Endpoint:
        match theirs.kind:
            case "InputEndpoint":
                mine = self.by_public_port[theirs.port]
                assert mine.protocol == theirs.protocol.lower()
                assert mine.timeouts.idle_s == 60 * (theirs.idle_min or 4)
                self._balancing(theirs, mine)
            case "InstanceInputEndpoint":
                assert theirs.span is not None
                mine = self.by_first_port[theirs.span[0]]
                assert mine.instance_ports == values.Ports(theirs.span[0], min(theirs.span[1], theirs.span[0] + 1023))
                assert mine.public_port or (mine.probe, mine.distribution) == (None, "five-tuple")
            case _:
                return self._internal(role, slot, theirs)
        assert mine in self._endpoints(role)
        assert (mine.type, mine.from_roles, len(mine.listen_ports)) == ("input", None, 1)
        self._local_port(role, theirs, mine)
        number = self.service.acls.get((role, slot))
        rules = [] if number is None else sorted(self.service.lists[number][1], key=lambda rule: rule.order)
        wanted = [(rule.action.lower(), ip_network(rule.network, strict=False)) for rule in rules]
        assert [(rule.action, rule.network) for rule in self.ours.rules_of(mine)] == wanted
        return mine

    def _balancing(self, theirs: Endpoint, mine: endpoint.Endpoint) -> None:
        """The probe and the distribution; a port of the probe's own that is not the application's is told."""
        is_affine = theirs.distribution in ("sourceIP", "sourceIPProtocol")
        assert mine.distribution == ("source-ip" if is_affine else "five-tuple")
        if theirs.probe is None:
            assert mine.probe is None
            return
        probe = self.service.probes[theirs.probe]
        path = probe.get("path")
        wanted: dict[str, Any] = {"protocol": "tcp"}
        if path is not None:
            wanted = {"protocol": "http", "path": "/" + path.removeprefix("/")}
        wanted["interval"] = f"{probe.get('intervalInSeconds', 15)}s"
        wanted["timeout"] = f"{probe.get('timeoutInSeconds', 31)}s"
        self._probe(theirs, mine, probe, wanted)

    def _probe(self, theirs: Endpoint, mine: endpoint.Endpoint, probe: dict[str, str], wanted: dict[str, Any]) -> None:
        """`wanted` is the probe but for its port."""
        assert mine.probe == Probe(**wanted)
        asked = f": relay asks {brief(theirs.name)} itself, through the instance's relay to the application"
        told = [text for text in self.left_out if text.startswith("the port ") and asked in text]
        port = int(probe.get("port", mine.targets[0].port))
        if port != mine.targets[0].port:
            assert any(
                text.startswith(f"the port {port} of") and f" on {mine.targets[0].port}" in text for text in told
            )
        else:
            assert not any(text.endswith(f" on {mine.targets[0].port}") for text in told)

    def _local_port(self, role: int, theirs: Endpoint, mine: endpoint.Endpoint) -> None:
        """The application's port is the source's; relay's own too, unless another endpoint of the role has it."""
        assert mine.targets[0].host == "127.0.0.1"
        others = [each for each in self._endpoints(role) if each is not mine]
        listen, local = mine.listen_ports.first, theirs.port if theirs.local is None else theirs.local
        wanted = theirs.port if local == "*" else local
        assert mine.targets[0].port == (listen if local == "*" else wanted)
        assert listen == wanted or any(wanted in each.listen_ports.numbers for each in others)

    def _internal(self, role: int, slot: int, theirs: Endpoint) -> endpoint.Endpoint:
        kept = [at for at, each in enumerate(self.service.roles[role].endpoints) if self.is_kept(each)]
        internal = [at for at in kept if self.service.roles[role].endpoints[at].kind == "InternalEndpoint"]
        ours = [each for each in self._endpoints(role) if each.type == "internal"]
        assert len(ours) == len(internal)
        mine = self._internal_of(role, slot, internal, ours)
        assert mine.protocol == theirs.protocol.lower().replace("any", "tcp")
        if theirs.span is not None:
            assert mine.listen_ports == values.Ports(*theirs.span)
        else:
            assert len(mine.listen_ports) == 1
        wanted = self._sources((role, slot))
        assert mine.from_roles is None if wanted is None else set(mine.from_roles or ()) == wanted
        return mine

    def _internal_of(
        self, role: int, slot: int, internal: list[int], ours: list[endpoint.Endpoint]
    ) -> endpoint.Endpoint:
        """What became of the internal endpoint in that slot; `internal` are the slots of all of them."""
        mine = ours[internal.index(slot)]
        ports = list(mine.listen_ports.numbers)
        assert [mine.target_port(port, mine.targets[0]) for port in ports] == ports
        return mine

    def _sources(self, place: tuple[int, int]) -> set[str] | None:
        """Who may connect by the rules; None: every role. Looks at each rule by itself, and adds up."""
        rules = [rule for rule in self.service.rules if place in rule.destinations]
        if not rules or any(not rule.sources for rule in rules):
            return None
        return {self.names[each] for rule in rules for each in rule.sources}

    def _joined(self, role: int, kept: list[int]) -> None:
        """As many endpoints became one as could: same local port, same access list, an input and an instance endpoint."""
        counts = self._on_ports(role, kept)
        both = [each for each in self._endpoints(role) if each.public_port and each.instance_ports]
        # Input endpoints on one local port are joined with the first only: each has a public port of its own.
        assert len(both) == sum(1 for each in counts.values() if all(each.values()))

    def _on_ports(self, role: int, kept: list[int]) -> dict[tuple[int | None, int | None], dict[str, int]]:
        """By local port and access list, how many input and instance endpoints there are."""
        counts: dict[tuple[int | None, int | None], dict[str, int]] = {}
        for slot in kept:
            each = self.service.roles[role].endpoints[slot]
            if each.kind != "InternalEndpoint" and local_port(each) is not None:
                key = (local_port(each), self.service.acls.get((role, slot)))
                counts.setdefault(key, {"InputEndpoint": 0, "InstanceInputEndpoint": 0})[each.kind] += 1
        return counts


class BareComparison(Comparison):
    """The same where the machines have no relay: every port is the application's own, and roles are written more than once
    whose endpoints share one."""

    def __init__(self, service: Service, ours: model.Service, left_out: list[str]) -> None:
        super().__init__(service, ours, left_out)
        every = iter(self.names)
        self.further = [list(islice(every, self._times(number))) for number, _ in enumerate(service.roles)]
        assert list(every) == []
        self.names = [names.pop(0) for names in self.further]
        self.reserved = {"edge"} if ours.edge else set()

    def run(self) -> None:
        super().run()
        assert all(role.bare for role in self.ours.roles.values())
        is_public = any(each.type == "input" for _, _, each, _ in endpoints(self.ours))
        assert (self.ours.edge is not None) == is_public
        assert not any(each.targets for _, _, each, _ in endpoints(self.ours))

    def _times(self, role: int) -> int:
        """How many endpoints there are on the port that has the most of them, but at least one."""
        theirs = self.service.roles[role].endpoints
        kept = [slot for slot, each in enumerate(theirs) if self.is_kept(each)]
        on_port = Counter(local_port(theirs[slot]) for slot in kept)
        for (port, _), counts in self._on_ports(role, kept).items():
            on_port[port] -= all(counts.values())
        del on_port[None]
        return max(on_port.values(), default=1)

    def is_kept(self, theirs: Endpoint) -> bool:
        return super().is_kept(theirs) and (
            theirs.kind != "InternalEndpoint" or theirs.span is None or theirs.span[0] == theirs.span[1]
        )

    def _endpoints(self, role: int) -> Iterable[endpoint.Endpoint]:
        every = (self.ours.roles[name].endpoints.values() for name in (self.names[role], *self.further[role]))
        return [each for some in every for each in some]

    def _addresses(self) -> None:
        for name, further in zip(self.names, self.further, strict=True):
            for each in further:
                assert self.ours.roles[each].items == self.ours.roles[name].items
        super()._addresses()

    def _probe(self, theirs: Endpoint, mine: endpoint.Endpoint, probe: dict[str, str], wanted: dict[str, Any]) -> None:
        port = int(probe.get("port", mine.listen_ports.first))
        if port != mine.listen_ports.first:
            wanted["port"] = port
            if theirs.protocol.lower() == "https" and "path" in probe:
                wanted["tls"] = False
        assert mine.probe == Probe(**wanted)

    def _local_port(self, role: int, theirs: Endpoint, mine: endpoint.Endpoint) -> None:
        if (port := local_port(theirs)) is not None:
            assert mine.listen_ports.first == port
        else:
            self._guess(role, mine)

    def _internal_of(
        self, role: int, slot: int, internal: list[int], ours: list[endpoint.Endpoint]
    ) -> endpoint.Endpoint:
        theirs = self.service.roles[role].endpoints
        if theirs[slot].span is not None:
            return next(each for each in ours if each.listen_ports.first == local_port(theirs[slot]))
        known = {local_port(theirs[each]) for each in internal}
        guessed = [each for each in ours if each.listen_ports.first not in known]
        mine = guessed[[each for each in internal if theirs[each].span is None].index(slot)]
        self._guess(role, mine)
        return mine

    def _guess(self, role: int, mine: endpoint.Endpoint) -> None:
        """A port where nothing else of the machines is known to listen."""
        theirs = [each for each in self.service.roles[role].endpoints if is_kept(each)]
        assert mine.listen_ports.first not in {local_port(each) for each in theirs}
        spans = [each.span for each in theirs if each.kind == "InternalEndpoint" and each.span]
        assert not any(first <= mine.listen_ports.first <= last for first, last in spans)
        assert [each.listen_ports.first for each in self._endpoints(role)].count(mine.listen_ports.first) == 1


def local_port(theirs: Endpoint) -> int | None:
    """Where the application listens, of a range the first port; None where the platform chose."""
    if theirs.kind == "InternalEndpoint":
        return theirs.span[0] if theirs.span else None
    local = theirs.port if theirs.local is None else theirs.local
    return None if local == "*" else int(local)


def is_kept(theirs: Endpoint) -> bool:
    """Whether relay can have the endpoint."""
    if theirs.is_udp:
        return False
    if theirs.kind != "InternalEndpoint":
        return True
    if theirs.span is None:
        return theirs.protocol.lower() != "any"
    return theirs.span[1] - theirs.span[0] < values.PORTS_MAX
