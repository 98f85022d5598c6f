"""The admin API: HTTP on a Unix socket, the same that the command line uses; and the metrics on TCP.

GET  /v1/status        what `relay status --json` prints
GET  /v1/connections   every open connection
GET  /v1/explain       ?to=role/endpoint and from=address or as=instance: the verdict, and every rule looked at
GET  /v1/route         ?to=role/endpoint&client=address:port, on an edge: where it would go, and why
POST /v1/drain         ?for=seconds: refuse the edges' probes for so long; 0: answer them again
POST /v1/hold          ?endpoint=role/endpoint&for=seconds: new connections wait for so long
POST /v1/release       ?endpoint=role/endpoint: they go on, and no more wait
POST /v1/weight        ?endpoint=role/endpoint&target=instance&weight=number: its share of new connections; off: the file's
POST /v1/reload        reload; 200 with what changed, 409 with what is wrong; ?dry_run=1: what would change, and nothing does
POST /v1/upgrade       go over to the installed code; 202 once it has tried itself out, 409 with what is wrong
                       (both 503 while control is replaced: ask again)
GET  ...               and the discovery API's (routes.py), which a loopback port has alone
GET  /metrics          Prometheus text, on the address of `metrics.listen`
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp import web

from relay.config.values import HostPort
from relay.control import answers, done
from relay.control.metrics import LedgerCollector, render
from relay.control.routes import Discovery, errors_as_json, for_this_machine
from relay.control.weighing import weight_in
from relay.errors import ConfigError, ListenError, OperatorError, ReplacedError, os_reason
from relay.kernel.accepting import Acceptor
from relay.log import Logger

SOCKET_MODE = 0o660  # the daemon's user and group, nobody else
SOCKET_FIX = "create its directory (the unit in systemd/ does), or set `admin.socket` in instance.yaml"
BACKLOG = 64
# Of the port that every program of this machine may ask at: each has at most some 100 KiB of a request that is not whole.
CONNECTIONS_MAX = 256


def open_admin_socket(path: str) -> socket.socket:
    """A socket listening at `path`, mode 0660. A socket that nobody serves any more is replaced. Raises ListenError."""
    listener: socket.socket | None = None
    try:
        if _is_served(path):
            raise ListenError(f"another relay serves {path}; stop it, or set another `admin.socket`")
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                fix = "move it away, or set another `admin.socket` in instance.yaml"
                raise ListenError(f"cannot serve {path}: it exists and is not a socket; {fix}")
            os.unlink(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        before = os.umask(0o777 & ~SOCKET_MODE)  # so that it never exists with a wider mode
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ListenError(f"cannot serve {path}: {os_reason(error)}; {SOCKET_FIX}") from error
    return listener


def open_tcp_socket(where: HostPort, key: str) -> socket.socket:
    """A socket listening where `key.listen` says. Raises ListenError."""
    host, port = where.addresses[0], where.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener: socket.socket | None = None
    try:
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        fix = f"set another `{key}.listen` in instance.yaml" + (", or `metrics: false`" if key == "metrics" else "")
        raise ListenError(f"cannot serve {key} on {where}: {os_reason(error)}; {fix}") from error
    return listener


def _is_served(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(path) in (0, errno.EAGAIN)  # unix(7): EAGAIN is a backlog that is full


async def serve_admin(
    listener: socket.socket,
    *,
    status: Callable[[], answers.Status],
    connections: Callable[[], list[answers.Connection]],
    explain: Callable[[str, str | None, str | None], answers.Explanation],
    route: Callable[[str, str], answers.RouteAnswer],
    drain: Callable[[float], done.Busy],
    hold: Callable[[str, float], done.Hold],
    weigh: Callable[[str, str, int | None], Awaitable[done.Weighed]],
    reload: Callable[[], Awaitable[done.Reloaded]],
    dry_run: Callable[[], Awaitable[done.WouldReload]],
    upgrade: Callable[[], Awaitable[done.Upgrading]],
    discovery: Discovery,
    log: Logger | None = None,
) -> "Serving":
    """Answer on the admin socket until it is cleaned up. `log` is told why nobody is let in."""

    async def get_status(_request: web.Request) -> web.Response:
        return web.json_response(status())

    async def get_connections(_request: web.Request) -> web.Response:
        return web.json_response(connections())

    def asking(ask: Callable[[Mapping[str, str]], object]) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def handle(request: web.Request) -> web.Response:
            try:
                return web.json_response(ask(request.query))
            except OperatorError as error:
                return web.json_response({"error": str(error)}, status=400)

        return handle

    def ask_drain(asked: Mapping[str, str]) -> done.Busy:
        return drain(seconds(asked))

    def ask_hold(asked: Mapping[str, str]) -> done.Hold:
        return hold(asked.get("endpoint", ""), seconds(asked))

    def seconds(asked: Mapping[str, str]) -> float:
        if not asked.get("for", "").isdecimal():
            raise OperatorError("`for` is a whole number of seconds, 0 for none")
        return float(asked["for"])

    async def post_weight(request: web.Request) -> web.Response:
        asked = request.query
        try:
            weight = weight_in(asked.get("weight", ""))
        except OperatorError as error:
            return web.json_response({"error": str(error)}, status=400)
        return await answer(lambda: weigh(asked.get("endpoint", ""), asked.get("target", ""), weight), 200)

    async def post_reload(request: web.Request) -> web.Response:
        return await (answer(dry_run, 200) if request.query.get("dry_run") == "1" else answer(reload, 200))

    async def post_upgrade(_request: web.Request) -> web.Response:
        return await answer(upgrade, 202)

    async def answer(doing: Callable[[], Awaitable[object]], success: int) -> web.Response:
        try:
            return web.json_response(await doing(), status=success)
        except ReplacedError as error:
            return web.json_response({"error": str(error)}, status=503)
        except OperatorError as error:
            problems = [str(problem) for problem in error.problems] if isinstance(error, ConfigError) else []
            return web.json_response({"error": str(error), "problems": problems}, status=409)

    app = web.Application(middlewares=[errors_as_json])
    app.router.add_get("/v1/status", get_status)
    app.router.add_get("/v1/connections", get_connections)
    app.router.add_get(
        "/v1/explain", asking(lambda asked: explain(asked.get("to", ""), asked.get("from"), asked.get("as")))
    )
    app.router.add_get("/v1/route", asking(lambda asked: route(asked.get("to", ""), asked.get("client", ""))))
    app.router.add_post("/v1/drain", asking(ask_drain))
    app.router.add_post("/v1/hold", asking(ask_hold))
    app.router.add_post("/v1/release", asking(lambda asked: hold(asked.get("endpoint", ""), 0.0)))
    app.router.add_post("/v1/weight", post_weight)
    app.router.add_post("/v1/reload", post_reload)
    app.router.add_post("/v1/upgrade", post_upgrade)
    discovery.add_to(app, admin=True)
    return await serve(app, listener, log)


async def serve_discovery(listener: socket.socket, discovery: Discovery, log: Logger | None = None) -> "Serving":
    """Answer what every program of this machine may ask until it is cleaned up. `log`: as above."""
    app = web.Application(middlewares=[for_this_machine, errors_as_json])
    discovery.add_to(app, admin=False)
    return await serve(app, listener, log, bounded_but_for=discovery.watches)


async def serve_metrics(listener: socket.socket, collector: LedgerCollector, log: Logger | None = None) -> "Serving":
    """Answer scrapes until it is cleaned up. `log`: as above."""

    async def get_metrics(_request: web.Request) -> web.Response:
        body = await asyncio.get_running_loop().run_in_executor(None, render, collector)
        return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    app = web.Application()
    app.router.add_get("/metrics", get_metrics)
    return await serve(app, listener, log)


async def serve(
    app: web.Application,
    listener: socket.socket,
    log: Logger | None,
    bounded_but_for: Callable[[asyncio.BaseTransport], bool] | None = None,
) -> "Serving":
    """Answer by this application until it is cleaned up, with a bound on connections but for those that are named."""
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    assert runner.server is not None, "it is set up"
    make = runner.server if bounded_but_for is None else _Bounded(runner.server, bounded_but_for).make
    serving = Serving(runner, make, log)
    serving.move(listener)
    return serving


class Serving:
    """An application that answers at a listening socket, until it is cleaned up."""

    def __init__(self, runner: web.AppRunner, make: Callable[[], Any], log: Logger | None) -> None:
        self.app = runner.app
        self._runner = runner
        self._make = make
        self._log = log
        self._acceptor: Acceptor | None = None

    def move(self, listener: socket.socket) -> None:
        """Answer there from now on. Who is being answered at the former one is answered to the end."""
        listener.listen(BACKLOG)  # again: from now on SO_PEERCRED names this process (unix(7)), see admin_socket.py
        self.close()
        self._acceptor = Acceptor(listener, self._make, self._log)

    def close(self) -> None:
        """Let nobody in any more."""
        if self._acceptor is not None:
            self._acceptor.close()

    async def cleanup(self) -> None:
        """End, a second after the last answer that is under way at the latest."""
        self.close()
        await self._runner.cleanup()


class _Bounded:
    """Makes protocols, so many at most: then the oldest goes, but for those that are to be left alone."""

    def __init__(self, make: web.Server, spared: Callable[[asyncio.BaseTransport], bool]) -> None:
        self._make = make
        self._spared = spared
        self._made: list[Any] = []

    def make(self) -> Any:
        """One more."""
        self._made = [each for each in self._made if each.transport is not None and not each.transport.is_closing()]
        if len(self._made) >= CONNECTIONS_MAX:
            oldest = next((each for each in self._made if not self._spared(each.transport)), None)
            if oldest is not None:
                oldest.transport.abort()
        self._made.append(made := self._make())
        return made
