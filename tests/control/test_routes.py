"""The discovery API over HTTP: what is answered, to whom, and what becomes of one that does not read."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import pytest

from relay.config.roster import Roster
from relay.config.values import HostPort
from relay.control import routes
from relay.control.admin import open_tcp_socket, serve_discovery
from relay.control.routes import Discovery, is_loopback_host
from relay.control.watch import EVENTS_MAX, WATCHERS_MAX
from relay.ledger.layout import DaemonWord
from tests.control.rig import SHOP, WEB_0, WEB_2, Truth, discovery_of
from tests.harness import HANG_S


class Api:
    """The API on a loopback port."""

    def __init__(
        self, listener: socket.socket, discovery: Discovery, truth: Truth, session: aiohttp.ClientSession
    ) -> None:
        self.listener, self.discovery, self.truth, self.session = listener, discovery, truth, session
        self.port = int(listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"

    async def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, Any]:
        async with self.session.request(method, self.url + path, headers=headers) as response:
            assert response.content_type == "application/json"
            assert "Access-Control-Allow-Origin" not in response.headers
            return response.status, json.loads(await response.read() or b"null")


@pytest.fixture
async def api() -> AsyncIterator[Api]:
    with discovery_of() as (discovery, truth), open_tcp_socket(HostPort("127.0.0.1", 0), "admin") as listener:
        runner = await serve_discovery(listener, discovery)
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=HANG_S)) as session:
            yield Api(listener, discovery, truth, session)
        await runner.cleanup()


async def test_what_can_be_asked(api: Api) -> None:
    assert (await api.get("/v1/identity"))[1]["instance"] == "store_IN_0"
    assert [each["name"] for each in (await api.get("/v1/roles"))[1]] == ["web", "store", "edge"]
    assert [each["id"] for each in (await api.get("/v1/instances?role=web&healthy=1"))[1]] == ["web_IN_0"]
    assert (await api.get("/v1/instances/web_IN_0"))[1]["address"] == "10.0.0.4"
    assert len((await api.get("/v1/endpoints?role=web"))[1]) == 3
    assert (await api.get("/v1/environment"))[1]["RELAY_ENDPOINT_POSTGRES"] == "10.0.1.4:5432"
    assert (await api.get("/v1/openapi.json"))[1]["openapi"] == "3.1.0"
    assert [each["targets"] for each in (await api.get("/v1/prometheus"))[1]] == [["10.0.0.4:9464"], ["127.0.0.1:9464"]]


async def test_busy_by_its_own_drain(api: Api) -> None:
    api.truth.ledger.words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = 2**62
    _, me = await api.get("/v1/instances/store_IN_0")
    assert (me["busy"], me["healthy"], me["self"]) == (True, False, True)


@pytest.mark.parametrize(
    ("path", "status", "said"),
    [
        ("/v1/instances/web_IN_9", 404, "there are web_IN_0, store_IN_0"),
        ("/v1/instances?role=wep", 404, "did you mean `web`?"),
        ("/v1/endpoints?role=edge", 404, "there are web, store"),
        ("/v1/instances?healthy=yes", 400, "`healthy` is 1, or 0 for all"),
        ("/v1/instances?heathy=1", 400, "`heathy` in the query is unknown; it takes `role`, `healthy`"),
        ("/v1/instances?role=web&role=store", 400, "`role` is in the query twice"),
        ("/v1/identity?x=1", 400, "it takes no query"),
        ("/v1/watch?since=1", 400, "it takes `last_event_id`"),
        ("/v1/nothing", 404, "/v1/openapi.json says what there is"),
        ("/v1/status", 404, "there is nothing at /v1/status"),
        ("/v1/connections", 404, "there is nothing"),
    ],
)
async def test_what_is_wrong_is_said_as_json(api: Api, path: str, status: int, said: str) -> None:
    code, answer = await api.get(path)
    assert code == status
    assert said in answer["error"]


async def test_two_names_that_become_one_variable(api: Api) -> None:
    rows = api.truth.snapshot.endpoints
    twice = (*rows, replace(rows[0], name="store/POSTGRES"))
    api.truth.snapshot = replace(api.truth.snapshot, endpoints=twice)
    code, answer = await api.get("/v1/environment")
    assert code == 409
    assert answer["error"].startswith(
        "endpoint `postgres` and endpoint `POSTGRES` would both be RELAY_ENDPOINT_POSTGRES"
    )


@pytest.mark.parametrize("path", ["/v1/reload", "/v1/drain?for=1", "/v1/upgrade"])
async def test_nothing_can_be_done(api: Api, path: str) -> None:
    assert (await api.get(path, "POST"))[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
async def test_only_asking(api: Api, method: str) -> None:
    async with api.session.request(
        method, f"{api.url}/v1/roles", headers={"Origin": "http://evil.example"}
    ) as response:
        assert (response.status, response.headers["Allow"]) == (405, "GET, HEAD")
        assert not [name for name in response.headers if name.startswith("Access-Control")]


async def test_head(api: Api) -> None:
    assert await api.get("/v1/roles", "HEAD") == (200, None)
    async with api.session.head(f"{api.url}/v1/watch") as response:
        assert (response.status, response.content_type) == (200, "text/event-stream")


@pytest.mark.parametrize(
    ("host", "taken"),
    [
        ("localhost", True),
        ("LOCALHOST:9465", True),
        ("127.0.0.1:9465", True),
        ("127.255.0.3", True),
        ("[::1]:9465", True),
        ("[::1]", True),
        ("evil.example", False),
        ("localhost.evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("10.0.0.4:9465", False),
        ("[::2]", False),
        ("[::ffff:10.0.0.1]", False),
        ("::1", False),
        ("2130706433", False),
        ("0177.0.0.1", False),
        ("0.0.0.0", False),
        ("localhost:x", False),
        ("localhost/", False),
        ("user@localhost", False),
        ("localhost\n", False),
        ("", False),
    ],
)
def test_who_is_meant(host: str, taken: bool) -> None:
    assert is_loopback_host(host) is taken


async def test_a_name_that_leads_here_is_refused(api: Api) -> None:
    for path in ("/v1/roles", "/v1/watch", "/v1/nothing"):
        code, answer = await api.get(path, Host="evil.example:80")
        assert code == 421
        assert "ask for 127.0.0.1" in answer["error"]
    assert (await api.get("/v1/roles", Host="localhost"))[0] == 200


async def test_no_host_and_two_of_them(api: Api) -> None:
    for head in (b"GET /v1/roles HTTP/1.0\r\n\r\n", b"GET /v1/roles HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n"):
        reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
        writer.write(head)
        assert (await reader.readline()).split()[1] in (b"421", b"400")
        writer.close()
        await writer.wait_closed()


# --- the change stream --------------------------------------------------------------------------------------------------


async def until(check: Callable[[], bool]) -> None:
    """Wait for what no event can be awaited of."""
    async with asyncio.timeout(HANG_S):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def event(response: aiohttp.ClientResponse) -> dict[str, str]:
    """The next event, as the standard has it read: fields up to an empty line, and a comment is none."""
    fields: dict[str, str] = {}
    while line := (await response.content.readline()).decode().rstrip("\n"):
        name, _, value = line.partition(": ")
        fields |= {name: value} if name else {}
    return fields if "event" in fields else await event(response)


async def test_a_stream_and_its_resumption(api: Api) -> None:
    async with api.session.get(f"{api.url}/v1/watch") as response:
        assert response.headers["Content-Type"] == "text/event-stream"
        assert response.headers["Cache-Control"] == "no-store"
        roster = await event(response)
        assert roster["event"] == "roster"
        api.truth.snapshot = api.truth.with_roster(Roster.of_service(SHOP, [WEB_0, WEB_2]))
        api.discovery.changed()
        joined = await event(response)
        assert (joined["event"], json.loads(joined["data"])["id"]) == ("joined", "web_IN_2")
    async with api.session.get(f"{api.url}/v1/watch", headers={"Last-Event-ID": roster["id"]}) as response:
        assert await event(response) == joined
    async with api.session.get(f"{api.url}/v1/watch?last_event_id={roster['id']}") as response:
        assert await event(response) == joined
    async with api.session.get(f"{api.url}/v1/watch", headers={"Last-Event-ID": "é"}) as response:
        assert (await event(response))["event"] == "roster"


async def test_too_many_watchers(api: Api) -> None:
    sockets = []
    try:
        for _ in range(WATCHERS_MAX):
            reader, writer = await asyncio.open_connection("127.0.0.1", api.port)
            sockets.append(writer)
            writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert await reader.readline() == b"HTTP/1.1 200 OK\r\n"
        async with api.session.get(f"{api.url}/v1/watch") as response:
            assert (response.status, response.headers["Retry-After"]) == (503, "5")
    finally:
        for writer in sockets:
            writer.close()
            await writer.wait_closed()
    await until(lambda: api.discovery.watchers == 0)
    async with api.session.get(f"{api.url}/v1/watch") as response:
        assert response.status == 200


async def test_one_that_does_not_read_is_cut(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "_WRITE_S", 0.2)
    api.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # as each connection of it will have
    reader, writer = await asyncio.open_connection("127.0.0.1", api.port, limit=4096)
    writer.write(b"GET /v1/watch HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert (await reader.readline()) == b"HTTP/1.1 200 OK\r\n"
    snapshots = [api.truth.with_roster(Roster.of_service(SHOP, [replace(WEB_0, busy=busy)])) for busy in (True, False)]
    for n in range(EVENTS_MAX):  # about 1 KB each, which is more than there is room for on the way
        api.truth.snapshot = snapshots[n % 2]
        api.discovery.changed()
        await asyncio.sleep(0)
    await until(lambda: api.discovery.watchers == 0)
    received = await reader.read(-1)
    assert not received.endswith(b"\r\n0\r\n\r\n"), "no proper end: what had not gone out is dropped"
    assert received.count(b"event: changed") < EVENTS_MAX
    writer.close()
    await writer.wait_closed()


async def test_the_end_of_control_ends_a_stream(api: Api) -> None:
    with discovery_of() as (discovery, _), open_tcp_socket(HostPort("127.0.0.1", 0), "admin") as listener:
        runner = await serve_discovery(listener, discovery)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1/watch"
        async with api.session.get(url) as response:
            assert (await event(response))["event"] == "roster"
            await runner.cleanup()
            assert await response.content.read() == b"", "its proper end: the client comes back"
