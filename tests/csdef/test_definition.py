"""A .csdef by its parts: what is read, with which defaults, and what of it is noted."""

from random import Random

import pytest

from relay.csdef.definition import (
    NAMESPACE,
    ROOT,
    DefinedProbe,
    DefinedRole,
    Definition,
    InputEndpoint,
    InstanceEndpoint,
    InternalEndpoint,
    TrafficRule,
    definition_of,
)
from relay.csdef.tree import parse_xml
from relay.errors import Problem


def read(inside: str) -> Definition:
    text = f'<ServiceDefinition name="shop">\n{inside}</ServiceDefinition>'
    problems: list[Problem] = []
    found = definition_of(parse_xml(text.encode(), "f.csdef", ROOT, NAMESPACE), "f.csdef", problems)
    assert problems == []
    return found


def role(inside: str) -> DefinedRole:
    [found] = read(f'<WebRole name="web">{inside}</WebRole>').roles
    return found


def endpoint(text: str) -> InputEndpoint | InternalEndpoint | InstanceEndpoint:
    [found] = role(f"<Endpoints>{text}</Endpoints>").endpoints
    return found


def test_input_endpoints() -> None:
    plain = endpoint('<InputEndpoint name="a" protocol="HTTP" port="80"/>')
    assert plain == InputEndpoint("a", (2, 32), "http", 80, 80, None, None, None, ())
    full = endpoint(
        '<InputEndpoint name="a" protocol="tcp" port="80" localPort="8080" loadBalancerProbe="p" '
        'loadBalancerDistribution="sourceIP" idleTimeoutInMinutes="30"/>'
    )
    assert full == InputEndpoint("a", (2, 32), "tcp", 80, 8080, "p", "source-ip", 30, ())


@pytest.mark.parametrize("text", ["*", " * "])
def test_a_local_port_that_the_platform_chooses(text: str) -> None:
    found = endpoint(f'<InputEndpoint name="a" protocol="tcp" port="80" localPort="{text}"/>')
    assert isinstance(found, InputEndpoint)
    assert found.local_port is None


@pytest.mark.parametrize(
    ("word", "ours"),
    [("sourceIP", "source-ip"), ("sourceIPProtocol", "source-ip"), ("none", None), ("SOURCEIP", "source-ip")],
)
def test_distribution(word: str, ours: str | None) -> None:
    found = endpoint(f'<InputEndpoint name="a" protocol="tcp" port="80" loadBalancerDistribution="{word}"/>')
    assert isinstance(found, InputEndpoint)
    assert found.distribution == ours


@pytest.mark.parametrize("word", ["true", "True", "1"])
def test_an_ignored_status_is_noted(word: str) -> None:
    found = endpoint(f'<InputEndpoint name="a" protocol="tcp" port="80" ignoreRoleInstanceStatus="{word}"/>')
    assert [note.text for note in found.notes] == ["ignoreRoleInstanceStatus: relay knows no status of a role"]


@pytest.mark.parametrize("word", ["false", "0"])
def test_a_status_that_counts_is_the_default(word: str) -> None:
    assert endpoint(f'<InputEndpoint name="a" protocol="tcp" port="80" ignoreRoleInstanceStatus="{word}"/>').notes == ()


def test_what_was_not_open_to_everyone_is_a_warning() -> None:
    found = endpoint('<InputEndpoint name="a" protocol="tcp" port="80" loadBalancer="inner"/>')
    [note] = found.notes
    assert (note.kind, "open to one network" in note.text) == ("warning", True)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ('<InternalEndpoint name="a" protocol="tcp"/>', None),
        ('<InternalEndpoint name="a" protocol="tcp" port="1"/>', (1, 1)),
        ('<InternalEndpoint name="a" protocol="tcp"><FixedPort port="65535"/></InternalEndpoint>', (65535, 65535)),
        ('<InternalEndpoint name="a" protocol="tcp"><FixedPortRange max="9" min="8"/></InternalEndpoint>', (8, 9)),
    ],
)
def test_internal_endpoints(text: str, ports: tuple[int, int] | None) -> None:
    assert endpoint(text) == InternalEndpoint("a", (2, 32), "tcp", ports, ())


