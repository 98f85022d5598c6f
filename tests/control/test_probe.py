"""One question to a target, to each kind of server: what comes of it."""

import asyncio
import errno
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.control.probe import ask_door, ask_instance, ask_own
from relay.envelope import asking, proxyproto
from relay.targets import why
from tests.config.rig import endpoint_row
from tests.conformance.peers import full_backlog
from tests.ports import free_port

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HTTP: Final = ProbeRow("/healthz", 30.0, 30.0)  # bounds for hanging: no answer below takes so long
TCP: Final = ProbeRow("", 30.0, 30.0)
SHORT: Final = ProbeRow("/healthz", 30.0, 0.5)  # for what never comes, after the header has
RELAY: Final = ProbeRow("", 30.0, 30.0, "relay")
THROUGH: Final = asking.header(asking.TAKEN, asking.THROUGH)
REFUSED: Final = why.of_error(errno.ECONNREFUSED)


@asynccontextmanager
async def serving(
    handler: Handler, *, tls: ssl.SSLContext | None = None, header: bytes = THROUGH
) -> AsyncIterator[TargetRow]:
    """A server on loopback that `handler` answers for, once this header has come first."""
    loop = asyncio.get_running_loop()
    failures: list[Exception] = []

    async def serve(connection: socket.socket) -> None:
        with connection:
            came = b""
            while len(came) < len(header):
                came += (part := await loop.sock_recv(connection, len(header) - len(came)))
                assert part, "the probe left without its header"
            assert came == header
            reader = asyncio.StreamReader()
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=tls)
            writer = asyncio.StreamWriter(transport, protocol, reader, loop)
            try:
                await handler(reader, writer)
                writer.close()
                await writer.wait_closed()  # before the socket goes, or the transport would never end
            finally:
                transport.abort()
                await asyncio.sleep(0)  # its last callback

    async def accept(listener: socket.socket) -> None:
        while True:
            connection, _ = await loop.sock_accept(listener)
            try:
                await serve(connection)
            except OSError:
                pass  # the probe left, which some of these servers are there for
            except Exception as error:
                failures.append(error)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        accepting = asyncio.create_task(accept(listener))
        try:
            yield TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port, instance="web_IN_0")
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
    assert failures == []


