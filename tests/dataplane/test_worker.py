"""A worker in this process: it takes snapshots and sockets from control, re-decides, drains, and survives its own bugs.

It takes every socket of the process that listens on TCP for its own, as it finds those that a predecessor left. So the
targets here listen on Unix sockets, and a listening socket is handed over as a bare descriptor.
"""

import asyncio
import contextlib
import gc
import os
import select
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.config.snapshot import TargetRow
from relay.dataplane import adopt
from relay.dataplane.adopt import Adoption, free_records
from relay.dataplane.session import Session
from relay.dataplane.worker import NOFILE_PER_FLOW, NOFILE_RESERVED, flows_max
from relay.envelope.rules import RuleRow
from relay.kernel.listening import open_listener
from relay.ledger.layout import CAUSES, Count, State, Word
from relay.ledger.ledger import FlowRecord, owner_of
from tests.config.rig import dropping, endpoint_row, snapshot_of
from tests.dataplane.rig import reset
from tests.dataplane.running import FLOWS, Running
from tests.harness import HANG_S
from tests.ports import free_port, free_ports


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    """A worker to start, with an echoing target behind it."""
    path = str(tmp_path / "echo")

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
        writer.close()

    server = await asyncio.start_unix_server(answer, path)
    with contextlib.ExitStack() as stack:
        made = Running(stack, TargetRow("echo", path=path))
        try:
            yield made
        finally:
            server.close()
            await made.stop()


async def test_it_forwards_and_says_so(running: Running) -> None:
    await running.start(generation=3)
    client = await running.connect()
    await running.echo(client)
    assert (running.part[Word.PID], running.part[Word.GENERATION]) == (os.getpid(), 3)
    assert running.part[Word.HEARTBEAT_NS] > 0
    assert running.ledger.active(0) == 1
    client.close()
    await running.until(lambda: running.closed() == {"client_fin": 1}, "it is over")


async def test_pipes_are_counted_as_they_are(running: Running) -> None:
    """The count stands for pipes that are open, and a predecessor's are not."""
    running.part[Word.PIPES] = 70
    await running.start()
    assert running.part[Word.PIPES] == 1, "its scratch pipe"
    client = await running.connect()
    await running.echo(client)
    assert running.part[Word.PIPES] == 1


