"""The document against the routes: nothing is served that it does not describe, and nothing described that is not served."""

import re
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
from aiohttp import web

from relay.config.values import HostPort
from relay.control.admin import open_admin_socket, open_tcp_socket, serve_admin, serve_discovery
from relay.control.explain import route
from relay.control.openapi import document
from relay.ledger.layout import Health, health_at
from tests.control.rig import check_answer, discovery_of, spread
from tests.ledger.rig import new_ledger


def served(app: web.Application) -> set[tuple[str, str]]:
    """Method and path of each route; a HEAD is the GET's own."""
    found = set()
    for each in app.router.routes():
        assert each.resource is not None
        if each.method != "HEAD":
            found.add((each.method.lower(), each.resource.canonical))
    return found


def described(told: dict[str, Any]) -> set[tuple[str, str]]:
    return {(method, path) for path, item in told["paths"].items() for method in item}


async def test_every_path_of_the_admin_socket_is_described(tmp_path: Path) -> None:
    async def nothing(*_: object) -> dict[str, Any]:
        return {}

    names = ("status", "connections", "explain", "route", "drain", "hold", "weigh", "reload", "dry_run", "upgrade")
    doing: dict[str, Any] = dict.fromkeys(names, nothing)
    with discovery_of() as (discovery, _), open_admin_socket(str(tmp_path / "admin.sock")) as listener:
        runner = await serve_admin(listener, **doing, discovery=discovery)
        there = served(runner.app)
        await runner.cleanup()
    assert there == described(document(admin=True))
    assert len(there) == 20
    assert ("post", "/v1/reload") in there


async def test_the_loopback_port_has_the_discovery_api_alone() -> None:
    with discovery_of() as (discovery, _), open_tcp_socket(HostPort("127.0.0.1", 0), "admin") as listener:
        runner = await serve_discovery(listener, discovery)
        there = served(runner.app)
        await runner.cleanup()
    assert there == described(document(admin=False))
    assert {method for method, _ in there} == {"get"}
    assert not re.search("reload|drain|upgrade|connections|status", " ".join(path for _, path in there))


@pytest.mark.parametrize("admin", [False, True])
def test_every_schema_is_one_and_is_used(admin: bool) -> None:
    told = document(admin=admin)
    assert told["openapi"] == "3.1.0"  # whose schemas are JSON Schema of 2020-12
    used = set(re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(told)))
    assert used == told["components"]["schemas"].keys()
    for schema in told["components"]["schemas"].values():
        jsonschema.Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize("down", [False, True])
def test_where_an_edge_sends_a_client_is_told_as_described(down: bool) -> None:
    with new_ledger() as ledger:
        for n in range(4) if down else ():
            ledger.words[health_at(n)] = Health.DOWN
        answer = route(spread(), ledger, "203.0.113.9:40000")
        assert (answer["target"] is None) == down
        check_answer("get", "/v1/route", 200, answer)


def test_an_answer_that_is_not_as_described_is_found() -> None:
    with pytest.raises(jsonschema.ValidationError, match="is a required property"):
        check_answer("post", "/v1/drain", 200, {"busy_for_s": 1.0})
