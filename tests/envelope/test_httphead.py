"""The request line against h11's server, both ways; where relay takes more, the tests say what and why."""

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from relay.envelope import httphead
from relay.envelope.httphead import LIMIT_BYTES, HttpHead, HttpHeadSoFar, look
from relay.envelope.verdict import INCOMPLETE, Reject
from tests.envelope.promises import CUTS, PATIENT, check_final, check_pieces, check_rejected, check_valid, edited

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

TCHAR = "!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
METHOD = st.sampled_from([b"GET", b"POST", b"CONNECT", b"OPTIONS", b"PRI"]) | st.text(
    TCHAR, min_size=1, max_size=20
).map(str.encode)
TARGET = st.sampled_from([b"/", b"*", b"shop.example:443", b"http://shop.example/a?b#c"]) | st.text(
    [chr(code) for code in range(0x21, 0x7F)], min_size=1, max_size=40
).map(str.encode)
VERSION = st.sampled_from([b"HTTP/1.0", b"HTTP/1.1"])
LINE_END = st.sampled_from([b"\r\n", b"\n"])
TRAILING = st.sampled_from([b"", b"Host: x\r\n\r\n", b"\x00\xff", b" "])


def judge(line: bytes) -> HttpHead | None:
    """What h11's server reads from a request with this first line, or None if it takes it for an error.

    The rest is a valid request's: HTTP/1.1 needs a Host (RFC 9112 section 3.2).
    """
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(line + b"Host: x\r\n\r\n")
    try:
        event = connection.next_event()
    except h11.RemoteProtocolError:
        return None
    if not isinstance(event, h11.Request):
        return None
    return HttpHead(event.method, event.target, b"HTTP/" + event.http_version)


@PATIENT
@given(METHOD, TARGET, VERSION, LINE_END, TRAILING)
@example(b"PRI", b"*", b"HTTP/1.1", b"\r\n", b"")
def test_a_request_line_at_every_prefix_and_whole(
    method: bytes, target: bytes, version: bytes, line_end: bytes, trailing: bytes
) -> None:
    line = method + b" " + target + b" " + version + line_end
    expected = HttpHead(method, target, version)
    check_valid(look, line, expected, trailing)
    assert judge(line) == expected


@PATIENT
@given(METHOD, TARGET, VERSION, LINE_END, st.data())
def test_an_edited_line_is_taken_by_both_or_by_none(
    method: bytes, target: bytes, version: bytes, line_end: bytes, data: st.DataObject
) -> None:
    line = data.draw(edited(method + b" " + target + b" " + version + line_end))
    check_final(look, line)
    answer = look(line)
    if answer is INCOMPLETE:
        return
    theirs = judge(line)
    if not isinstance(answer, HttpHead):
        assert theirs is None or theirs.version not in (b"HTTP/1.0", b"HTTP/1.1"), line
    elif line[0] not in b"\r\n" and answer.target.isascii() and not whole_header_edited_in(line):
        assert theirs == answer, line


def whole_header_edited_in(line: bytes) -> bool:
    """An edit put a line end inside: what stands behind it are header lines, which h11 reads and relay does not."""
    return line.index(b"\n") + 1 < len(line)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        pytest.param(b"\r\nGET / HTTP/1.1\r\n", HttpHead(b"GET", b"/", b"HTTP/1.1"), id="an-empty-line-before"),
        pytest.param(b"\n\r\n\nGET / HTTP/1.0\n", HttpHead(b"GET", b"/", b"HTTP/1.0"), id="empty-lines-before"),
        pytest.param(b"GET /\xc3\xbc HTTP/1.1\r\n", HttpHead(b"GET", b"/\xc3\xbc", b"HTTP/1.1"), id="raw-utf-8"),
        pytest.param(b"GET /\x80\xff HTTP/1.1\r\n", HttpHead(b"GET", b"/\x80\xff", b"HTTP/1.1"), id="high-bytes"),
    ],
)
def test_what_relay_takes_and_h11_does_not(line: bytes, expected: HttpHead) -> None:
    """RFC 9112 section 2.2 asks to ignore empty lines; raw UTF-8 in targets is what clients send and servers take."""
    check_valid(look, line, expected, b"Host: x\r\n\r\n")
    assert judge(line) is None


