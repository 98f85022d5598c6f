"""The instances by a directory of files: read strictly, and a mistake in one changes nothing."""

import asyncio
import contextlib
import os
import threading
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.config import reading
from relay.config.roster import Member
from relay.fleet.directory import Directory
from relay.fleet.registry import Seen
from tests.harness import HANG_S, eventually


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look a hundred times a second."""
    monkeypatch.setattr("relay.fleet.directory._POLL_S", 0.01)


def write(directory: Path, name: str, text: str) -> None:
    """As an editor does: whole."""
    new = directory / f".{name}.new"
    new.write_text(text)
    new.rename(directory / name)


async def until(stream: AsyncGenerator[Seen], check: Callable[[Seen], bool]) -> Seen:
    async with asyncio.timeout(HANG_S):
        async for seen in stream:
            if check(seen):
                return seen
    raise AssertionError("it ended")


def test_it_is_read_when_it_is_made(tmp_path: Path) -> None:
    """Before there is an event loop: the machine looks for itself in it."""
    write(tmp_path, "web_IN_10.yaml", "address: 10.0.0.14\n")
    write(tmp_path, "web_IN_9.yaml", 'address: "2001:db8::9"\nmetrics: "[2001:db8::9]:9464"\n')
    write(tmp_path, "README.txt", "not a file of ours")
    seen = Directory(str(tmp_path)).current
    assert seen.members == (Member("web", 9, "2001:db8::9", "[2001:db8::9]:9464"), Member("web", 10, "10.0.0.14"))
    assert seen.trouble == ""
    assert seen.confirmed_ns > 0


async def test_files_that_come_change_and_go(tmp_path: Path) -> None:
    directory = Directory(str(tmp_path))
    async with contextlib.aclosing(directory.watch()) as stream:
        assert (await anext(stream)).members == ()
        write(tmp_path, "web_IN_0.yaml", "address: 10.0.0.4\n")
        await until(stream, lambda seen: seen.members == (Member("web", 0, "10.0.0.4"),))
        write(tmp_path, "web_IN_0.yaml", "address: 10.0.0.5\n")  # of the same size
        await until(stream, lambda seen: seen.members == (Member("web", 0, "10.0.0.5"),))
        write(tmp_path, "web_IN_1.yaml", "address: 10.0.0.6\n")
        await until(stream, lambda seen: len(seen.members) == 2)
        (tmp_path / "web_IN_0.yaml").unlink()
        await until(stream, lambda seen: seen.members == (Member("web", 1, "10.0.0.6"),))
        (tmp_path / "web_IN_1.yaml").rename(tmp_path / "away")
        seen = await until(stream, lambda seen: bool(seen.trouble))
        assert "is empty, which is not believed" in seen.trouble
        assert seen.members == (Member("web", 1, "10.0.0.6"),)
        (tmp_path / "away").rename(tmp_path / "web_IN_1.yaml")
        await until(stream, lambda seen: not seen.trouble)
        directory.announce("", True, {})
        assert directory.conflict == ""
    await directory.close(True)


async def test_a_file_that_cannot_be_used_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, "web_IN_0.yaml", "address: 10.0.0.4\n")
    directory = Directory(str(tmp_path))
    async with contextlib.aclosing(directory.watch()) as stream:
        write(tmp_path, "web_IN_0.yaml", "address: web-0\n")
        seen = await until(stream, lambda seen: bool(seen.trouble))
        assert seen.members == (Member("web", 0, "10.0.0.4"),)
        assert seen.trouble.startswith(f"{tmp_path}/web_IN_0.yaml:1:10: address: `web-0` is not an IP address; ")
        assert directory.rejected == 1
        write(tmp_path, "web_IN_0.yaml", "address: 10.0.0.6\n")
        seen = await until(stream, lambda seen: not seen.trouble)
        assert seen.members == (Member("web", 0, "10.0.0.6"),)
    await directory.close(False)


async def test_a_directory_that_goes_away(tmp_path: Path) -> None:
    there = tmp_path / "instances"
    there.mkdir()
    write(there, "web_IN_0.yaml", "address: 10.0.0.4\n")
    directory = Directory(str(there))
    confirmed_ns = directory.current.confirmed_ns
    async with contextlib.aclosing(directory.watch()) as stream:
        there.rename(tmp_path / "elsewhere")
        seen = await until(stream, lambda seen: bool(seen.trouble))
        assert seen.trouble == f"{there} cannot be read: no such file; check `directory`"
        assert [member.id for member in seen.members] == ["web_IN_0"]
        stale_ns = seen.confirmed_ns
        assert stale_ns >= confirmed_ns
        (tmp_path / "elsewhere").rename(there)
        seen = await until(stream, lambda seen: not seen.trouble)
        assert seen.confirmed_ns > stale_ns
    await directory.close(False)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("web_IN_0.yaml", "", "web_IN_0.yaml:1:1: `address` is missing; write `address: 10.0.0.4`"),
        (
            "web_IN_0.yaml",
            "adress: 10.0.0.4\n",
            "web_IN_0.yaml:1:1: adress: is not known here; did you mean `address`?",
        ),
        ("web_IN_0.yaml", "address: 0.0.0.0\n", "address: `0.0.0.0` is every address, not one machine's; write the"),
        ("web_IN_0.yaml", "address: 10.0.0.4\nmetrics: 9464\n", "2:10: metrics: `9464` has no address; write"),
        ("web_IN_0.yaml", "address: [\n", "2:1: a value is missing here"),
        ("web_IN_0.yaml", "address: a\naddress: b\n", "is written twice"),
        (
            "web_IN_00.yaml",
            "address: 10.0.0.4\n",
            "web_IN_00.yaml:0:0: the name is no instance's; call it ROLE_IN_NUMBER",
        ),
        ("web.yaml", "address: 10.0.0.4\n", "the name is no instance's"),
        ("_IN_0.yaml", "address: 10.0.0.4\n", "the name is no instance's"),
    ],
)
def test_what_is_said_of_a_file(tmp_path: Path, name: str, text: str, said: str) -> None:
    write(tmp_path, name, text)
    directory = Directory(str(tmp_path))
    assert said in directory.current.trouble
    assert directory.current.trouble.count(f"/{name}:") == 1  # one mistake, one problem
    assert directory.current.members == ()


def test_a_link_to_nowhere_and_a_directory(tmp_path: Path) -> None:
    (tmp_path / "web_IN_0.yaml").symlink_to(tmp_path / "nowhere")
    (tmp_path / "web_IN_1.yaml").mkdir()
    trouble = Directory(str(tmp_path)).current.trouble
    assert "web_IN_0.yaml:0:0: cannot be read: no such file" in trouble
    assert "web_IN_1.yaml:0:0: cannot be read: is a directory" in trouble


@pytest.mark.parametrize("hangs", ["scandir", "read"])
async def test_one_that_hangs_changes_nothing_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hangs: str
) -> None:
    back = threading.Event()
    does = getattr(os, hangs)

    def hang(*arguments: Any) -> Any:
        assert back.wait(HANG_S)
        return does(*arguments)

    for n in range(20):
        write(tmp_path, f"web_IN_{n}.yaml", f"address: 10.0.0.{n + 1}\n")
    before = threading.active_count()
    with monkeypatch.context() as away:
        away.setattr(os, hangs, hang)
        away.setattr(reading, "DEADLINE_S", 0.01)
        seen = Directory(str(tmp_path)).current
        assert (seen.members, seen.confirmed_ns) == ((), 0), "a start says so, and is none"
        assert "has not answered within 0.01 s" in seen.trouble
        assert threading.active_count() <= before + 2, "the others would hang, too"
        back.set()
        eventually(lambda: not any(reading._hanging.values()), "it has ended")
    directory = Directory(str(tmp_path))
    assert len(directory.current.members) == 20
    back.clear()
    async with contextlib.aclosing(directory.watch()) as stream:
        await anext(stream)
        with monkeypatch.context() as away:
            away.setattr(os, hangs, hang)
            away.setattr(reading, "DEADLINE_S", 0.01)
            write(tmp_path, "web_IN_0.yaml", "address: 10.0.1.1\n")
            seen = await until(stream, lambda seen: seen.trouble != "")
            assert len(seen.members) == 20
            assert seen.members[0].address == "10.0.0.1"
            assert "hang" in seen.trouble or "has not answered" in seen.trouble
        back.set()
        seen = await until(stream, lambda seen: seen.trouble == "")
        assert (len(seen.members), seen.members[0].address) == (20, "10.0.1.1")


def test_a_pipe_among_the_files_is_named(tmp_path: Path) -> None:
    write(tmp_path, "web_IN_1.yaml", "address: 10.0.0.5\n")
    os.mkfifo(tmp_path / "web_IN_0.yaml")
    seen = Directory(str(tmp_path)).current
    assert seen.members == (Member("web", 1, "10.0.0.5"),)
    assert "web_IN_0.yaml:0:0: cannot be read: is a pipe, not a file" in seen.trouble
