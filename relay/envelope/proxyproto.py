"""The PROXY protocol, versions 1 and 2: who the client of a forwarded connection is.

Source: https://www.haproxy.org/download/2.9/doc/proxy-protocol.txt (2020/03/05), "the specification" below.
"""

import re
import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

from relay.address import map_host, unmap
from relay.envelope.verdict import INCOMPLETE, Incomplete, Reject

V1_LIMIT_BYTES = 107
"""The longest version 1 line, CRLF included (section 2.1: the worst case, UNKNOWN with all fields)."""

_V2_FIXED = struct.Struct("!12sBBH")
_V2_FIXED_BYTES = _V2_FIXED.size
V2_LIMIT_BYTES = _V2_FIXED_BYTES + 4096
"""The longest version 2 header taken. The length field allows 64 KiB, but senders keep to one small segment (536 bytes,
section 2). 4096 leaves room for large TLVs (a certificate's name, a cloud's identifiers) and bounds what an unproven
peer makes us hold."""

_V1_BEGINNINGS = (b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN ", b"PROXY UNKNOWN\r")
_V1_LINE_END = re.compile(rb"[\r\n]")
_V1_PORT = re.compile(rb"0|[1-9][0-9]{0,4}")

_V2_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_LOCAL, _V2_PROXY = 0x20, 0x21
_V2_TCP4, _V2_TCP6 = 0x11, 0x21
_V2_TCP4_BLOCK = struct.Struct("!4s4sHH")
_V2_TCP6_BLOCK = struct.Struct("!16s16sHH")
LOCAL_V1 = b"PROXY UNKNOWN\r\n"
"""In version 1 a connection that the sender made for itself cannot be told from one of an unknown client (section 2.1)."""

# Section 2.2: family (high four bits) to the bytes of its two addresses and ports. Others are invalid.
_V2_BLOCK_BYTES = {0x0: 0, 0x1: 12, 0x2: 36, 0x3: 216}
_V2_LAST_TRANSPORT = 0x2


@dataclass(frozen=True)  # Cython takes no `slots`; compiled, proxyproto.pxd has the fields
class Header:
    """One PROXY header.

    `src` and `dst` are packed addresses (IPv4-mapped ones as the 4 bytes of IPv4), with their TCP ports. Both are None,
    and the ports 0, where the header names no TCP client (UNKNOWN, LOCAL, UNSPEC, datagrams, Unix sockets): then the
    connection's own addresses hold. `length` is the header's exact length in bytes, `version` is 1 or 2.

    `is_local`: the sender made the connection for itself (the command LOCAL). Every other one is somebody's, named or not.
    """

    src: bytes | None
    src_port: int
    dst: bytes | None
    dst_port: int
    length: int
    version: int
    tlvs: bytes = b""  # behind a TCP client's addresses, and of a LOCAL header without any
    is_local: bool = False


def local_v2(tlvs: bytes = b"") -> bytes:
    """The header of a connection that the sender made for itself, such as a probe, with these TLVs. Source: section 2.2."""
    return _V2_FIXED.pack(_V2_SIGNATURE, _V2_LOCAL, 0x00, len(tlvs)) + tlvs


LOCAL_V2 = local_v2()
"""The same without any."""


def build_v1(src: bytes | None, src_port: int, dst: bytes | None, dst_port: int) -> bytes:
    """The version 1 line for a client `src` that connected to `dst` (packed, 4 or 16 bytes); UNKNOWN if one is None.

    IPv4-mapped addresses are written as IPv4; if only one side is IPv4, both are written as IPv6.
    Raises ValueError on another address length or a port outside 0..65535. Source: section 2.1.
    """
    if src is None or dst is None:
        return LOCAL_V1
    src, dst = _one_family(src, dst)
    _check_ports(src_port, dst_port)
    family = "TCP4" if len(src) == 4 else "TCP6"
    return f"PROXY {family} {_text(src)} {_text(dst)} {src_port} {dst_port}\r\n".encode("ascii")


def build_v2(src: bytes | None, src_port: int, dst: bytes | None, dst_port: int, tlvs: bytes = b"") -> bytes:
    """The version 2 header for the same arguments as `build_v1`: 28 bytes for IPv4, 52 for IPv6, 16 for UNSPEC; and `tlvs`.

    UNSPEC keeps the command PROXY: LOCAL is for connections that the sender made for itself. Source: section 2.2.
    """
    if src is None or dst is None:
        return _V2_FIXED.pack(_V2_SIGNATURE, _V2_PROXY, 0x00, len(tlvs)) + tlvs
    src, dst = _one_family(src, dst)
    _check_ports(src_port, dst_port)
    family, block = (_V2_TCP4, _V2_TCP4_BLOCK) if len(src) == 4 else (_V2_TCP6, _V2_TCP6_BLOCK)
    fixed = _V2_FIXED.pack(_V2_SIGNATURE, _V2_PROXY, family, block.size + len(tlvs))
    return fixed + block.pack(src, dst, src_port, dst_port) + tlvs


def parse(data: bytes) -> Incomplete | Header | Reject:
    """Read the PROXY header at the start of `data`, of either version.

    TLVs are left to the caller; the checksum among them is not looked at (section 2.2.3 leaves it to receivers that support
    it).
    """
    if data.startswith(b"P"):
        return _parse_v1(data[:V1_LIMIT_BYTES])
    return _parse_v2(data)


def _parse_v1(data: bytes) -> Incomplete | Header | Reject:
    if not any(beginning.startswith(data[: len(beginning)]) for beginning in _V1_BEGINNINGS):
        return Reject("no PROXY header: the line does not begin with PROXY TCP4, TCP6 or UNKNOWN")
    found = _V1_LINE_END.search(data)
    end = found.start() if found else len(data)
    if end + 2 > V1_LIMIT_BYTES:
        return Reject(f"PROXY v1 line without CRLF in its first {V1_LIMIT_BYTES} bytes")
    if not b"\r\n".startswith(data[end : end + 2]):
        return Reject("PROXY v1 line with a CR or LF alone")
    if len(data) < end + 2:
        return INCOMPLETE
    line, length = data[:end], end + 2
    if line == b"PROXY UNKNOWN" or line.startswith(b"PROXY UNKNOWN "):
        return Header(None, 0, None, 0, length, 1)
    return _v1_addresses(line, length)


def _v1_addresses(line: bytes, length: int) -> Header | Reject:
    fields = line.split(b" ")
    if len(fields) != 6:
        return Reject("PROXY v1 line without exactly two addresses and two ports, one space before each")
    try:
        src, dst = (_packed(text, fields[1]) for text in fields[2:4])
    except ValueError:
        return Reject(f"PROXY v1 line with an address that is not a {fields[1].decode('ascii')} address")
    if not all(_V1_PORT.fullmatch(text) and int(text) <= 0xFFFF for text in fields[4:6]):
        return Reject("PROXY v1 line with a port that is not a decimal number in 0..65535 without leading zeros")
    return Header(unmap(src), int(fields[4]), unmap(dst), int(fields[5]), length, 1)


def _parse_v2(data: bytes) -> Incomplete | Header | Reject:
    have, command, family = len(data), _V2_PROXY, _V2_TCP4  # nothing is wrong with what has not come
    if not _V2_SIGNATURE.startswith(data[:12]):
        return Reject("no PROXY header: the signature does not match")
    if have > 12:
        command = data[12]
    if have > 13:
        family = data[13]
    if command != _V2_LOCAL and command != _V2_PROXY:
        return Reject(f"PROXY v2 header with version and command 0x{command:02x}")
    if command == _V2_PROXY and not _v2_known(family):
        return Reject(f"PROXY v2 header with family and transport 0x{family:02x}")
    if have < _V2_FIXED_BYTES:
        return INCOMPLETE
    rest_bytes = data[14] << 8 | data[15]
    length = _V2_FIXED_BYTES + rest_bytes
    if length > V2_LIMIT_BYTES:
        return Reject(f"PROXY v2 header of {length} bytes; at most {V2_LIMIT_BYTES} are taken")
    # With UNSPEC as transport, nothing is said of a block; of LOCAL's, everything is ignored.
    if command == _V2_PROXY and family & 0x0F and rest_bytes < _V2_BLOCK_BYTES[family >> 4]:
        return Reject(f"PROXY v2 header with {rest_bytes} bytes, too few for the addresses of its family")
    if have < length:
        return INCOMPLETE
    if command == _V2_PROXY and family in (_V2_TCP4, _V2_TCP6):
        return _v2_addresses(data, 4 if family == _V2_TCP4 else 16, length)
    is_local = command == _V2_LOCAL
    tlvs = data[_V2_FIXED_BYTES:length] if is_local and not family else b""
    return Header(None, 0, None, 0, length, 2, tlvs, is_local)


def _v2_addresses(data: bytes, host_bytes: int, length: int) -> Header:
    """The header of so many bytes whose two hosts have so many each, and then the ports."""
    dst = _V2_FIXED_BYTES + host_bytes
    ports = dst + host_bytes
    src_port, dst_port = data[ports] << 8 | data[ports + 1], data[ports + 2] << 8 | data[ports + 3]
    src_host, dst_host = unmap(data[_V2_FIXED_BYTES:dst]), unmap(data[dst:ports])
    return Header(src_host, src_port, dst_host, dst_port, length, 2, data[ports + 4 : length])


def _v2_known(family: int) -> bool:
    return family >> 4 in _V2_BLOCK_BYTES and family & 0x0F <= _V2_LAST_TRANSPORT


def _packed(text: bytes, family: bytes) -> bytes:
    """Raises ValueError. The dotted tail of ::ffff:192.0.2.1 is taken: inet_ntop(3) writes mapped addresses so."""
    if family == b"TCP4":
        return IPv4Address(text.decode("ascii")).packed
    if b"%" in text:
        raise ValueError("a zone is not part of an address on the wire")
    return IPv6Address(text.decode("ascii")).packed


def _one_family(src: bytes, dst: bytes) -> tuple[bytes, bytes]:
    src, dst = unmap(src), unmap(dst)
    for packed in (src, dst):
        if len(packed) not in (4, 16):
            raise ValueError(f"a packed address has 4 or 16 bytes, not {len(packed)}")
    if len(src) == len(dst):
        return src, dst
    return map_host(src), map_host(dst)


def _text(packed: bytes) -> str:
    if len(packed) == 4:
        return str(IPv4Address(packed))
    if len(unmap(packed)) == 4:
        # Section 2.1 knows hexadecimal groups only; str() of a mapped address is dotted from Python 3.13 on.
        return f"::ffff:{packed[12:14].hex()}:{packed[14:].hex()}"
    return str(IPv6Address(packed))


def _check_ports(*ports: int) -> None:
    for port in ports:
        if not 0 <= port <= 0xFFFF:
            raise ValueError(f"port {port} is not between 0 and 65535")
