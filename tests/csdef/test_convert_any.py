"""Any service as a definition, and any bytes: it is imported, or every problem is told."""

import os
import re
from ipaddress import ip_network
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relay.config import endpoint, model, values
from relay.config.check import endpoints
from relay.config.load import load_service
from relay.config.wording import brief
from relay.csdef.convert import import_files
from relay.errors import ConfigError, Problem
from tests.csdef import PATIENT
from tests.csdef.services import CORPUS, SCHEMA, Endpoint, Service, Xml, services, write

EXAMPLES = int(os.environ.get("RELAY_FUZZ_EXAMPLES", "100"))  # a long run sets more

pytestmark = pytest.mark.timeout(300 + EXAMPLES)


@settings(PATIENT, max_examples=EXAMPLES)
@given(services(), st.integers(0, 2**32))
def test_round_trip(folder: Path, service: Service, seed: int) -> None:
    xml = Xml(service, Random(seed))
    found = import_files(*write(folder, xml.definition(), xml.configuration() if service.has_configuration else None))
    file = folder / "service.yaml"
    file.write_text(found.text, encoding="utf-8")
    loaded = load_service(str(file))
    SCHEMA.validate(loaded.document.data)
    assert [each for each in loaded.warnings if "host bits" in each.what] == []
    Comparison(service, loaded.value, [note.text for note in found.notes if note.kind == "left out"]).run()


class Comparison:
    """Whether a model has exactly what a service of the source has."""

    def __init__(self, service: Service, ours: model.Service, left_out: list[str]) -> None:
        self.service = service
        self.ours = ours
        self.left_out = left_out
        self.names = list(ours.roles)
        self.by_public_port = {each.public_port: each for _, _, each, _ in endpoints(ours) if each.public_port}
        self.by_first_port = {
            each.instance_ports.first: each for _, _, each, _ in endpoints(ours) if each.instance_ports
        }

    def run(self) -> None:
        assert len(self.names) == len(self.service.roles)
        self._addresses()
        for number, role in enumerate(self.service.roles):
            mine = self.ours.roles[self.names[number]]
            if re.fullmatch(values.ROLE_NAME_PATTERN, role.name):
                assert self.names[number] == role.name
            kept = [(slot, each) for slot, each in enumerate(role.endpoints) if is_kept(each)]
            reached = [self._endpoint(number, slot, each) for slot, each in kept]
            assert {id(each) for each in reached} == {id(each) for each in mine.endpoints.values()}
            self._joined(number, [slot for slot, _ in kept])

    def _addresses(self) -> None:
        addresses = [address for role in self.ours.roles.values() for address in role.instances]
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
        assert mine in self.ours.roles[self.names[role]].endpoints.values()
        assert (mine.type, mine.from_roles, mine.targets[0].host, len(mine.listen_ports)) == (
            "input",
            None,
            "127.0.0.1",
            1,
        )
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
        assert mine.probe
        assert mine.probe.protocol == ("tcp" if path is None else "http")
        assert mine.probe.path == (None if path is None else "/" + path.removeprefix("/"))
        assert mine.probe.interval_s == int(probe.get("intervalInSeconds", 15))
        assert mine.probe.timeout_s == int(probe.get("timeoutInSeconds", 31))
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
        others = [each for each in self.ours.roles[self.names[role]].endpoints.values() if each is not mine]
        listen, local = mine.listen_ports.first, theirs.port if theirs.local is None else theirs.local
        wanted = theirs.port if local == "*" else local
        assert mine.targets[0].port == (listen if local == "*" else wanted)
        assert listen == wanted or any(wanted in each.listen_ports.numbers for each in others)

    def _internal(self, role: int, slot: int, theirs: Endpoint) -> endpoint.Endpoint:
        kept = [at for at, each in enumerate(self.service.roles[role].endpoints) if is_kept(each)]
        internal = [at for at in kept if self.service.roles[role].endpoints[at].kind == "InternalEndpoint"]
        ours = [each for each in self.ours.roles[self.names[role]].endpoints.values() if each.type == "internal"]
        mine = ours[internal.index(slot)]
        assert len(ours) == len(internal)
        assert mine.protocol == theirs.protocol.lower().replace("any", "tcp")
        if theirs.span is not None:
            assert mine.listen_ports == values.Ports(*theirs.span)
        else:
            assert len(mine.listen_ports) == 1
        assert [mine.target_port(port, mine.targets[0]) for port in mine.listen_ports.numbers] == list(
            mine.listen_ports.numbers
        )
        wanted = self._sources((role, slot))
        assert mine.from_roles is None if wanted is None else set(mine.from_roles or ()) == wanted
        return mine

    def _sources(self, place: tuple[int, int]) -> set[str] | None:
        """Who may connect by the rules; None: every role. Looks at each rule by itself, and adds up."""
        rules = [rule for rule in self.service.rules if place in rule.destinations]
        if not rules or any(not rule.sources for rule in rules):
            return None
        return {self.names[each] for rule in rules for each in rule.sources}

    def _joined(self, role: int, kept: list[int]) -> None:
        """As many endpoints became one as could: same local port, same access list, an input and an instance endpoint."""
        theirs = self.service.roles[role].endpoints
        counts: dict[tuple[object, object], dict[str, int]] = {}
        for slot in kept:
            each = theirs[slot]
            local = each.port if each.local is None else each.local
            if each.kind != "InternalEndpoint" and local != "*":
                key = (local, self.service.acls.get((role, slot)))
                counts.setdefault(key, {"InputEndpoint": 0, "InstanceInputEndpoint": 0})[each.kind] += 1
        both = [
            each
            for each in self.ours.roles[self.names[role]].endpoints.values()
            if each.public_port and each.instance_ports
        ]
        # Input endpoints on one local port are joined with the first only: each has a public port of its own.
        assert len(both) == sum(1 for each in counts.values() if all(each.values()))


