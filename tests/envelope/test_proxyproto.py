"""PROXY v1 and v2 against the proxy-protocol package, in both directions, and against the specification's letter."""

import socket
from ipaddress import IPv4Address, IPv6Address

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol import ProxyProtocol
from proxyprotocol.result import (
    ProxyResult,
    ProxyResultIPv4,
    ProxyResultIPv6,
    ProxyResultLocal,
    ProxyResultUnix,
    ProxyResultUnknown,
)
from proxyprotocol.tlv import ProxyProtocolTLV
from proxyprotocol.v1 import ProxyProtocolV1
from proxyprotocol.v2 import ProxyProtocolV2

from relay.address import unmap
from relay.envelope.proxyproto import V1_LIMIT_BYTES, V2_LIMIT_BYTES, Header, build_v1, build_v2, parse
from relay.envelope.verdict import INCOMPLETE, Reject
from tests.envelope.promises import PATIENT, check_final, check_rejected, check_valid, edited

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
MAPPED = bytes(10) + b"\xff\xff"

PORT = st.integers(0, 65535)
V4 = st.binary(min_size=4, max_size=4)
V6 = st.binary(min_size=16, max_size=16) | st.builds(
    lambda head, tail: head + bytes(16 - len(head) - len(tail)) + tail, st.binary(max_size=4), st.binary(max_size=4)
)
PAIR = st.tuples(V4, V4) | st.tuples(V6, V6)
TRAILING = st.binary(max_size=20)
ORACLES: dict[int, ProxyProtocol] = {1: ProxyProtocolV1(), 2: ProxyProtocolV2()}
BUILDERS = {1: build_v1, 2: build_v2}


def v2(command: int, family: int, rest: bytes, length: int | None = None) -> bytes:
    return SIGNATURE + bytes([command, family]) + (len(rest) if length is None else length).to_bytes(2, "big") + rest


def seen(result: ProxyResult) -> tuple[bytes, int, bytes, int] | None:
    """What the oracle says of the client, in our terms: a TCP client's addresses and ports, or None."""
    if not isinstance(result, ProxyResultIPv4 | ProxyResultIPv6) or result.protocol == socket.SOCK_DGRAM:
        return None
    (src, src_port), (dst, dst_port) = result.source, result.dest
    return unmap(src.packed), src_port, unmap(dst.packed), dst_port


def ours(header: Header) -> tuple[bytes, int, bytes, int] | None:
    if header.src is None or header.dst is None:
        assert (header.src, header.src_port, header.dst, header.dst_port) == (None, 0, None, 0)
        return None
    return header.src, header.src_port, header.dst, header.dst_port


def as_result(src: bytes, src_port: int, dst: bytes, dst_port: int, tlv: ProxyProtocolTLV) -> ProxyResult:
    stream = socket.SOCK_STREAM
    if len(src) == 4:
        return ProxyResultIPv4((IPv4Address(src), src_port), (IPv4Address(dst), dst_port), protocol=stream, tlv=tlv)
    return ProxyResultIPv6((IPv6Address(src), src_port), (IPv6Address(dst), dst_port), protocol=stream, tlv=tlv)


@PATIENT
@given(st.sampled_from([1, 2]), PAIR, PORT, PORT, TRAILING)
def test_what_we_build_the_oracle_reads_and_we_read(
    version: int, pair: tuple[bytes, bytes], src_port: int, dst_port: int, trailing: bytes
) -> None:
    src, dst = pair
    data = BUILDERS[version](src, src_port, dst, dst_port)
    expected = (unmap(src), src_port, unmap(dst), dst_port)
    assert seen(ORACLES[version].unpack(data)) == expected
    check_valid(parse, data, Header(*expected, len(data), version), trailing)


@PATIENT
@given(st.sampled_from([1, 2]), PAIR, PORT, PORT, st.binary(max_size=100), TRAILING)
def test_what_the_oracle_builds_we_read(
    version: int, pair: tuple[bytes, bytes], src_port: int, dst_port: int, unique_id: bytes, trailing: bytes
) -> None:
    tlv = ProxyProtocolTLV(unique_id=unique_id, authority="shop.example") if unique_id else ProxyProtocolTLV()
    data = ORACLES[version].pack(as_result(pair[0], src_port, pair[1], dst_port, tlv))
    tlvs = data[16 + (12 if data[13] == 0x11 else 36) :] if version == 2 else b""
    expected = Header(unmap(pair[0]), src_port, unmap(pair[1]), dst_port, len(data), version, tlvs)
    check_valid(parse, data, expected, trailing)


