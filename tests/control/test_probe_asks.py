"""What a probe asks beyond a connection: another port, a text, other statuses, TLS, a certificate. Of whoever is asked."""

import asyncio
import errno
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pytest

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.control import probe as probes
from relay.control.probe import Answer, ask_direct, ask_instance, ask_own
from relay.envelope import asking, proxyproto
from relay.targets import why
from tests.config.rig import endpoint_row
from tests.control.test_probe import Handler, answering, probing, saying, serving, silent
from tests.ports import free_port

REFUSED: Final = why.of_error(errno.ECONNREFUSED)
TCP: Final = ProbeRow("", 30.0, 30.0)  # bounds for hanging: no answer below takes so long
PING: Final = replace(TCP, send="PING\r\n", expect="+PONG")


def direct(target: TargetRow, **keys: Any) -> EndpointRow:
    return endpoint_row(targets=(target,), distribution="least-connections", direct=True, **keys)


def hearing(said: bytes, *parts: bytes) -> Handler:
    """Waits for this, and answers with these, one after the other. Then it waits to be left."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(said)) == said
        await answering(*parts)(reader, writer)
        await reader.read()

    return handler


# --- a text -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "said", "answer", "expected"),
    [
        ({"send": "PING\r\n", "expect": "+PONG"}, b"PING\r\n", (b"+PONG\r\n",), why.NOTHING),
        ({"send": "PING\r\n", "expect": "+PONG"}, b"PING\r\n", (b"+", b"PO", b"NG"), why.NOTHING),
        ({"send": "PING\r\n", "expect": "+PONG"}, b"PING\r\n", (b"-NOAUTH",), why.UNEXPECTED),
        ({"send": "PING\r\n", "expect": "+PONG"}, b"PING\r\n", (b"+P", b"IN"), why.UNEXPECTED),
        ({"send": "PING\r\n"}, b"PING\r\n", (b"?",), why.NOTHING),
        ({"expect": "220 "}, b"", (b"220 mail.example.com ESMTP\r\n",), why.NOTHING),
        ({"expect": "220 "}, b"", (b"421 busy\r\n",), why.UNEXPECTED),
        ({"send": "\x00\xd2", "expect": "\xff"}, b"\x00\xd2", (b"\xff\x00",), why.NOTHING),
    ],
)
async def test_an_answer_begins_with_what_is_expected(
    keys: dict[str, Any], said: bytes, answer: tuple[bytes, ...], expected: int
) -> None:
    """A wrong one is bad at once: the server does not leave after it, and the time of the probe would not be over."""
    probe = replace(TCP, **keys)
    async with serving(hearing(said, *answer), header=b"") as target:
        assert await ask_direct(direct(target, probe=probe), target) == Answer(expected, 0)
        assert await ask_own(endpoint_row(targets=(target,), probe=probe)) == Answer(expected)


@pytest.mark.parametrize(("came", "expected"), [(b"", why.CLOSED), (b"+PO", why.UNEXPECTED)])
async def test_who_closes_before_the_whole_answer_is_bad(came: bytes, expected: int) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(PING.send))
        writer.write(came)

    async with serving(handler, header=b"") as target:
        assert (await ask_direct(direct(target, probe=PING), target)).fault == expected


@pytest.mark.parametrize(("expect", "came"), [("+PONG", b""), ("+PONG", b"+PO"), ("", b"")])
async def test_the_whole_answer_is_waited_for_until_the_time_is_over(expect: str, came: bytes) -> None:
    probe = replace(PING, expect=expect, timeout_s=0.5)
    async with serving(hearing(probe.send.encode(), came), header=b"") as target:
        assert (await ask_direct(direct(target, probe=probe), target)).fault == why.no_answer(0.5)


@pytest.mark.parametrize(("answer", "expected"), [(b"+PONG\r\n", why.NOTHING), (b"-LOADING\r\n", why.UNEXPECTED)])
@pytest.mark.parametrize("well", [b"", asking.WELL])
async def test_an_edge_asks_through_a_relay(well: bytes, answer: bytes, expected: int) -> None:
    async with serving(hearing(b"PING\r\n", well + answer)) as target:
        assert (await ask_instance(probing(PING), target)).fault == expected
    async with serving(answering(asking.refusal(REFUSED, "connection refused"))) as target:
        assert (await ask_instance(probing(PING), target)).fault == REFUSED


@pytest.mark.parametrize("keys", [{"port": 1}, {"path": "/", "port": 1}, {"tls": "verify"}, {"send": "x", "port": 1}])
async def test_where_only_the_relay_can_ask_its_word_is_taken(keys: dict[str, Any]) -> None:
    """It is asked as one without a probe is, and nothing is said to the application."""
    probe = replace(TCP, kind="relay", **keys)
    for told in (why.NOTHING, why.UNEXPECTED, why.NOT_TRUSTED, why.http_status(503)):
        answer = asking.refusal(told, "x") if told else asking.WELL
        async with serving(answering(answer), header=asking.header(asking.RELAY)) as target:
            assert (await ask_instance(probing(probe), target)).fault == told


# --- statuses ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statuses", "status", "expected"),
    [
        ((), 200, why.NOTHING),
        ((), 204, why.http_status(204)),
        ((204, 503), 503, why.NOTHING),
        ((204, 503), 200, why.http_status(200)),
    ],
)
async def test_the_statuses_that_are_declared_are_good(statuses: tuple[int, ...], status: int, expected: int) -> None:
    probe = replace(TCP, path="/primary", statuses=statuses)
    async with serving(saying(b"HTTP/1.1 %d x\r\n\r\n" % status), header=b"") as target:
        assert (await ask_direct(direct(target, probe=probe), target)).fault == expected


async def test_who_was_found_by_a_name_is_asked_by_that_name() -> None:
    heads: list[bytes] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    async with serving(handler, header=b"") as target:
        for each in (target, replace(target, name="db.example.com")):
            assert (await ask_direct(direct(each, probe=replace(TCP, path="/")), each)).fault == why.NOTHING
        for head, name in zip(heads, ("127.0.0.1", "db.example.com"), strict=True):
            assert f"\r\nHost: {name}:{target.port}\r\n".encode() in head


# --- another port, and the header ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("ask", [ask_own, ask_direct])
async def test_the_header_is_for_the_targets_own_port_alone(ask: Callable[..., Any], version: str) -> None:
    header = proxyproto.LOCAL_V1 if version == "v1" else proxyproto.LOCAL_V2
    more = () if ask is ask_own else (0,)
    for port, expected in ((0, header), (1, b""), (2, header)):
        async with serving(hearing(b"PING\r\n", b"+PONG\r\n"), header=expected) as there:
            target = TargetRow("gone", host="127.0.0.1", port=free_port()) if port == 1 else there
            probe = replace(PING, port=there.port if port else 0)
            row = direct(target, probe=probe, send_proxy=version)
            asked = (row, target) if more else (replace(row, distribution=None, direct=False),)
            assert (await ask(*asked)).fault == why.NOTHING


async def test_beside_a_unix_socket_a_port_of_this_machine_is_asked(tmp_path: Path) -> None:
    target = TargetRow("unix:/nowhere", path=str(tmp_path / "nowhere"))
    async with serving(saying(b"HTTP/1.1 200 OK\r\n\r\n"), header=b"") as there:
        probe = replace(TCP, path="/primary", port=there.port)
        assert (await ask_direct(direct(target, probe=probe), target)).fault == why.NOTHING
        assert (await ask_own(endpoint_row(targets=(target,), probe=probe))).fault == why.NOTHING
        assert (await ask_direct(direct(target, probe=TCP), target)).fault == why.of_error(errno.ENOENT)


async def test_of_a_range_of_ports_the_probes_own_is_asked() -> None:
    async with serving(silent, header=b"") as there:
        target = TargetRow("range", host="127.0.0.1", port=free_port(), port_count=3)
        row = endpoint_row(targets=(target,), port_count=3, probe=replace(TCP, port=there.port))
        assert (await ask_own(row, target.port + 1)).fault == why.NOTHING


async def test_without_a_probe_one_that_stands_alone_is_only_connected_to() -> None:
    async with serving(silent, header=b"") as target:
        assert await ask_direct(direct(target), target) == Answer(why.NOTHING, 0)
    assert (await ask_direct(direct(target, connect_s=5.0), target)).fault == REFUSED


# --- TLS --------------------------------------------------------------------------------------------------------------


@dataclass
class Certified:
    """A server's TLS, by a certificate for 127.0.0.1 and db.example.com that has signed itself; whom clients asked for."""

    server: ssl.SSLContext
    certificate: Path
    asked_for: list[str | None]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a key and a certificate."""
    file: Path = tmp_path_factory.mktemp("tls") / "both.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "1",
    ]
    made += ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1,DNS:db.example.com"]
    key = file.with_name("key.pem")
    subprocess.run([*made, "-keyout", str(key), "-out", str(file)], check=True, capture_output=True, timeout=60)
    file.write_text(file.read_text() + key.read_text())
    return file


@pytest.fixture
def certified(certificate: Path) -> Certified:
    made = Certified(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), certificate, [])
    made.server.load_cert_chain(certificate)
    made.server.sni_callback = lambda _socket, name, _context: made.asked_for.append(name)
    return made


@pytest.fixture
def trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This machine's authorities have signed it."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    probes._trusting.cache_clear()
    yield
    probes._trusting.cache_clear()


@pytest.fixture
def untrusted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """This machine has no authorities at all."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.setenv(name, str(tmp_path))
    probes._trusting.cache_clear()
    yield
    probes._trusting.cache_clear()