def saying(answer: bytes) -> Handler:
    """Reads a request and says this."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)

    return handler


async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
    await asyncio.Event().wait()


async def resetting(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def probing(probe: ProbeRow, **keys: Any) -> EndpointRow:
    return endpoint_row(probe=probe, **keys)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", why.NOTHING),
        (b"HTTP/1.0 200 Fine by me\r\nX: y\r\n\r\nbody", why.NOTHING),
        (b"HTTP/1.1 200\r\n\r\n", why.NOTHING),
        (b"HTTP/1.1 204 No Content\r\n\r\n", why.http_status(204)),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", why.http_status(301)),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", why.http_status(404)),
        (b"HTTP/1.1 503 Busy 200 \r\n\r\n", why.http_status(503)),
        (b"HTTP/1.1 2000 OK\r\n\r\n", why.NOT_HTTP),
        (b"HTTP/1.1 20\r\n\r\n", why.NOT_HTTP),
        (b"SSH-2.0-x 200 \r\n", why.NOT_HTTP),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", why.NOT_HTTP),
        (b"", why.CLOSED),
        (b"x" * 200_000, why.NOT_HTTP),
    ],
)
async def test_an_http_probe_takes_a_200_and_nothing_else(answer: bytes, expected: int) -> None:
    async with serving(saying(answer)) as target:
        assert (await ask_instance(probing(HTTP), target)).fault == expected


async def test_what_an_http_probe_asks() -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async with serving(handler) as target:
        assert (await ask_instance(probing(ProbeRow("/a?b=1", 30.0, 30.0)), target)).fault == why.NOTHING
    [head] = heads
    request, *headers, _, _ = head.decode().split("\r\n")
    assert request == "GET /a?b=1 HTTP/1.1"
    assert f"Host: {target.text}" in headers
    assert "Connection: close" in headers


async def test_a_line_that_comes_in_pieces_is_one_line() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in (b"HT", b"TP/1.1 2", b"00 O", b"K\r", b"\n"):
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    async with serving(handler) as target:
        assert (await ask_instance(probing(HTTP), target)).fault == why.NOTHING


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK"], ids=["silent", "no-line-end"])
async def test_an_http_probe_waits_for_a_whole_line_until_its_time_is_over(said: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await silent(reader, writer)

    async with serving(handler) as target:
        assert (await ask_instance(probing(SHORT), target)).fault == why.no_answer(0.5)


@pytest.mark.parametrize("probe", [HTTP, TCP], ids=["http", "tcp"])
async def test_refused_and_reset_are_bad(probe: ProbeRow) -> None:
    port = free_port()
    assert (await ask_instance(probing(probe), TargetRow("gone", host="127.0.0.1", port=port))).fault == why.of_relay(
        REFUSED
    )
    async with serving(resetting) as target:
        assert (await ask_instance(probing(probe), target)).fault == why.RESET


async def test_of_one_that_this_machine_cannot_ask_nothing_is_known() -> None:
    row = probing(TCP, dial_from="192.0.2.1")  # an address that this machine does not have
    assert (await ask_instance(row, TargetRow("x", host="127.0.0.1", port=1))).fault is None


async def test_a_tcp_probe_is_answered_by_whoever_takes_the_connection() -> None:
    async def speaking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 welcome\r\n")
        await silent(reader, writer)

    async def closing_it(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        return

    async def waiting_for_the_end(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        assert await reader.read() == b"", "nothing is said to it, and that is said"

    for handler in (speaking, closing_it, waiting_for_the_end, silent):
        async with serving(handler) as target:
            assert (await ask_instance(probing(TCP), target)).fault == why.NOTHING, handler


async def test_a_tcp_probe_with_little_time_takes_a_silent_service_too() -> None:
    """With less than it would wait for a reset, which is a second."""
    async with serving(silent) as target:
        assert (await ask_instance(probing(ProbeRow("", 30.0, 1.0)), target)).fault == why.NOTHING


async def test_a_probe_comes_from_the_edges_own_address() -> None:
    peers: list[str] = []

    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername")[0])

    async with serving(handler) as target:
        assert (await ask_instance(probing(TCP, dial_from="127.0.0.9"), target)).fault == why.NOTHING
    assert peers == ["127.0.0.9"]


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A server's TLS with a certificate that nobody has signed, for a name that nobody asks for."""
    directory: Path = tmp_path_factory.mktemp("tls")
    key, certificate = directory / "key.pem", directory / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
         "-subj", "/CN=elsewhere.example", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.real("openssl")
@pytest.mark.parametrize(("status", "expected"), [(b"200 OK", why.NOTHING), (b"500 No", why.http_status(500))])
async def test_behind_https_it_is_asked_by_tls_whoever_it_is(
    status: bytes, expected: int, certified: ssl.SSLContext
) -> None:
    async with serving(saying(b"HTTP/1.1 " + status + b"\r\n\r\n"), tls=certified) as target:
        assert (await ask_instance(probing(HTTP, protocol="https"), target)).fault == expected


async def test_what_should_speak_tls_and_does_not_is_bad() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 The plain request was sent to an https port\r\n\r\n")

    async with serving(plain) as target:
        assert (await ask_instance(probing(HTTP, protocol="https"), target)).fault == why.NO_TLS


# --- what a relay answers ---------------------------------------------------------------------------------------