def test_the_examples_of_the_specification() -> None:
    src, dst = IPv4Address("192.168.0.1").packed, IPv4Address("192.168.0.11").packed
    line = b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"
    assert build_v1(src, 56324, dst, 443) == line
    check_valid(parse, line, Header(src, 56324, dst, 443, len(line), 1), b"GET / HTTP/1.1\r\n")
    assert build_v2(src, 56324, dst, 443) == v2(0x21, 0x11, src + dst + b"\xdc\x04\x01\xbb")


@pytest.mark.parametrize("trailing", [b"", b"GET / HTTP/1.1\r\n", bytes(5000)])
@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"PROXY UNKNOWN\r\n", id="v1-short"),
        pytest.param(b"PROXY UNKNOWN \r\n", id="v1-space"),
        pytest.param(b"PROXY UNKNOWN any \xff\x00 thing\r\n", id="v1-ignored"),
        pytest.param(b"PROXY UNKNOWN " + b"f" * (V1_LIMIT_BYTES - 16) + b"\r\n", id="v1-longest"),
        pytest.param(v2(0x20, 0x00, b""), id="local"),
        pytest.param(v2(0x20, 0x11, bytes(12)), id="local-with-addresses"),
        pytest.param(v2(0x20, 0xFF, b"abc"), id="local-ignores-the-family"),
        pytest.param(v2(0x21, 0x00, b""), id="unspec"),
        pytest.param(v2(0x21, 0x00, b"abc"), id="unspec-with-bytes"),
        pytest.param(v2(0x21, 0x01, b""), id="unspec-stream"),
        pytest.param(v2(0x21, 0x10, b""), id="ipv4-without-transport"),
        pytest.param(v2(0x21, 0x12, bytes(12)), id="udp4"),
        pytest.param(v2(0x21, 0x22, bytes(36)), id="udp6"),
        pytest.param(v2(0x21, 0x31, bytes(216)), id="unix"),
        pytest.param(v2(0x21, 0x32, bytes(216 + 9)), id="unix-datagram-and-more"),
        pytest.param(v2(0x21, 0x00, bytes(V2_LIMIT_BYTES - 16)), id="v2-longest"),
    ],
)
def test_headers_without_a_tcp_client(data: bytes, trailing: bytes) -> None:
    version = 1 if data[0] == ord("P") else 2
    # The command alone says whose the connection is: all but the sender's own are somebody's, who is not named.
    is_local = version == 2 and data[12] == 0x20
    check_valid(parse, data, Header(None, 0, None, 0, len(data), version, is_local=is_local), trailing)


@pytest.mark.parametrize(
    ("result", "version"),
    [
        (ProxyResultUnknown(), 1),
        (ProxyResultUnknown(), 2),
        (ProxyResultLocal(), 2),
        (ProxyResultUnix("/run/a.sock", "/run/b.sock", protocol=socket.SOCK_STREAM), 2),
    ],
)
def test_the_oracles_headers_without_a_tcp_client(result: ProxyResult, version: int) -> None:
    data = ORACLES[version].pack(result)
    is_local = isinstance(result, ProxyResultLocal)
    check_valid(parse, data, Header(None, 0, None, 0, len(data), version, is_local=is_local), b"x")


@pytest.mark.parametrize("version", [1, 2])
def test_an_unknown_client_is_said_to_be_unknown(version: int) -> None:
    for src, dst in ((None, None), (bytes(4), None), (None, bytes(16))):
        data = BUILDERS[version](src, 1, dst, 2)
        assert isinstance(ORACLES[version].unpack(data), ProxyResultLocal | ProxyResultUnknown)
        assert ORACLES[version].unpack(data).proxied
        check_valid(parse, data, Header(None, 0, None, 0, len(data), version), b"x")


