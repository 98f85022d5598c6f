"""A worker takes over what a dead one left."""

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from relay.address import Address, join_host_port, packed_host
from relay.dataplane import adopt
from relay.dataplane.adopt import Adoption
from relay.dataplane.context import Context
from relay.envelope import proxyproto
from relay.kernel.listening import open_listener
from relay.ledger.layout import CAUSES, Count, State, Word
from relay.ledger.ledger import owner_of
from relay.ledger.record import FlowRecord, by_ends
from tests.config.rig import endpoint_row, snapshot_of
from tests.dataplane.rig import reset
from tests.dataplane.running import Running
from tests.harness import HANG_S
from tests.ports import free_port


async def test_a_successor_works_by_the_snapshot_that_was_in_force(running: Running) -> None:
    """What the holder started with is old: the predecessor left a newer one, open, in the ledger."""
    newer = snapshot_of(running.row, generation=7)
    fd = os.memfd_create("snapshot")
    os.write(fd, newer.to_json())
    running.part[Word.SNAPSHOT_FD] = fd
    open_listener(running.row).detach()
    running.launch(snapshot_of(generation=1))
    assert (await running.answer())["generation"] == 7
    await running.echo(await running.connect())


async def test_a_predecessor_that_died_between_the_sockets_and_their_snapshot(running: Running) -> None:
    """It took the message with the sockets out of the channel; the one with the snapshot still waits."""
    added = endpoint_row("web/new", slot=1, listen_port=free_port(), targets=running.row.targets)
    open_listener(added).detach()
    failures: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(repr(context["exception"])))
    snapshot = await running.start()
    running.tell(replace(snapshot, generation=2, endpoints=(*snapshot.endpoints, added)))
    await running.until(lambda: failures or running.part[Word.GENERATION] == 2, "the message is read")
    assert failures == []
    await running.echo(await running.connect(added.listen_port))


def left_behind(running: Running, index: int = 0) -> tuple[socket.socket, socket.socket, frozenset[int]]:
    """A connection that a dead worker forwarded: (the client, the target's side, the dead worker's descriptors)."""
    with open_listener(running.row) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, address = listener.accept()
    service, dialled = socket.socketpair()
    for sock in (client, service, accepted, dialled):
        sock.setblocking(False)
    fds = accepted.detach(), dialled.detach()
    peer = join_host_port(*address)
    running.part.begin(index, State.DIAL, running.row.slot, fds[0], -1, time.monotonic_ns(), peer)
    running.part.words[running.part.claim(running.row.slot, running.row.name) + Count.ACCEPTED] = index + 1
    running.part.advance(index, State.SPLICE, fds[1])
    return client, service, frozenset(fds)


async def test_an_emptied_pipe_is_crossed_out_before_its_numbers_are_another_pipes(running: Running) -> None:
    """The dead worker had delivered all that stood in the flow's pipe, and died before it could write that down.

    The pipe is closed then, and its numbers are given to the next pipe. Were they still in the flow's record, what another
    connection has in that one would go to this connection after the next death.
    """
    client, service, left = left_behind(running)
    pipe = os.pipe2(os.O_NONBLOCK)
    running.part.hold(0, 0, pipe)
    with client, service:
        running.launch(snapshot_of(running.row), left | frozenset(pipe))
        assert (await running.answer())["op"] == "ready"
        (record,) = running.part.flows()
        assert record.up_pipe == (-1, -1)


Stranger = Callable[[int, int], None]


def is_another_client(fd: int, listening: int) -> None:
    with socket.socket(fileno=os.dup(listening)) as server, socket.create_connection(server.getsockname()):
        accepted, _ = server.accept()
        with accepted:
            os.dup2(accepted.fileno(), fd)


def is_a_pipe(fd: int, _listening: int) -> None:
    for end in os.pipe2(os.O_NONBLOCK):
        os.dup2(end, fd)
        os.close(end)


def is_a_unix_socket(fd: int, _listening: int) -> None:
    for end in socket.socketpair():
        with end:
            os.dup2(end.fileno(), fd)


