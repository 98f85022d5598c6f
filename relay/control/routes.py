"""The discovery API's routes: read-only, on the admin socket and, where declared, on a loopback port for every program.

GET  /v1/identity        which instance this machine is
GET  /v1/roles           the roles, and which instances of them are there
GET  /v1/instances       ?role=web&healthy=1: the instances
GET  /v1/instances/{id}  one of them; 404 with those that there are
GET  /v1/endpoints       ?role=web: the endpoints, and where they are
GET  /v1/watch           server-sent events: everything, then what changes; resumed by Last-Event-ID
GET  /v1/prometheus      whom to scrape (Prometheus' http_sd)
GET  /v1/environment     what `relay env` prints
GET  /v1/hosts           what `relay hosts` prints: the names as a block of a hosts file
GET  /v1/openapi.json    all this for a program
"""

import asyncio
import contextlib
import json
import re
from collections.abc import Awaitable, Callable, Collection
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final

from aiohttp import ClientConnectionResetError, web

from relay.config.settings import Settings
from relay.control import answers, discovery
from relay.control.discovery import Fleet
from relay.control.environment import variables
from relay.control.faults import avoided, own_faults
from relay.control.in_force import InForce
from relay.control.name_service import zone_of
from relay.control.openapi import document
from relay.control.status import is_busy
from relay.control.watch import WATCHERS_MAX, Feed
from relay.errors import ClashError, OperatorError, UnknownError
from relay.ledger.ledger import Ledger
from relay.names import hosts

# A watcher that takes nothing for so long while something waits for it has stopped reading.
_WRITE_S: Final = 10.0
_BODIES_MAX: Final = 64  # answers that are kept: there are a dozen paths, and a query for each role
_RETRY_AFTER_S: Final = 5  # for whom there is no room to watch
_TRUTHS: Final = {"1": True, "true": True, "0": False, "false": False}

_Ask = Callable[[Fleet, web.Request], Any]
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Discovery:
    """The discovery API of this machine."""

    def __init__(self, ledger: Ledger, settings: Settings, in_force: InForce) -> None:
        self._ledger = ledger
        self._metrics = settings.metrics.listen if settings.metrics is not None else None
        self._names = settings.names
        self._in_force = in_force
        self._feed = Feed(self.fleet)
        self._state: tuple[object, ...] = ()
        self._bodies: dict[tuple[int, str], bytes] = {}  # by application, path and query

    @property
    def watchers(self) -> int:
        """How many watch."""
        return self._feed.watchers

    def watches(self, transport: asyncio.BaseTransport) -> bool:
        """Whether this is a watcher's connection."""
        return self._feed.watches(transport)

    def changed(self) -> None:
        """Another snapshot is in force. Who watches is told after that: nothing here can keep it from being so."""
        asyncio.get_running_loop().call_soon(self._feed.changed)

    def add_to(self, app: web.Application, *, admin: bool) -> None:
        """Add the routes to an application; `admin`: one that has the admin API's as well, and so describes both."""

        async def end(_app: web.Application) -> None:
            self._feed.end()

        found: dict[str, tuple[tuple[str, ...], _Ask]] = {
            "/v1/identity": ((), lambda fleet, _: discovery.identity(fleet)),
            "/v1/roles": ((), lambda fleet, _: discovery.roles(fleet)),
            "/v1/instances": (("role", "healthy"), _instances),
            "/v1/instances/{id}": ((), lambda fleet, asked: discovery.instance(fleet, asked.match_info["id"])),
            "/v1/endpoints": (("role",), lambda fleet, asked: discovery.endpoints(fleet, asked.query.get("role"))),
            "/v1/prometheus": ((), lambda fleet, _: discovery.prometheus(fleet)),
            "/v1/environment": ((), lambda _fleet, _: variables(self._in_force.service, self._in_force.snapshot)),
            "/v1/hosts": ((), lambda fleet, _: self._hosts(fleet)),
            "/v1/openapi.json": ((), lambda _fleet, _: document(admin=admin)),
        }
        for path, (keys, ask) in found.items():
            app.router.add_get(path, self._answering(keys, ask))
        app.router.add_get("/v1/watch", self._watch)
        app.on_shutdown.append(end)

    def fleet(self) -> Fleet:
        """The service, who is there, and how they do."""
        service, snapshot = self._in_force.service, self._in_force.snapshot
        away, faults = avoided(self._ledger, snapshot), own_faults(self._ledger, snapshot)
        roster = snapshot.roster.with_own(snapshot.instance, is_busy(self._ledger), faults)
        return Fleet(service, roster, snapshot.instance, self._metrics, away)

    def _answering(self, keys: Collection[str], ask: _Ask) -> _Handler:
        """A handler that answers with what `ask` makes of the fleet and a request, whose query may have these keys."""

        async def handle(request: web.Request) -> web.Response:
            if wrong := _wrong_query(request, keys):
                return _error(400, wrong)
            try:
                return web.Response(body=self._body(request, ask), content_type="application/json")
            except UnknownError as error:
                return _error(404, str(error))
            except ClashError as error:
                return _error(409, str(error))
            except OperatorError as error:
                return _error(400, str(error))

        return handle

    def _body(self, request: web.Request, ask: _Ask) -> bytes:
        """The answer, made once for as long as nothing changes: who asks all the time costs no more than who asks once."""
        fleet = self.fleet()
        state = fleet.service, fleet.roster, fleet.avoided
        if state != self._state or len(self._bodies) >= _BODIES_MAX:
            self._state = state
            self._bodies.clear()
        asked = id(request.app), request.path_qs
        body = self._bodies.get(asked)
        if body is None:
            body = self._bodies[asked] = json.dumps(ask(fleet, request)).encode()
        return body

    def _hosts(self, fleet: Fleet) -> answers.HostsBlock:
        zone = zone_of(fleet, discovery.unhealthy(fleet), self._names, 0)
        return {"service": fleet.service.service, "block": hosts.block(zone)}

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        if wrong := _wrong_query(request, ("last_event_id",)):
            return _error(400, wrong)
        if request.method == "HEAD":
            return web.Response(content_type="text/event-stream")
        transport = request.transport
        if self._feed.watchers >= WATCHERS_MAX or transport is None:
            answer = _error(503, "there are as many watchers as there may be; come back later")
            answer.headers["Retry-After"] = str(_RETRY_AFTER_S)
            return answer
        last = request.headers.get("Last-Event-ID", request.query.get("last_event_id", ""))
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        with self._feed.watcher(transport):
            try:
                await response.prepare(request)
                async with contextlib.aclosing(self._feed.frames(last)) as frames:
                    async for frame in frames:
                        async with asyncio.timeout(_WRITE_S):
                            await response.write(frame)
            except TimeoutError:
                transport.abort()  # closing would wait until it has read the rest
            except ClientConnectionResetError:
                pass  # it has hung up, as watchers do
        return response