@pytest.mark.parametrize("family", [0x00, 0x01, 0x02, 0x12, 0x22, 0x31])
def test_who_is_not_named_asks_nothing(family: int) -> None:
    """TLVs are read of the sender's own connection, and of a client's that is named."""
    header = parse(v2(0x21, family, bytes(216) + b"\xe0\x00\x01\x02"))
    assert isinstance(header, Header)
    assert (header.src, header.is_local, header.tlvs) == (None, False, b"")


@PATIENT
@given(st.sampled_from([1, 2]), V4, V4, V6.filter(lambda packed: len(unmap(packed)) == 16))
def test_mapped_and_mixed_addresses(version: int, a: bytes, b: bytes, six: bytes) -> None:
    build = BUILDERS[version]
    assert build(MAPPED + a, 1, MAPPED + b, 2) == build(a, 1, b, 2)
    for src, dst in ((a, six), (six, b), (MAPPED + a, six)):
        data = build(src, 1, dst, 2)
        assert isinstance(ORACLES[version].unpack(data), ProxyResultIPv6)
        check_valid(parse, data, Header(unmap(src), 1, unmap(dst), 2, len(data), version), b"")


def test_the_dotted_form_of_a_mapped_address_is_read() -> None:
    line = b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n"
    check_valid(parse, line, Header(bytes([192, 0, 2, 1]), 1, bytes(15) + b"\1", 2, len(line), 1), b"x")


@pytest.mark.parametrize("version", [1, 2])
def test_refuses_to_build_nonsense(version: int) -> None:
    build = BUILDERS[version]
    for port in (-1, 65536):
        with pytest.raises(ValueError, match=f"port {port} is not"):
            build(bytes(4), port, bytes(4), 1)
        with pytest.raises(ValueError, match=f"port {port} is not"):
            build(bytes(16), 1, bytes(16), port)
    for length in (0, 3, 5, 17):
        with pytest.raises(ValueError, match=f"not {length}"):
            build(bytes(4), 1, bytes(length), 1)


@pytest.mark.parametrize(
    ("data", "reason", "at"),
    [
        (b"GET / HTTP/1.1\r\n", "no PROXY header", 1),
        (b"POST / HTTP/1.1\r\n", "does not begin with", 2),
        (b"proxy TCP4 ", "no PROXY header", 1),
        (b"PROXY  TCP4 1.2.3.4 1.2.3.4 1 2\r\n", "does not begin with", 7),
        (b"PROXY\tTCP4 ", "does not begin with", 6),
        (b"PROXY TCP5 ", "does not begin with", 10),
        (b"PROXY TCP4\r\n", "does not begin with", 11),
        (b"PROXY UDP4 ", "does not begin with", 8),
        (b"PROXY UNKNOWNS\r\n", "does not begin with", 14),
        (b"PROXY UNKNOWN\n", "does not begin with", 14),
        (b"PROXY UNKNOWN\rX", "CR or LF alone", 15),
        (b"PROXY UNKNOWN a\nb\r\n", "CR or LF alone", 16),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n", "CR or LF alone", 31),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\r\r\n", "CR or LF alone", 32),
        (b"PROXY UNKNOWN " + b"f" * 200, "without CRLF", V1_LIMIT_BYTES - 1),
        (b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n", "without CRLF", V1_LIMIT_BYTES - 1),
        (b"\r\n\r\n\x00\r\nQUIX\n", "signature", 11),
        (SIGNATURE + b"\x11\x11", "version and command 0x11", 13),
        (SIGNATURE + b"\x22\x11", "version and command 0x22", 13),
        (SIGNATURE + b"\x21\x41", "family and transport 0x41", 14),
        (SIGNATURE + b"\x21\x13", "family and transport 0x13", 14),
        (v2(0x21, 0x11, bytes(11)), "too few", 16),
        (v2(0x21, 0x22, bytes(35)), "too few", 16),
        (v2(0x21, 0x31, bytes(215)), "too few", 16),
        (v2(0x21, 0x11, b"", length=4097), "at most 4112", 16),
        (v2(0x20, 0x00, b"", length=65535), "at most 4112", 16),
    ],
)
def test_rejects_at_the_first_byte_that_shows_it(data: bytes, reason: str, at: int) -> None:
    check_rejected(parse, data, reason, at)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        (b"TCP4 1.2.3.4 1.2.3.4 1", "exactly two addresses"),
        (b"TCP4 1.2.3.4 1.2.3.4 1 2 3", "exactly two addresses"),
        (b"TCP4 1.2.3.4  1.2.3.4 1 2", "exactly two addresses"),
        (b"TCP4 1.2.3.4 1.2.3.4 1 2 ", "exactly two addresses"),
        (b"TCP4 ", "exactly two addresses"),
        (b"TCP4 01.2.3.4 1.2.3.4 1 2", "not a TCP4 address"),
        (b"TCP4 1.2.3 1.2.3.4 1 2", "not a TCP4 address"),
        (b"TCP4 1.2.3.256 1.2.3.4 1 2", "not a TCP4 address"),
        (b"TCP4 1.2.3.4/8 1.2.3.4 1 2", "not a TCP4 address"),
        (b"TCP4 1.2.3.\xb2 1.2.3.4 1 2", "not a TCP4 address"),
        (b"TCP4 ::1 ::1 1 2", "not a TCP4 address"),
        (b"TCP6 1.2.3.4 1.2.3.4 1 2", "not a TCP6 address"),
        (b"TCP6 ::1%lo ::1 1 2", "not a TCP6 address"),
        (b"TCP6 1::2::3 ::1 1 2", "not a TCP6 address"),
        (b"TCP6 ::12345 ::1 1 2", "not a TCP6 address"),
        (b"TCP6 [::1] ::1 1 2", "not a TCP6 address"),
        (b"TCP4 1.2.3.4 1.2.3.4 01 2", "port"),
        (b"TCP4 1.2.3.4 1.2.3.4 65536 2", "port"),
        (b"TCP4 1.2.3.4 1.2.3.4 1 100000", "port"),
        (b"TCP4 1.2.3.4 1.2.3.4 +1 2", "port"),
        (b"TCP4 1.2.3.4 1.2.3.4 -1 2", "port"),
        (b"TCP4 1.2.3.4 1.2.3.4 1_0 2", "port"),
        (b"TCP4 1.2.3.4 1.2.3.4 0x1 2", "port"),
    ],
)
def test_rejects_a_v1_line_that_is_not_canonical(fields: bytes, reason: str) -> None:
    data = b"PROXY " + fields + b"\r\n"
    check_rejected(parse, data, reason, len(data))


