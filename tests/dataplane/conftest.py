"""What several tests of the data plane open."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from relay.config.snapshot import TargetRow
from relay.dataplane import flow
from relay.dataplane.stages import misstep
from tests.dataplane.lanes import Bench, new_bench
from tests.dataplane.rig import Move, Target, tcp_target, unix_target
from tests.dataplane.running import Running


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What a test opened, closed in reverse."""
    with contextlib.ExitStack() as made:
        yield made


@pytest.fixture(autouse=True)
def moves(monkeypatch: pytest.MonkeyPatch) -> list[Move]:
    """Every move that a flow makes during the test, each held against the table of stages."""
    made: list[Move] = []

    def moved(before: int, after: int, cause: str) -> None:
        assert misstep(before, after, cause) == ""
        made.append(Move(before, after, cause))

    monkeypatch.setattr(flow, "MOVES", [moved])
    return made


@pytest.fixture(params=["tcp", "unix"])
def target(request: pytest.FixtureRequest, stack: contextlib.ExitStack, tmp_path: Path) -> Target:
    """A target, on TCP and then on a Unix socket."""
    return tcp_target(stack) if request.param == "tcp" else unix_target(stack, tmp_path / "target")


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


@pytest.fixture(params=["tcp", "unix"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """A lane over TCP, and then over Unix sockets."""
    with new_bench(request.param) as made:
        yield made