def is_the_listener(fd: int, listening: int) -> None:
    os.dup2(listening, fd)
    os.close(listening)


@pytest.mark.parametrize("stranger", [is_another_client, is_a_pipe, is_a_unix_socket, is_the_listener])
async def test_what_has_a_clients_number_by_chance_is_not_taken_for_it(running: Running, stranger: Stranger) -> None:
    """The record is of a table that is gone. The connection is over, and what has its number does its own work."""
    client, service, left = left_behind(running)
    [record] = running.part.flows()
    listener = open_listener(running.row)
    stranger(record.client_fd, listener.detach())
    with client, service:
        running.launch(snapshot_of(running.row), left)
        assert (await running.answer())["op"] == "ready"
        assert (running.closed()["error"], running.events("bug")) == (1, [])
        await running.echo(await running.connect())


async def test_a_client_that_is_reset_is_still_taken_for_itself(running: Running) -> None:
    """Its socket has no peer any more. What it sent before goes to the target all the same."""
    client, service, left = left_behind(running)
    [record] = running.part.flows()
    client.send(b"last words")
    assert select.select([record.client_fd], [], [], HANG_S)[0], "they have come"
    reset(client)
    poll = select.poll()
    poll.register(record.client_fd, 0)
    assert poll.poll(HANG_S * 1000), "so has the reset"
    open_listener(running.row).detach()
    with service:
        running.launch(snapshot_of(running.row), left)
        await running.until(lambda: select.select([service], [], [], 0)[0], "they are passed on")
        assert service.recv(99) == b"last words"
        await running.until(running.closed, "it is over")
    assert running.closed() == {"client_reset": 1}


async def test_a_client_that_was_brought_has_another_peer_than_its_socket(running: Running) -> None:
    """What came to the relay's port is recorded as its header says."""
    relay_port = replace(endpoint_row("web/@relay", slot=1, listen_port=free_port(), targets=()), type="relay")
    with socket.create_server(("127.0.0.1", relay_port.listen_port)) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    service, dialled = socket.socketpair()
    for sock in (accepted, dialled):
        sock.setblocking(False)
    fds = accepted.detach(), dialled.detach()
    running.part.begin(0, State.DIAL, running.row.slot, fds[0], -1, time.monotonic_ns(), "192.0.2.7:700")
    running.part.words[running.part.claim(running.row.slot, running.row.name) + Count.ACCEPTED] = 1
    running.part.advance(0, State.SPLICE, fds[1])
    with client, service:
        running.launch(snapshot_of(running.row), frozenset(fds))
        assert (await running.answer())["op"] == "ready"
        client.send(b"on and on")
        await running.until(lambda: select.select([service], [], [], 0)[0], "it is passed on")
        assert service.recv(99) == b"on and on"