@PATIENT
@given(st.data())
def test_an_edited_v1_line_we_take_the_oracle_takes_alike(data: st.DataObject) -> None:
    base = build_v1(
        *data.draw(st.sampled_from([(b"\x0a\0\0\1", 80, b"\x0a\0\0\2", 443), (bytes(16), 1, b"\x20" * 16, 65535)]))
    )
    line = data.draw(edited(base))
    check_final(parse, line)
    header = parse(line)
    if isinstance(header, Header) and header.version == 1:
        assert ours(header) == seen(ProxyProtocolV1().unpack(line[: header.length]))


@PATIENT
@given(st.data())
def test_an_edited_v2_header_we_take_the_oracle_takes_alike(data: st.DataObject) -> None:
    base = build_v2(
        *data.draw(st.sampled_from([(b"\x0a\0\0\1", 80, b"\x0a\0\0\2", 443), (bytes(16), 1, b"\x20" * 16, 65535)]))
    )
    block = data.draw(edited(base))
    check_final(parse, block)
    header = parse(block)
    if isinstance(header, Header) and ours(header) and header.length in (28, 52):
        assert ours(header) == seen(ProxyProtocolV2().unpack(block[: header.length]))


@PATIENT
@given(
    st.sampled_from(
        [b"", b"P", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", SIGNATURE, SIGNATURE + b"\x21\x11"]
    ),
    st.binary(max_size=200) | st.text("0123456789abcdef.: \r\n", max_size=120).map(str.encode),
)
def test_any_bytes_have_one_final_answer(beginning: bytes, rest: bytes) -> None:
    check_final(parse, beginning + rest)
    assert parse(beginning + rest + bytes(V2_LIMIT_BYTES + 65536)) is not INCOMPLETE


def test_a_longer_v1_line_is_refused_even_if_it_could_be_read() -> None:
    line = b"PROXY TCP6 " + b" ".join([b"0000:0000:0000:0000:0000:ffff:255.255.255.255"] * 2) + b" 65535 65535\r\n"
    assert len(line) > V1_LIMIT_BYTES
    assert isinstance(parse(line), Reject)
