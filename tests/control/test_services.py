"""Which of this machine's services do not answer: known from connections, and asked only while they do not."""

import asyncio
import socket
import time
from pathlib import Path

from relay.config.snapshot import EndpointRow, TargetRow
from relay.control.services import Services
from relay.ledger.layout import Count
from relay.ledger.ledger import Ledger
from tests.config.rig import endpoint_row, snapshot_of
from tests.harness import Echo
from tests.ports import free_port


def row_of(name: str, target: TargetRow, slot: int = 0) -> EndpointRow:
    return endpoint_row(name, slot=slot, targets=(target,))


def dialled(ledger: Ledger, slot: int, *, answered: bool) -> None:
    """A worker dialled the endpoint's target just now."""
    worker = ledger.worker(0)
    worker.words[worker.counts_at(slot) + Count.TARGET_UP] = time.monotonic_ns() << 1 | answered


async def test_a_service_is_down_from_a_failed_dial_until_it_answers_us() -> None:
    ledger = Ledger.create(2, 4, time.time_ns())
    port = free_port()
    snapshot = snapshot_of(row_of("web/api", TargetRow("t", host="127.0.0.1", port=port)))
    services = Services(ledger)
    assert services.down(snapshot) == ()
    await services.ask(snapshot)
    dialled(ledger, 0, answered=True)
    assert services.down(snapshot) == ()
    dialled(ledger, 0, answered=False)
    await services.ask(snapshot)
    assert services.down(snapshot) == ("api",)
    with Echo(("127.0.0.1", port)) as echo:
        await services.ask(snapshot)
        assert services.down(snapshot) == ()
        await services.ask(snapshot)
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(b"x")
            await asyncio.get_running_loop().run_in_executor(None, client.recv, 1)
        assert echo.accepted == 2, "one that works is not bothered"
        dialled(ledger, 0, answered=False)
        assert services.down(snapshot) == ("api",)
        dialled(ledger, 0, answered=True)
        assert services.down(snapshot) == ()


async def test_a_unix_socket_and_one_that_is_not_there(tmp_path: Path) -> None:
    ledger = Ledger.create(1, 4, time.time_ns())
    here, gone = str(tmp_path / "here"), str(tmp_path / "gone")
    snapshot = snapshot_of(row_of("web/a", TargetRow("a", path=here)), row_of("web/b", TargetRow("b", path=gone), 1))
    services = Services(ledger)
    for slot in (0, 1):
        dialled(ledger, slot, answered=False)
    assert services.down(snapshot) == ("a", "b")
    server = await asyncio.start_unix_server(lambda _, writer: writer.close(), here)
    async with server:
        await services.ask(snapshot)
    assert services.down(snapshot) == ("b",)


def test_other_machines_tell_of_themselves() -> None:
    ledger = Ledger.create(1, 4, time.time_ns())
    door = endpoint_row("web/db", type="door", distribution="least-connections")
    dialled(ledger, 0, answered=False)
    assert Services(ledger).down(snapshot_of(door)) == ()
