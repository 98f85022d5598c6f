"""A worker in this process: it takes snapshots and sockets from control, re-decides, drains, and survives its own bugs.

It takes every socket of the process that listens on TCP for its own, as it finds those that a predecessor left. So the
targets here listen on Unix sockets, and a listening socket is handed over as a bare descriptor.
"""

import os
import socket
import time
from dataclasses import replace
from pathlib import Path

import pytest

from relay.config.snapshot import TargetRow
from relay.dataplane.adopt import free_records
from relay.dataplane.forwarding import Forwarding
from relay.dataplane.gate import Gate
from relay.envelope.rules import RuleRow
from relay.kernel import channel
from relay.kernel.listening import open_listener
from relay.ledger.layout import Count, State, Word
from tests.config.rig import dropping, endpoint_row, snapshot_of
from tests.dataplane.rig import reset
from tests.dataplane.running import FLOWS, Running
from tests.ledger.rig import target_up
from tests.ports import free_port, free_ports


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
        await running.until(lambda: target_up(running.ledger) is True, "the target is connected")
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
    gone = running.part.counts_at(1)
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


async def test_a_socket_that_did_not_come_is_told(running: Running) -> None:
    """Before it says that it works by the snapshot: then control looks."""
    snapshot = await running.start()
    moved = replace(running.row, listen_port=free_port())
    await running.put_in_force(replace(snapshot, generation=2, endpoints=(moved,)))
    assert running.part[Word.UNSERVED] == 1
    [bug] = running.events("bug")
    assert bug["message"] == f"no socket for {moved.listen}, where web/in listens"
    # What there is no room for the kernel leaves out of a message.
    with open_listener(moved) as one:
        message = {"op": "listeners", "addresses": [moved.listen, "127.0.0.1:1"]}
        channel.send(running.mine, message, (one.fileno(),))
    await running.put_in_force(replace(snapshot, generation=3, endpoints=(moved,)))
    assert running.part[Word.UNSERVED] == 0
    await running.echo(await running.connect(moved.listen_port))


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
    assert target_up(running.ledger) is True
    other = replace(running.row, targets=(TargetRow("other", host="127.0.0.1", port=1),))
    await running.put_in_force(replace(snapshot, generation=2, endpoints=(other,)))
    assert target_up(running.ledger) is None


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


@pytest.mark.interpreted
async def test_a_bug_ends_its_own_connection_alone(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    await running.start()
    good, bad = await running.connect(), await running.connect()
    await running.echo(good)
    await running.echo(bad)
    real = Forwarding._settle
    port = bad.getsockname()[1]

    def failing(stage: Forwarding) -> None:
        if stage.flow.peer.port == port:
            raise ValueError("a bug")
        real(stage)

    monkeypatch.setattr(Forwarding, "_settle", failing)
    bad.shutdown(socket.SHUT_WR)
    assert await running.is_cut(bad)
    await running.echo(good)
    [line] = running.events("bug")
    assert "ValueError: a bug" in line["traceback"]
    assert running.closed() == {"error": 1}


@pytest.mark.interpreted
async def test_a_bug_at_the_beginning_ends_the_connection_too(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    await running.start()
    good = await running.connect()
    await running.echo(good)

    def failing(_gate: Gate, _dialled_ns: int) -> None:
        raise ValueError("a bug")

    with monkeypatch.context() as broken:
        broken.setattr(Gate, "target_answered", failing)
        assert await running.is_refused()
    await running.echo(good)
    await running.echo(await running.connect())
    [line] = running.events("bug")
    assert "ValueError: a bug" in line["traceback"]
    assert (running.closed(), running.ledger.active(0)) == ({"error": 1}, 2)


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


async def test_rules_that_it_cannot_read_let_nobody_in_by_those_before(running: Running) -> None:
    """Control is of a later program, in the midst of an upgrade. What is open goes on until the next worker decides on it."""
    snapshot = await running.start()
    client = await running.connect()
    await running.echo(client)
    fd = os.memfd_create("snapshot")
    os.write(fd, replace(snapshot, generation=2).to_json().replace(b'"format":7', b'"format":99'))
    channel.send(running.mine, {"op": "snapshot", "generation": 2}, (fd,))
    os.close(fd)
    await running.until(lambda: running.part[Word.OPEN] == 0, "newcomers are left to others")
    [line] = running.events("outdated")
    assert "cannot read the rules in force" in line["message"]
    waiting = await running.connect()
    for _ in range(3):
        await running.echo(client)
    running.working._pause("descriptors")  # a pause that ends by itself is no reason to go on
    await running.until(lambda: running.working._fast_timer is None, "its time is over")
    waiting.send(b"x")
    await running.echo(client)
    assert running.ledger.total(0, Count.ACCEPTED) == 1
    assert running.part[Word.GENERATION] == 1
