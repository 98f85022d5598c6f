"""The admin socket: who may speak to it, and what becomes of what is at its path already."""

import asyncio
import os
import socket
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from relay.config.values import HostPort
from relay.control.admin import open_admin_socket, open_tcp_socket, serve_admin, serve_metrics
from relay.control.metrics import LedgerCollector
from relay.errors import ConfigError, ListenError, OperatorError, Problem
from tests.config.rig import endpoint_row, snapshot_of
from tests.control.rig import discovery_of, standing
from tests.dataplane.rig import no_descriptors
from tests.ledger.rig import new_ledger


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the socket shall be."""
    return str(tmp_path / "admin.sock")


def mode(path: str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_the_daemons_user_and_group_and_nobody_else(umask: int, path: str) -> None:
    before = os.umask(umask)
    try:
        with open_admin_socket(path) as listener:
            assert mode(path) == 0o660
            assert not listener.getblocking()
            assert not listener.get_inheritable()
        assert os.umask(umask) == umask, "the process's own is as it was"
    finally:
        os.umask(before)


def test_a_socket_that_nobody_serves_is_replaced(path: str) -> None:
    open_admin_socket(path).close()
    assert stat.S_ISSOCK(os.stat(path).st_mode)
    with open_admin_socket(path), socket.socket(socket.AF_UNIX) as client:
        client.connect(path)


def test_a_socket_that_is_served_is_refused(path: str) -> None:
    with open_admin_socket(path) as first:
        with pytest.raises(ListenError, match=f"another relay serves {path}; stop it, or set another `admin.socket`"):
            open_admin_socket(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(path)
        first.accept()[0].close()


def test_a_socket_that_is_served_and_busy_is_refused_too(path: str) -> None:
    """Its backlog is full: a connection gets EAGAIN, which is not "nobody serves it"."""
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex(path)
        try:
            with pytest.raises(ListenError):
                open_admin_socket(path).close()
        finally:
            for client in clients:
                client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_left_alone(kind: str, path: str) -> None:
    match kind:
        case "file":
            Path(path).write_text("precious")
        case "directory":
            Path(path).mkdir()
        case "link":
            Path(path).symlink_to("elsewhere")
    before = _what(path)
    with pytest.raises(ListenError, match=f"cannot serve {path}"):
        open_admin_socket(path)
    assert _what(path) == before


def _what(path: str) -> tuple[int, int, int]:
    """All but when it was looked at last, which looking changes."""
    there = os.lstat(path)
    return there.st_ino, there.st_mode, there.st_mtime_ns


def test_what_to_do_about_something_in_the_way(path: str) -> None:
    Path(path).write_text("precious")
    with pytest.raises(ListenError) as caught:
        open_admin_socket(path)
    assert "create its directory" not in str(caught.value), "the directory is there"
    assert "in use by another program" not in str(caught.value), "it is a file, and nobody serves it"


def test_a_directory_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ListenError, match=r"no such file; create its directory .*`admin.socket`"):
        open_admin_socket(str(tmp_path / "nowhere" / "admin.sock"))


def test_metrics_listen_where_they_are_told() -> None:
    for host in ("127.0.0.1", "::1"):
        with open_tcp_socket(HostPort(host, 0), "metrics") as listener:
            assert listener.getsockname()[0] == host
            assert not listener.getblocking()
            port = listener.getsockname()[1]
            with pytest.raises(ListenError, match=r"cannot serve metrics on .*; set another `metrics.listen`"):
                open_tcp_socket(HostPort(host, port), "metrics")


def test_no_descriptor() -> None:
    with no_descriptors(), pytest.raises(ListenError, match="cannot serve metrics"):
        open_tcp_socket(HostPort("127.0.0.1", 0), "metrics")


class Api:
    """A served admin socket whose answers a test sets."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.reloads = 0
        self.upgrades = 0
        self.failure: OperatorError | None = None

    def status(self) -> Any:
        return {"instance": "web_IN_0"}

    def connections(self) -> Any:
        return [{"peer": "x"}]

    async def reload(self) -> Any:
        self.reloads += 1
        await asyncio.sleep(0)
        if self.failure:
            raise self.failure
        return {"generation": 2}

    async def dry_run(self) -> Any:
        return {"cut": []}

    def explain(self, to: str, address: str | None, instance: str | None) -> Any:
        if self.failure:
            raise self.failure
        return {"to": to, "from": address, "as": instance}

    def route(self, to: str, client: str) -> Any:
        return {"to": to, "client": client}

    def drain(self, for_s: float) -> Any:
        return {"busy_for_s": for_s}

    def hold(self, endpoint: str, for_s: float) -> Any:
        if self.failure:
            raise self.failure
        return {"endpoint": endpoint, "hold_for_s": for_s}

    async def weigh(self, endpoint: str, target: str, weight: int | None) -> Any:
        if self.failure:
            raise self.failure
        return {"endpoint": endpoint, "target": target, "weight": weight}

    async def upgrade(self) -> Any:
        self.upgrades += 1
        if self.failure:
            raise self.failure
        return {"program": 1}

    async def ask(self, method: str, resource: str) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(self.path)) as session,
            session.request(method, f"http://localhost{resource}") as response,
        ):
            return response.status, await response.json()