@pytest.mark.real("openssl")
@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("name", "expected"),
    [("", why.NOTHING), ("db.example.com", why.NOTHING), ("other.example.com", why.NOT_ITS_NAME)],
)
async def test_a_certificate_is_for_its_name_or_else_its_address(
    name: str, expected: int, certified: Certified
) -> None:
    async with serving(hearing(b"PING\r\n", b"+PONG"), tls=certified.server, header=b"") as target:
        there = replace(target, name=name)
        row = direct(there, probe=replace(PING, tls="verify"))
        assert (await ask_direct(row, there)).fault == expected
        assert certified.asked_for == [name or None], "which the server is told"


@pytest.mark.real("openssl")
@pytest.mark.usefixtures("trusted")
async def test_a_certificate_for_another_address_is_bad(certified: Certified) -> None:
    async with serving(silent, tls=certified.server, header=b"") as target:
        elsewhere = replace(target, host="127.0.0.1", name="127.0.0.2")  # as if it had been found there
        assert (await ask_direct(direct(elsewhere, probe=replace(TCP, tls="verify")), elsewhere)).fault == (
            why.NOT_ITS_NAME
        )


@pytest.mark.real("openssl")
@pytest.mark.usefixtures("untrusted")
@pytest.mark.parametrize(("tls", "expected"), [("on", why.NOTHING), ("verify", why.NOT_TRUSTED)])
async def test_whoever_has_signed_it_counts_only_where_it_is_verified(
    tls: Any, expected: int, certified: Certified
) -> None:
    async with serving(silent, tls=certified.server, header=b"") as target:
        there = replace(target, name="db.example.com")
        assert (await ask_direct(direct(there, probe=replace(TCP, tls=tls)), there)).fault == expected
        assert certified.asked_for == ["db.example.com"]