def _instances(fleet: Fleet, asked: web.Request) -> list[answers.InstanceAnswer]:
    healthy = _TRUTHS.get(asked.query.get("healthy", "0"))
    if healthy is None:
        raise OperatorError("`healthy` is 1, or 0 for all")
    return discovery.instances(fleet, asked.query.get("role"), healthy=healthy)


def _wrong_query(request: web.Request, known: Collection[str]) -> str:
    """What is wrong with its keys; empty: nothing. One that is overlooked would be answered with too much."""
    for key in request.query:
        if key not in known:
            fix = f"it takes {', '.join(f'`{each}`' for each in known)}" if known else "it takes no query"
            return f"`{key}` in the query is unknown; {fix}"
        if len(request.query.getall(key)) > 1:
            return f"`{key}` is in the query twice; write it once"
    return ""


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": message}, status=status)


# --- for all applications -----------------------------------------------------------------------------------------------


@web.middleware
async def errors_as_json(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """A path that is not there, and a method that it does not have, are answered with JSON like everything else."""
    try:
        return await handler(request)
    except web.HTTPMethodNotAllowed as error:
        allowed = ", ".join(sorted(error.allowed_methods))
        answer = _error(405, f"{request.path} takes {allowed}")
        answer.headers["Allow"] = allowed
        return answer
    except web.HTTPNotFound:
        return _error(404, f"there is nothing at {request.path}; /v1/openapi.json says what there is")


@web.middleware
async def for_this_machine(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Refuses who asked for another host: a page in a browser here, whose own name leads to 127.0.0.1 now (DNS rebinding).

    Such a page would be of the same origin, and could read all. One of another origin can ask but not read: no answer
    has a header that allows it (Fetch standard, CORS protocol).
    """
    hosts = request.headers.getall("Host", [])
    if len(hosts) != 1 or not is_loopback_host(hosts[0]):
        return _error(421, "this port is for programs on this machine; ask for 127.0.0.1, [::1] or localhost")
    answer = await handler(request)
    if not answer.prepared:
        answer.headers["Cache-Control"] = "no-store"
        answer.headers["X-Content-Type-Options"] = "nosniff"
    return answer


def is_loopback_host(host: str) -> bool:
    """Whether a Host header (RFC 9110, 7.2) names this machine by a loopback address or as `localhost`."""
    found = re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([0-9A-Za-z.-]+))(?::[0-9]*)?", host)
    if found is None:
        return False
    try:
        return IPv6Address(found[1]).is_loopback if found[1] else IPv4Address(found[2]).is_loopback
    except ValueError:
        return found[2] is not None and found[2].lower() == "localhost"