async def test_a_client_that_breaks_while_it_is_sent_to_is_no_bug(running: Running, tmp_path: Path) -> None:
    """The scratch pipe, with the client's bytes in it, is closed: the first one, and the only one there is."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path := str(tmp_path / "deaf"))
        listening.listen()
        await running.start(replace(running.row, targets=(TargetRow("deaf", path=path),)))
        client = await running.connect()
        await running.until(lambda: running.ledger.target_up(0) is True, "the target is connected")
        service, _ = listening.accept()
    with service:
        service.send(b"for nobody")  # ready first, so it is sent on before the reset is noticed
        reset(client)
        await running.until(running.closed, "it is over")
    assert [line["traceback"] for line in running.events("bug")] == []
    assert running.closed() == {"client_reset": 1}


async def test_a_predecessors_flows_are_over(running: Running) -> None:
    """Their descriptors went with it: a crash without a shared descriptor table."""
    row = running.part.claim(0, running.row.name)
    running.part.words[row + Count.ACCEPTED] = 3
    running.part.words[row + Count.CLOSED] = 2
    running.part.words[row + Count.ACTIVE] = 1
    running.part.begin(5, State.SPLICE, 0, 9999, -1, 1, "192.0.2.1:5")
    await running.start()
    assert running.closed() == {"client_fin": 2, "error": 1}
    assert running.ledger.active(0) == 0
    assert list(running.ledger.flows()) == []


async def test_an_endpoint_that_went_while_no_worker_was_there_leaves_nothing(running: Running) -> None:
    """Its slot is handed on in a later reload: the next holder starts at nought."""
    gone = running.part.row(1)
    running.part.words[gone + Count.ACCEPTED] = 5
    running.part.words[gone + Count.SENT] = 1000
    running.part.words[gone + Count.ACTIVE] = 2
    snapshot = await running.start(generation=2)
    added = endpoint_row("web/new", slot=1, listen_port=free_port(), targets=running.row.targets)
    after = replace(snapshot, generation=3, endpoints=(*snapshot.endpoints, added))
    await running.put_in_force(after, {added.listen: open_listener(added)})
    assert (running.ledger.total(1, Count.ACCEPTED), running.ledger.total(1, Count.SENT)) == (0, 0)
    assert running.ledger.active(1) == 0


async def test_a_reload_opens_and_closes_ports_and_leaves_connections_alone(running: Running) -> None:
    snapshot = await running.start()
    before = await running.connect()
    await running.echo(before)
    moved = replace(running.row, listen_port=free_port())
    await running.put_in_force(
        replace(snapshot, generation=2, endpoints=(moved,)), {moved.listen: open_listener(moved)}
    )
    await running.echo(await running.connect(moved.listen_port))
    with pytest.raises(ConnectionRefusedError):
        await running.connect()
    await running.echo(before)
    assert running.part[Word.GENERATION] == 2


async def test_a_reload_revokes_who_may_connect_no_longer(running: Running) -> None:
    snapshot = await running.start()
    client = await running.connect()
    await running.echo(client)
    denied = replace(running.row, rules=(RuleRow(False, "127.0.0.1/32", "f:1"),))
    await running.put_in_force(replace(snapshot, generation=2, endpoints=(denied,)))
    assert await running.is_cut(client)
    assert running.closed() == {"revoked": 1}
    assert await running.is_refused()


async def test_a_reload_of_an_endpoint_that_audits_cuts_nobody(running: Running) -> None:
    snapshot = await running.start()
    client = await running.connect()
    await running.echo(client)
    audit = replace(running.row, rules=(RuleRow(False, "127.0.0.1/32", "f:1"),), enforce="audit")
    await running.put_in_force(replace(snapshot, generation=2, endpoints=(audit,)))
    await running.echo(client)
    await running.echo(await running.connect())
    assert running.ledger.total(0, Count.WOULD_DENY) == 1, "the one that came since"
    strict = replace(audit, enforce="strict")
    await running.put_in_force(replace(snapshot, generation=3, endpoints=(strict,)))
    assert await running.is_cut(client)
    assert await running.is_refused()


async def test_what_the_kernel_drops_is_counted_every_second(running: Running, filters: None) -> None:
    snapshot = await running.start(replace(running.row, **dropping("127.0.0.2")))
    began_s = time.monotonic()
    with socket.socket() as denied:
        denied.setblocking(False)
        denied.bind(("127.0.0.2", 0))
        denied.connect_ex(("127.0.0.1", running.row.listen_port))
        await running.until(lambda: running.ledger.total(0, Count.DENIED), "it is counted")
        await running.echo(await running.connect())
        await running.put_in_force(replace(snapshot, generation=2, endpoints=(running.row,)))
        # It tries again by itself (tcp(7), tcp_syn_retries), and nothing is in its way any more.
        await running.until(lambda: running.ledger.total(0, Count.ACCEPTED) == 2, "it gets through")
    # One line, and one more for each second of a busy machine in which it tried in vain.
    lines = running.events("denied")
    assert sum(line["left_out"] for line in lines) == running.ledger.total(0, Count.DENIED)
    assert 0 < len(lines) <= time.monotonic() - began_s + 1


async def test_an_endpoint_that_goes_takes_its_connections_and_its_counts(running: Running) -> None:
    other = endpoint_row("web/other", slot=1, listen_port=free_port(), targets=running.row.targets)
    snapshot = await running.start(running.row, other)
    gone, stays = await running.connect(), await running.connect(other.listen_port)
    await running.echo(gone)
    await running.echo(stays)
    await running.put_in_force(replace(snapshot, generation=2, endpoints=(other,)))
    assert await running.is_cut(gone)
    await running.echo(stays)
    assert {running.ledger.total(0, count) for count in range(Count.END)} == {0}


async def test_another_target_has_not_been_dialled_yet(running: Running) -> None:
    """What the last dial said was said of the former one: a metric would put the new one's name on it."""
    snapshot = await running.start()
    await running.echo(await running.connect())
    assert running.ledger.target_up(0) is True
    other = replace(running.row, targets=(TargetRow("other", host="127.0.0.1", port=1),))
    await running.put_in_force(replace(snapshot, generation=2, endpoints=(other,)))
    assert running.ledger.target_up(0) is None


async def test_ports_that_change_hands(running: Running) -> None:
    other = endpoint_row("web/other", slot=1, listen_port=free_port(), targets=running.row.targets)
    snapshot = await running.start(running.row, other)
    swapped = (
        replace(running.row, listen_port=other.listen_port),
        replace(other, listen_port=running.row.listen_port),
    )
    await running.put_in_force(replace(snapshot, generation=2, endpoints=swapped))
    await running.echo(await running.connect(other.listen_port))
    assert (running.ledger.total(0, Count.ACCEPTED), running.ledger.total(1, Count.ACCEPTED)) == (1, 0)


