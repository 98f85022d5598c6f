"""What hostile and slow clients of the DNS server take from nobody."""

import asyncio
import contextlib
import errno
import json
import socket
import struct
from typing import Any

import dns.asyncquery
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import log as logging
from relay.kernel import accepting
from relay.log import Logger
from relay.names import server as dns_server
from relay.names.server import NamesServer
from tests.harness import HANG_S, examples
from tests.logs import waiting
from tests.names.rig import ASKED, FRAMED, LARGE, STORE, WEB, Run, ended, message, open_pair, serving


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
        def __init__(self) -> None:
            self.asked = [(ASKED, ("127.0.0.1", 9))]

        def recvfrom(self, _count: int) -> Any:
            if self.asked:
                return self.asked.pop()
            raise BlockingIOError

        def sendto(self, _data: bytes, _address: Any) -> None:
            raise BlockingIOError

    async def check() -> None:
        server = NamesServer(LARGE.answer, asyncio.get_running_loop())
        full: Any = Full()
        assert dns_server._Datagrams(server, full).answer() is None
        assert (server.counts["dropped"], server.counts.total()) == (1, 1)
        await server.close()

    asyncio.run(check())


@pytest.mark.parametrize("error", [errno.EPERM, errno.ENETDOWN, errno.ECONNREFUSED])
def test_a_kernel_that_gives_no_packets_is_not_asked_in_a_circle(
    run: Run, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even of an error that may be one packet's; TCP is served meanwhile, and who asked is answered later."""

    class Unwilling(socket.socket):
        asked = 0
        error = 0

        def recvfrom(self, *args: Any) -> Any:
            self.asked += 1
            if self.error:
                raise OSError(self.error, "no")
            return super().recvfrom(*args)

    monkeypatch.setattr(accepting, "_REST_S", 0.05)
    sink, source = logging.channel()

    async def check() -> None:
        pair, tcp = open_pair()
        udp = Unwilling(fileno=pair.detach())
        udp.error = error
        at = tcp.getsockname()
        server = await dns_server.serve_names(udp, tcp, LARGE.answer, Logger(sink, "control", "info"))
        rested, go_on = asyncio.Event(), server.udp._go_on  # type: ignore[union-attr]
        monkeypatch.setattr(server.udp, "_go_on", rested.set)
        asked = dns.message.make_query(STORE, "A")
        by_udp = asyncio.create_task(asyncio.to_thread(dns.query.udp, asked, at[0], HANG_S, at[1]))
        await rested.wait()
        assert (await asyncio.to_thread(dns.query.tcp, asked, at[0], HANG_S, at[1])).answer
        assert udp.asked == (1 if error == errno.EPERM else accepting.OVER_MAX)
        udp.error = 0
        go_on()
        assert (await by_udp).answer
        await server.close()

    with sink, source:
        run(check())
        [line] = [json.loads(each) for each in waiting(source)]
    assert (line["event"], f"({errno.errorcode[error]})" in line["message"]) == ("accept paused", True)
