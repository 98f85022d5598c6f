"""The admin socket's place: made again where it is gone, and what is another's is left alone."""

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from relay.control import admin_socket as module
from relay.control.admin import Serving, open_admin_socket, serve
from relay.control.admin_socket import AdminSocket, Found, find, make
from tests.control.rig import Logged
from tests.harness import HANG_S


@pytest.fixture
def path(tmp_path: Path) -> str:
    """Where the socket shall be."""
    return str(tmp_path / "admin.sock")


@pytest.fixture
def logged() -> Iterator[Logged]:
    with contextlib.closing(Logged()) as made:
        yield made


def precious(path: str) -> None:
    Path(path).write_text("precious")


def is_precious(path: str) -> bool:
    return Path(path).read_text() == "precious"


def place(path: str) -> tuple[int, int]:
    found = os.stat(path)
    return found.st_dev, found.st_ino


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_one_that_is_made_again_is_as_the_first(umask: int, path: str) -> None:
    before = os.umask(umask)
    try:
        made, at = make(path)
        with made:
            assert at == place(path)
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
            assert not made.getblocking()
            assert not made.get_inheritable()
            assert os.listdir(os.path.dirname(path)) == ["admin.sock"]
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
    finally:
        os.umask(before)


@pytest.mark.parametrize("step", ["chmod", "link"])
def test_nobody_may_connect_before_it_is_ready(path: str, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    seen: list[tuple[bool, int]] = []
    does: Callable[..., None] = getattr(os, step)

    def watched(at: str, *arguments: object) -> None:
        seen.append((os.path.exists(path), stat.S_IMODE(os.stat(at).st_mode)))
        does(at, *arguments)

    monkeypatch.setattr(os, step, watched)
    before = os.umask(0)
    try:
        make(path)[0].close()
    finally:
        os.umask(before)
    assert seen == [(False, 0 if step == "chmod" else 0o660)]


def test_what_nobody_serves_is_replaced_and_what_is_no_socket_stays(path: str) -> None:
    open_admin_socket(path).close()
    made, at = make(path)
    made.close()
    assert at == place(path)
    os.unlink(path)
    Path(path).write_text("precious")
    with pytest.raises(FileExistsError):
        make(path)
    assert Path(path).read_text() == "precious"
    assert os.listdir(os.path.dirname(path)) == ["admin.sock"]


def test_what_a_process_with_our_pid_left_is_no_hindrance(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.path.join(os.path.dirname(path), f".{os.getpid()}"))
    make(path)[0].close()
    assert os.listdir(os.path.dirname(path)) == ["admin.sock"]


def test_whose_it_is(path: str) -> None:
    assert find(path, None) == find(path, (1, 2)) == Found()
    with open_admin_socket(path):
        assert find(path, None) == find(path, (1, 2)) == Found(place(path)), "this process listens there"
    assert find(path, None) == Found(), "nobody serves it"
    assert find(path, place(path)) == Found(place(path)), "it is ours, and not asked"
    os.unlink(path)
    Path(path).touch()
    assert find(path, None) == Found(another="it is no socket")


def test_a_socket_of_another_process(path: str) -> None:
    ready_r, ready_w = os.pipe()
    end_r, end_w = os.pipe()
    if (child := os.fork()) == 0:
        with open_admin_socket(path):
            os.write(ready_w, b"!")
            os.close(end_w)
            os.read(end_r, 1)
            os._exit(0)
    os.read(ready_r, 1)
    os.close(end_r)
    try:
        assert find(path, None) == Found(another=f"process {child} serves it")
        with contextlib.ExitStack() as crowd:
            for _ in range(200):
                client = crowd.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                client.connect_ex(path)
            assert "nobody can connect to it" in find(path, None).another, "its backlog is full"
    finally:
        for fd in (end_w, ready_r, ready_w):
            os.close(fd)
        os.waitpid(child, 0)


class Served:
    """An admin API of one answer, and what its keeper was given."""

    def __init__(self, path: str, listener: socket.socket, serving: Serving, logged: Logged) -> None:
        self.path = path
        self.kept: list[int] = []  # inodes of sockets
        self.room = True
        self.handed = asyncio.Event()
        self.listener = listener
        self.watched = AdminSocket(path, serving, self._hand, logged.log)

    def _hand(self, listener: socket.socket) -> bool:
        if self.room:
            self.kept.append(os.fstat(listener.fileno()).st_ino)
            self.handed.set()
        return self.room

    async def ask(self, connector: aiohttp.BaseConnector | None = None) -> str:
        connector = connector or aiohttp.UnixConnector(self.path)
        async with aiohttp.ClientSession(connector=connector) as session, session.get("http://relay/") as answer:
            return await answer.text()


@pytest.fixture
async def served(path: str, logged: Logged) -> AsyncIterator[Served]:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(text="here")

    app = web.Application()
    app.router.add_get("/", answer)
    listener = open_admin_socket(path)
    serving = await serve(app, listener, logged.log)
    yield Served(path, listener, serving, logged)
    await serving.cleanup()


async def test_one_that_was_removed_is_there_again(served: Served, logged: Logged) -> None:
    for n in range(3):
        await served.watched._look()
        assert len(served.kept) == n, "it is there: nothing to do"
        before = place(served.path)
        os.unlink(served.path)
        await served.watched._look()
        assert len(served.kept) == n + 1
        assert place(served.path) != before
        assert served.listener.fileno() == -1, "nothing is served where nobody can come"
        assert await served.ask() == "here"
    assert [(line["level"], line["message"]) for line in logged.lines()] == [
        ("warning", f"{served.path} was gone; it is there again")
    ] * 3


async def test_who_is_being_answered_is_answered_to_the_end(served: Served) -> None:
    async with aiohttp.UnixConnector(served.path) as connector:
        async with aiohttp.ClientSession(connector=connector, connector_owner=False) as session:
            assert await (await session.get("http://relay/")).text() == "here"
        os.unlink(served.path)
        await served.watched._look()
        os.unlink(served.path)
        assert await served.ask(connector) == "here", "on the connection from before, for there is no path"


async def test_the_keeper_gets_it_when_it_has_room(served: Served) -> None:
    served.room = False
    os.unlink(served.path)
    await served.watched._look()
    assert (await served.ask(), served.kept) == ("here", [])
    served.room = True
    for _ in range(2):
        await served.watched._look()
        assert len(served.kept) == 1


async def test_what_another_put_there_is_left_alone_and_said_once(served: Served, logged: Logged) -> None:
    os.unlink(served.path)
    precious(served.path)
    for _ in range(3):
        await served.watched._look()
    (line,) = logged.lines()
    assert line["level"] == "error"
    assert "it is no socket; it is left alone" in line["message"]
    assert is_precious(served.path)
    os.unlink(served.path)
    await served.watched._look()
    assert await served.ask() == "here"
    assert len(logged.lines()) == 1


async def test_a_directory_that_is_gone_is_said_and_not_made(tmp_path: Path, served: Served, logged: Logged) -> None:
    away = f"{tmp_path}-away"
    os.rename(tmp_path, away)
    try:
        for _ in range(2):
            await served.watched._look()
        (line,) = logged.lines()
        assert f"cannot serve {served.path}: no such file; create its directory" in line["message"]
    finally:
        os.rename(away, tmp_path)  # fails where relay has made a directory
    await served.watched._look()
    assert served.kept == [], "it is the same again"
    assert await served.ask() == "here"


async def test_somebody_comes_in_the_same_moment(
    served: Served, logged: Logged, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def late(one: str, other: str) -> None:
        precious(other)
        link(one, other)

    monkeypatch.setattr(os, "link", late)
    os.unlink(served.path)
    await served.watched._look()
    assert is_precious(served.path)
    assert len(logged.lines()) == 1
    monkeypatch.undo()
    await served.watched._look()
    assert "it is no socket" in logged.lines()[-1]["message"]


async def test_it_is_looked_at_again_and_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", 0.001)
    running = asyncio.create_task(served.watched.run())
    try:
        for _ in range(2):
            os.unlink(served.path)
            await asyncio.wait_for(served.handed.wait(), HANG_S)
            served.handed.clear()
    finally:
        running.cancel()
        await asyncio.wait([running])


async def test_it_is_looked_at_when_somebody_asks(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_S", HANG_S * 60)
    running = asyncio.create_task(served.watched.run())
    try:
        for _ in range(2):
            os.unlink(served.path)
            served.watched.look_soon()
            await asyncio.wait_for(served.handed.wait(), HANG_S)
            served.handed.clear()
    finally:
        running.cancel()
        await asyncio.wait([running])