@pytest.fixture
async def api(path: str) -> AsyncIterator[Api]:
    """The admin API, served."""
    made = Api(path)
    with open_admin_socket(path) as listener, discovery_of() as (discovery, _):
        runner = await serve_admin(
            listener,
            status=made.status,
            connections=made.connections,
            explain=made.explain,
            route=made.route,
            drain=made.drain,
            hold=made.hold,
            weigh=made.weigh,
            reload=made.reload,
            dry_run=made.dry_run,
            upgrade=made.upgrade,
            discovery=discovery,
        )
        yield made
        await runner.cleanup()


async def test_what_can_be_asked(api: Api) -> None:
    assert await api.ask("GET", "/v1/status") == (200, {"instance": "web_IN_0"})
    assert await api.ask("GET", "/v1/connections") == (200, [{"peer": "x"}])
    assert await api.ask("POST", "/v1/reload") == (200, {"generation": 2})
    assert api.reloads == 1


async def test_a_refused_reload_says_why(api: Api) -> None:
    line = "service.yaml:1:2: roles: is empty; write one"
    api.failure = ConfigError([Problem("service.yaml", 1, 2, "roles", "is empty", "write one")])
    assert await api.ask("POST", "/v1/reload") == (409, {"error": line, "problems": [line]})


async def test_a_dry_run_is_no_reload(api: Api) -> None:
    assert await api.ask("POST", "/v1/reload?dry_run=1") == (200, {"cut": []})
    assert api.reloads == 0


async def test_a_weight_is_a_number_or_off(api: Api) -> None:
    for text, weight in (("3", 3), ("0", 0), ("off", None)):
        told = {"endpoint": "web/in", "target": "web_IN_0", "weight": weight}
        asked = f"/v1/weight?endpoint=web/in&target=web_IN_0&weight={text}"
        assert await api.ask("POST", asked) == (200, told)
    for text in ("", "-1", "257", "1.5", "on", "\u0663"):
        code, answer = await api.ask("POST", f"/v1/weight?endpoint=web/in&target=x&weight={text}")
        assert (code, "is no weight; write 0 to 256, or `off`" in answer["error"]) == (400, True)
    api.failure = OperatorError("no endpoint")
    code, answer = await api.ask("POST", "/v1/weight?endpoint=x&target=x&weight=1")
    assert (code, answer["error"]) == (409, "no endpoint")


async def test_explain_is_asked_with_words(api: Api) -> None:
    asked = {"to": "web/in", "from": "192.0.2.1", "as": None}
    assert await api.ask("GET", "/v1/explain?to=web/in&from=192.0.2.1") == (200, asked)
    api.failure = OperatorError("no endpoint")
    assert await api.ask("GET", "/v1/explain?to=x") == (400, {"error": "no endpoint"})


async def test_where_a_client_goes_and_for_how_long_nobody_is_sent(api: Api) -> None:
    assert await api.ask("GET", "/v1/route?to=web/in&client=192.0.2.1:9") == (
        200,
        {"to": "web/in", "client": "192.0.2.1:9"},
    )
    assert await api.ask("POST", "/v1/drain?for=600") == (200, {"busy_for_s": 600.0})
    for wrong in ("", "?for=", "?for=10m", "?for=-1"):
        assert (await api.ask("POST", f"/v1/drain{wrong}"))[0] == 400


async def test_whom_to_hold_and_for_how_long(api: Api) -> None:
    held = {"endpoint": "web/in", "hold_for_s": 60.0}
    assert await api.ask("POST", "/v1/hold?endpoint=web/in&for=60") == (200, held)
    assert await api.ask("POST", "/v1/release?endpoint=web/in") == (200, held | {"hold_for_s": 0.0})
    assert (await api.ask("POST", "/v1/hold?endpoint=web/in"))[0] == 400
    api.failure = OperatorError("no endpoint")
    assert await api.ask("POST", "/v1/hold?endpoint=x&for=1") == (400, {"error": "no endpoint"})


async def test_an_upgrade_is_begun_or_refused(api: Api) -> None:
    assert await api.ask("POST", "/v1/upgrade") == (202, {"program": 1})
    api.failure = OperatorError("it does not start")
    assert await api.ask("POST", "/v1/upgrade") == (409, {"error": "it does not start", "problems": []})
    assert api.upgrades == 2


async def test_only_what_is_meant(api: Api) -> None:
    code, answer = await api.ask("GET", "/v1/nothing")
    assert (code, answer["error"]) == (404, "there is nothing at /v1/nothing; /v1/openapi.json says what there is")
    assert (await api.ask("GET", "/v1/identity"))[1]["instance"] == "store_IN_0", "and the discovery API"
    async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(api.path)) as session:
        for resource, method in (("/v1/reload", "GET"), ("/v1/upgrade", "GET"), ("/v1/status", "POST")):
            async with session.request(method, f"http://localhost{resource}") as response:
                assert response.status == 405
    assert api.reloads == 0


async def test_a_scrape() -> None:
    with new_ledger() as ledger, open_tcp_socket(HostPort("127.0.0.1", 0), "metrics") as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        snapshot = snapshot_of(endpoint_row())
        runner = await serve_metrics(listener, LedgerCollector(ledger, standing(snapshot)))
        async with aiohttp.ClientSession() as session:
            async with session.get(f"{url}/metrics") as response:
                assert response.status == 200
                assert response.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
                assert "relay_build_info" in await response.text()
            async with session.get(f"{url}/v1/status") as response:
                assert response.status == 404, "the admin API is on the Unix socket alone"
        await runner.cleanup()
