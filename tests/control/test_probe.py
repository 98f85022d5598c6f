"""Probes: what an answer makes of a target's health, and what comes of asking each kind of server."""

import asyncio
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.control.probe import Judge, ProbeAnswer, ask, heard
from relay.envelope import proxyproto
from relay.ledger.layout import Health
from tests.config.rig import endpoint_row
from tests.ports import free_port

PROBE: Final = ProbeRow("", 15.0, 31.0)
GOOD, BAD, NONE = ProbeAnswer.GOOD, ProbeAnswer.BAD, ProbeAnswer.NONE
UNKNOWN, UP, DOWN = Health.UNKNOWN, Health.UP, Health.DOWN

# --- Judge ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "steps",
    [
        [(0, GOOD, UP)],
        [(0, BAD, DOWN)],
        [(0, NONE, UNKNOWN), (15, NONE, UNKNOWN), (30.9, NONE, UNKNOWN), (31, NONE, DOWN), (46, GOOD, UP)],
        [(0, GOOD, UP), (15, NONE, UP), (30, NONE, UP), (31, NONE, DOWN)],
        [(0, GOOD, UP), (15, NONE, UP), (29, GOOD, UP), (45, NONE, UP), (59.9, NONE, UP), (60, NONE, DOWN)],
        [(0, GOOD, UP), (15, BAD, DOWN), (30, NONE, DOWN), (45, BAD, DOWN), (60, GOOD, UP)],
        [(0, BAD, DOWN), (1, NONE, DOWN), (2, GOOD, UP)],
    ],
    ids=["good", "bad", "none-from-the-start", "none-after-good", "good-counts-anew", "bad-and-back", "never-up"],
)
def test_answers_and_what_they_make(steps: list[tuple[float, ProbeAnswer, int]]) -> None:
    """With the defaults, 15 s and 31 s: (when, what came, what the target is then)."""
    judge = Judge(PROBE, 1000.0)
    assert judge.health is UNKNOWN
    for at_s, answer, expected in steps:
        assert judge.hear(answer, 1000.0 + at_s) is judge.health is expected, f"{answer} at {at_s}"


def test_what_an_earlier_control_process_found_stands_for_the_timeout() -> None:
    judge = Judge(PROBE, 1000.0, UP)
    assert [judge.hear(NONE, 1000.0 + at_s) for at_s in (0, 15, 30)] == [UP, UP, UP]
    assert judge.hear(NONE, 1031.0) is DOWN
    assert Judge(PROBE, 1000.0, DOWN).hear(NONE, 1001.0) is DOWN


def fallen(times: int, every_s: float = 30.0, by: ProbeAnswer = BAD) -> tuple[Judge, float]:
    """A judge of a target that was up and fell so many times, and when it fell last."""
    judge, now_s = Judge(PROBE, 0.0), 0.0
    for _ in range(times):
        while judge.hear(GOOD, now_s) is not UP:
            now_s += 1.0
        now_s += every_s
        assert judge.hear(by, now_s) is DOWN
    return judge, now_s


@pytest.mark.parametrize("by", [BAD, NONE])
def test_one_that_flaps_is_believed_at_its_third_good_answer(by: ProbeAnswer) -> None:
    judge, now_s = fallen(2, 31.0, by)
    assert judge.hear(GOOD, now_s + 1) is UP, "twice is not flapping"
    judge, now_s = fallen(3, 31.0, by)
    assert [judge.hear(GOOD, now_s + n) for n in (1, 2, 3)] == [DOWN, DOWN, UP]


@pytest.mark.parametrize("other", [BAD, NONE])
def test_the_good_answers_are_in_a_row(other: ProbeAnswer) -> None:
    judge, now_s = fallen(3)
    answers = [GOOD, GOOD, other, GOOD, GOOD, GOOD]
    assert [judge.hear(answer, now_s + n) for n, answer in enumerate(answers, 1)] == [*[DOWN] * 5, UP]


def test_flapping_is_forgotten_after_twenty_intervals() -> None:
    judge, now_s = fallen(3, every_s=30.0)
    first_fall_s = now_s - 60.0
    assert judge.hear(GOOD, first_fall_s + 20 * 15.0 - 1.0) is DOWN
    judge, now_s = fallen(3, every_s=30.0)
    assert judge.hear(GOOD, first_fall_s + 20 * 15.0) is UP
    judge, now_s = fallen(5, every_s=200.0)
    assert judge.hear(GOOD, now_s + 1) is UP, "three falls in ten minutes are not many"


def test_no_answer_while_down_is_no_fall() -> None:
    judge, now_s = fallen(1)
    for n in range(10):
        assert judge.hear(BAD, now_s + n) is DOWN
    assert judge.hear(GOOD, now_s + 11) is UP


@given(st.lists(st.tuples(st.sampled_from(ProbeAnswer), st.floats(0.01, 40.0)), max_size=60))
def test_what_holds_whatever_comes(steps: list[tuple[ProbeAnswer, float]]) -> None:
    """Bad is down at once; up only by a good answer; three good ones in a row are up whatever was before."""
    judge, now_s, good_s, in_a_row = Judge(PROBE, 0.0), 0.0, 0.0, 0
    for answer, step_s in steps:
        now_s += step_s
        before, after = judge.health, judge.hear(answer, now_s)
        in_a_row = in_a_row + 1 if answer is GOOD else 0
        good_s = now_s if answer is GOOD else good_s
        if answer is BAD or (answer is NONE and now_s - good_s >= PROBE.timeout_s):
            assert after is DOWN
        elif answer is NONE:
            assert after is before
        elif in_a_row >= 3 or before is UP:
            assert after is UP
        assert (after is UP) <= (before is UP or answer is GOOD)
        assert (after is UNKNOWN) <= (before is UNKNOWN and answer is NONE)