async def test_who_waits_is_taken_over_first_and_served_before_the_others(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First what stands in the dead worker's scratch pipe, then those who have said something; nobody else's bytes move."""
    monkeypatch.setattr(adopt, "_SLICE_FLOWS", 1)
    resume, order, passed_on = Adoption._resume, [], []
    flows = [left_behind(running, index) for index in range(5)]
    services = [service for _, service, _ in flows]

    def resumed(self: Adoption, record: FlowRecord, scratch: Any) -> None:
        order.append(record.index)
        passed_on.append([index for index, service in enumerate(services) if select.select([service], [], [], 0)[0]])
        resume(self, record, scratch)

    monkeypatch.setattr(Adoption, "_resume", resumed)
    scratch = os.pipe2(os.O_NONBLOCK)
    os.write(scratch[1], b"in flight")
    running.part[Word.SCRATCH_R], running.part[Word.SCRATCH_W] = scratch
    running.part[Word.SCRATCH_OWNER] = owner_of(4, 0)
    flows[2][0].send(b"of a client")
    flows[3][1].send(b"of a target")
    assert select.select(flows[2][2], [], [], HANG_S)[0], "it has come"
    with contextlib.ExitStack() as stack:
        for client, service, _ in flows:
            stack.enter_context(client)
            stack.enter_context(service)
        running.launch(snapshot_of(running.row), frozenset(scratch).union(*(left for _, _, left in flows)))
        assert (await running.answer())["op"] == "ready"
        assert order == [4, 2, 3, 0, 1]
        assert passed_on == [[], [4], [2, 4], [2, 4], [2, 4]]
        assert (services[4].recv(99), services[2].recv(99)) == (b"in flight", b"of a client")
        assert await asyncio.get_running_loop().sock_recv(flows[3][0], 99) == b"of a target"


@pytest.mark.interpreted
async def test_who_takes_many_over_gives_signs_of_life(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 262,144 connections it would be silent for longer than a worker may be. Of those that are over as well."""
    monkeypatch.setattr(adopt, "_SLICE_FLOWS", 1)
    did: list[str] = []

    def noted(owner: type, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any) -> None:
            did.append(name)
            real(*arguments)

        monkeypatch.setattr(owner, name, call)

    for owner, name in ((Context, "beat"), (Adoption, "_resume"), (Adoption, "_finish"), (Adoption, "_arrivals")):
        noted(owner, name)
    flows = [left_behind(running, index) for index in range(4)]
    for index in (2, 3):
        running.part.ending(index, "idle")
    with contextlib.ExitStack() as stack:
        for client, service, _ in flows:
            stack.enter_context(client)
            stack.enter_context(service)
        running.launch(snapshot_of(running.row), frozenset().union(*(left for _, _, left in flows)))
        assert (await running.answer())["op"] == "ready"
        order = did[did.index("_finish") - 1 : did.index("_arrivals") + 1]
        assert order == [*("beat", "_finish") * 2, *("beat", "_resume") * 2, "_arrivals"]


@pytest.mark.parametrize("last", [0, 1, 2])
async def test_of_all_ends_only_the_last_one_may_be_uncounted(running: Running, last: int) -> None:
    """Ends are counted at once and their sockets closed a moment later, all together: until then the records say END."""
    words, row = running.part.words, running.part.claim(running.row.slot, running.row.name)
    causes = ["client_fin", "idle", "target_reset"]
    for index, cause in enumerate(causes):
        running.part.begin(index, State.SPLICE, running.row.slot, 1000 + index, -1, 0, "127.0.0.1:5")
        words[row + Count.ACCEPTED] += 1
        words[row + Count.CLOSED + CAUSES.index(cause)] += index != last
    for index in (*{0, 1, 2} - {last}, last):
        running.part.ending(index, causes[index])
    running.launch(snapshot_of(running.row))
    assert (await running.answer())["op"] == "ready"
    assert running.closed() == dict.fromkeys(causes, 1)


async def test_a_successor_of_one_that_was_draining(running: Running) -> None:
    """The listening sockets are closed already. Its connections go on all the same, and end the draining."""
    client, service, left = left_behind(running)
    running.drain_until_ns = time.monotonic_ns() + 1000 * 10**9
    with client, service:
        running.launch(snapshot_of(running.row), left)
        client.send(b"on and on")
        await running.until(lambda: select.select([service], [], [], 0)[0], "it is passed on")
        assert service.recv(99) == b"on and on"
    async with asyncio.timeout(HANG_S):
        [failure] = await asyncio.gather(running.task, return_exceptions=True)
    assert failure is None
    assert running.closed() in ({"client_fin": 1}, {"target_fin": 1})


async def test_a_stop_that_a_successor_has_read_of_before_it_is_told(running: Running) -> None:
    """The keeper writes down how long the drain lasts, and then sends the signal: which is still the first stop's."""
    client, service, left = left_behind(running)
    running.drain_until_ns = time.monotonic_ns() + 1000 * 10**9
    with client, service:
        running.launch(snapshot_of(running.row), left)
        assert (await running.answer())["op"] == "ready"
        signal.raise_signal(signal.SIGTERM)
        for _ in range(5):  # the first may be quicker than the signal
            client.send(b"on and on")
            await running.until(lambda: select.select([service], [], [], 0)[0], "it is passed on")
            assert service.recv(99) == b"on and on"
        running.drain_until_ns = 1  # the second stop
        signal.raise_signal(signal.SIGTERM)
        assert await running.is_cut(client)
    assert running.closed() == {"drain": 1}


async def test_a_successor_of_one_that_had_drained(running: Running) -> None:
    running.drain_until_ns = time.monotonic_ns() + 1000 * 10**9
    running.launch(snapshot_of(running.row))
    async with asyncio.timeout(HANG_S):
        [failure] = await asyncio.gather(running.task, return_exceptions=True)
    assert failure is None


async def test_sockets_of_an_older_snapshot_do_not_stay_open(running: Running) -> None:
    """Generation 4 opened a port and generation 5 closed it again, while no worker was there to read of it."""
    await running.start(generation=5)
    old = endpoint_row("web/old", slot=1, listen_port=free_port())
    running.tell(snapshot_of(running.row, old, generation=4), {old.listen: open_listener(old)})
    assert (await running.answer())["generation"] == 5
    try:
        with pytest.raises(ConnectionRefusedError):
            await running.connect(old.listen_port)
    finally:
        if left := running.working._ports._sockets.pop(old.listen, None):
            left.close()


async def test_sockets_that_it_has_already_are_closed(running: Running) -> None:
    """A worker that was forked after the keeper had the message."""
    snapshot = await running.start(generation=5)
    gc.collect()  # what other tests left open closes now, and not in the midst
    before = len(os.listdir("/proc/self/fd"))
    spare = open_listener(endpoint_row(listen_port=free_port()))
    running.tell(replace(snapshot, generation=6), {running.row.listen: spare})
    assert (await running.answer())["generation"] == 6
    assert len(os.listdir("/proc/self/fd")) == before + 1, "the snapshot alone stays open"
    await running.echo(await running.connect())


@pytest.mark.parametrize("state", [State.LOOK, State.DIAL, State.HOLD])
async def test_where_an_edges_client_connected_to_outlives_a_worker(running: Running, state: int) -> None:
    """The dead one had taken the header; the target is told the same as it would have been."""
    came_to = Address("2001:db8::80", 443)
    row = replace(running.row, edges=("127.0.0.1",), send_proxy="v2", protocol="http" if state == State.LOOK else "tcp")
    with open_listener(row) as listener:
        client = socket.create_connection(listener.getsockname())
        accepted, address = listener.accept()
    client.setblocking(False)
    part = running.part
    part.begin(0, State.HEADER, row.slot, accepted.fileno(), -1, time.monotonic_ns(), str(Address(*address)))
    part.words[part.claim(row.slot, row.name) + Count.ACCEPTED] = 1
    part.identify(0, by_ends(packed_host("198.51.100.7"), 40_000, came_to.packed, came_to.port), 0)
    part.advance(0, state, -1)
    with client:
        running.launch(snapshot_of(row), frozenset({accepted.detach()}))
        assert (await running.answer())["op"] == "ready"
        client.send(b"GET / HTTP/1.1\r\n")
        told = proxyproto.build_v2(packed_host("198.51.100.7"), 40_000, came_to.packed, 443) + b"GET / HTTP/1.1\r\n"
        echoed = b""
        async with asyncio.timeout(HANG_S):
            while len(echoed) < len(told):
                echoed += await asyncio.get_running_loop().sock_recv(client, 99)
        assert echoed == told


async def test_of_the_snapshots_only_the_last_stays_open(running: Running) -> None:
    snapshot = await running.start()
    gc.collect()  # what other tests left open closes now, and not in the midst
    before = len(os.listdir("/proc/self/fd"))
    for generation in range(2, 6):
        await running.put_in_force(replace(snapshot, generation=generation))
    running.tell(snapshot)
    assert (await running.answer())["generation"] == 5
    assert len(os.listdir("/proc/self/fd")) == before + 1


async def test_draining(running: Running) -> None:
    await running.start()
    client = await running.connect()
    await running.echo(client)
    signal.raise_signal(signal.SIGTERM)
    await running.until(lambda: not running.working._ports.listeners, "it drains")
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    await running.echo(client)
    client.close()
    await asyncio.wait_for(running.task, HANG_S)
    assert running.closed() == {"client_fin": 1}