def answering(*parts: bytes) -> Handler:
    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)

    return handler


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ((asking.refusal(REFUSED, "connection refused"),), REFUSED),
        ((asking.refusal(why.BUSY, "busy")[:4], asking.refusal(why.BUSY, "busy")[4:]), why.BUSY),
        ((asking.refusal(63 << 16, "of a later relay"),), why.TOLD),
        ((b"\x00relay: ",), why.TOLD),
        ((b"\x00rel",), why.TOLD),
    ],
)
@pytest.mark.parametrize("probe", [HTTP, TCP, RELAY], ids=["http", "tcp", "relay"])
async def test_why_not_is_told_by_the_instances_relay(probe: ProbeRow, parts: tuple[bytes, ...], expected: int) -> None:
    header = asking.header(asking.RELAY) if probe is RELAY else THROUGH
    for protocol in ("tcp", "https"):
        async with serving(answering(*parts), header=header) as target:
            assert (await ask_instance(probing(probe, protocol=protocol), target)).fault == expected


async def test_what_an_application_says_is_no_refusal() -> None:
    for said in (b"\x00", b"\x00\x00\x00\x05", b"\x00relais", b"x"):
        async with serving(answering(said, b"more")) as target:
            assert (await ask_instance(probing(TCP), target)).fault == why.NOTHING


@pytest.mark.parametrize("answer", [asking.WELL, b"220 an application of an older relay\r\n", b""])
async def test_a_relay_that_is_asked_alone_says_that_it_is_well_or_lets_through(answer: bytes) -> None:
    async with serving(answering(answer), header=asking.header(asking.RELAY)) as target:
        assert (await ask_instance(probing(RELAY), target)).fault == why.NOTHING


# --- applications of this machine's own -------------------------------------------------------------------------


def own(*targets: TargetRow, **keys: Any) -> EndpointRow:
    return endpoint_row(targets=targets, **keys)


async def test_one_of_several_is_enough_and_none_is_not() -> None:
    gone = TargetRow("gone", host="127.0.0.1", port=free_port())
    async with serving(silent, header=b"") as target:
        assert (await ask_own(own(gone, target))).fault == why.NOTHING
        assert (await ask_own(own(target, gone))).fault == why.NOTHING
    assert (await ask_own(own(gone, gone))).fault == REFUSED


@pytest.mark.parametrize(("version", "header"), [("v1", proxyproto.LOCAL_V1), ("v2", proxyproto.LOCAL_V2)])
async def test_who_wants_a_header_gets_one(version: str, header: bytes) -> None:
    async with serving(saying(b"HTTP/1.1 200 OK\r\n\r\n"), header=header) as target:
        assert (await ask_own(own(target, probe=HTTP, send_proxy=version))).fault == why.NOTHING


async def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "app"
    row = own(TargetRow(f"unix:{path}", path=str(path)))
    assert (await ask_own(row)).fault == why.of_error(errno.ENOENT)
    path.touch()
    assert (await ask_own(row)).fault == why.NOT_A_SOCKET
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert (await ask_own(row)).fault == REFUSED
        listener.listen(1)
        assert (await ask_own(row)).fault == why.NOTHING
        with full_backlog(listener):
            assert (await ask_own(row)).fault == why.BACKLOG_FULL


async def test_of_a_range_of_ports_the_one_that_failed_is_asked() -> None:
    async with serving(silent, header=b"") as target:
        row = own(TargetRow("range", host="127.0.0.1", port=target.port - 3, port_count=8), port_count=8)
        assert (await ask_own(row, target.port)).fault == why.NOTHING
        row = own(TargetRow("range", host="127.0.0.1", port=target.port, port_count=2), port_count=2)
        assert (await ask_own(row)).fault == why.NOTHING


async def test_a_door_is_asked_as_by_a_client() -> None:
    row = endpoint_row(type="door", distribution="least-connections", dial_from="127.0.0.1")
    async with serving(silent, header=b"") as target:
        assert (await ask_door(row, target)).fault == why.NOTHING
    async with serving(resetting, header=b"") as target:
        assert (await ask_door(row, target)).fault == why.RESET
    assert (await ask_door(row, TargetRow("gone", host="127.0.0.1", port=free_port()))).fault == REFUSED
