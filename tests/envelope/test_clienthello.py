"""The ClientHello against OpenSSL: its client writes the hellos, its server is the judge of what they say."""

import ssl
from dataclasses import dataclass

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.envelope import clienthello
from relay.envelope.clienthello import LIMIT_BYTES, Hello, HelloSoFar, look
from relay.envelope.verdict import INCOMPLETE, Reject
from tests.envelope.promises import CUTS, PATIENT, check_final, check_pieces, check_rejected, check_valid, edited

FRAGMENT_MAX_BYTES = 2**14

# The ssl module decodes the name it hands to the judge as ASCII. One that is not makes it warn, and end the handshake.
NAMES_OF_ANY_BYTES = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def client_hello(
    sni: str | None, alpn: tuple[str, ...] = (), newest: ssl.TLSVersion = ssl.TLSVersion.MAXIMUM_SUPPORTED
) -> bytes:
    """The first bytes that OpenSSL's client sends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.maximum_version = newest
    if alpn:
        context.set_alpn_protocols(list(alpn))
    outgoing = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=sni).do_handshake()
    return outgoing.read()


def judge(data: bytes) -> list[str | None]:
    """What OpenSSL's server reads: one server name (or None) if it takes the ClientHello, nothing if it does not.

    It has no certificate, so no handshake gets further than that.
    """
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    incoming = ssl.MemoryBIO()
    incoming.write(data)
    with pytest.raises(ssl.SSLError):
        context.wrap_bio(incoming, ssl.MemoryBIO(), server_side=True).do_handshake()
    return names


def reframe(message: bytes, sizes: list[int]) -> bytes:
    """The message in records of these sizes, over and over."""
    framed, at, turn = b"", 0, 0
    while at < len(message):
        part = message[at : at + sizes[turn % len(sizes)]]
        framed += record(part)
        at, turn = at + len(part), turn + 1
    return framed


def record(part: bytes, length: int | None = None, kind: int = 22, version: bytes = b"\x03\x01") -> bytes:
    return bytes([kind]) + version + (len(part) if length is None else length).to_bytes(2, "big") + part


def vector(width: int, content: bytes) -> bytes:
    return len(content).to_bytes(width, "big") + content


def extension(kind: int, content: bytes) -> bytes:
    return kind.to_bytes(2, "big") + vector(2, content)


def server_name(host: bytes, kind: int = 0) -> bytes:
    return extension(0, vector(2, bytes([kind]) + vector(2, host)))


def alpn(*names: bytes) -> bytes:
    return extension(16, vector(2, b"".join(vector(1, name) for name in names)))


def message(
    extensions: bytes | None, session: bytes = bytes(32), suites: bytes = b"\x13\x01", compression: bytes = b"\0"
) -> bytes:
    """A ClientHello by hand, field by field; no extensions block at all with None."""
    body = b"\x03\x03" + bytes(32) + vector(1, session) + vector(2, suites) + vector(1, compression)
    if extensions is not None:
        body += vector(2, extensions)
    return b"\x01" + vector(3, body)


@dataclass(frozen=True)
class Sample:
    data: bytes
    hello: Hello


def sample(sni: str | None, protocols: tuple[str, ...], newest: ssl.TLSVersion) -> Sample:
    return Sample(client_hello(sni, protocols, newest), Hello(sni, protocols))


MANY = tuple(f"protocol-{number:03}" for number in range(90))
"""Enough protocols to make a hello as long as one with a post-quantum key share."""

CORPUS = [
    sample(sni, protocols, newest)
    for newest in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
    for sni in (None, "a", "shop.example", "x" * 63 + "." + "y" * 63 + ".example")
    for protocols in ((), ("h2", "http/1.1"), MANY)
]
ONE = CORPUS[-2]


def test_the_corpus_is_what_it_claims_to_be() -> None:
    assert len(CORPUS) == 24
    assert max(len(one.data) for one in CORPUS) > 1448, "no hello needs a second segment"
    assert {judge(one.data)[0] for one in CORPUS} == {one.hello.sni for one in CORPUS}


@pytest.mark.parametrize("one", CORPUS, ids=range(len(CORPUS)))
def test_openssls_hello_at_every_prefix_whole_and_with_bytes_behind(one: Sample) -> None:
    assert judge(one.data) == [one.hello.sni]
    check_valid(look, one.data, one.hello, b"\x17\x03\x03\x00\x05early and more")


@PATIENT
@given(st.sampled_from(CORPUS), st.lists(st.integers(1, 700), min_size=1, max_size=6))
@example(CORPUS[-1], [1])
@example(CORPUS[-1], [3, 1])
@example(CORPUS[-1], [5])
def test_a_hello_over_many_records(one: Sample, sizes: list[int]) -> None:
    framed = reframe(one.data[5:], sizes)
    assert judge(framed) == [one.hello.sni]
    assert look(framed) == one.hello
    for end in range(0, len(framed), len(framed) // 40):
        assert look(framed[:end]) is INCOMPLETE
    assert look(framed[:-1]) is INCOMPLETE
    assert look(framed + b"anything") == one.hello


def test_a_hello_over_records_of_one_byte_at_every_prefix() -> None:
    check_valid(look, reframe(ONE.data[5:], [1]), ONE.hello, b"\x16\x03\x01")


@NAMES_OF_ANY_BYTES
@PATIENT
@given(st.sampled_from(CORPUS), st.data())
def test_an_edited_hello_openssl_takes_we_take_alike(one: Sample, data: st.DataObject) -> None:
    changed = data.draw(edited(one.data))
    answer = look(changed)
    for name in judge(changed):
        if name == "":
            continue  # Of all hellos with a name that OpenSSL reads, relay refuses these alone.
        assert isinstance(answer, Hello), f"{answer}, but OpenSSL reads {name!r}: {changed.hex()}"
        assert answer.sni == name


@PATIENT
@given(st.data())
def test_an_edited_hello_has_one_final_answer(data: st.DataObject) -> None:
    framed = data.draw(st.sampled_from([ONE.data, reframe(ONE.data[5:], [200, 90])]))
    check_final(look, data.draw(edited(framed)))


@PATIENT
@given(
    st.sampled_from(
        [b"", b"\x16", b"\x16\x03\x01", b"\x16\x03\x01\x00\x40\x01\x00\x00\x3c", record(message(b""))[:-2]]
    ),
    st.binary(max_size=300),
)
def test_any_bytes_have_one_final_answer(beginning: bytes, rest: bytes) -> None:
    check_final(look, beginning + rest)
    assert look(beginning + rest + bytes(2 * LIMIT_BYTES)) is not INCOMPLETE


@pytest.mark.parametrize(
    ("hello", "expected"),
    [
        pytest.param(message(None), Hello(None, ()), id="no-extensions-block"),
        pytest.param(message(b""), Hello(None, ()), id="no-extensions"),
        pytest.param(message(server_name(b"a.example")), Hello("a.example", ()), id="sni"),
        pytest.param(message(server_name(b"A.Example")), Hello("A.Example", ()), id="case-as-sent"),
        pytest.param(message(alpn(b"h2") + server_name(b"a")), Hello("a", ("h2",)), id="alpn-first"),
        pytest.param(message(alpn(b"\xba\xba", b"h2")), Hello(None, ("\xba\xba", "h2")), id="grease-protocol"),
        pytest.param(
            message(extension(0x0A0A, b"") + server_name(b"a") + extension(0xFAFA, b"\0"), suites=b"\x0a\x0a\x13\x01"),
            Hello("a", ()),
            id="grease",
        ),
        pytest.param(message(server_name(b"a"), session=b""), Hello("a", ()), id="no-session"),
        pytest.param(message(server_name(b"h" * 255)), Hello("h" * 255, ()), id="longest-name"),
        pytest.param(message(alpn(b"p" * 255)), Hello(None, ("p" * 255,)), id="longest-protocol"),
    ],
)
def test_hellos_by_hand(hello: bytes, expected: Hello) -> None:
    assert judge(record(hello)) == [expected.sni]
    check_valid(look, record(hello), expected, b"\x14\x03\x03\x00\x01\x01")
    check_valid(look, reframe(hello, [9]), expected, b"")


def test_a_hello_that_fills_a_record_is_taken_and_one_byte_more_is_not() -> None:
    padding = FRAGMENT_MAX_BYTES - len(message(server_name(b"a") + extension(21, b"")))
    fits = message(server_name(b"a") + extension(21, bytes(padding)))
    assert len(fits) == FRAGMENT_MAX_BYTES
    framed = record(fits)
    assert len(framed) == LIMIT_BYTES
    assert look(framed) == Hello("a", ())
    assert look(framed[:-1]) is INCOMPLETE
    assert look(framed + b"x") == Hello("a", ())

    longer = message(server_name(b"a") + extension(21, bytes(padding + 1)))
    check_rejected(look, record(longer[:2000], length=FRAGMENT_MAX_BYTES), "more than a record holds", at=9)

    two_records = reframe(fits, [FRAGMENT_MAX_BYTES - 1])
    assert look(two_records[: LIMIT_BYTES - 1]) is INCOMPLETE
    assert look(two_records[:LIMIT_BYTES]) == look(two_records) == Reject("no TLS ClientHello within 16389 bytes")


WHOLE = record(message(server_name(b"a.example")))
EXTENSIONS_AT = len(record(message(b"")))
"""Where the first extension of a hello by hand begins, in a single record."""


@pytest.mark.parametrize(
    ("data", "reason", "at"),
    [
        pytest.param(b"GET / HTTP/1.1\r\n", "record of type 71", 1, id="http"),
        pytest.param(b"SSH-2.0-x\r\n", "record of type 83", 1, id="ssh"),
        pytest.param(record(b"\x02\x28", kind=21), "record of type 21", 1, id="alert"),
        pytest.param(b"\x80\x2e\x01\x03\x01" + bytes(50), "record of type 128", 1, id="sslv2"),
        pytest.param(record(message(None), version=b"\x02\x00"), "major version 2", 2, id="record-version"),
        pytest.param(record(b""), "0 bytes, not 1 to 16384", 5, id="empty-record"),
        pytest.param(record(b"", length=FRAGMENT_MAX_BYTES + 1), "16385 bytes", 5, id="long-record"),
        pytest.param(record(b"\x02" + message(None)[1:]), "handshake message of type 2", 6, id="server-hello"),
        pytest.param(record(b"\x01\x00\x40\x00"), "more than a record holds", 9, id="long-message"),
        pytest.param(record(b"\x01\x00\x00\x10") + record(bytes(16)), "past the end", 9, id="short-message"),
        pytest.param(record(b"\x01\x00\x00") + record(b"", kind=23), "record of type 23", 9, id="data-in-between"),
        pytest.param(record(message(None, session=bytes(33))), "vector of 33 bytes", 44, id="session"),
        pytest.param(record(message(None, suites=b"")), "vector of 0 bytes", 78, id="no-suites"),
        pytest.param(record(message(None, suites=b"\x13\x01\x13")), "half a cipher suite", 81, id="half-a-suite"),
        pytest.param(record(message(None, compression=b"")), "vector of 0 bytes", 81, id="no-compression"),
    ],
)
def test_rejects_as_soon_as_a_wrong_field_is_complete(data: bytes, reason: str, at: int) -> None:
    check_rejected(look, data, reason, at)


@pytest.mark.parametrize(
    ("extensions", "reason", "at"),
    [
        pytest.param(b"\0", "past the end", 0, id="one-byte"),
        pytest.param(extension(5, b"abc")[:-1], "past the end", 4, id="past-the-block"),
        pytest.param(server_name(b"a") * 2, "two server_name", 20, id="two-sni"),
        pytest.param(alpn(b"h2") * 2, "two ALPN", 18, id="two-alpn"),
        pytest.param(server_name(b"h" * 256), "vector of 256 bytes", 265, id="long-name"),
        pytest.param(server_name(b"a", kind=1), "exactly one host name", 10, id="other-name-type"),
        pytest.param(extension(0, vector(2, b"\0\0\1a\0\0\1b")), "exactly one host name", 14, id="two-names"),
        pytest.param(extension(0, vector(2, b"\0\0\1a") + b"x"), "exactly one host name", 11, id="sni-trailing"),
        pytest.param(extension(0, b""), "past the end", 4, id="no-list"),
        pytest.param(extension(0, b"\0\0"), "vector of 0 bytes", 6, id="empty-list"),
        pytest.param(extension(0, b"\0\7\0\0\1a"), "past the end", 10, id="list-past-its-extension"),
        pytest.param(extension(0, vector(2, b"\0\0\5a")), "past the end", 10, id="name-past-its-list"),
        pytest.param(server_name(b"a\0b"), "holds a NUL", 12, id="nul"),
        pytest.param(alpn(), "vector of 0 bytes", 6, id="no-protocols"),
        pytest.param(alpn(b"h2", b""), "vector of 0 bytes", 10, id="empty-protocol"),
        pytest.param(extension(16, vector(2, b"\3h2")), "past the end", 9, id="protocol-past-its-list"),
        pytest.param(extension(16, vector(2, b"\2h2") + b"x"), "after its list", 10, id="alpn-trailing"),
    ],
)
def test_rejects_a_wrong_extension_as_soon_as_it_is_complete(extensions: bytes, reason: str, at: int) -> None:
    """`at` counts from the first extension."""
    data = record(message(extensions))
    check_rejected(look, data, reason, EXTENSIONS_AT + at)
    assert judge(data) == [], "OpenSSL takes it"


def test_an_empty_name_is_refused_though_openssl_takes_it() -> None:
    """RFC 6066 section 3: HostName<1..2^16-1>."""
    data = record(message(server_name(b"")))
    check_rejected(look, data, "vector of 0 bytes", len(data))
    assert judge(data) == [""]


@NAMES_OF_ANY_BYTES
def test_a_name_that_is_not_ascii_is_refused() -> None:
    """RFC 6066 section 3: names are sent in ASCII, as A-labels."""
    data = record(message(server_name("bücher".encode())))
    check_rejected(look, data, "not ASCII", len(data))
    assert judge(data) == []


def test_an_extensions_block_must_end_where_the_message_does() -> None:
    for block in (
        b"\x00\x05" + server_name(b"a"),
        b"\x00\x00" + server_name(b"a"),
        vector(2, server_name(b"a")) + b"x",
    ):
        body = message(None)[4:] + block
        check_rejected(look, record(b"\x01" + vector(3, body)), "do not end where the message does", EXTENSIONS_AT)


def test_the_first_wrong_byte_stays_the_reason() -> None:
    """A record that is wrong as well, and comes after it, does not take its place."""
    first = record(b"\x02")
    assert look(first) == look(first + b"\xff" * 50) != INCOMPLETE
    assert "type 2" in str(look(first + b"\xff" * 50))
    assert "record of type 255" in str(look(record(message(None)[:20]) + b"\xff" * 50))


def test_what_follows_the_hello_is_not_looked_at() -> None:
    for behind in (b"\xff" * 5, record(b"x", kind=23), WHOLE, bytes(LIMIT_BYTES)):
        assert look(WHOLE + behind) == Hello("a.example", ())


# --- in pieces ------------------------------------------------------------------------------------------------------------


@PATIENT
@given(st.sampled_from(CORPUS), st.lists(st.integers(1, 700), min_size=1, max_size=6), CUTS, st.data())
def test_pieces_are_judged_as_the_whole(one: Sample, sizes: list[int], cuts: set[int], data: st.DataObject) -> None:
    framed = reframe(one.data[5:], sizes)
    check_pieces(HelloSoFar().look, look, framed, cuts)
    check_pieces(HelloSoFar().look, look, data.draw(edited(framed)), cuts)


@PATIENT
@given(st.binary(max_size=300), st.lists(st.integers(1, 20), min_size=1, max_size=4), CUTS)
def test_pieces_of_anything_are_judged_as_the_whole(rest: bytes, sizes: list[int], cuts: set[int]) -> None:
    check_pieces(HelloSoFar().look, look, reframe(message(server_name(b"a"))[:-4] + rest, sizes), cuts)
    check_pieces(HelloSoFar().look, look, b"\x16\x03\x01" + rest, cuts)


@pytest.mark.interpreted
def test_the_longest_hello_byte_by_byte_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In records of one byte, and of as many extensions as there can be: each header is read once, or twice in pieces."""
    wrong_record, read = clienthello._wrong_record, HelloSoFar._read_extension
    headers, extensions = [], []

    def counting(header: bytes) -> str:
        headers.append(header)
        return wrong_record(header)

    def reading(self: HelloSoFar, kind: int, body: bytes) -> None:
        extensions.append(kind)
        read(self, kind, body)

    hello = message(server_name(b"a.example") + extension(23, b"") * 670)
    wire = reframe(hello, [1])
    assert len(wire) > LIMIT_BYTES
    monkeypatch.setattr(clienthello, "_wrong_record", counting)
    monkeypatch.setattr(HelloSoFar, "_read_extension", reading)
    so_far = HelloSoFar()
    for length in range(LIMIT_BYTES):
        assert so_far.look(wire[:length]) is INCOMPLETE
    assert so_far.look(wire[:LIMIT_BYTES]) == Reject(f"no TLS ClientHello within {LIMIT_BYTES} bytes")
    assert len(headers) <= LIMIT_BYTES
    assert extensions == [0]
