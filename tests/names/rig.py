"""Sockets for a name server."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

import dns.asyncquery
import dns.flags
import dns.message
import dns.query
import dns.rcode

from relay.config.roster import Member, Roster
from relay.errors import ListenError
from relay.names.server import NamesServer, open_names_sockets, serve_names
from relay.names.zone import Zone
from tests.harness import HANG_S, eventually


def open_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Both sockets on a free port: a port that is free for TCP may be taken for UDP."""
    return eventually(lambda: suppressed(host), "a port that is free for both")  # type: ignore[no-any-return]


def suppressed(host: str) -> tuple[socket.socket, socket.socket] | None:
    with contextlib.suppress(ListenError):
        return open_names_sockets(host, 0)
    return None


LARGE = Zone(
    "shop",
    {"web": {"http": 80}, "store": {"postgres": 5432}},
    Roster((*(Member("web", n, f"10.0.{n >> 8}.{n & 255}") for n in range(1000)), Member("store", 0, "10.0.1.4"))),
    address="127.0.0.1",
    serial=1,
    ttl_s=5,
)


STORE, WEB = "store-0.store.shop.internal.", "web.shop.internal."


ASKED = dns.message.make_query(STORE, "A").to_wire()


FRAMED = struct.pack("!H", len(ASKED)) + ASKED


class Served:
    """A running server, and clients of it."""

    def __init__(self, server: NamesServer, host: str, port: int) -> None:
        self.server, self.host, self.port = server, host, port
        self._writers: list[asyncio.StreamWriter] = []

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that ends with the test."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self._writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        """End the server and all clients."""
        for writer in self._writers:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()
        await self.server.close()

    async def udp(self, asked: dns.message.Message) -> dns.message.Message:
        """Asks by UDP from a thread: dnspython's own asyncio backend wants what uvloop has not."""
        return await asyncio.to_thread(dns.query.udp, asked, self.host, HANG_S, self.port)

    async def tcp(self, asked: dns.message.Message) -> dns.message.Message:
        return await asyncio.to_thread(dns.query.tcp, asked, self.host, HANG_S, self.port)


@contextlib.asynccontextmanager
async def serving(
    answer: Callable[[bytes, bool], bytes | None] = LARGE.answer, host: str = "127.0.0.1"
) -> AsyncIterator[Served]:
    with contextlib.ExitStack() as opened:
        udp, tcp = map(opened.enter_context, open_pair(host))
        served = Served(await serve_names(udp, tcp, answer), host, tcp.getsockname()[1])
        opened.pop_all()  # now they are the server's
    try:
        yield served
    finally:
        await served.close()


async def message(reader: asyncio.StreamReader) -> dns.message.Message:
    (length,) = struct.unpack("!H", await reader.readexactly(2))
    return dns.message.from_wire(await reader.readexactly(length))


async def ended(reader: asyncio.StreamReader) -> bool:
    """Whether the server ends the connection, with nothing more sent."""
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


Run = Callable[[Awaitable[None]], None]
