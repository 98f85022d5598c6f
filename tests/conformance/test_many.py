"""A thousand connections at once: all of them open at the same time, each with bytes of its own."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from tests.conformance.paths import Address, DataPath
from tests.conformance.peers import Target, want_descriptors
from tests.conformance.streams import stream

CLIENTS = 1_000
SIZE_BYTES = 40_000
BOUND_S = 200.0  # a bound for hanging, not for speed
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def test_a_thousand_at_once(path: DataPath, target: Target) -> None:
    """Nobody is answered before everybody has sent; nobody finishes before everybody was answered."""
    everybody_sent, everybody_answered = asyncio.Barrier(CLIENTS), asyncio.Barrier(CLIENTS)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.readexactly(SIZE_BYTES)
        await everybody_sent.wait()
        writer.write(hashlib.sha256(data).digest() + data)
        await writer.drain()
        assert await reader.read() == b""
        await close(writer)

    async def ask(number: int) -> None:
        reader, writer = await dial(door.address)
        mine = bytes(stream(number).part(0, SIZE_BYTES))
        writer.write(mine)
        assert await reader.readexactly(32) == hashlib.sha256(mine).digest()
        assert await reader.readexactly(SIZE_BYTES) == mine
        await everybody_answered.wait()
        writer.write_eof()
        assert await reader.read() == b""
        await close(writer)

    with want_descriptors(3 * CLIENTS), path.open(target.address, {"client_fin": CLIENTS}) as door:
        async with serving(target, serve), asyncio.timeout(BOUND_S):
            await asyncio.gather(*(ask(number) for number in range(CLIENTS)))


async def test_a_thousand_one_after_the_other(path: DataPath, target: Target) -> None:
    """Short ones, 50 at a time: descriptors are reused at once, and no flow gets another's bytes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(8))
        await close(writer)

    async def ask(number: int) -> None:
        async with places:
            reader, writer = await dial(door.address)
            writer.write(number.to_bytes(8))
            assert await reader.read() == number.to_bytes(8)
            await close(writer)

    places = asyncio.Semaphore(50)
    with path.open(target.address, {"target_fin": CLIENTS}) as door:
        async with serving(target, serve), asyncio.timeout(BOUND_S):
            await asyncio.gather(*(ask(number) for number in range(CLIENTS)))


async def dial(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect."""
    if isinstance(address, str):
        while True:
            try:
                return await asyncio.open_unix_connection(address)
            except BlockingIOError:  # a Unix socket's backlog is full, and that is all it says: unix(7)
                await asyncio.sleep(0.01)
    return await asyncio.open_connection(*address)


async def close(writer: asyncio.StreamWriter) -> None:
    """Close, and wait until that is done."""
    writer.close()
    await writer.wait_closed()


@asynccontextmanager
async def serving(target: Target, handler: Handler) -> AsyncIterator[None]:
    """Serve every connection to `target` by `handler`; on leaving, raise what one of them raised."""
    tasks: list[asyncio.Task[None]] = []

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        await handler(reader, writer)

    start = asyncio.start_unix_server if target.kind == "unix" else asyncio.start_server
    async with await start(run, sock=target.listener, backlog=4096):
        yield
        async with asyncio.timeout(BOUND_S):
            await asyncio.gather(*tasks)
