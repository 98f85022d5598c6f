"""What is written for machines that get no relay, where the corpus has one form or none."""

from pathlib import Path

import pytest

from relay.config.load import check_files, load_service
from relay.config.model import Service
from relay.csdef.convert import Imported, import_files
from relay.errors import ConfigError

PROBE = '<LoadBalancerProbe name="p" {}/>'


def imported(
    folder: Path, endpoints: str, *, role: str = "web", above: str = "", instances: int | None = None
) -> Imported:
    """The import of a service with one role with these endpoints, and with so many instances."""
    files = [folder / "a.csdef", folder / "a.cscfg"]
    worker = f'<WorkerRole name="{role}"><Endpoints>{endpoints}</Endpoints></WorkerRole>'
    files[0].write_text(f'<ServiceDefinition name="s">\n{above}{worker}</ServiceDefinition>')
    count = f'<Role name="{role}"><Instances count="{instances}"/></Role>'
    files[1].write_text(f'<ServiceConfiguration serviceName="s">{count}</ServiceConfiguration>')
    return import_files(str(files[0]), None if instances is None else str(files[1]), bare=True)


def service_of(found: Imported, folder: Path) -> Service:
    file = folder / "service.yaml"
    file.write_text(found.text, encoding="utf-8")
    return load_service(str(file)).value


def public(name: str, port: int, local: int, more: str = "", protocol: str = "tcp") -> str:
    return f'<InputEndpoint name="{name}" protocol="{protocol}" port="{port}" localPort="{local}" {more}/>'


def test_an_edge_is_there_where_something_is_public(tmp_path: Path) -> None:
    found = imported(tmp_path, public("a", 80, 8080))
    edge = service_of(found, tmp_path).edge
    assert edge
    assert list(map(str, edge.instances)) == ["198.51.100.10"]
    hidden = '<InternalEndpoint name="a" protocol="tcp" port="9"/><InputEndpoint name="b" protocol="udp" port="53"/>'
    found = imported(tmp_path, hidden)
    assert service_of(found, tmp_path).edge is None
    (said,) = [note for note in found.notes if "public" in note.text]
    assert (said.kind, said.line) == ("warning", 1)


def test_a_role_that_is_called_as_the_edges_machines(tmp_path: Path) -> None:
    found = imported(tmp_path, public("a", 80, 8080), role="edge")
    assert list(service_of(found, tmp_path).roles) == ["edge-2"]
    assert [note.text for note in found.notes if note.kind == "warning" and "edge" in note.text] == [
        "its name in the source is edge, which relay does not take"
    ]
    assert list(service_of(imported(tmp_path, "", role="edge"), tmp_path).roles) == ["edge"]


def test_the_same_machines_once_more_for_a_port_that_is_another_endpoints(tmp_path: Path) -> None:
    three = public("a", 80, 8080) + public("b", 81, 8080) + public("c", 82, 8081)
    found = imported(tmp_path, three, instances=2)
    roles = service_of(found, tmp_path).roles
    assert {name: list(role.endpoints) for name, role in roles.items()} == {"web": ["a", "c"], "web-2": ["b"]}
    assert roles["web"].items == roles["web-2"].items
    assert len(roles["web"].items) == 2
    assert [note.text for note in found.notes if note.kind == "warning"] == [
        "the machines of web once more, because a role has one endpoint on a port: write the same addresses"
    ]


def test_its_name_is_no_other_roles(tmp_path: Path) -> None:
    above = '<WorkerRole name="web-2"/>'
    found = imported(tmp_path, public("a", 80, 8080) + public("b", 81, 8080) + public("c", 82, 8080), above=above)
    assert list(service_of(found, tmp_path).roles) == ["web-2", "web", "web-3", "web-4"]


def test_no_more_instances_than_are_imported_by_writing_them_again(tmp_path: Path) -> None:
    two = public("a", 80, 8080) + public("b", 81, 8080)
    assert imported(tmp_path, two, instances=5_000)
    with pytest.raises(ConfigError, match=r"`web` has up to 2 endpoints on one port.* 10002 instances.* 10000 at most"):
        imported(tmp_path, two, instances=5_001)


@pytest.mark.parametrize(
    ("protocol", "probe", "written"),
    [
        pytest.param("http", 'protocol="http" path="x"', "{protocol: http, path: /x,", id="no port"),
        pytest.param("http", 'protocol="http" path="x" port="8080"', "{protocol: http, path: /x,", id="its own port"),
        pytest.param("tcp", 'protocol="tcp" port="80"', "{protocol: tcp,", id="the public port"),
        pytest.param("https", 'protocol="tcp" port="81"', "{protocol: tcp,", id="another port"),
        pytest.param("https", 'protocol="http" path="x" port="81"', "{protocol: http, path: /x,", id="without TLS"),
        pytest.param("https", 'protocol="http" path="x"', "{protocol: http, path: /x,", id="with TLS"),
    ],
)
def test_the_port_of_a_probe(tmp_path: Path, protocol: str, probe: str, written: str) -> None:
    """Where the probe asks another port than the endpoint's, and whether it speaks TLS there, which the platform did not."""
    above = f"<LoadBalancerProbes>{PROBE.format(probe)}</LoadBalancerProbes>"
    found = imported(tmp_path, public("a", 80, 8080, 'loadBalancerProbe="p"', protocol), above=above)
    other = next((f", port: {port}" for port in (80, 81) if f'port="{port}"' in probe), "")
    without_tls = ", tls: false" if other and protocol == "https" and "http" in probe else ""
    assert f"        probe: {written} interval: 15s, timeout: 31s{other}{without_tls}}}\n" in found.text
    assert [note for note in found.notes if "probe" in note.text] == []


def test_a_probe_of_another_port_is_one_that_relay_takes(tmp_path: Path) -> None:
    probe = PROBE.format('protocol="http" path="/" port="8081"')
    above = f"<LoadBalancerProbes>{probe}</LoadBalancerProbes>"
    found = imported(tmp_path, public("a", 443, 443, 'loadBalancerProbe="p"', "https"), above=above)
    service_of(found, tmp_path)


def test_nobody_enforces_who_may_connect_to_an_internal_endpoint(tmp_path: Path) -> None:
    rule = (
        '<NetworkTrafficRules><OnlyAllowTrafficTo><Destinations><RoleEndpoint roleName="web" endpointName="a"/>'
        '</Destinations><WhenSource matches="AnyRule"><FromRole roleName="web"/></WhenSource></OnlyAllowTrafficTo>'
        "</NetworkTrafficRules>"
    )
    two = "".join(
        f'<InternalEndpoint name="{name}" protocol="tcp" port="{port}"/>' for name, port in (("a", 1), ("b", 2))
    )
    found = imported(tmp_path, two + public("c", 80, 80), above=rule)
    made = service_of(found, tmp_path).roles["web"].endpoints
    assert (made["a"].from_roles, made["b"].from_roles) == (("web",), None)
    text = "traffic rules for a: no relay is there to enforce `from`, so a firewall must"
    assert [(note.line, note.text) for note in found.notes if note.kind == "warning" and "from" in note.text] == [
        (2, text)
    ]
    warned = check_files([str(tmp_path / "service.yaml")])
    assert [each.path.rpartition(".endpoints.")[2] for each in warned] == ["a.from", "b.type"]
