"""Connections with instances that are gone: on edges and at doors out by their target, elsewhere by their source."""

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from relay.address import join_host_port
from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.envelope.rules import RuleRow
from relay.kernel.listening import open_listener
from relay.ledger.layout import Count, State
from tests.config.rig import endpoint_row, snapshot_of
from tests.dataplane.rig import Target, rig_to, tcp_target
from tests.dataplane.running import Running
from tests.dataplane.scenes import at_close, at_dial, at_splice
from tests.ports import free_port

GONE, OTHER = "127.0.0.1", "127.0.0.2"
POOL: dict[str, Any] = {"distribution": "five-tuple", "type": "door"}
NOBODY = (RuleRow(False, "127.0.0.0/8", "f:1"),)


def of_pool(target: TargetRow, slot: int = 0) -> TargetRow:
    return replace(target, slot=slot, instance=f"store_IN_{slot}")


Start = Callable[[EndpointRow], Awaitable[Snapshot]]


@pytest.fixture
async def start(running: Running) -> AsyncIterator[Start]:
    """Starts the worker. `running.row` leads to an instance, which listens after that: or it would be the worker's."""
    port, servers = free_port(), []
    instance = TargetRow(f"{GONE}:{port}", host=GONE, port=port)
    running.row = replace(running.row, targets=(of_pool(instance),), **POOL)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    async def started(row: EndpointRow) -> Snapshot:
        snapshot = await running.start(row)
        servers.append(await asyncio.start_server(answer, GONE, port))
        return snapshot

    yield started
    await running.stop()
    for server in servers:
        server.close()


def without(snapshot: Snapshot, **keys: Any) -> Snapshot:
    """The next one, in which the instance is no target any more."""
    rows = tuple(replace(row, targets=(of_pool(TargetRow("b", host=OTHER, port=1), 1),)) for row in snapshot.endpoints)
    return replace(snapshot, generation=snapshot.generation + 1, endpoints=rows, **keys)


async def test_what_is_with_an_instance_that_is_gone_is_cut(running: Running, start: Start) -> None:
    snapshot = await start(running.row)
    client = await running.connect()
    await running.echo(client)
    left = without(snapshot, gone=(OTHER,))
    await running.put_in_force(left)
    await running.echo(client)  # who left politely keeps it, whoever else is gone
    await running.put_in_force(replace(left, generation=3, gone=(GONE, OTHER)))
    assert await running.is_cut(client)
    assert running.closed() == {"gone": 1}
    [record] = running.events("connection")
    assert (record["cause"], record["target"]) == ("gone", running.row.targets[0].text)


async def test_a_service_of_the_machines_own_is_no_instance(running: Running, start: Start) -> None:
    snapshot = await start(replace(running.row, distribution=None, type="input"))
    client = await running.connect()
    await running.echo(client)
    await running.put_in_force(replace(snapshot, generation=2, gone=(GONE,)))
    await running.echo(client)


@pytest.mark.parametrize(("kind", "cause"), [("internal", "gone"), ("input", "revoked"), ("door", "revoked")])
async def test_who_comes_from_an_instance_that_is_gone(running: Running, kind: Any, cause: str) -> None:
    snapshot = await running.start(replace(running.row, type=kind))
    client = await running.connect()
    await running.echo(client)
    await running.put_in_force(replace(snapshot, generation=2, gone=(GONE,)))
    await running.echo(client)  # whom the envelope lets in stays
    [row] = snapshot.endpoints
    await running.put_in_force(replace(snapshot, generation=3, gone=(GONE,), endpoints=(replace(row, rules=NOBODY),)))
    assert await running.is_cut(client)
    assert running.closed() == {cause: 1}


async def test_who_comes_from_elsewhere_or_to_what_is_closed_is_revoked(running: Running) -> None:
    inside, closing = (replace(running.row, type="internal", slot=slot, name=f"web/{slot}", listen_port=port)
                       for slot, port in enumerate((running.row.listen_port, free_port())))  # fmt: skip
    snapshot = await running.start(inside, closing)
    clients = [await running.connect(row.listen_port) for row in (inside, closing)]
    for client in clients:
        await running.echo(client)
    await running.put_in_force(
        replace(snapshot, generation=2, gone=(OTHER,), endpoints=(replace(inside, rules=NOBODY), closing))
    )
    assert running.closed(0) == {"revoked": 1}
    await running.put_in_force(replace(snapshot, generation=3, gone=(GONE,), endpoints=(inside,)))
    assert await running.is_cut(clients[1])
    assert [each["cause"] for each in running.events("connection")] == ["revoked", "revoked"]


async def test_a_worker_that_takes_over_cuts_what_its_predecessor_had_yet_to(running: Running, start: Start) -> None:
    """The target has left the set, so by the ledger alone nobody knows where the connection leads."""
    row, words, [instance] = running.row, running.part.words, running.row.targets
    with open_listener(row) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, address = listener.accept()
    with socket.create_server((GONE, instance.port)) as listener:
        dialled = socket.create_connection((GONE, instance.port))
        service, _ = listener.accept()
    for sock in (client, accepted, dialled):
        sock.setblocking(False)
    fds = accepted.detach(), dialled.detach()
    running.part.begin(0, State.DIAL, row.slot, fds[0], -1, time.monotonic_ns(), join_host_port(*address))
    words[running.part.claim(row.slot, row.name) + Count.ACCEPTED] = 1
    running.part.aim(0, instance.slot)
    running.part.advance(0, State.SPLICE, fds[1])
    with client, service:
        running.launch(without(snapshot_of(row), gone=(GONE,)), frozenset(fds))
        assert await running.is_cut(client)
    assert (await running.answer())["op"] == "ready"
    assert running.closed() == {"gone": 1}
    [record] = running.events("connection")
    assert record["target"] == instance.text


def test_only_what_has_reached_its_instance_is_with_it(stack: contextlib.ExitStack) -> None:
    """A dial goes on to the next target by itself, and what is left to be delivered has a time."""

    def scene(make: Any, **keys: Any) -> bool:
        return bool(make(stack, **keys).flow.is_with((GONE,)))

    assert not scene(at_dial, **POOL)
    assert scene(at_splice, **POOL)
    assert not scene(at_close, **POOL)
    assert not scene(at_splice)


def test_where_it_leads_is_by_the_target_that_answered(stack: contextlib.ExitStack) -> None:
    here: Target = tcp_target(stack)
    rig = rig_to(stack, of_pool(here.row), **POOL)
    rig.connect()
    here.accept(rig)
    flow = rig.flow()
    rig.gate.declare(endpoint_row(targets=(of_pool(TargetRow("b", host=OTHER, port=1), 1),), **POOL))
    assert (flow.is_with((GONE,)), flow.is_with((OTHER,))) == (True, False)
