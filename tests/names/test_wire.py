"""DNS messages against dnspython, in both directions, and what random packets do."""

import struct
from typing import Any

import dns.edns
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.names import wire
from relay.names.wire import NotOurs, Query, Unreadable, limit_bytes, rcode_of, read_query, room_bytes, write
from tests.harness import examples

LABELS = st.lists(st.binary(min_size=1, max_size=63), max_size=3)


@examples(200)
@given(
    labels=LABELS,
    type_=st.integers(1, 65535),
    class_=st.integers(1, 65535),
    number=st.integers(0, 65535),
    recursion=st.booleans(),
    edns=st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 255), st.booleans()),
    cookie=st.binary(min_size=8, max_size=8),
)
def test_what_the_oracle_asks_we_read(
    labels: list[bytes],
    type_: int,
    class_: int,
    number: int,
    recursion: bool,
    edns: tuple[int, int, bool] | None,
    cookie: bytes,
) -> None:
    name = dns.name.Name([*labels, b""])
    asked = dns.message.make_query(
        name, dns.rdatatype.RdataType.make(type_), dns.rdataclass.RdataClass.make(class_), id=number
    )
    if not recursion:
        asked.flags &= ~dns.flags.RD
    if edns is not None:
        size_bytes, version, do = edns
        options: list[dns.edns.Option] = [dns.edns.GenericOption(dns.edns.OptionType.COOKIE, cookie)]
        asked.use_edns(version, dns.flags.DO if do else 0, size_bytes, options=options)
    packet = asked.to_wire()
    query = read_query(packet)
    assert (query.id, query.recursion, query.type, query.class_) == (number, recursion, type_, class_)
    assert query.name == tuple(label.lower() for label in labels)
    assert packet[12:].startswith(query.asked)
    read = None if query.edns_bytes is None else (query.edns_bytes, query.edns_version, query.edns_do)
    assert read == edns


@examples(200)
@given(packet=st.binary(max_size=80) | st.binary(min_size=12, max_size=80).map(lambda tail: b"\0\0\1\0\0\1" + tail))
def test_a_random_packet_is_read_or_refused(packet: bytes) -> None:
    if len(packet) < 12 or packet[2] & 0x80:
        with pytest.raises(NotOurs):
            read_query(packet)
        return
    try:
        query = read_query(packet)
    except Unreadable as error:
        written = error.reply
    else:
        assert query.asked in packet
        return
    reply = dns.message.from_wire(written)
    assert reply.id == int.from_bytes(packet[:2])
    assert reply.flags & dns.flags.QR
    assert reply.rcode() in (dns.rcode.FORMERR, dns.rcode.NOTIMP)
    assert len(written) == 12


def asked_for(name: str = "web.shop.internal.", kind: str = "A", **keys: Any) -> dns.message.QueryMessage:
    return dns.message.make_query(name, kind, **keys)


@examples(200)
@given(data=st.data())
def test_an_edited_query_we_take_the_oracle_takes(data: st.DataObject) -> None:
    """Of packets that are nearly right we take none that it refuses, but for what is in records that are walked over."""
    packet = bytearray(asked_for(use_edns=0, payload=1232).to_wire())
    for _ in range(data.draw(st.integers(1, 3))):
        packet[data.draw(st.integers(2, len(packet) - 1))] = data.draw(st.integers(0, 255))
    try:
        query = read_query(bytes(packet))
    except (NotOurs, Unreadable):
        return
    try:
        theirs = dns.message.from_wire(bytes(packet))
    except dns.exception.DNSException:
        assert any(packet[6:12]), "the difference is in the question"
        assert query.edns_bytes is None, "the difference is in OPT"
        return
    (question,) = theirs.question
    assert question.name.canonicalize().labels[:-1] == query.name
    assert (question.rdtype, question.rdclass) == (query.type, query.class_)


def edited(packet: bytes, at: int, value: bytes) -> bytes:
    return packet[:at] + value + packet[at + len(value) :]


# One id: these are in the names of tests, which are the same in every process.
PLAIN = asked_for(id=1).to_wire()
WITH_OPT = asked_for(use_edns=0, id=1).to_wire()


