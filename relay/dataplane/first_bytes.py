"""Looking at a connection's first bytes: they are judged and left in the socket, so the target gets them as they came."""

import socket
from typing import Final

from relay.envelope import clienthello, httphead, proxyproto
from relay.envelope.verdict import INCOMPLETE, Incomplete, Reject
from relay.kernel.sockets import AnySocket, hear_beyond
from relay.steps import step

_PARSERS: Final = {"http": httphead.look, "https": clienthello.look}

Verdict = Incomplete | Reject | httphead.HttpHead | clienthello.Hello


@step
def first_bytes(client: AnySocket, protocol: str, seen_bytes: int) -> tuple[Verdict, int]:
    """The verdict on what has come so far, as `protocol` (http, https), and how many bytes that is.

    `seen_bytes` had come the last time.

    Raises BlockingIOError when nothing has come, and another OSError when the connection is broken.
    """
    data = client.recv(clienthello.LIMIT_BYTES, socket.MSG_PEEK)
    verdict = _PARSERS[protocol](data)
    _await_more(client, verdict is INCOMPLETE, len(data), seen_bytes)
    return verdict, len(data)


@step
def header(client: AnySocket, seen_bytes: int) -> tuple[Incomplete | Reject | proxyproto.Header, int]:
    """As `first_bytes`, of the PROXY header that an edge sends. It is still in the socket: `take` its `length`."""
    data = client.recv(proxyproto.V2_LIMIT_BYTES, socket.MSG_PEEK)
    verdict = proxyproto.parse(data)
    if isinstance(verdict, proxyproto.Header) and verdict.version != 2:
        verdict = Reject("a PROXY header of version 1; an edge sends version 2")
    _await_more(client, verdict is INCOMPLETE, len(data), seen_bytes)
    return verdict, len(data)


@step
def take(client: AnySocket, header_bytes: int) -> None:
    """Take a header out of the socket, and nothing of what comes behind it."""
    client.recv(header_bytes)


def _await_more(client: AnySocket, incomplete: bool, come_bytes: int, seen_bytes: int) -> None:
    if incomplete:
        hear_beyond(client, come_bytes)
    elif seen_bytes:
        hear_beyond(client, 0)
