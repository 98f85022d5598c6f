"""A worker ends: because it is told, and because the keeper has ended; by one deadline, and with no port left open."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from relay.dataplane import ending
from relay.dataplane.context import Context
from relay.kernel.listening import open_listener
from relay.kernel.sockets import open_descriptors
from tests.config.rig import endpoint_row, snapshot_of
from tests.dataplane.running import Running
from tests.harness import HANG_S
from tests.ports import free_port


@pytest.fixture
def keeper(running: Running, monkeypatch: pytest.MonkeyPatch) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that the worker takes for the keeper; it descends from it."""
    monkeypatch.setattr("relay.kernel.process.descends_from", lambda _: True)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        running.keeper_pid = process.pid
        yield process
        process.kill()


def dead_pid() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
        return process.pid


async def ended(running: Running) -> None:
    await asyncio.wait_for(running.task, HANG_S)


async def test_it_drains_when_the_keeper_ends(running: Running, keeper: "subprocess.Popen[bytes]") -> None:
    await running.start(drain_s=1000.0)
    client = await running.connect()
    await running.echo(client)
    before_ns = time.monotonic_ns()
    keeper.kill()
    await running.until(lambda: running.drain_until_ns, "it is noticed")
    assert 1000 * 10**9 <= running.drain_until_ns - before_ns <= (1000 + HANG_S) * 10**9
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    await running.echo(client)
    client.close()
    await ended(running)
    assert running.closed() == {"client_fin": 1}


async def test_at_the_deadline_what_is_open_is_cut(running: Running, keeper: "subprocess.Popen[bytes]") -> None:
    await running.start(drain_s=0.05)
    client = await running.connect()
    await running.echo(client)
    keeper.kill()
    assert await running.is_cut(client)
    await ended(running)
    assert running.closed() == {"drain": 1}


@pytest.mark.interpreted
async def test_who_cuts_many_gives_signs_of_life(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 262,144 connections at once it would be silent for longer than a worker may be."""
    await running.start(drain_s=1000.0)
    for _ in range(3):
        await running.echo(await running.connect())
    monkeypatch.setattr(ending, "_SLICE", 1)
    beats: list[int] = []
    monkeypatch.setattr(Context, "beat", lambda context: beats.append(len(context.flows)))
    running.working._ending.cut_all()
    assert beats == [3, 2, 1]


async def test_the_deadline_of_whoever_noticed_it_first_holds(
    running: Running, keeper: "subprocess.Popen[bytes]"
) -> None:
    await running.start(drain_s=1000.0)
    client = await running.connect()
    await running.echo(client)
    running.drain_until_ns = time.monotonic_ns() + 10**7
    keeper.kill()
    assert await running.is_cut(client)
    await ended(running)


async def test_a_stop_from_the_holder_and_the_keepers_end_are_one(
    running: Running, keeper: "subprocess.Popen[bytes]"
) -> None:
    """Whichever comes first: the other is no second stop."""
    await running.start(drain_s=1000.0)
    client = await running.connect()
    await running.echo(client)
    signal.raise_signal(signal.SIGTERM)
    await running.until(lambda: running.working._ending.deadline_s, "it drains")
    keeper.kill()
    await running.until(lambda: running.drain_until_ns, "it is noticed")
    assert abs(running.drain_until_ns / 1e9 - (running.working._ending.deadline_s or 0)) < 0.001
    signal.raise_signal(signal.SIGTERM)
    await running.echo(client)
    client.close()
    await ended(running)


async def test_a_keeper_that_ends_while_it_drains_closes_the_doors_too(
    running: Running, keeper: "subprocess.Popen[bytes]"
) -> None:
    """They stay open for those who serve the connections from outside. But the next relay needs their ports."""
    door = endpoint_row("web/db", slot=1, listen_port=free_port(), leads_to="store/pg", targets=running.row.targets)
    await running.start(running.row, door, drain_s=1000.0)
    client = await running.connect()
    await running.echo(client)
    running.drain_until_ns = time.monotonic_ns() + 1000 * 10**9
    signal.raise_signal(signal.SIGTERM)
    await running.until(lambda: len(running.working._ports.listeners) == 1, "all but the door is closed")
    keeper.kill()
    await running.until(lambda: not running.working._ports.listeners, "the door is closed")
    with pytest.raises(ConnectionRefusedError):
        await running.connect(door.listen_port)
    await running.echo(client)


@pytest.mark.parametrize("number", ["nobody's", "another's"])
async def test_a_keeper_that_has_ended_already(running: Running, number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the worker was started: by an earlier holder's death, or while it came up."""
    running.keeper_pid = dead_pid() if number == "nobody's" else 1
    monkeypatch.setattr("relay.kernel.process.state_of", lambda _: ("S", 0))
    for port in running.row.listens.values():
        open_listener(running.row, port).detach()
    running.launch(snapshot_of(running.row, drain_s=1000.0))
    await ended(running)
    assert running.drain_until_ns > time.monotonic_ns()


async def test_a_keeper_that_lives_is_watched_and_nothing_comes_of_it(running: Running) -> None:
    before = open_descriptors()
    await running.start()
    watched = [fd for fd in open_descriptors() - before if os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[pidfd]"]
    assert len(watched) == 1
    await running.echo(await running.connect())
    assert running.drain_until_ns == 0
    await running.stop()
    assert watched[0] not in open_descriptors()
