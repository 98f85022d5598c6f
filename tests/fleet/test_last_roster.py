"""The last roster on disk: whole or not at all, this machine's or nobody's."""

import asyncio
import json
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from relay.config import reading
from relay.config.roster import Member
from relay.fleet import last_roster
from relay.fleet.last_roster import Memory, Remembered, path_of, recall, save
from tests.harness import HANG_S


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An end waits until all is written, on a busy machine too."""
    monkeypatch.setattr(last_roster, "_END_S", HANG_S)


MEMBERS = (Member("web", 0, "10.0.0.4", "10.0.0.4:9464", True, ("http-in",)), Member("web", 1, "10.0.0.5"))
KEPT = Remembered("web_IN_0", MEMBERS, 1_700_000_000_000_000_000)


def test_what_is_saved_is_recalled(tmp_path: Path) -> None:
    save(str(tmp_path), "shop", "m", KEPT)
    assert recall(str(tmp_path), "shop", "m") == KEPT
    assert [each.name for each in tmp_path.iterdir()] == ["shop.roster.json"]
    assert stat.S_IMODE((tmp_path / "shop.roster.json").stat().st_mode) == 0o600


def test_how_old_it_is_by_the_clock_that_nobody_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic_ns", lambda: 5)
    monkeypatch.setattr(time, "time_ns", lambda: KEPT.saved_ns + 7)
    assert KEPT.confirmed_ns == -2, "it is from before this boot"
    monkeypatch.setattr(time, "time_ns", lambda: KEPT.saved_ns - 1_000)
    assert KEPT.confirmed_ns == 5, "the clock was set back since: it is not from the future"


def test_what_is_not_ours_is_nobodys(tmp_path: Path) -> None:
    state = str(tmp_path)
    assert recall(state, "shop", "m") is None
    save(state, "shop", "m", KEPT)
    assert recall(state, "shop", "another machine") is None
    path_of(state, "shop").rename(path_of(state, "other"))
    assert recall(state, "other", "m") is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"members": None},
        {"members": [{}]},
        {"members": [7]},
        {"members": [{"role": "web", "ordinal": 0, "address": "x", "metrics": "", "busy": False, "down": []}]},
        {"members": [{"role": "web", "ordinal": "0", "address": "10.0.0.4", "metrics": "", "busy": 1, "down": []}]},
        {"members": [{"role": "web", "ordinal": -1, "address": "10.0.0.4", "metrics": "", "busy": False, "down": []}]},
        {"instance": "web"},
        {"instance": 7},
        {"saved_ns": "yesterday"},
    ],
)
def test_a_file_that_makes_no_sense(tmp_path: Path, change: dict[str, Any]) -> None:
    save(str(tmp_path), "shop", "m", KEPT)
    path = path_of(str(tmp_path), "shop")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert recall(str(tmp_path), "shop", "m") is None


def test_a_torn_file_is_no_error(tmp_path: Path) -> None:
    save(str(tmp_path), "shop", "m", KEPT)
    path = path_of(str(tmp_path), "shop")
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        assert recall(str(tmp_path), "shop", "m") is None
    path.write_bytes(b"\xff" + whole)
    assert recall(str(tmp_path), "shop", "m") is None
    path.write_bytes(b"[]")
    assert recall(str(tmp_path), "shop", "m") is None


def test_a_write_that_fails_leaves_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(str(tmp_path), "shop", "m", KEPT)

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        save(str(tmp_path), "shop", "m", Remembered("web_IN_1", (), 1))
    assert recall(str(tmp_path), "shop", "m") == KEPT
    assert [each.name for each in tmp_path.iterdir()] == ["shop.roster.json"]


async def test_the_last_of_many_is_kept_with_few_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writes: list[tuple[Member, ...]] = []

    def counted(state: str, service: str, machine: str, remembered: Remembered) -> None:
        writes.append(remembered.members)
        save(state, service, machine, remembered)

    monkeypatch.setattr(last_roster, "save", counted)
    said: list[str] = []
    memory = Memory(str(tmp_path), "shop", "m", "web_IN_0", said.append)
    for n in range(100):
        memory.note((Member("web", n, "10.0.0.4"),))
    await memory.close()
    found = recall(str(tmp_path), "shop", "m")
    assert found is not None
    assert found.members == (Member("web", 99, "10.0.0.4"),)
    assert found.instance == "web_IN_0"
    assert len(writes) <= 2
    assert said == []


async def test_a_directory_that_is_not_there_is_said_once(tmp_path: Path) -> None:
    said: list[str] = []
    missing = tmp_path / "missing"
    for _ in range(2):
        memory = Memory(str(missing), "shop", "m", "web_IN_0", said.append)
        memory.note(MEMBERS)
        await memory.close()
    assert len(said) == 2  # once by each
    assert said[0] == (
        f"the roster is not kept for a restart: {missing}: no such file; create the directory for relay's user, or write "
        "`state` under `registry`"
    )
    memory = Memory(str(missing), "shop", "m", "web_IN_0", said.append)
    await memory.close()


async def test_it_is_said_once_and_again_after_it_could(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_roster, "_PAUSE_S", 0.0)
    monkeypatch.setattr(last_roster, "_LOOK_S", 0.0)
    said: list[str] = []
    state = tmp_path / "state"
    memory = Memory(str(state), "shop", "m", "web_IN_0", said.append)

    async def written() -> None:
        memory.note(MEMBERS)
        assert memory._task is not None
        await memory._task

    for _ in range(3):
        await written()
    assert len(said) == 1
    state.mkdir()
    await written()
    assert recall(str(state), "shop", "m") is not None
    path_of(str(state), "shop").unlink()
    state.rmdir()
    await written()
    assert len(said) == 2


def test_what_is_no_file_is_nobodys(tmp_path: Path) -> None:
    os.mkfifo(path_of(str(tmp_path), "shop"))
    assert recall(str(tmp_path), "shop", "m") is None


async def test_one_that_somebody_removes_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(last_roster, "_PAUSE_S", 0.0)
    state = tmp_path / "state"
    state.mkdir()
    file = path_of(str(state), "shop")
    said: list[str] = []
    memory = Memory(str(state), "shop", "m", "web_IN_0", said.append)

    async def noted() -> None:
        memory.note(MEMBERS)
        assert memory._task is not None
        await memory._task

    await noted()
    file.unlink()
    await noted()
    assert not file.exists(), "it is looked at now and then"
    monkeypatch.setattr(memory, "_look_at_s", 0.0)
    await noted()
    assert recall(str(state), "shop", "m") is not None
    before = file.stat().st_ino
    monkeypatch.setattr(memory, "_look_at_s", 0.0)
    await noted()
    assert file.stat().st_ino == before, "nothing has changed"
    file.unlink()
    state.rmdir()
    monkeypatch.setattr(memory, "_look_at_s", 0.0)
    await noted()
    assert len(said) == 1
    state.mkdir()
    monkeypatch.setattr(memory, "_look_at_s", 0.0)
    await noted()
    assert recall(str(state), "shop", "m") is not None, "though nobody came or went"


async def test_a_file_system_that_hangs_is_said_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back, begun, fsync = threading.Event(), threading.Semaphore(0), os.fsync

    def hang(fd: int) -> None:
        begun.release()
        assert back.wait(HANG_S)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", hang)
    monkeypatch.setattr(reading, "DEADLINE_S", 0.01)
    monkeypatch.setattr(last_roster, "_END_S", 0.01)
    monkeypatch.setattr(last_roster, "_PAUSE_S", 0.0)
    said: asyncio.Queue[str] = asyncio.Queue()
    memory = Memory(str(tmp_path), "shop", "m", "web_IN_0", said.put_nowait)
    memory.note(MEMBERS[:1])
    assert "has not answered within 0.01 s; mend its mount" in await asyncio.wait_for(said.get(), HANG_S)
    memory.note(MEMBERS)
    await memory.close()
    assert memory._task is not None
    assert not memory._task.done(), "it is not waited for"
    assert begun.acquire()
    assert not begun.acquire(blocking=False), "two never write at the same time"
    monkeypatch.setattr(reading, "DEADLINE_S", HANG_S)  # what is written next is slow on a busy machine
    back.set()
    await memory._task
    found = recall(str(tmp_path), "shop", "m")
    assert found is not None
    assert found.members == MEMBERS
    assert said.empty(), "it is said once"
