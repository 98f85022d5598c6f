"""A .cscfg by its parts: what is read, and what of it is noted."""

from ipaddress import ip_network

import pytest

from relay.csdef.configuration import NAMESPACE, ROOT, Configuration, configuration_of
from relay.csdef.tree import parse_xml
from relay.errors import Problem


def read(inside: str, attributes: str = "") -> tuple[Configuration, list[Problem]]:
    text = f'<ServiceConfiguration serviceName="shop" {attributes}>\n{inside}</ServiceConfiguration>'
    problems: list[Problem] = []
    return configuration_of(parse_xml(text.encode(), "f.cscfg", ROOT, NAMESPACE), "f.cscfg", problems), problems


def right(inside: str, attributes: str = "") -> Configuration:
    found, problems = read(inside, attributes)
    assert problems == []
    return found


def network(inside: str) -> Configuration:
    return right(f"<NetworkConfiguration>{inside}</NetworkConfiguration>")


def test_roles() -> None:
    found = right(
        '<Role name="web" vmName="w"><Instances count="0"/></Role>\n<Role name="db"><Instances count="10000"/></Role>'
    )
    assert [(role.name, role.at, role.count) for role in found.roles] == [("web", (2, 1), 0), ("db", (3, 1), 10_000)]
    assert [note.text for note in found.roles[0].notes] == ["vmName w: a machine has its own name"]


def test_settings_are_named_and_never_shown() -> None:
    found = right(
        '<Role name="web"><Instances count="1"/>'
        '<ConfigurationSettings><Setting name="Key" value="hidden"/></ConfigurationSettings>'
        '<Certificates><Certificate name="tls" thumbprint="hidden" thumbprintAlgorithm="sha1"/></Certificates>'
        '<Unknown name="odd" value="hidden"><Setting name="more" value="hidden"/></Unknown></Role>'
    )
    assert [note.text for note in found.roles[0].notes] == [
        "ConfigurationSettings (Key): they are the application's own",
        "Certificates (tls): TLS passes through, and the certificate stays with the application",
        "Unknown odd: relay does not know this element",
    ]
    assert "hidden" not in repr(found)


@pytest.mark.parametrize("spelling", ["endpoint", "endPoint"])
def test_both_spellings(spelling: str) -> None:
    [acl] = network(f'<EndpointAcls><EndpointAcl role="r" {spelling}="e" accessControl="a"/></EndpointAcls>').acls
    assert (acl.role, acl.endpoint, acl.access_control) == ("r", "e", "a")


def test_access_lists_keep_the_order_of_the_file() -> None:
    [control] = network(
        '<AccessControls><AccessControl name="a">'
        '<Rule order="2" action="PERMIT" remoteSubnet=" 10.0.0.1/8 " description="d"/>'
        '<Rule description="" remoteSubnet="192.0.2.7" action="deny" order="1"/>'
        "</AccessControl></AccessControls>"
    ).access_controls
    assert [(rule.order, rule.action, rule.network, rule.text, rule.description) for rule in control.rules] == [
        (2, "permit", ip_network("10.0.0.0/8"), "10.0.0.1/8", "d"),
        (1, "deny", ip_network("192.0.2.7"), "192.0.2.7", ""),
    ]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ('<Dns><DnsServers><DnsServer name="a"/></DnsServers></Dns>', "Dns (a): relay looks no names up"),
        ('<VirtualNetworkSite name="net"/>', "VirtualNetworkSite net: a machine's network is its own"),
        (
            '<LoadBalancers><LoadBalancer name="l"/></LoadBalancers>',
            "LoadBalancers (l): a machine's network is its own",
        ),
        (
            '<AddressAssignments><ReservedIPs><ReservedIP name="i"/></ReservedIPs></AddressAssignments>',
            "ReservedIPs (i): public addresses belong to the machines that carry them",
        ),
        ('<AddressAssignments><Unknown name="u"/></AddressAssignments>', "Unknown u: relay does not know this element"),
        ('<Unknown name="u"/>', "Unknown u: relay does not know this element"),
    ],
)
def test_what_has_no_counterpart(text: str, note: str) -> None:
    assert [each.text for each in network(text).notes] == [note]


def test_addresses_know_their_role() -> None:
    found = network(
        '<AddressAssignments><InstanceAddress roleName="web" odd="x">'
        '<Subnets><Subnet name="s"/></Subnets><PublicIPs><PublicIP name="p"/></PublicIPs>'
        "</InstanceAddress></AddressAssignments>"
    )
    assert [(role, note.text) for role, note in found.addresses] == [
        ("web", "the attribute odd of InstanceAddress"),
        ("web", "Subnets (s): a machine's network is its own"),
        ("web", "PublicIPs (p): public addresses belong to the machines that carry them"),
    ]


def test_the_system_is_noted_and_the_schemas_version_is_nothing() -> None:
    found = right("", 'osFamily="6" osVersion="*" schemaVersion="2015-04.2.6"')
    assert [note.text for note in found.notes] == ["osFamily and osVersion: a machine has its own system"]
    assert right("", 'schemaVersion="x"').notes == ()


def test_both_spellings_at_once() -> None:
    acl = '<EndpointAcl role="r" endpoint="e" endPoint="f" accessControl="a"/>'
    _, problems = read(f"<NetworkConfiguration><EndpointAcls>{acl}</EndpointAcls></NetworkConfiguration>")
    assert [problem.what for problem in problems] == ["is written twice, as `endpoint` too"]
