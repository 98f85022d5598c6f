"""A worker in this process that drains: by itself, at a deadline, and when it is told twice."""

import asyncio
import signal
import time
from dataclasses import replace

import pytest

from relay.envelope.rules import RuleRow
from tests.dataplane.rig import on_his_way
from tests.dataplane.running import Running
from tests.harness import HANG_S


async def test_draining_has_a_deadline(running: Running) -> None:
    await running.start(drain_s=0.05)
    client = await running.connect()
    await running.echo(client)
    signal.raise_signal(signal.SIGTERM)
    assert await running.is_cut(client)
    await asyncio.wait_for(running.task, HANG_S)
    assert running.closed() == {"drain": 1}


async def test_who_is_on_his_way_when_it_begins_to_drain_is_served(
    running: Running, filters: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.dataplane.open_ports.HANDSHAKE_S", 2 * HANG_S)  # `_finish` below is its end
    await running.start(drain_s=1000.0)
    running.drain_until_ns = time.monotonic_ns() + 1000 * 10**9
    with on_his_way(("127.0.0.1", running.row.listen_port)) as client:
        signal.raise_signal(signal.SIGTERM)
        ports = running.working._ports
        await running.until(lambda: ports.closing, "it drains")
        await running.echo(client)
        ports._finish(list(ports.closing))
        with pytest.raises(ConnectionRefusedError):
            await running.connect()
        await running.echo(client)
    await asyncio.wait_for(running.task, HANG_S)
    assert running.closed() == {"client_fin": 1}


async def test_it_ends_when_nobody_is_connected(running: Running) -> None:
    await running.start(drain_s=1000.0)
    running.drain_until_ns = time.monotonic_ns() + 1000 * 10**9
    signal.raise_signal(signal.SIGTERM)
    await asyncio.wait_for(running.task, HANG_S)


async def test_the_second_sigterm_stops_at_once(running: Running) -> None:
    await running.start(drain_s=1000.0)
    client = await running.connect()
    await running.echo(client)
    await running.stop()
    assert await running.is_cut(client)
    assert running.closed() == {"drain": 1}


async def test_a_snapshot_that_comes_while_it_drains(running: Running) -> None:
    """A reload that was under way when SIGTERM came: it revokes, and opens nothing."""
    snapshot = await running.start(drain_s=1000.0)
    client = await running.connect()
    await running.echo(client)
    signal.raise_signal(signal.SIGTERM)
    await running.until(lambda: not running.working._ports.listeners, "it drains")
    failures: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(repr(context["exception"])))
    denied = replace(running.row, rules=(RuleRow(False, "127.0.0.1/32", "f:1"),))
    running.tell(replace(snapshot, generation=2, endpoints=(denied,)))
    await running.until(lambda: failures or running.closed(), "the message is read")
    assert failures == []
    assert running.closed() == {"revoked": 1}
