"""Probes and their ports in detail, which the corpus has in a few forms only."""

from pathlib import Path
from typing import Any, Final

import pytest

from relay.config.endpoint import Endpoint
from relay.config.load import load_service
from relay.config.probe import Probe
from relay.config.values import PROBE_PATH_PATTERN
from relay.csdef.convert import Imported, import_files
from relay.errors import ConfigError

PROBES = Path(__file__).parents[1] / "corpus" / "csdef" / "probes.csdef"
PATH_MAX_CHARS = 256  # with the slash


def imported(folder: Path, endpoints: str, probe: str) -> Imported:
    """The import of a service with these endpoints and the probe `p`."""
    file = folder / "a.csdef"
    file.write_text(
        f'<ServiceDefinition name="s">\n<LoadBalancerProbes><LoadBalancerProbe name="p" {probe}/></LoadBalancerProbes>'
        f'<WebRole name="web"><Endpoints>{endpoints}</Endpoints></WebRole></ServiceDefinition>'
    )
    return import_files(str(file))


def endpoints_of(found: Imported, folder: Path) -> dict[str, Endpoint]:
    file = folder / "service.yaml"
    file.write_text(found.text, encoding="utf-8")
    return load_service(str(file)).value.roles["web"].endpoints


PLATFORM: Final[dict[str, Any]] = {"interval": "15s", "timeout": "31s"}
"""What the platform does where a probe does not say."""


def test_probes_and_distributions_of_the_corpus(tmp_path: Path) -> None:
    made = endpoints_of(import_files(str(PROBES)), tmp_path)
    probe = Probe(protocol="http", path="/Probe.aspx?a=1,b={2}", interval="5s", timeout="100s")
    assert {name: (each.probe, each.distribution) for name, each in made.items()} == {
        "A": (probe, "source-ip"),
        "B": (Probe(**PLATFORM), "source-ip"),
        "C": (Probe(protocol="http", path="/", **PLATFORM), "five-tuple"),
        "D": (probe, "five-tuple"),
        "E": (None, "five-tuple"),
    }


@pytest.mark.parametrize(
    ("ports", "port", "asked"),
    [
        pytest.param('port="80"', 80, None, id="the public port, which is the local one"),
        pytest.param('port="80"', 81, 80, id="another"),
        pytest.param('port="80" localPort="8080"', 8080, None, id="the local port"),
        pytest.param('port="80" localPort="8080"', 80, 8080, id="the public port, which is not the local one"),
        pytest.param('port="80" localPort="*"', 80, None, id="the port that relay chose"),
        pytest.param('port="80" localPort="*"', 81, 80, id="not the port that relay chose"),
        pytest.param('port="80" localPort="9000"', 9000, None, id="a local port on which another endpoint listens"),
        pytest.param('port="80" localPort="9000"', 20000, 9000, id="where relay listens, not the application"),
    ],
)
def test_the_port_of_a_probe(tmp_path: Path, ports: str, port: int, asked: int | None) -> None:
    found = imported(
        tmp_path,
        '<InternalEndpoint name="other" protocol="tcp" port="9000"/>'
        f'<InputEndpoint name="a" protocol="http" loadBalancerProbe="p" {ports}/>',
        f'protocol="http" path="/" port="{port}"',
    )
    assert endpoints_of(found, tmp_path)["a"].probe == Probe(protocol="http", path="/", **PLATFORM)
    text = (
        f"the port {port} of the probe p: relay asks a itself, through the instance's relay to the application, "
        f"which must answer with 200 on {asked}"
    )
    notes = [(note.kind, note.line, note.text) for note in found.notes if "probe" in note.text]
    assert notes == ([] if asked is None else [("left out", 2, text)])


def test_a_probe_that_two_endpoints_share_is_told_of_each(tmp_path: Path) -> None:
    two = "".join(
        f'<InputEndpoint name="{name}" protocol="tcp" port="{port}" loadBalancerProbe="p"/>'
        for name, port in (("a", 80), ("b", 81), ("c", 82))
    )
    found = imported(tmp_path, two, 'protocol="tcp" port="82"')
    notes = [note.text.partition("application, ")[2] for note in found.notes if note.kind == "left out"]
    assert notes == ["which must take connections on 80", "which must take connections on 81"]
    assert {each.probe for each in endpoints_of(found, tmp_path).values()} == {Probe(**PLATFORM)}


ONE = '<InputEndpoint name="a" protocol="https" port="443" loadBalancerProbe="p"/>'


@pytest.mark.parametrize("path", ["x" * (PATH_MAX_CHARS - 1), "/" + "x" * (PATH_MAX_CHARS - 1), "?a=1", "%20"])
def test_paths_that_relay_takes(tmp_path: Path, path: str) -> None:
    made = endpoints_of(imported(tmp_path, ONE, f'protocol="http" path="{path}"'), tmp_path)
    probe = made["a"].probe
    assert probe
    assert probe.path == "/" + path.removeprefix("/")


@pytest.mark.parametrize("path", ["x" * PATH_MAX_CHARS, "/" + "x" * PATH_MAX_CHARS, "/a b", "/\u00e4"])
def test_paths_that_relay_does_not_take(tmp_path: Path, path: str) -> None:
    with pytest.raises(ConfigError, match=f"at most {PATH_MAX_CHARS} in all"):
        imported(tmp_path, ONE, f'protocol="http" path="{path}"')
    assert f"{{0,{PATH_MAX_CHARS - 1}}}" in PROBE_PATH_PATTERN


def test_an_edge_is_proposed_where_something_is_public(tmp_path: Path) -> None:
    assert "\n# edge: {instances: [" in imported(tmp_path, ONE, 'protocol="tcp"').text
    hidden = '<InternalEndpoint name="a" protocol="tcp"/><InputEndpoint name="b" protocol="udp" port="53"/>'
    assert "edge" not in imported(tmp_path, hidden, 'protocol="tcp"').text
