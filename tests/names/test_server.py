"""The DNS server on its sockets, under both loops: what clients get, and what hostile ones do not take from them."""

import asyncio
import contextlib
import errno
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import dns.asyncquery
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from relay.config.roster import Member, Roster
from relay.errors import ListenError
from relay.names import server as dns_server
from relay.names.server import NamesServer, open_names_sockets, serve_names
from relay.names.zone import Zone
from tests.harness import HANG_S, examples
from tests.names.rig import open_pair

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


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[None]], None]]:
    """Runs a coroutine to its end, on each loop in turn."""

    async def bounded(what: Awaitable[None]) -> None:
        async with asyncio.timeout(HANG_S):
            await what

    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda what: runner.run(bounded(what))


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


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1"])
def test_udp_and_tcp(run: Run, host: str) -> None:
    async def check() -> None:
        async with serving(host=host) as served:
            asked = dns.message.make_query(STORE, "A")
            for ask in (served.udp, served.tcp):
                assert [str(each[0]) for each in (await ask(asked)).answer] == ["10.0.1.4"]
            assert (await served.udp(dns.message.make_query("x.shop.internal.", "A"))).rcode() == dns.rcode.NXDOMAIN
            assert (await served.udp(dns.message.make_query(WEB, "A", use_edns=1))).rcode() == dns.rcode.BADVERS
            assert served.server.counts == {"NOERROR": 2, "NXDOMAIN": 1, "BADVERS": 1}

    run(check())


def test_what_udp_truncates_tcp_has_whole(run: Run) -> None:
    async def check() -> None:
        async with serving() as served:
            asked = dns.message.make_query(WEB, "A", use_edns=0)
            assert (await served.udp(asked)).flags & dns.flags.TC
            assert len((await served.tcp(asked)).answer[0]) == 1000

    run(check())


def test_the_answers_can_be_replaced(run: Run) -> None:
    async def check() -> None:
        async with serving(lambda packet, tcp: None) as served:
            served.server.answer = LARGE.answer
            assert (await served.udp(dns.message.make_query(STORE, "A"))).answer

    run(check())


def test_several_queries_on_a_connection_are_answered_in_order(run: Run) -> None:
    async def check() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            numbers = list(range(200))
            writer.write(b"".join(FRAMED[:2] + struct.pack("!H", n) + ASKED[2:] for n in numbers))
            assert [(await message(reader)).id for _ in numbers] == numbers
            for at in range(len(FRAMED)):  # byte by byte
                writer.write(FRAMED[at : at + 1])
                await writer.drain()
            assert (await message(reader)).answer

    run(check())


def test_a_client_that_ends_its_side_still_gets_its_answers(run: Run) -> None:
    async def check() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            writer.write(FRAMED * 3)
            writer.write_eof()
            for _ in range(3):
                assert (await message(reader)).answer
            assert await ended(reader)
            reader, writer = await served.connect()
            writer.write(FRAMED + FRAMED[:-1])
            writer.write_eof()
            assert (await message(reader)).answer
            assert await ended(reader)
            reader, writer = await served.connect()
            writer.write_eof()
            assert await ended(reader)

    run(check())


@pytest.mark.parametrize(
    "sent",
    [b"\0\0", b"\0\x0b" + bytes(11), b"\xff\xff", b"\x10\x01", FRAMED[:2] + ASKED[:2] + b"\x80" + ASKED[3:]],
    ids=["a length of nothing", "no header", "more than a query has", "one byte more", "an answer"],
)
def test_what_ends_a_connection(run: Run, sent: bytes) -> None:
    async def check() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            writer.write(sent + FRAMED)
            assert await ended(reader)
            assert (await served.tcp(dns.message.make_query(STORE, "A"))).answer

    run(check())


def test_a_query_that_cannot_be_read_does_not_end_it(run: Run) -> None:
    async def check() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            longest = struct.pack("!H", 4096) + ASKED + bytes(4096 - len(ASKED))
            writer.write(longest + FRAMED)
            assert (await message(reader)).rcode() == dns.rcode.FORMERR
            assert (await message(reader)).answer

    run(check())


