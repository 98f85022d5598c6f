"""The first message of a TLS connection, as far as relay needs it: is it one, for which name, for which protocols."""

from typing import Final, NamedTuple

from relay.envelope.verdict import INCOMPLETE, Incomplete, Reject

LIMIT_BYTES: Final = 5 + 2**14
"""How far into the connection a ClientHello may reach: one full record (RFC 8446 section 5.1: 5 bytes of header and at
most 2^14). The message's own length field allows 16 MiB (section 4), but a hello with post-quantum key shares has about
1.7 kB, and what is looked at stays in the socket's buffer until it is decided."""

_RECORD_HEADER_BYTES = 5
_RECORD_MAX_BYTES = 2**14
_MESSAGE_HEADER_BYTES = 4  # RFC 8446 section 4: type and a length of 3 bytes
_CONTENT_HANDSHAKE = 22  # RFC 8446 section 5.1
_CLIENT_HELLO = 1  # RFC 8446 section 4
_EXTENSION_SERVER_NAME = 0  # RFC 6066 section 3
_EXTENSION_ALPN = 16  # RFC 7301 section 3.1
_EXTENSION_HEADER_BYTES = 4  # RFC 8446 section 4.2: type and length
_NAME_TYPE_HOST = 0  # RFC 6066 section 3, the only one there is
_PAST_THE_END = "a field that reaches past the end of what holds it"
_HOST_MAX_BYTES = 255  # RFC 1035 section 2.3.4: no DNS name is longer


class Hello(NamedTuple):
    """A ClientHello. `sni` is the server name as sent, or None; `alpn` the offered protocols in the client's order.

    ALPN identifiers are opaque bytes: each byte is one character (ISO 8859-1), GREASE values (RFC 8701) included.
    """

    sni: str | None
    alpn: tuple[str, ...]


class _Wrong(Exception):
    """The bytes cannot become a ClientHello; the text says why."""


class _Short(Exception):
    """The bytes end before the message does."""


def look(data: bytes) -> Incomplete | Hello | Reject:
    """Look at the start of a connection for a TLS ClientHello, over as many records as it takes.

    Rejects as soon as a wrong field is complete; an extension is one field. What follows the message is not looked at.
    Version numbers are not judged beyond the record's 3: between client and server, supported_versions decides.
    Source: RFC 8446 sections 4.1.2, 4.2 and 5.1; RFC 6066 section 3; RFC 7301 section 3.1.
    """
    return HelloSoFar().look(data)


def _wrong_record(header: bytes) -> str:
    if header[0] != _CONTENT_HANDSHAKE:
        return f"a record of type {header[0]}, not handshake"
    if len(header) > 1 and header[1] != 3:
        return f"a record of major version {header[1]}, not 3"
    if len(header) == _RECORD_HEADER_BYTES and not 1 <= (length := header[3] << 8 | header[4]) <= _RECORD_MAX_BYTES:
        return f"a record of {length} bytes, not 1 to {_RECORD_MAX_BYTES}"
    return ""


class _Reader:
    """Reads fields in order up to `end`, which a length field declared; the bytes may end earlier."""

    __slots__ = ("at", "data", "end")

    def __init__(self, data: bytes, end: int) -> None:
        self.data = data
        self.end = end
        self.at = 0

    def skip(self, length: int) -> int:
        """Where the next `length` bytes begin. Raises _Wrong if they reach past `end`, _Short if they have not come."""
        start, self.at = self.at, self.at + length
        if self.at > self.end:
            raise _Wrong(_PAST_THE_END)
        if self.at > len(self.data):
            raise _Short
        return start

    def take(self, length: int) -> bytes:
        """The next `length` bytes. Raises as `skip`."""
        start = self.skip(length)
        return self.data[start : self.at]

    def number(self, width_bytes: int) -> int:
        """The number in so many bytes. Raises as `skip`."""
        value, start = 0, self.skip(width_bytes)
        for at in range(start, start + width_bytes):
            value = value << 8 | self.data[at]
        return value

    def vector(self, width_bytes: int, least: int, most: int) -> bytes:
        """A field with its length before it (RFC 8446 section 3.4)."""
        length = self.number(width_bytes)
        if not least <= length <= most:
            raise _Wrong(f"a vector of {length} bytes where {least} to {most} are allowed")
        return self.take(length)


