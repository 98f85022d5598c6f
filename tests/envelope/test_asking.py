"""What an edge asks of a relay, and what it is told."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from proxyprotocol.v2 import ProxyProtocolV2

from relay.envelope import asking, proxyproto


@pytest.mark.parametrize("asked", [asking.THROUGH, asking.RELAY, asking.LINE])
def test_what_is_asked_is_found_in_the_header(asked: int) -> None:
    data = asking.header(asked)
    header = proxyproto.parse(data + b"GET /")
    assert isinstance(header, proxyproto.Header)
    assert (header.src, header.length) == (None, len(data))
    assert asking.asked_in(header.tlvs) == asked


@pytest.mark.parametrize("asked", [asking.THROUGH, asking.RELAY, asking.LINE])
def test_another_implementation_finds_a_header_of_the_senders_own(asked: int) -> None:
    result = ProxyProtocolV2().unpack(asking.header(asked))
    assert result.source is None


@pytest.mark.parametrize(
    ("tlvs", "asked"),
    [
        (b"", asking.NOTHING),
        (b"\xe0\x00\x01\x01", asking.THROUGH),
        (b"\xe0\x00\x01\x02", asking.RELAY),
        (b"\xe0\x00\x01\x03", asking.TAKEN),
        (b"\xe0\x00\x01\x03\xe0\x00\x01\x01", asking.TAKEN),
        (b"\xe0\x00\x01\x04", asking.LINE),
        (b"\xe0\x00\x01\x7f\xe0\x00\x01\x01", asking.THROUGH),
        (b"\xe0\x00\x00", asking.NOTHING),
        (b"\xe0\x00\x02\x01\x01", asking.NOTHING),
        (b"\xe1\x00\x01\x01", asking.NOTHING),
        (b"\x02\x00\x03abc\xe0\x00\x01\x02", asking.RELAY),
        (b"\xe0\x00", asking.NOTHING),
        (b"\xe0\xff\xff\x01", asking.NOTHING),
    ],
)
def test_a_question_among_other_things(tlvs: bytes, asked: int) -> None:
    assert asking.asked_in(tlvs) == asked


@given(st.binary(max_size=64))
def test_whatever_comes_is_read_to_its_end(tlvs: bytes) -> None:
    assert asking.asked_in(tlvs) in (asking.NOTHING, asking.THROUGH, asking.RELAY, asking.TAKEN, asking.LINE)


def test_a_header_of_a_client_asks_nothing() -> None:
    header = proxyproto.parse(proxyproto.build_v2(bytes(4), 1, bytes(4), 2))
    assert isinstance(header, proxyproto.Header)
    assert header.tlvs == b""


def test_a_header_of_a_client_asks_whether_it_was_taken() -> None:
    for address in (bytes(4), bytes(16)):
        data = proxyproto.build_v2(address, 1, address, 2, asking.tlv(asking.TAKEN))
        header = proxyproto.parse(data + b"GET")
        assert isinstance(header, proxyproto.Header)
        assert (header.length, header.src_port, asking.asked_in(header.tlvs)) == (len(data), 1, asking.TAKEN)


def test_that_all_is_well_and_what_may_become_that() -> None:
    assert all(asking.is_well(asking.WELL[:n]) for n in range(1, len(asking.WELL)))
    assert asking.is_well(asking.WELL + b"HTTP/1.1 200 OK")
    assert not any(asking.is_well(data) for data in (b"", b"\x01\x02", b"\x01relay: no\n", asking.refusal(1, "")))


def test_a_refusal_and_its_number() -> None:
    answer = asking.refusal(65647, "connection refused")
    assert answer == b"\x00relay: 65647 connection refused\n"
    for n in range(1, len(answer)):
        assert asking.is_refusal(answer[:n])
        assert asking.number_in(answer[:n]) is None
    assert asking.number_in(answer) == b"65647"
    assert len(asking.refusal(1, "x" * 10_000)) <= 1100
    assert asking.number_in(asking.refusal(1, "x" * 10_000)) == b"1"


@pytest.mark.parametrize("data", [b"", b"\x01", b"HTTP/1.1 200 OK", b"\x00\x00", b"\x00relais", asking.WELL])
def test_no_refusal(data: bytes) -> None:
    assert not asking.is_refusal(data)


@given(st.text(), st.binary(max_size=8))
def test_the_endpoint_that_is_named(name: str, other: bytes) -> None:
    before = b"\x02" + len(other).to_bytes(2) + other  # some other TLV
    tlvs = before + asking.tlv(asking.TAKEN) + asking.endpoint_tlv(name)
    assert (asking.endpoint_in(tlvs), asking.asked_in(tlvs)) == (name, asking.TAKEN)
    assert asking.endpoint_in(tlvs[:-1]) == "", "it is not whole"
    header = proxyproto.parse(asking.header(asking.RELAY, endpoint=name))
    assert isinstance(header, proxyproto.Header)
    assert asking.endpoint_in(header.tlvs) == name


@given(st.binary(max_size=64))
def test_a_name_of_any_bytes_is_read(value: bytes) -> None:
    tlvs = b"\xe1" + len(value).to_bytes(2) + value
    assert asking.endpoint_in(tlvs) == value.decode(errors="replace")
    assert asking.endpoint_in(value[:2]) == ""


@pytest.mark.parametrize(
    ("data", "may"), [(asking.TOOK, True), (asking.WELL, True), (b"\0relay: 1 x", True), (b"", False), (b"220 ", False)]
)
def test_what_may_be_a_relays_answer(data: bytes, may: bool) -> None:
    assert asking.may_be_relays(data) is may
