"""Looking at a connection's first bytes: they are judged and left in the socket, so the target gets them as they came."""

from typing import Final

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
    come = calls.peek(client.fd, clienthello.LIMIT_BYTES)
    if come < 0:
        return INCOMPLETE, come
    data = calls.peeked(come)
    verdict = _PARSERS[protocol](data) if before is None else before.look(data)
    _await_more(client, verdict is INCOMPLETE, come, seen_bytes)
    return verdict, come


def header(client: BareSocket, seen_bytes: int) -> tuple[Incomplete | Reject | proxyproto.Header, int]:
    """As `first_bytes`, of the PROXY header that an edge sends. It is still in the socket: `take` its `length`."""
    come = calls.peek(client.fd, proxyproto.V2_LIMIT_BYTES)
    if come < 0:
        return INCOMPLETE, come
    verdict = proxyproto.parse(calls.peeked(come))
    if isinstance(verdict, proxyproto.Header) and verdict.version != 2:
        verdict = Reject("a PROXY header of version 1; an edge sends version 2")
    _await_more(client, verdict is INCOMPLETE, come, seen_bytes)
    return verdict, come


def take(client: BareSocket, header_bytes: int) -> None:
    """Take a header out of the socket, and nothing of what comes behind it."""
    calls.take(client.fd, header_bytes)


def _await_more(client: BareSocket, incomplete: bool, come_bytes: int, seen_bytes: int) -> None:
    if incomplete:
        hear_beyond(client.fd, come_bytes)
    elif seen_bytes:
        hear_beyond(client.fd, 0)
