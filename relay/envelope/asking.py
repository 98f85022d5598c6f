"""What an edge, or a door out, asks of an instance's relay, and what comes back. Pure.

It asks in a PROXY v2 header, by a TLV of a type that the specification leaves to applications (0xE0 to 0xEF: section
2.2.7). A relay that does not know it skips it, and connects to the application, as for every header.

In a header that says that the connection is the edge's own (LOCAL): how the application is. In a client's: whether the
target has taken the connection, which the first byte of the answer says.

At an instance's `relay_port` another TLV (0xE1) names the endpoint that the connection is for, as `role/endpoint` in UTF-8.
"""

import struct
from collections.abc import Iterator
from typing import Final

from relay.envelope import proxyproto

NOTHING: Final = 0
THROUGH: Final = 1
"""Let me through to the application; where it does not take the connection, say why."""
RELAY: Final = 2
"""Say how the application is, as far as you know, and do not ask it."""
TAKEN: Final = 3
"""The same as THROUGH; and where the application takes the connection, say so before all that it says."""
LINE: Final = 4
"""Hold a line with me: say whether you take new connections, OPEN or BUSY, now and at every change. I say each after you."""

_KNOWN: Final = (THROUGH, RELAY, TAKEN, LINE)
_TYPE: Final = 0xE0
_ENDPOINT_TYPE: Final = 0xE1
_TLV: Final = struct.Struct("!BHB")  # section 2.2: type, length, and the value that is one byte here
_HEAD: Final = struct.Struct("!BH")

TOOK: Final = b"\x01"
"""The answer to a client's TAKEN, once the target has taken the connection."""
WELL: Final = b"\x01relay: taken\n"
"""The answer to RELAY of who would send connections on, and to an edge's own TAKEN. Who says so knows a client's TAKEN."""
BUSY: Final = b"\x00"
"""On a line: send me no new connections."""
OPEN: Final = b"\x01"
"""On a line: send them. The two take turns, and this one is the first."""
_REFUSED: Final = b"\x00relay: "
ANSWER_MAX_BYTES: Final = 1024
"""No answer is longer."""


def tlv(asked: int) -> bytes:
    """What asks this, in a header."""
    return _TLV.pack(_TYPE, 1, asked)


def endpoint_tlv(name: str) -> bytes:
    """What names the endpoint `role/endpoint`, in a header."""
    value = name.encode()
    return _HEAD.pack(_ENDPOINT_TYPE, len(value)) + value


def header(*asked: int, endpoint: str = "") -> bytes:
    """The header of a probe that asks this; of several questions a relay answers the first one that it knows.

    `endpoint`: of which endpoint, where the port does not say it.
    """
    tlvs = b"".join(map(tlv, asked)) + (endpoint_tlv(endpoint) if endpoint else b"")
    return proxyproto.local_v2(tlvs)


def asked_in(tlvs: bytes) -> int:
    """What is asked in a header with these TLVs: NOTHING where it is nothing that is known."""
    for kind, value in _values(tlvs):
        if kind == _TYPE and len(value) == 1 and value[0] in _KNOWN:
            return value[0]
    return NOTHING


def endpoint_in(tlvs: bytes) -> str:
    """The endpoint that a header with these TLVs names; empty where it names none."""
    return next((value.decode(errors="replace") for kind, value in _values(tlvs) if kind == _ENDPOINT_TYPE), "")


def _values(tlvs: bytes) -> Iterator[tuple[int, bytes]]:
    """Each TLV's type and value, as far as they are whole."""
    while len(tlvs) >= _HEAD.size:
        kind, length = _HEAD.unpack_from(tlvs)
        value, tlvs = tlvs[_HEAD.size : _HEAD.size + length], tlvs[_HEAD.size + length :]
        if len(value) == length:
            yield kind, value


def refusal(number: int, text: str) -> bytes:
    """The answer of who does not send connections on: why, as a number (targets/why.py) and in words for people."""
    return _REFUSED + f"{number} {text}\n".encode()[: ANSWER_MAX_BYTES - len(_REFUSED)]


def is_refusal(data: bytes) -> bool:
    """Whether what came first is a refusal, or may become one: no protocol of an application begins like that."""
    return bool(data) and _REFUSED.startswith(data[: len(_REFUSED)])


def may_be_relays(data: bytes) -> bool:
    """Whether what came first can be a relay's answer to a client's TAKEN."""
    return data.startswith(TOOK) or is_refusal(data)


def is_well(data: bytes) -> bool:
    """The same of WELL."""
    return bool(data) and WELL.startswith(data[: len(WELL)])


def number_in(data: bytes) -> bytes | None:
    """The number in a refusal, as it is written; None: it is not whole yet."""
    if b"\n" not in data and len(data) < ANSWER_MAX_BYTES:
        return None
    return data.removeprefix(_REFUSED).split(b" ", 1)[0]
