"""DNS messages, as much of them as an authoritative server on a loopback address needs: reading a query, writing an answer.

Pure: bytes in, bytes out. By hand, because a query comes from any program of the machine and must cost next to nothing
whatever it holds: a message library takes 0.2 ms for one address and reads a packet of records for as long as they last.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

# Types and classes (RFC 1035 section 3.2, RFC 3596, RFC 2782, RFC 6891).
A: Final = 1
NS: Final = 2
SOA: Final = 6
PTR: Final = 12
HINFO: Final = 13
AAAA: Final = 28
SRV: Final = 33
OPT: Final = 41
IXFR: Final = 251
AXFR: Final = 252
ANY: Final = 255
CLASS_IN: Final = 1

# Response codes (RFC 1035 section 4.1.1, RFC 6891 section 9).
NOERROR: Final = 0
FORMERR: Final = 1
NXDOMAIN: Final = 3
NOTIMP: Final = 4
REFUSED: Final = 5
BADVERS: Final = 16
RCODES: Final = {
    NOERROR: "NOERROR",
    FORMERR: "FORMERR",
    NXDOMAIN: "NXDOMAIN",
    NOTIMP: "NOTIMP",
    REFUSED: "REFUSED",
    BADVERS: "BADVERS",
}
"""Each response code that is given, and its name in RFC 1035 and RFC 6891."""

HEADER_BYTES: Final = 12
# A question has at most 271 bytes; what else a stub resolver sends (OPT, cookies, padding) fits many times over. It is
# also what bounds the time that reading takes.
QUERY_MAX_BYTES: Final = 4096
PLAIN_MAX_BYTES: Final = 512  # RFC 1035 section 2.3.4: an answer over UDP to who does not speak EDNS
# Of an answer over UDP: with IPv6 and UDP headers no link fragments it (DNS flag day 2020).
EDNS_MAX_BYTES: Final = 1232
TCP_MAX_BYTES: Final = 65535  # the length in front of a message has 16 bits

_LABEL_MAX_BYTES: Final = 63
_NAME_MAX_BYTES: Final = 255
_POINTER: Final = 0xC0  # the two highest bits of a length (RFC 1035 section 4.1.4)
_QR, _AA, _TC, _RD = 0x8000, 0x0400, 0x0200, 0x0100
_OPCODE: Final = 0x7800
_DO: Final = 0x8000  # RFC 3225: what the query has, its answer has
_OPT_BYTES: Final = 11

OWNER: Final = b"\xc0\x0c"
"""A pointer to the question's name: the owner of what answers it."""

Labels = tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Query:
    """One question. `asked` is the question as it came, with its letters' case; `name` is in lower case."""

    id: int
    recursion: bool  # RD, which an answer repeats
    asked: bytes
    name: Labels
    type: int
    class_: int
    edns_bytes: int | None = None  # what the client takes over UDP; None: it does not speak EDNS
    edns_version: int = 0
    edns_do: bool = False


class NotOurs(Exception):
    """A packet that gets no answer: too short to have a header, or an answer itself."""


class Unreadable(Exception):
    """A packet that gets a bare header for an answer: `reply`."""

    def __init__(self, packet: bytes, rcode: int) -> None:
        number, flags = struct.unpack_from("!HH", packet)
        self.reply = struct.pack("!HHHHHH", number, _QR | (flags & (_OPCODE | _RD)) | rcode, 0, 0, 0, 0)
        super().__init__(RCODES[rcode])


def wire_name(labels: Sequence[bytes]) -> bytes:
    """A name as a message has it, without compression (RFC 1035 section 3.1). Labels have 1 to 63 bytes."""
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def record(owner: bytes, type_: int, ttl_s: int, data: bytes) -> bytes:
    """One resource record; `owner` is a name or a pointer."""
    return owner + struct.pack("!HHIH", type_, CLASS_IN, ttl_s, len(data)) + data