@pytest.mark.parametrize(
    ("packet", "rcode"),
    [
        (edited(PLAIN, 2, b"\x09"), "NOTIMP"),  # opcode 1, and RD
        (edited(PLAIN, 2, b"\x28"), "NOTIMP"),  # UPDATE
        (edited(PLAIN, 4, b"\0\0"), "FORMERR"),  # no question
        (edited(PLAIN, 4, b"\0\2"), "FORMERR"),  # two (RFC 9619)
        (PLAIN[:12], "FORMERR"),
        (PLAIN[:-1], "FORMERR"),
        (PLAIN + b"\0", "FORMERR"),
        (edited(PLAIN, 12, b"\xc0\x0c"), "FORMERR"),  # a name that points at itself
        (edited(PLAIN, 12, b"\x40"), "FORMERR"),
        (edited(WITH_OPT, 10, b"\0\2"), "FORMERR"),  # one record less than it says
        (edited(WITH_OPT, 10, b"\xff\xff"), "FORMERR"),
        (edited(WITH_OPT, 6, b"\0\1\0\0\0\0"), "FORMERR"),  # OPT among the answers
        (edited(WITH_OPT + WITH_OPT[-11:], 10, b"\0\2"), "FORMERR"),  # two of them
        (edited(PLAIN, 10, b"\0\1") + b"\1x\0" + WITH_OPT[-10:], "FORMERR"),  # OPT that is not the root's
        (edited(PLAIN, 10, b"\0\1") + b"\x80" + WITH_OPT[-10:], "FORMERR"),
        (edited(WITH_OPT, len(WITH_OPT) - 2, b"\0\1"), "FORMERR"),  # an option that is not there
        (PLAIN + bytes(5000), "FORMERR"),
        (PLAIN[:12] + (b"\x3f" + b"x" * 63) * 4 + b"\0" + PLAIN[-4:], "FORMERR"),  # a name of 257 bytes
    ],
)
def test_what_gets_a_bare_header(packet: bytes, rcode: str) -> None:
    with pytest.raises(Unreadable, match=rcode) as caught:
        read_query(packet)
    reply = dns.message.from_wire(caught.value.reply)
    assert dns.rcode.to_text(reply.rcode()) == rcode == rcode_of(caught.value.reply)
    assert reply.flags & dns.flags.RD == dns.message.from_wire(PLAIN).flags & dns.flags.RD or packet[2] == 0x28
    assert reply.opcode() == (packet[2] >> 3 & 0xF)
    assert reply.question == []


@pytest.mark.parametrize("packet", [b"", b"\0", PLAIN[:11], edited(PLAIN, 2, b"\x81")])
def test_what_gets_nothing(packet: bytes) -> None:
    with pytest.raises(NotOurs):
        read_query(packet)


def test_other_records_are_walked_over() -> None:
    asked = asked_for(use_edns=0)
    asked.authority.append(dns.message.from_text("id 1\n;ANSWER\nshop.internal. 5 IN NS ns.shop.internal.").answer[0])
    asked.additional.append(dns.message.from_text("id 1\n;ANSWER\nx.y. 5 IN TXT z").answer[0])
    assert read_query(asked.to_wire()).edns_bytes == asked.payload


@pytest.mark.parametrize(
    ("keys", "udp_bytes"),
    [
        ({}, 512),
        ({"use_edns": 0, "payload": 0}, 512),
        ({"use_edns": 0, "payload": 700}, 700),
        ({"use_edns": 0, "payload": 4096}, 1232),
    ],
)
def test_how_long_an_answer_may_be(keys: dict[str, Any], udp_bytes: int) -> None:
    query = read_query(asked_for(**keys).to_wire())
    assert limit_bytes(query, tcp=False) == udp_bytes
    assert limit_bytes(query, tcp=True) == 65535
    bare = write(query, wire.NOERROR)
    assert room_bytes(query, tcp=False) == udp_bytes - len(bare)


@pytest.mark.parametrize("rcode", sorted(wire.RCODES))
@pytest.mark.parametrize("records", [0, 1])
def test_what_we_write_the_oracle_reads(rcode: int, records: int) -> None:
    asked = asked_for("wEb.Shop.internal.", want_dnssec=True)
    query = read_query(asked.to_wire())
    # An address whose bytes look like an OPT record must not change what the answer is counted as.
    one = wire.record(wire.OWNER, wire.AAAA, 5, bytes(5) + b"\0\0\x29\0\0\0\7\0\0\0\0")
    answer = write(query, rcode, [one] * records, [one], [one], truncated=bool(records))
    read = dns.message.from_wire(answer)
    assert asked.is_response(read)
    assert [(str(each.name), each.ttl) for each in read.answer] == [("wEb.Shop.internal.", 5)] * records
    assert (len(read.authority), len(read.additional)) == (1, 1)
    assert read.rcode() == rcode
    assert (read.edns, read.payload, bool(read.ednsflags & dns.flags.DO)) == (0, 1232, True)
    assert bool(read.flags & dns.flags.TC) == bool(records)
    assert read.flags & dns.flags.AA
    assert read.flags & dns.flags.RD
    assert not read.flags & dns.flags.RA


def test_the_name_of_a_code() -> None:
    query = read_query(WITH_OPT)
    assert rcode_of(write(query, wire.BADVERS)) == "BADVERS"
    one = wire.record(wire.OWNER, wire.A, 5, bytes(4))
    assert rcode_of(write(query, wire.NOERROR, [one])) == "NOERROR"
    plain = read_query(PLAIN)
    tricky = wire.record(wire.OWNER, wire.AAAA, 5, bytes(5) + b"\0\0\x29\0\0\7\7\0\0\0\0")
    assert rcode_of(write(plain, wire.NOERROR, [tricky], (), [tricky])) == "NOERROR"


def test_names_and_records() -> None:
    assert wire.wire_name((b"web", b"internal")) == dns.name.from_text("web.internal.").to_wire()
    assert wire.wire_name(()) == b"\0"
    assert wire.record(b"\0", 1, 5, b"abcd") == b"\0" + struct.pack("!HHIH", 1, 1, 5, 4) + b"abcd"
    assert Query(1, True, b"", (), 1, 1).edns_bytes is None