def test_instance_endpoints() -> None:
    span = '<AllocatePublicPortFrom><FixedPortRange max="9" min="8"/></AllocatePublicPortFrom>'
    text = f'<InstanceInputEndpoint name="a" protocol="UDP" localPort="80">{span}</InstanceInputEndpoint>'
    assert endpoint(text) == InstanceEndpoint("a", (2, 32), "udp", 80, (8, 9), ())


def test_roles_of_both_kinds_and_of_none() -> None:
    found = read('<WebRole name="a"/><VirtualMachineRole name="b"/><WorkerRole name="c"><Endpoints/></WorkerRole>')
    assert [each.name for each in found.roles] == ["a", "c"]
    assert found.others == ("b",)
    assert [note.text for note in found.notes] == ["VirtualMachineRole b: relay does not know this element"]


def test_the_order_of_children_does_not_count() -> None:
    parts = [
        '<Endpoints><InternalEndpoint name="a" protocol="tcp" port="1"/></Endpoints>',
        '<Certificates><Certificate name="c"/></Certificates>',
        '<Imports><Import moduleName="RemoteAccess"/></Imports>',
        '<Sites><Site name="s"/></Sites>',
        '<Unknown name="u"/>',
    ]
    seen = set()
    for seed in range(20):
        Random(seed).shuffle(parts)
        found = role("".join(parts))
        seen.add((found.endpoints[0].name, tuple(sorted(note.text for note in found.notes))))
    [(name, notes)] = seen
    assert name == "a"
    assert notes == (
        "Certificates (c): TLS passes through, and the certificate stays with the application",
        "Sites (s): the bindings of a web server are its own",
        "Unknown u: relay does not know this element",
        "the plug-in RemoteAccess, which adds the internal endpoint "
        "Microsoft.WindowsAzure.Plugins.RemoteAccess.Rdp, tcp 3389",
    )


@pytest.mark.parametrize(
    ("text", "probe"),
    [
        ('name="p" protocol="tcp"', DefinedProbe("p", (2, 21), "tcp", None, None, 15, 31)),
        ('name="p" protocol="HTTP" path="a.aspx"', DefinedProbe("p", (2, 21), "http", "/a.aspx", None, 15, 31)),
        (
            'name="p" protocol="http" path="/" port="8081" intervalInSeconds="5" timeoutInSeconds="100"',
            DefinedProbe("p", (2, 21), "http", "/", 8081, 5, 100),
        ),
    ],
)
def test_probes(text: str, probe: DefinedProbe) -> None:
    assert read(f"<LoadBalancerProbes><LoadBalancerProbe {text}/></LoadBalancerProbes>").probes == (probe,)


def rule(text: str) -> TrafficRule:
    destination = '<Destinations><RoleEndpoint roleName="r" endpointName="e"/></Destinations>'
    [found] = read(
        f"<NetworkTrafficRules><OnlyAllowTrafficTo>{destination}{text}</OnlyAllowTrafficTo></NetworkTrafficRules>"
    ).rules
    return found


WHEN = '<WhenSource matches="AnyRule"><FromRole roleName="a"/><FromRole roleName="b"/></WhenSource>'


@pytest.mark.parametrize(
    ("text", "sources", "both"),
    [
        ("<AllowAllTraffic/>", None, False),
        (WHEN, ["a", "b"], False),
        (f"<AllowAllTraffic/>{WHEN}", ["a", "b"], True),
        (f"{WHEN}<AllowAllTraffic/>", ["a", "b"], True),
        (f'{WHEN}<WhenSource><FromRole roleName="c"/></WhenSource>', ["a", "b", "c"], False),
    ],
)
def test_traffic_rules(text: str, sources: list[str] | None, both: bool) -> None:
    found = rule(text)
    assert [(each.role, each.endpoint) for each in found.destinations] == [("r", "e")]
    assert (None if found.from_roles is None else [each.role for each in found.from_roles]) == sources
    assert found.both == both


def test_several_groups_of_rules() -> None:
    destination = '<Destinations><RoleEndpoint roleName="r" endpointName="e"/></Destinations>'
    one = f"<OnlyAllowTrafficTo>{destination}{WHEN}</OnlyAllowTrafficTo>"
    found = read(
        f"<NetworkTrafficRules>{one}{one}</NetworkTrafficRules><NetworkTrafficRules>{one}</NetworkTrafficRules>"
    )
    assert len(found.rules) == 3
