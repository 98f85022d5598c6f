"""The DNS server on its sockets, under both loops: what clients get, and what hostile ones do not take from them."""

import asyncio
import errno
import socket
import struct

import dns.asyncquery
import dns.flags
import dns.message
import dns.query
import dns.rcode
import pytest

from relay.errors import ListenError
from relay.names.server import open_names_sockets, serve_names
from tests.names.rig import ASKED, FRAMED, LARGE, STORE, WEB, Run, Served, ended, message, open_pair, serving


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