class HelloSoFar(_Reader):
    """A ClientHello that comes in pieces: each look reads on where the one before stopped."""

    __slots__ = ("_alpn", "_extensions_at", "_left_bytes", "_message", "_sni", "_wire_at", "_wrong_record")

    def __init__(self) -> None:
        self._message = bytearray()  # what the records hold, up to the first wrong one
        super().__init__(b"", _MESSAGE_HEADER_BYTES)
        self._wire_at = 0  # so much of what has come is in the message
        self._left_bytes = 0  # of the record that this is in the midst of
        self._wrong_record = ""
        self._extensions_at = 0  # the first extension that was not whole; 0: what comes before them was not
        self._sni: str | None = None
        self._alpn: tuple[str, ...] = ()

    def look(self, data: bytes) -> Incomplete | Hello | Reject:
        """As `look` of this module, of all that has come: `data` begins with what it was at the look before."""
        if not self._wrong_record:
            self._unframe(data[:LIMIT_BYTES])
        try:
            return self._read()
        except _Wrong as wrong:
            return Reject(f"no TLS ClientHello: {wrong}")
        except _Short:
            # Judged last: a message that is whole, or wrong in itself, is not changed by the record after it.
            if self._wrong_record:
                return Reject(f"no TLS ClientHello: {self._wrong_record}")
            if len(data) >= LIMIT_BYTES:
                return Reject(f"no TLS ClientHello within {LIMIT_BYTES} bytes")
            return INCOMPLETE

    def _unframe(self, data: bytes) -> None:
        at, left = self._wire_at, self._left_bytes
        while at < len(data):
            if not left:
                header = data[at : at + _RECORD_HEADER_BYTES]
                self._wrong_record = _wrong_record(header)
                if self._wrong_record or len(header) < _RECORD_HEADER_BYTES:
                    break
                left = header[3] << 8 | header[4]
                at += _RECORD_HEADER_BYTES
            part = data[at : at + left]
            self._message += part
            at += len(part)
            left -= len(part)
        self._wire_at, self._left_bytes = at, left

    def _read(self) -> Hello:
        """Raises _Wrong, and _Short."""
        self.data = bytes(self._message)  # of a bytearray every number is dear; copying is what the kernel does as well
        # TLS 1.2 and before allow a hello without the extensions block (RFC 5246 section 7.4.1.2).
        if not self._extensions_at and not self._read_up_to_extensions():
            return Hello(None, ())
        # Written out: a hello has a dozen, and most are passed over.
        data, end, have = self.data, self.end, len(self.data)
        at = self._extensions_at
        while at < end:
            kind, after = 0, at + _EXTENSION_HEADER_BYTES
            if after <= have:
                kind = data[at] << 8 | data[at + 1]
                after += data[at + 2] << 8 | data[at + 3]
            if after > end:
                raise _Wrong(_PAST_THE_END)
            if after > have:
                raise _Short
            if kind in (_EXTENSION_SERVER_NAME, _EXTENSION_ALPN):
                self._read_extension(kind, data[at + _EXTENSION_HEADER_BYTES : after])
            at = self._extensions_at = after
        return Hello(self._sni, self._alpn)

    def _read_up_to_extensions(self) -> bool:
        """All that comes before them, from the start: it is short. Whether there are any."""
        self.at, self.end = 0, _MESSAGE_HEADER_BYTES
        kind = self.number(1)
        if kind != _CLIENT_HELLO:
            raise _Wrong(f"a handshake message of type {kind}")
        length = self.number(3)
        if length > _RECORD_MAX_BYTES - _MESSAGE_HEADER_BYTES:
            raise _Wrong(f"a message of {length} bytes, more than a record holds")
        self.end += length
        self.skip(2 + 32)  # legacy_version, random
        self.vector(1, 0, 32)  # legacy_session_id
        if len(self.vector(2, 2, 2**16 - 2)) % 2:
            raise _Wrong("half a cipher suite")
        self.vector(1, 1, 2**8 - 1)  # legacy_compression_methods
        if self.at == self.end:
            return False
        if self.number(2) != self.end - self.at:
            raise _Wrong("extensions that do not end where the message does")
        self._extensions_at = self.at
        return True

    def _read_extension(self, kind: int, body: bytes) -> None:
        # Section 4.2 forbids repetition. Here it would let the server see another name than relay did.
        if kind == _EXTENSION_SERVER_NAME:
            if self._sni is not None:
                raise _Wrong("two server_name extensions")
            self._sni = _server_name(body)
        elif kind == _EXTENSION_ALPN:
            if self._alpn:
                raise _Wrong("two ALPN extensions")
            self._alpn = _protocols(body)


def _server_name(body: bytes) -> str:
    """RFC 6066 section 3 allows one name of each type, and there is one type: exactly one name, then."""
    outer = _Reader(body, len(body))
    names = outer.vector(2, 1, 2**16 - 1)
    reader = _Reader(names, len(names))
    kind = reader.number(1)
    host = reader.vector(2, 1, _HOST_MAX_BYTES)
    if kind != _NAME_TYPE_HOST or outer.at != len(body) or reader.at != len(names):
        raise _Wrong("a server_name extension without exactly one host name")
    if not host.isascii() or b"\0" in host:
        raise _Wrong("a server name that is not ASCII, or holds a NUL")
    return host.decode("ascii")


def _protocols(body: bytes) -> tuple[str, ...]:
    outer = _Reader(body, len(body))
    names = outer.vector(2, 2, 2**16 - 1)
    if outer.at != len(body):
        raise _Wrong("an ALPN extension with bytes after its list")
    reader = _Reader(names, len(names))
    found = []
    while reader.at < reader.end:
        found.append(reader.vector(1, 1, 2**8 - 1).decode("latin-1"))
    return tuple(found)