def test_a_request_without_headers_is_http() -> None:
    """relay looks at the line alone: that HTTP/1.1 needs a Host is between client and server."""
    assert look(b"GET / HTTP/1.1\r\n\r\n") == HttpHead(b"GET", b"/", b"HTTP/1.1")


def test_the_http2_preface() -> None:
    check_valid(look, PREFACE, HttpHead(b"PRI", b"*", b"HTTP/2.0"), bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))


@pytest.mark.parametrize("at", range(len(PREFACE)))
def test_a_preface_with_one_wrong_byte_is_no_preface(at: int) -> None:
    wrong = PREFACE[:at] + b"\x01" + PREFACE[at + 1 :]
    check_rejected(look, wrong, "no HTTP request line", at + 1)


def test_the_preface_stands_first() -> None:
    check_rejected(look, b"\r\n" + PREFACE, "byte 14 is 0x32", 14)


@pytest.mark.parametrize(
    ("data", "at"),
    [
        pytest.param(b"\x16\x03\x01\x02\x00", 1, id="tls"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", 20, id="ssh"),
        pytest.param(b" GET / HTTP/1.1\r\n", 1, id="leading-space"),
        pytest.param(b"\rGET / HTTP/1.1\r\n", 2, id="bare-cr-before"),
        pytest.param(b"\r\r\n", 2, id="two-cr"),
        pytest.param(b"G\x00T", 2, id="nul-in-method"),
        pytest.param(b"GET:", 4, id="colon-in-method"),
        pytest.param(b"GET\t/", 4, id="tab"),
        pytest.param(b"GET\r\n", 4, id="method-alone"),
        pytest.param(b"GET  /", 5, id="two-spaces"),
        pytest.param(b"GET /\r\n", 6, id="http-0.9"),
        pytest.param(b"GET /\x7f", 6, id="del-in-target"),
        pytest.param(b"GET /\tHTTP/1.1\r\n", 6, id="tab-after-target"),
        pytest.param(b"GET /  HTTP", 7, id="two-spaces-after-target"),
        pytest.param(b"GET /a b HTTP", 8, id="space-in-target"),
        pytest.param(b"GET / http/1.1", 7, id="lower-case"),
        pytest.param(b"GET / HTTPS/1.1", 11, id="https"),
        pytest.param(b"GET / HTTP/2", 12, id="http-2"),
        pytest.param(b"GET / HTTP/1.2", 14, id="http-1.2"),
        pytest.param(b"GET / HTTP/1.1 \r\n", 15, id="space-at-the-end"),
        pytest.param(b"GET / HTTP/1.1\rX", 16, id="bare-cr"),
        pytest.param(b"RTSP rtsp://x RTSP/1.0\r\n", 15, id="rtsp"),
        pytest.param(b"*1\r\n$4\r\nPING\r\n", 3, id="redis"),
        pytest.param(b"HELO x\r\n", 7, id="smtp"),
    ],
)
def test_rejects_at_the_first_impossible_byte(data: bytes, at: int) -> None:
    check_rejected(look, data, f"byte {at} is 0x{data[at - 1]:02x}", at)


@pytest.mark.parametrize("before", [b"", b"\r\n" * 3], ids=["at-once", "after-empty-lines"])
def test_the_longest_line_is_taken_and_one_byte_more_is_not(before: bytes) -> None:
    around = before + b"GET / HTTP/1.1\r\n"
    target = b"/" + b"a" * (LIMIT_BYTES - len(around))
    fits = before + b"GET " + target + b" HTTP/1.1\r\n"
    assert len(fits) == LIMIT_BYTES
    assert look(fits[:-1]) is INCOMPLETE
    assert look(fits) == look(fits + b"x") == HttpHead(b"GET", target, b"HTTP/1.1")
    assert len(target) + len(b"GET  HTTP/1.1") > 8000, "RFC 9112 section 3 asks for 8000 bytes"

    longer = before + b"GET " + target + b"a HTTP/1.1\r\n"
    assert look(longer[: LIMIT_BYTES - 1]) is INCOMPLETE
    expected = Reject("no HTTP request line within 8192 bytes")
    assert look(longer[:LIMIT_BYTES]) == look(longer) == look(longer + b"x") == expected


@pytest.mark.parametrize("filler", [b"\n", b"\r\n", b"A", b"GET /"])
def test_endless_input_is_refused_at_the_limit(filler: bytes) -> None:
    endless = (filler * LIMIT_BYTES)[:LIMIT_BYTES] if filler != b"GET /" else b"GET " + b"/" * (LIMIT_BYTES - 4)
    assert look(endless[:-1]) is INCOMPLETE
    assert look(endless) == Reject("no HTTP request line within 8192 bytes")


@PATIENT
@given(
    st.sampled_from([b"", b"\r\n", b"GET ", b"GET / HTTP/1.", b"PRI * HTTP/2.0\r\n", PREFACE]),
    st.binary(max_size=80) | st.text("GETHP/12.0 \r\n", max_size=60).map(str.encode),
)
def test_any_bytes_have_one_final_answer(beginning: bytes, rest: bytes) -> None:
    check_final(look, beginning + rest)
    assert look(beginning + rest + b"\n\n\n" + bytes(LIMIT_BYTES)) is not INCOMPLETE


# --- in pieces ------------------------------------------------------------------------------------------------------------


@PATIENT
@given(METHOD, TARGET, VERSION, LINE_END, st.sampled_from([b"", b"\n", b"\r\n\r\n"]), CUTS, st.data())
@example(b"PRI", b"*", b"HTTP/1.1", b"\r\n", b"", set(range(99)), None)
def test_pieces_are_judged_as_the_whole(
    method: bytes, target: bytes, version: bytes, end: bytes, before: bytes, cuts: set[int], data: st.DataObject | None
) -> None:
    line = before + method + b" " + target + b" " + version + end
    check_pieces(HttpHeadSoFar().look, look, line, cuts)
    if data is not None:
        check_pieces(HttpHeadSoFar().look, look, data.draw(edited(line)), cuts)


@PATIENT
@given(st.sampled_from([b"", PREFACE, b"\r", b"\r\n\r\r"]), st.text("GETHP/12.0 \r\n", max_size=60), CUTS)
@example(PREFACE, "", set(range(99)))
def test_pieces_of_anything_are_judged_as_the_whole(beginning: bytes, rest: str, cuts: set[int]) -> None:
    check_pieces(HttpHeadSoFar().look, look, beginning + rest.encode(), cuts)


@pytest.mark.parametrize("filler", [b"\n", b"\r\n", b"A", b"GET /"])
def test_the_longest_line_byte_by_byte_is_read_once(filler: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[int] = []

    def counting(data: bytes) -> object:
        looks.append(len(data))
        return look(data)

    monkeypatch.setattr(httphead, "look", counting)
    endless = (filler * LIMIT_BYTES)[:LIMIT_BYTES] if filler != b"GET /" else b"GET " + b"/" * (LIMIT_BYTES - 4)
    so_far = HttpHeadSoFar()
    for length in range(LIMIT_BYTES):
        assert so_far.look(endless[:length]) is INCOMPLETE
    assert so_far.look(endless) == Reject("no HTTP request line within 8192 bytes")
    assert len(looks) <= 20, "whatever is more of the same is not looked at as a whole"