def read_query(packet: bytes) -> Query:
    """The question in a packet. Raises NotOurs; or Unreadable: another opcode, or not one question and sound records."""
    if len(packet) < HEADER_BYTES:
        raise NotOurs
    number, flags, questions, *others = struct.unpack_from("!HHHHHH", packet)
    if flags & _QR:  # RFC 1035 section 4.1.1. Two servers that answer answers would never stop.
        raise NotOurs
    if flags & _OPCODE:
        raise Unreadable(packet, NOTIMP)
    if questions != 1 or len(packet) > QUERY_MAX_BYTES:
        raise Unreadable(packet, FORMERR)
    try:
        name, end = _question_name(packet)
        type_, class_ = struct.unpack_from("!HH", packet, end)
        edns = _edns(packet, end + 4, others)
    except (ValueError, IndexError, struct.error):
        raise Unreadable(packet, FORMERR) from None
    return Query(number, bool(flags & _RD), packet[HEADER_BYTES : end + 4], name, type_, class_, *edns)


def _question_name(packet: bytes) -> tuple[Labels, int]:
    labels: list[bytes] = []
    at = HEADER_BYTES
    while length := packet[at]:
        if length > _LABEL_MAX_BYTES:  # a pointer among them: there is nothing before a question to point at
            raise ValueError
        labels.append(packet[at + 1 : at + 1 + length].lower())
        at += 1 + length
    if at + 1 - HEADER_BYTES > _NAME_MAX_BYTES:
        raise ValueError
    return tuple(labels), at + 1


def _edns(packet: bytes, at: int, counts: Sequence[int]) -> tuple[int | None, int, bool]:
    """What the OPT record says, if there is one: it is looked for in records that are walked over and otherwise ignored."""
    found: tuple[int | None, int, bool] | None = None
    answers, authorities, additional = counts
    for n in range(answers + authorities + additional):
        start = at
        while 0 < packet[at] <= _LABEL_MAX_BYTES:
            at += 1 + packet[at]
        if 0 < packet[at] < _POINTER:
            raise ValueError
        at += 2 if packet[at] else 1
        type_, size_bytes, extended, length = struct.unpack_from("!HHIH", packet, at)
        at += 10 + length
        if at > len(packet):
            raise ValueError
        if type_ == OPT:
            # RFC 6891 section 6.1.1: one, of the root, in the additional section.
            if found is not None or packet[start] or n < answers + authorities:
                raise ValueError
            found = size_bytes, extended >> 16 & 0xFF, bool(extended & _DO)
    if at != len(packet):
        raise ValueError
    return found or (None, 0, False)


def limit_bytes(query: Query, *, tcp: bool) -> int:
    """How long the answer may be."""
    if tcp:
        return TCP_MAX_BYTES
    if query.edns_bytes is None:
        return PLAIN_MAX_BYTES
    return min(max(query.edns_bytes, PLAIN_MAX_BYTES), EDNS_MAX_BYTES)  # RFC 6891 section 6.2.3: less than 512 is 512


def room_bytes(query: Query, *, tcp: bool) -> int:
    """How many bytes of records an answer has room for."""
    opt_bytes = 0 if query.edns_bytes is None else _OPT_BYTES
    return limit_bytes(query, tcp=tcp) - HEADER_BYTES - len(query.asked) - opt_bytes


def write(
    query: Query,
    rcode: int,
    answers: Sequence[bytes] = (),
    authority: Sequence[bytes] = (),
    additional: Sequence[bytes] = (),
    *,
    authoritative: bool = True,
    truncated: bool = False,
) -> bytes:
    """The answer to a query, with these records in its sections. The caller has seen that there is room for them."""
    flags = _QR | (_RD if query.recursion else 0) | (_AA if authoritative else 0) | (_TC if truncated else 0)
    opt: tuple[bytes, ...] = ()
    if query.edns_bytes is not None:
        do = _DO if query.edns_do else 0
        opt = (struct.pack("!BHHBBHH", 0, OPT, EDNS_MAX_BYTES, rcode >> 4, 0, do, 0),)
    counts = 1, len(answers), len(authority), len(additional) + len(opt)
    head = struct.pack("!HHHHHH", query.id, flags | (rcode & 0xF), *counts)
    return b"".join((head, query.asked, *answers, *authority, *additional, *opt))


def rcode_of(answer: bytes) -> str:
    """The name of the response code of an answer that `write` or `Unreadable` made."""
    rcode = answer[3] & 0xF
    # An OPT record alone: the code's upper bits are in it. Every other NOERROR has an answer, or an SOA record.
    if rcode == NOERROR and answer[6:HEADER_BYTES] == b"\0\0\0\0\0\1":
        rcode |= answer[5 - _OPT_BYTES] << 4
    return RCODES[rcode]