# --- ask --------------------------------------------------------------------------------------------------------

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HTTP: Final = ProbeRow("/healthz", 30.0, 30.0)  # bounds for hanging: no answer below takes so long
TCP: Final = ProbeRow("", 30.0, 30.0)
SHORT: Final = ProbeRow("/healthz", 2.0, 31.0)  # for what never comes, after the header has


@asynccontextmanager
async def serving(handler: Handler, *, tls: ssl.SSLContext | None = None) -> AsyncIterator[TargetRow]:
    """A server on loopback that `handler` answers for, once the header of the edge's own connections has come first."""
    loop = asyncio.get_running_loop()
    failures: list[Exception] = []

    async def serve(connection: socket.socket) -> None:
        with connection:
            header = b""
            while len(header) < len(proxyproto.LOCAL_V2):
                header += (part := await loop.sock_recv(connection, len(proxyproto.LOCAL_V2) - len(header)))
                assert part, "the probe left without its header"
            assert header == proxyproto.LOCAL_V2
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
        (b"HTTP/1.1 200 OK\r\n\r\n", GOOD),
        (b"HTTP/1.0 200 Fine by me\r\nX: y\r\n\r\nbody", GOOD),
        (b"HTTP/1.1 200\r\n\r\n", GOOD),
        (b"HTTP/1.1 204 No Content\r\n\r\n", BAD),
        (b"HTTP/1.1 301 Moved\r\nLocation: /\r\n\r\n", BAD),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", BAD),
        (b"HTTP/1.1 503 Busy 200 \r\n\r\n", BAD),
        (b"HTTP/1.1 2000 OK\r\n\r\n", BAD),
        (b"HTTP/1.1 20\r\n\r\n", BAD),
        (b"SSH-2.0-x 200 \r\n", BAD),
        (b"\r\nHTTP/1.1 200 OK\r\n\r\n", BAD),
        (b"", BAD),
        (b"x" * 200_000, BAD),
    ],
)
async def test_an_http_probe_takes_a_200_and_nothing_else(answer: bytes, expected: ProbeAnswer) -> None:
    async with serving(saying(answer)) as target:
        assert await ask(probing(HTTP), target) is expected


async def test_what_an_http_probe_asks() -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async with serving(handler) as target:
        assert await ask(probing(ProbeRow("/a?b=1", 30.0, 30.0)), target) is GOOD
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
        assert await ask(probing(HTTP), target) is GOOD


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK"], ids=["silent", "no-line-end"])
async def test_an_http_probe_waits_for_a_whole_line_until_its_time_is_over(said: bytes) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(said)
        await silent(reader, writer)

    async with serving(handler) as target:
        assert await ask(probing(SHORT), target) is NONE


@pytest.mark.parametrize("probe", [HTTP, TCP], ids=["http", "tcp"])
async def test_refused_and_reset_are_bad(probe: ProbeRow) -> None:
    port = free_port()
    assert await ask(probing(probe), TargetRow("gone", host="127.0.0.1", port=port)) is BAD
    async with serving(resetting) as target:
        assert await ask(probing(probe), target) is BAD


async def test_no_way_there_is_bad() -> None:
    row = probing(TCP, dial_from="192.0.2.1")  # an address that this machine does not have
    assert await ask(row, TargetRow("x", host="127.0.0.1", port=1)) is BAD


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
            assert await ask(probing(TCP), target) is GOOD, handler


async def test_what_broke_a_connection_is_heard_of_on_both_its_halves() -> None:
    """Or asyncio writes on standard error, when garbage is collected, that an exception was never retrieved."""

    async def resetting(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async with serving(resetting) as target:
        reader, writer = await asyncio.open_connection(target.host, target.port)
        ended: asyncio.Future[None] = writer.transport.get_protocol()._closed  # type: ignore[attr-defined]
        writer.write(proxyproto.LOCAL_V2)
        with closing(writer), pytest.raises(ConnectionResetError):
            await heard(reader.read(1), writer)
        assert not ended._log_traceback  # what its __del__ goes by


async def test_a_tcp_probe_that_comes_often_takes_a_silent_service_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """More often than it would wait for a reset, which is for a second."""
    monkeypatch.setattr("relay.control.probe._STANDS_S", 4.0)
    async with serving(silent) as target:
        assert await ask(probing(ProbeRow("", 3.0, 31.0)), target) is GOOD


async def test_a_probe_comes_from_the_edges_own_address() -> None:
    peers: list[str] = []

    async def handler(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(writer.get_extra_info("peername")[0])

    async with serving(handler) as target:
        assert await ask(probing(TCP, dial_from="127.0.0.9"), target) is GOOD
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
@pytest.mark.parametrize(("status", "expected"), [(b"200 OK", GOOD), (b"500 No", BAD)])
async def test_behind_https_it_is_asked_by_tls_whoever_it_is(
    status: bytes, expected: ProbeAnswer, certified: ssl.SSLContext
) -> None:
    async with serving(saying(b"HTTP/1.1 " + status + b"\r\n\r\n"), tls=certified) as target:
        assert await ask(probing(HTTP, protocol="https"), target) is expected


async def test_what_should_speak_tls_and_does_not_is_bad() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 The plain request was sent to an https port\r\n\r\n")

    async with serving(plain) as target:
        assert await ask(probing(HTTP, protocol="https"), target) is BAD
