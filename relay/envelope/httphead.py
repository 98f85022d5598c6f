"""The first line of an HTTP connection, as far as relay needs it: is it HTTP."""

import re
from typing import Final, NamedTuple

from relay.envelope.verdict import INCOMPLETE, Incomplete, Reject

LIMIT_BYTES = 8192
"""How far into the connection the request line may reach, empty lines before it and its own end included. RFC 9112
section 3 recommends 8000 bytes as the least to support; 8 KiB is also what common servers take by default."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"  # RFC 9113 section 3.4

# RFC 9112 section 2.2: empty lines before the request line are ignored, and a bare LF may end a line.
_EMPTY_LINES = rb"(?:\r?\n)*"
_METHOD = rb"[-!#$%&'*+.^_`|~0-9A-Za-z]+"  # RFC 9110 section 5.6.2, token
# RFC 9112 section 3.2, wider: every byte but controls and space, as clients do send raw UTF-8 and servers take it.
_TARGET = rb"[^\x00-\x20\x7f]+"

_LINE = re.compile(rb"%b(%b) (%b) (HTTP/1\.[01])\r?\n" % (_EMPTY_LINES, _METHOD, _TARGET))


def _beginning_of(*parts: bytes) -> bytes:
    """A pattern for every beginning of the sequence of `parts`, the longest first."""
    pattern = b""
    for part in reversed(parts):
        pattern = b"(?:%b%b)?" % (part, pattern)
    return pattern


# No part can swallow a byte of the next one, so the match ends at the first byte that cannot be in a request line.
_BEGINNING = re.compile(
    _EMPTY_LINES
    + b"(?:\r|%b)?"
    % _beginning_of(_METHOD, b" ", _TARGET, b" ", b"H", b"T", b"T", b"P", b"/", b"1", rb"\.", b"[01]", b"\r")
)


class HttpHead(NamedTuple):
    """A request line's three parts as sent, or the HTTP/2 preface's (`PRI`, `*`, `HTTP/2.0`)."""

    method: bytes
    target: bytes
    version: bytes


def look(data: bytes) -> Incomplete | HttpHead | Reject:
    """Look at the start of a connection for an HTTP/1.0 or 1.1 request line or the whole HTTP/2 preface.

    Rejects at the first byte that makes it impossible. What follows the line is not looked at.
    Source: RFC 9112 sections 2.2 and 3; RFC 9113 section 3.4 (prior knowledge).
    """
    if data.startswith(_PREFACE):
        return HttpHead(b"PRI", b"*", b"HTTP/2.0")
    if _PREFACE.startswith(data):
        return INCOMPLETE
    if line := _LINE.match(data, 0, LIMIT_BYTES):
        return HttpHead(*line.groups())
    beginning = _BEGINNING.match(data, 0, LIMIT_BYTES)
    end = beginning.end() if beginning else 0
    if end < min(len(data), LIMIT_BYTES):
        return Reject(f"no HTTP request line: byte {end + 1} is 0x{data[end]:02x}")
    if len(data) >= LIMIT_BYTES:
        return Reject(f"no HTTP request line within {LIMIT_BYTES} bytes")
    return INCOMPLETE


# What only more of may come, where the line stands that is not whole: by how many spaces are in it.
_MORE_OF: Final = (re.compile(_METHOD), re.compile(_TARGET))
_MORE_EMPTY_LINES: Final = re.compile(_EMPTY_LINES + b"\r?")


class HttpHeadSoFar:
    """A request line that comes in pieces: while each is more of the method, the target or empty lines, it alone is read."""

    __slots__ = ("_at", "_more")

    def __init__(self) -> None:
        self._more: re.Pattern[bytes] | None = None  # what can come and change nothing; None: anything may
        self._at = 0  # from here on it is that

    def look(self, data: bytes) -> Incomplete | HttpHead | Reject:
        """As `look` of this module, of all that has come: `data` begins with what it was at the look before."""
        more, end = self._more, len(data)
        if more is None or end >= LIMIT_BYTES or not more.fullmatch(data, self._at):
            verdict = look(data)
            if verdict is not INCOMPLETE:
                return verdict
            spaces = data.count(b" ")
            if not data.strip(b"\r\n"):
                self._more = _MORE_EMPTY_LINES
            else:
                self._more = _MORE_OF[spaces] if spaces < len(_MORE_OF) and data[-1:] != b" " else None
        self._at = end - data.endswith(b"\r")  # with its LF it is an empty line
        return INCOMPLETE
