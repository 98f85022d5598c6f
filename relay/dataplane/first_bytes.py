"""Looking at a connection's first bytes: they are judged and left in the socket, so the target gets them as they came."""

from collections.abc import Callable
from typing import Final, TypeVar

from relay import calls
from relay.envelope import clienthello, httphead, proxyproto
from relay.envelope.verdict import INCOMPLETE, Incomplete, Reject
from relay.kernel.bare_socket import BareSocket
from relay.kernel.sockets import hear_beyond

LOOKS_MAX: Final = 512
"""How often what has come is looked at before the client is refused: each look copies all of it out of the kernel anew.

No client comes near that. The longest hello that is taken makes 456 segments of 36 bytes, the smallest that Linux sends
(net.ipv4.tcp_min_snd_mss, less the timestamps); one with post-quantum keys makes 50 of them, and 4 of the usual 536 bytes.
A line that somebody types may have nearly as many characters as this.
"""

_PARSERS: Final = {"http": httphead.look, "https": clienthello.look}
_WHAT: Final = {"http": "HTTP request line", "https": "TLS ClientHello"}

Right = httphead.HttpHead | clienthello.Hello | proxyproto.Header
Verdict = Incomplete | Reject | httphead.HttpHead | clienthello.Hello
_Judged = TypeVar("_Judged")
SoFar = httphead.HttpHeadSoFar | clienthello.HelloSoFar


def so_far(protocol: str) -> SoFar:
    """What looks at a connection from its second look on, which need not read again what it has read: see `first_bytes`."""
    return httphead.HttpHeadSoFar() if protocol == "http" else clienthello.HelloSoFar()


def too_many_looks(protocol: str = "") -> Reject:
    """The verdict on what is not whole after LOOKS_MAX looks; without a protocol, on a PROXY header."""
    return Reject(f"no {_WHAT.get(protocol, 'PROXY header')} within {LOOKS_MAX} looks: it comes in too many pieces")


def first_bytes(client: BareSocket, protocol: str, seen_bytes: int, before: SoFar | None = None) -> tuple[Verdict, int]:
    """The verdict on what has come so far, as `protocol` (http, https), and how many bytes that is.

    `seen_bytes` had come the last time. `before` has seen what had come at the looks before, or nothing yet.

    Negative: `-errno`, of a connection that is broken, or calls.AGAIN: nothing has come.
    """
    return _look(client, clienthello.LIMIT_BYTES, _PARSERS[protocol] if before is None else before.look, seen_bytes)


def header(client: BareSocket, seen_bytes: int) -> tuple[Incomplete | Reject | proxyproto.Header, int]:
    """As `first_bytes`, of the PROXY header that an edge sends. It is still in the socket: `take` its `length`."""
    return _look(client, proxyproto.V2_LIMIT_BYTES, _of_edge, seen_bytes)


def _of_edge(data: bytes) -> Incomplete | Reject | proxyproto.Header:
    verdict = proxyproto.parse(data)
    if isinstance(verdict, proxyproto.Header) and verdict.version != 2:
        return Reject("a PROXY header of version 1; an edge sends version 2")
    return verdict


def _look(
    client: BareSocket, most_bytes: int, judge: Callable[[bytes], _Judged], seen_bytes: int
) -> tuple[_Judged | Incomplete, int]:
    """What `judge` says of what has come. While that is too little, the socket is readable again once more has come."""
    come = calls.peek(client.fd, most_bytes)
    if come < 0:
        return INCOMPLETE, come
    verdict = judge(calls.peeked(come))
    if verdict is INCOMPLETE:
        hear_beyond(client.fd, come)
    elif seen_bytes:
        hear_beyond(client.fd, 0)
    return verdict, come


def take(client: BareSocket, header_bytes: int) -> None:
    """Take a header out of the socket, and nothing of what comes behind it."""
    calls.take(client.fd, header_bytes)