async def test_every_port_of_a_range_is_one_endpoint(running: Running) -> None:
    row = running.row = replace(running.row, listen_port=free_ports(4), port_count=3, connections=3)
    snapshot = await running.start(row)
    clients = [await running.connect(port) for port in row.listens.values()]
    for client in clients:
        await running.echo(client)
    assert running.ledger.total(0, Count.ACCEPTED) == running.ledger.active(0) == 3
    assert await running.is_refused(), "one limit for all of them"

    wider = replace(row, port_count=4, connections=None)
    last = row.listen_port + 3
    address = f"127.0.0.1:{last}"
    await running.put_in_force(
        replace(snapshot, generation=2, endpoints=(wider,)), {address: open_listener(wider, last)}
    )
    await running.echo(await running.connect(last))
    narrower = replace(row, listen_port=last - 1, port_count=2, connections=None)
    await running.put_in_force(replace(snapshot, generation=3, endpoints=(narrower,)))
    for client in clients:
        await running.echo(client)
    for port in (last - 3, last - 2):
        with pytest.raises(ConnectionRefusedError):
            await running.connect(port)
    for port in (last - 1, last):
        await running.echo(await running.connect(port))
    assert running.ledger.total(0, Count.ACCEPTED) == 6


async def test_an_older_snapshot_is_not_applied(running: Running) -> None:
    """A message that waited for a predecessor."""
    await running.start(generation=5)
    running.tell(snapshot_of(generation=4))
    assert await running.answer() == {"worker": 0, "op": "applied", "generation": 5}
    await running.echo(await running.connect())


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
        accepted, _ = listener.accept()
    service, dialled = socket.socketpair()
    for sock in (client, service, accepted, dialled):
        sock.setblocking(False)
    fds = accepted.detach(), dialled.detach()
    running.part.begin(index, State.DIAL, running.row.slot, fds[0], -1, time.monotonic_ns(), "127.0.0.1:5")
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


async def test_draining_has_a_deadline(running: Running) -> None:
    await running.start(drain_s=0.05)
    client = await running.connect()
    await running.echo(client)
    signal.raise_signal(signal.SIGTERM)
    assert await running.is_cut(client)
    await asyncio.wait_for(running.task, HANG_S)
    assert running.closed() == {"drain": 1}


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


async def test_a_bug_ends_its_own_connection_alone(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await running.start()
    good, bad = await running.connect(), await running.connect()
    await running.echo(good)
    await running.echo(bad)
    real = Session._settle
    port = bad.getsockname()[1]

    def failing(session: Session) -> None:
        if session.peer.port == port:
            raise ValueError("a bug")
        real(session)

    monkeypatch.setattr(Session, "_settle", failing)
    bad.shutdown(socket.SHUT_WR)
    assert await running.is_cut(bad)
    await running.echo(good)
    [line] = running.events("bug")
    assert "ValueError: a bug" in line["traceback"]
    assert running.closed() == {"error": 1}


def test_records_that_no_flow_has(running: Running) -> None:
    for index in (0, 2):
        running.part.begin(index, State.SPLICE, 0, 5, 6, 0, "127.0.0.1:5")
    records = list(running.part.flows())
    assert free_records(records, 4, 10) == ([3, 1], range(4, 10))
    assert free_records(records, 4, 3) == ([1], range(4, 3))
    assert free_records([], 0, 10) == ([], range(10))


async def test_no_records_left_pauses_and_goes_on(running: Running) -> None:
    await running.start()
    clients = [await running.connect() for _ in range(FLOWS)]
    for client in clients:
        await running.echo(client)
    late = await running.connect()
    await running.until(lambda: running.part[Word.ACCEPT_PAUSES], "accepting pauses")
    reset(clients[0])
    await running.echo(late)
    assert running.ledger.active(0) == FLOWS


async def test_an_idle_connection_is_cut(running: Running) -> None:
    await running.start(replace(running.row, idle_s=1.0))
    client = await running.connect()
    await running.echo(client)
    assert await running.is_cut(client)
    assert running.closed() == {"idle": 1}


async def test_a_slow_client_is_cut(running: Running) -> None:
    await running.start(replace(running.row, protocol="http", first_byte_s=0.01))
    assert await running.is_refused()
    assert running.closed() == {"first_byte_timeout": 1}


def test_flows_max() -> None:
    assert flows_max(NOFILE_RESERVED + 100 * NOFILE_PER_FLOW) == 100
    assert flows_max(0) == flows_max(NOFILE_RESERVED) == 1