@pytest.mark.parametrize("sent", [b"", b"\0", FRAMED[:-1]], ids=["nothing", "half a length", "half a query"])
def test_who_sends_nothing_whole_is_cut(run: Run, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "_SWEEP_S", 0.05)

    async def check() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            writer.write(FRAMED)
            assert (await message(reader)).answer
            monkeypatch.setattr(dns_server, "IDLE_S", 0.2)
            writer.write(sent)
            assert await ended(reader)
            assert served.server.connections == 0

    run(check())


def test_who_does_not_read_is_not_written_to(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It stands still in its own sockets, others are answered, and after the idle time it is cut."""
    asked = dns.message.make_query(WEB, "A").to_wire()

    async def check() -> None:
        async with serving() as served:
            loop = asyncio.get_running_loop()
            with socket.socket() as slow:
                slow.setblocking(False)
                slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                await loop.sock_connect(slow, (served.host, served.port))
                queries = (struct.pack("!H", len(asked)) + asked) * 2000  # 32 MB of answers
                sending = asyncio.ensure_future(loop.sock_sendall(slow, queries))
                stood_still = 0
                while stood_still < 3:
                    before = served.server.counts.total()
                    assert (await served.udp(dns.message.make_query(STORE, "A"))).answer
                    assert (await served.tcp(dns.message.make_query(STORE, "A"))).answer
                    stood_still = stood_still + 1 if served.server.counts.total() == before + 2 else 0
                assert served.server.counts.total() < 200
                while served.server.connections > 1:  # those that asked meanwhile
                    await served.udp(dns.message.make_query(STORE, "A"))
                monkeypatch.setattr(dns_server, "IDLE_S", 0.0)
                with contextlib.suppress(ConnectionError):
                    await sending
                while served.server.connections:
                    await served.udp(dns.message.make_query(STORE, "A"))

    run(check())


def test_who_reads_late_gets_everything(run: Run) -> None:
    """What a connection stands still for is read, and it goes on."""
    asked = dns.message.make_query(WEB, "A").to_wire()

    async def check() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            writer.write((struct.pack("!H", len(asked)) + asked) * 200)
            writer.write_eof()
            await served.udp(dns.message.make_query(STORE, "A"))
            for _ in range(200):
                (length,) = struct.unpack("!H", await reader.readexactly(2))
                assert (await reader.readexactly(length))[6:8] == struct.pack("!H", 1000)
            assert await ended(reader)

    run(check())


def test_thousands_of_connections_cost_only_who_opened_them(run: Run, long: bool) -> None:
    async def check() -> None:
        async with serving() as served:
            loop = asyncio.get_running_loop()
            opened: list[socket.socket] = []
            try:
                for n in range(10_000 if long else 2_000):
                    one = socket.socket()
                    one.setblocking(False)
                    opened.append(one)
                    await loop.sock_connect(one, (served.host, served.port))
                    if n % 500 == 0:
                        assert (await served.tcp(dns.message.make_query(STORE, "A"))).answer
                        assert served.server.connections <= dns_server.CONNECTIONS_MAX
                    if len(opened) > 300:
                        opened.pop(0).close()
                assert (await served.udp(dns.message.make_query(STORE, "A"))).answer
            finally:
                for one in opened:
                    one.close()

    run(check())


def test_who_asks_is_not_the_quietest(run: Run) -> None:
    async def check() -> None:
        async with serving() as served:
            reader, writer = await served.connect()
            idle = [await served.connect() for _ in range(dns_server.CONNECTIONS_MAX - 1)]
            writer.write(FRAMED)
            assert (await message(reader)).answer
            idle.append(await served.connect())
            assert await ended(idle[0][0])
            writer.write(FRAMED)
            assert (await message(reader)).answer

    run(check())


def test_a_connection_with_much_to_ask_leaves_turns_to_others(run: Run) -> None:
    order: list[int] = []

    def answer(packet: bytes, tcp: bool) -> bytes | None:
        order.append(int.from_bytes(packet[:2]))
        return LARGE.answer(packet, tcp)

    async def check() -> None:
        async with serving(answer) as served:
            reader, writer = await served.connect()
            other_reader, other_writer = await served.connect()
            writer.write(FRAMED[:2] + (b"\0\1" + ASKED[2:] + FRAMED[:2]) * 5000)
            assert (await message(reader)).answer
            other_writer.write(FRAMED[:2] + b"\0\2" + ASKED[2:])
            assert (await message(other_reader)).id == 2
            assert order.index(2) < 4000

    run(check())


def test_random_bytes(run: Run) -> None:
    @examples(50)
    @given(packets=st.lists(st.binary(max_size=200), max_size=5))
    def check(packets: list[bytes]) -> None:
        async def send() -> None:
            async with serving() as served:
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.connect((served.host, served.port))
                    for packet in packets:
                        client.send(packet)
                _, writer = await served.connect()
                writer.write(b"".join(packets))
                assert (await served.udp(dns.message.make_query(STORE, "A"))).answer
                assert (await served.tcp(dns.message.make_query(STORE, "A"))).answer

        run(send())

    check()


def test_a_client_that_went_away(run: Run) -> None:
    """Its port answers with ICMP, which is nobody's concern; a large datagram is not either."""

    async def check() -> None:
        async with serving() as served:
            for packet in (ASKED, bytes(60_000), b""):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                    client.sendto(packet, (served.host, served.port))
            for _ in range(3):
                assert (await served.udp(dns.message.make_query(STORE, "A"))).answer
            assert served.server.counts == {"NOERROR": 4, "FORMERR": 1, "dropped": 1}

    run(check())


def test_answers_that_there_is_no_room_for_are_dropped() -> None:
    """What cannot be made to happen over loopback: the socket takes no more answers."""

    class Full:
        def sendto(self, data: bytes, addr: Any) -> None:
            raise AssertionError("sent")

    async def check() -> None:
        server = NamesServer(LARGE.answer, asyncio.get_running_loop())
        datagrams = dns_server._Datagrams(server)
        datagrams.connection_made(Full())
        datagrams.pause_writing()
        datagrams.datagram_received(ASKED, ("127.0.0.1", 9))
        assert server.counts == {"dropped": 1}
        datagrams.resume_writing()
        with pytest.raises(AssertionError, match="sent"):
            datagrams.datagram_received(ASKED, ("127.0.0.1", 9))
        await server.close()

    asyncio.run(check())


def test_sockets_outlive_the_server(run: Run) -> None:
    """As the keeper's do: the next server answers what was asked in between."""

    async def check() -> None:
        udp, tcp = open_pair()
        kept = udp.dup(), tcp.dup()
        port = tcp.getsockname()[1]
        first = await serve_names(udp, tcp, LARGE.answer)
        served = Served(first, "127.0.0.1", port)
        reader, writer = await served.connect()
        writer.write(FRAMED)
        assert (await message(reader)).answer
        await first.close()
        assert await ended(reader)
        asking = asyncio.ensure_future(served.udp(dns.message.make_query(STORE, "A")))
        served.server = await serve_names(*kept, LARGE.answer)
        assert (await asking).answer
        await served.close()

    run(check())


def test_sockets_are_for_one_process_only() -> None:
    udp, tcp = open_pair()
    with udp, tcp:
        assert not udp.get_inheritable()
        assert not tcp.get_inheritable()
        assert udp.getsockname() == tcp.getsockname()
        with pytest.raises(ListenError, match=r"cannot serve names on 127.0.0.1:.*in use.*; another DNS server may"):
            open_names_sockets(*udp.getsockname())


def test_only_udp_is_taken() -> None:
    udp, tcp = open_pair()
    tcp.close()
    with udp, pytest.raises(ListenError, match="the address is in use by another program"):
        open_names_sockets(*udp.getsockname())


@pytest.mark.parametrize(
    ("code", "host", "port", "words"),
    [
        (errno.EACCES, "127.0.0.153", 53, "no permission; ports below 1024 need CAP_NET_BIND_SERVICE"),
        (errno.EADDRINUSE, "127.0.0.53", 53, "systemd-resolved listens on 127.0.0.53 and 127.0.0.54; set"),
        (errno.EADDRINUSE, "127.0.0.54", 53, "systemd-resolved listens on 127.0.0.53 and 127.0.0.54; set"),
        (errno.EADDRINUSE, "127.0.0.153", 53, "another DNS server may listen there, or on every address; set another"),
        (errno.EADDRNOTAVAIL, "::1", 53, "not on any interface of this machine; set another loopback address"),
    ],
)
def test_why_it_cannot_be_listened_on(
    code: int, host: str, port: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bind(*_: object) -> None:
        raise OSError(code, "x")

    monkeypatch.setattr(socket.socket, "bind", bind)
    with pytest.raises(ListenError, match=r"names\.listen") as caught:
        open_names_sockets(host, port)
    assert words in str(caught.value)
