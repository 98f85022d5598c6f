"""Why a target is down or a dial failed: one number, so that it fits a word of the ledger, and its text. Pure.

A number is a kind and a value, `kind << 16 | value`; 0 is nothing. An instance's relay tells it to its edges, so what a
number means is a promise: kinds are added at the end.
"""

import errno
import os
from typing import Final

BITS: Final = 22
"""How many bits a number takes."""

NOTHING: Final = 0
"""No failure."""

_VALUE_BITS: Final = 16
_VALUE_MAX: Final = (1 << _VALUE_BITS) - 1
_ERRNO, _NO_ANSWER, _STATUS, _OTHER = 1, 2, 3, 4

_OTHERS: Final = (
    "the answer is not HTTP",
    "closes the connection without an answer",
    "TLS fails",
    "is not a socket",
    "its backlog is full",
    "asks for no new connections (`relay drain`)",
    "its relay says that it is down",
    "its relay refuses this client: see its log",
    "holds new connections (`relay hold`)",
    "the answer is not what is expected",
    "its certificate is not valid for its name or address",
    "its certificate is not valid at this time",
    "its certificate is signed by nobody whom this machine trusts",
)
"""Texts of the kind that has no value of its own, in the order of their numbers, which count from 1."""

(
    NOT_HTTP, CLOSED, NO_TLS, NOT_A_SOCKET, BACKLOG_FULL, BUSY, TOLD, DENIED, HELD,
    UNEXPECTED, NOT_ITS_NAME, NOT_NOW, NOT_TRUSTED,
) = (_OTHER << _VALUE_BITS | n for n in range(1, len(_OTHERS) + 1))  # fmt: skip
_OF_RELAY: Final = 1 << 21  # on an edge: it is the relay of the instance that does not answer
RESET: Final = _ERRNO << _VALUE_BITS | errno.ECONNRESET


def of_error(code: int | None) -> int:
    """An OS error by its number: errno(3)."""
    return _ERRNO << _VALUE_BITS | min(code or errno.EIO, _VALUE_MAX)


def no_answer(within_s: float) -> int:
    """Nothing came for so long."""
    return _NO_ANSWER << _VALUE_BITS | min(round(within_s * 10), _VALUE_MAX)


def http_status(status: int) -> int:
    """The application answered with this status."""
    return _STATUS << _VALUE_BITS | min(status, _VALUE_MAX)


def of_certificate(verify_code: int) -> int:
    """TLS found the other side's certificate wrong. Source: X509_STORE_CTX_get_error(3) of OpenSSL, for its numbers."""
    if verify_code in (62, 64):  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
        return NOT_ITS_NAME
    return NOT_NOW if verify_code in (9, 10) else NOT_TRUSTED  # X509_V_ERR_CERT_NOT_YET_VALID, ..._HAS_EXPIRED


def of_relay(number: int) -> int:
    """The same, but that it is the target's own relay, and not the application behind it, that failed."""
    return number | _OF_RELAY


def is_of_application(number: int) -> bool:
    """Whether it is the application that failed: its relay was there, and wanted connections."""
    return not number & _OF_RELAY and number not in (NOTHING, BUSY, HELD)


def read(text: bytes) -> int:
    """The number that another relay wrote as text; `TOLD` where it is none that is known here."""
    number = int(text) if text.isdigit() and len(text) <= 8 else 0
    known = number >> _VALUE_BITS in (_ERRNO, _NO_ANSWER, _STATUS) or number in (
        NOT_HTTP, CLOSED, NO_TLS, NOT_A_SOCKET, BACKLOG_FULL, BUSY, DENIED, HELD,
        UNEXPECTED, NOT_ITS_NAME, NOT_NOW, NOT_TRUSTED,
    )  # fmt: skip
    return number if known else TOLD


def text_of(number: int, path: str = "") -> str:
    """In words; of a Unix socket at `path` with that path. 0 is empty."""
    if number & _OF_RELAY:
        return f"its relay: {text_of(number ^ _OF_RELAY)}"
    kind, value = number >> _VALUE_BITS, number & _VALUE_MAX
    match kind:
        case 0:
            return ""
        case 2:
            return f"no answer in {value / 10:g} s"
        case 3:
            return f"HTTP {value}"
        case 4 if 1 <= value <= len(_OTHERS):
            found = _OTHERS[value - 1]
        case 1:
            found = os.strerror(value).lower()
        case _:
            found = _OTHERS[(TOLD & _VALUE_MAX) - 1]
    return f"{found}: {path}" if path else found
