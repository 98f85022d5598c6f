"""What the command line says of what it was told; the end-to-end tests ask a real daemon."""

import json
from typing import Any

import pytest

from relay.cli.client import AdminClient
from relay.cli.discovery import addresses_of, show_addresses, show_environment, show_identity, show_instances
from relay.control import discovery
from relay.control.answers import EndpointAnswer
from relay.errors import OperatorError, UnknownError
from tests.control.rig import WEB_0, WEB_2, fleet

FLEET = fleet(WEB_0, WEB_2, avoided={"web_IN_2": "connection refused", "store_IN_0": ""})


class Told(AdminClient):
    """A daemon that answers with this."""

    def __init__(self, **answers: Any) -> None:
        super().__init__("/nowhere")
        self.answers = answers
        self.asked = ""

    def get(self, resource: str) -> Any:
        self.asked = resource
        return self.answers[resource.removeprefix("/v1/").partition("?")[0]]


def endpoint(name: str) -> EndpointAnswer:
    (found,) = (each for each in discovery.endpoints(FLEET) if each["name"] == name)
    return found


@pytest.mark.parametrize(
    ("name", "healthy", "everybody"),
    [
        ("web/metrics", ["10.0.0.4:9464"], ["10.0.0.4:9464", "10.0.0.6:9464"]),
        ("store/postgres", [], ["10.0.1.4:5432"]),
        # Behind the edge, which is where clients get in.
        ("web/http-in", ["198.51.100.10:80", "[2001:db8::10]:80"], ["198.51.100.10:80", "[2001:db8::10]:80"]),
        (
            "web/each",
            ["198.51.100.10:9001", "[2001:db8::10]:9001"],
            ["198.51.100.10:9001", "198.51.100.10:9003", "[2001:db8::10]:9001", "[2001:db8::10]:9003"],
        ),
    ],
)
def test_where_an_endpoint_is(name: str, healthy: list[str], everybody: list[str]) -> None:
    assert addresses_of(endpoint(name), everybody=False) == healthy
    assert addresses_of(endpoint(name), everybody=True) == everybody


def test_an_edge_that_has_nobody_to_send_a_client_to_is_no_address() -> None:
    assert addresses_of({**endpoint("web/http-in"), "instances": []}, everybody=False) == []


def test_addresses_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    client = Told(endpoints=discovery.endpoints(FLEET))
    assert show_addresses(client, "web/metrics", everybody=True) == 0
    assert capsys.readouterr().out == "10.0.0.4:9464\n10.0.0.6:9464\n"


@pytest.mark.parametrize(
    ("name", "kind", "said"),
    [
        ("store/postgre", UnknownError, "no endpoint `store/postgre` in the service; did you mean `store/postgres`?"),
        (
            "x",
            UnknownError,
            "no endpoint `x` in the service; there are web/http-in, web/each, web/metrics, store/postgres, store/range",
        ),
        (
            "store/postgres",
            OperatorError,
            "no healthy instance of store/postgres; 1 are there: `relay resolve --all store/postgres`, `relay instances`",
        ),
    ],
)
def test_no_address(name: str, kind: type[OperatorError], said: str) -> None:
    with pytest.raises(kind) as caught:
        show_addresses(Told(endpoints=discovery.endpoints(FLEET)), name, everybody=False)
    assert str(caught.value) == said


def test_instances_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    client = Told(instances=discovery.instances(FLEET))
    assert show_instances(client, "a b", healthy=True, as_json=False) == 0
    assert client.asked == "/v1/instances?role=a+b&healthy=1"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[1:3]] == [["web_IN_0", "10.0.0.4"], ["web_IN_2", "10.0.0.6"]]
    assert "healthy" in lines[1]
    assert "DOWN: connection refused" in lines[2]
    assert lines[3].startswith("store_IN_0*"), "this machine"
    assert show_instances(client, None, healthy=False, as_json=True) == 0
    assert json.loads(capsys.readouterr().out) == client.answers["instances"]


def test_identity_and_environment(capsys: pytest.CaptureFixture[str]) -> None:
    client = Told(identity=discovery.identity(FLEET), environment={"A": "it's", "B": 'a "b"'})
    assert show_identity(client, as_json=False) == 0
    assert capsys.readouterr().out == "store_IN_0 of shop, at 10.0.1.4\n"
    for form, text in {
        "shell": "export A='it'\"'\"'s'\nexport B='a \"b\"'\n",
        "systemd": 'A="it\'s"\nB="a \\"b\\""\n',
        "json": '{\n  "A": "it\'s",\n  "B": "a \\"b\\""\n}\n',
    }.items():
        assert show_environment(client, form) == 0
        assert capsys.readouterr().out == text