@pytest.mark.real("openssl")
@pytest.mark.parametrize(
    ("protocol", "keys", "by_tls"),
    [
        ("https", {"path": "/"}, True),
        ("https", {}, False),
        ("https", {"path": "/", "tls": "off"}, False),
        ("https", {"path": "/", "port": 1}, False),
        ("https", {"path": "/", "port": 1, "tls": "on"}, True),
        ("http", {"path": "/"}, False),
        ("tcp", {"path": "/", "tls": "on"}, True),
        ("tcp", {"tls": "on"}, True),
    ],
)
async def test_what_is_asked_by_tls(protocol: Any, keys: dict[str, Any], by_tls: bool, certified: Certified) -> None:
    """At another port an endpoint's protocol says nothing."""
    handler = saying(b"HTTP/1.1 200 OK\r\n\r\n") if "path" in keys else silent
    async with serving(handler, tls=certified.server if by_tls else None, header=b"") as there:
        own = TargetRow("gone", host="127.0.0.1", port=free_port()) if "port" in keys else there
        probe = replace(TCP, **keys | ({"port": there.port} if "port" in keys else {}))
        assert (await ask_direct(direct(own, probe=probe, protocol=protocol), own)).fault == why.NOTHING
        assert bool(certified.asked_for) is by_tls


async def test_who_speaks_no_tls_is_bad() -> None:
    async with serving(answering(b"220 plain\r\n"), header=b"") as target:
        assert (await ask_direct(direct(target, probe=replace(TCP, tls="on")), target)).fault == why.NO_TLS


@pytest.mark.real("openssl")
async def test_an_edge_speaks_tls_through_a_relay(certified: Certified) -> None:
    async with serving(hearing(b"PING\r\n", b"+PONG"), tls=certified.server) as target:
        assert (await ask_instance(probing(replace(PING, tls="on")), target)).fault == why.NOTHING


def test_authorities_are_read_anew_for_each_turn_alone() -> None:
    assert probes._trusting(1) is probes._trusting(1)
    assert probes._trusting(1) is not probes._trusting(2)
    probes._trusting.cache_clear()