def is_kept(theirs: Endpoint) -> bool:
    """Whether relay can have the endpoint."""
    if theirs.is_udp:
        return False
    if theirs.kind != "InternalEndpoint":
        return True
    if theirs.span is None:
        return theirs.protocol.lower() != "any"
    return theirs.span[1] - theirs.span[0] < values.PORTS_MAX


TOKENS = [
    *(
        b"<",
        b">",
        b"/>",
        b"</",
        b'"',
        b"'",
        b"&",
        b"&#0;",
        b"&#10;",
        b"&lt;",
        b"]]>",
        b"<![CDATA[",
        b"<!--",
        b"-->",
        b"<?",
        b"?>",
    ),
    *(
        b"<!DOCTYPE a [<!ENTITY b 'c'>]>",
        b"xmlns=''",
        b'xmlns:a="b"',
        b"a:",
        b"\xff",
        b"\0",
        b"\xef\xbb\xbf",
        b"\xff\xfe",
    ),
    *(
        b'"*"',
        b'"0"',
        b'"65535"',
        b'"65536"',
        b'"-1"',
        b'"udp"',
        b'"any"',
        b'"10000"',
        b'""',
        b'"\xe2\x80\x9c"',
        b"\r\n",
        b" ",
    ),
    *(
        b"InputEndpoint",
        b"InternalEndpoint",
        b"InstanceInputEndpoint",
        b"FixedPortRange",
        b"AllowAllTraffic",
        b"Rule",
        b"Role",
    ),
]


def check(folder: Path, definition: bytes, configuration: bytes | None) -> None:
    """A file that relay reads without an error, or problems that can be printed; nothing else may come of any bytes."""
    problems: list[Problem] = []
    try:
        found = import_files(*write(folder, definition, configuration))
    except ConfigError as error:
        problems = error.problems
    else:
        file = folder / "service.yaml"
        file.write_text(found.text, encoding="utf-8")
        load_service(str(file))
    for problem in problems:
        assert str(problem).isprintable()
        assert problem.what
        assert problem.fix


@settings(PATIENT, max_examples=EXAMPLES)
@given(st.binary(max_size=300), st.none() | st.binary(max_size=300))
def test_any_bytes(folder: Path, definition: bytes, configuration: bytes | None) -> None:
    check(folder, definition, configuration)


def pieces(content: bytes) -> list[bytes]:
    """A file's text cut where its parts meet: so that a mutation is more often still XML."""
    return re.findall(rb'\s+|"[^"]*"|[<>=/]|[^\s"<>=/]+', content)


@st.composite
def mutated(draw: st.DrawFn, files: list[bytes]) -> bytes:
    """A file of the corpus after some accidents."""
    parts = pieces(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(0, 6))):
        at, to = sorted((draw(st.integers(0, len(parts))), draw(st.integers(0, len(parts)))))
        to = min(to, at + draw(st.sampled_from([0, 1, 1, 1, 3, 12, len(parts)])))
        from_at = draw(st.integers(0, len(parts)))
        new = draw(
            st.sampled_from([[], parts[at:to] * 2, [draw(st.sampled_from(TOKENS))], parts[from_at : from_at + 5]])
        )
        parts[at:to] = new
    return b"".join(parts)


DEFINITIONS = [file.read_bytes() for file in sorted(CORPUS.glob("*.csdef")) if file.stat().st_size < 4_000]


CONFIGURATIONS = [file.read_bytes() for file in sorted(CORPUS.glob("*.cscfg")) if file.stat().st_size < 4_000]


@settings(PATIENT, max_examples=EXAMPLES * 2)
@given(mutated(DEFINITIONS), st.none() | mutated(CONFIGURATIONS))
def test_files_after_accidents(folder: Path, definition: bytes, configuration: bytes | None) -> None:
    check(folder, definition, configuration)


@settings(PATIENT, max_examples=EXAMPLES)
@given(services(), st.integers(0, 2**32), st.data())
def test_services_after_accidents(folder: Path, service: Service, seed: int, data: st.DataObject) -> None:
    xml = Xml(service, Random(seed))
    check(folder, data.draw(mutated([xml.definition()])), data.draw(mutated([xml.configuration()])))
