"""Looking at first bytes: the edge's header is judged where it lies, and how much was taken is the kernel's to say."""

import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from relay import calls
from relay.dataplane import first_bytes
from relay.envelope import proxyproto
from relay.envelope.proxyproto import Header
from relay.envelope.verdict import INCOMPLETE, Reject
from relay.kernel.bare_socket import BareSocket
from tests.harness import HANG_S, eventually

SOURCE, HERE = ip_address("203.0.113.9").packed, ip_address("10.0.0.4").packed
V2 = proxyproto.build_v2(SOURCE, 40000, HERE, 80)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, BareSocket]]:
    """What an edge has, and what the instance accepted from it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        edge = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()
    with edge, contextlib.closing(BareSocket(accepted.detach())) as client:
        client.settimeout(HANG_S)
        yield edge, client


def awaited(client: BareSocket, count: int) -> None:
    """Wait until so many bytes lie in the socket."""
    eventually(lambda: len(client.recv(count, socket.MSG_PEEK)) == count, f"{count} bytes have come")


@pytest.mark.parametrize("more", [b"", b"GET / HTTP/1.1\r\n"])
def test_a_header_is_judged_and_left_where_it_lies(more: bytes, pair: tuple[socket.socket, BareSocket]) -> None:
    edge, client = pair
    edge.sendall(V2 + more)
    awaited(client, len(V2 + more))
    verdict, seen = first_bytes.header(client, 0)
    assert verdict == Header(SOURCE, 40000, HERE, 80, len(V2), 2)
    assert seen == len(V2 + more)
    assert client.recv(len(V2)) == V2
    assert not more or client.recv(4096) == more


def test_the_edges_own_connection(pair: tuple[socket.socket, BareSocket]) -> None:
    edge, client = pair
    edge.sendall(proxyproto.LOCAL_V2)
    awaited(client, len(proxyproto.LOCAL_V2))
    verdict, _ = first_bytes.header(client, 0)
    assert isinstance(verdict, Header)
    assert (verdict.src, verdict.length) == (None, len(proxyproto.LOCAL_V2))


def test_a_header_in_pieces_is_asked_for_no_sooner_than_more_has_come(
    pair: tuple[socket.socket, BareSocket],
) -> None:
    edge, client = pair
    seen = 0
    for n in range(1, len(V2)):
        edge.sendall(V2[n - 1 : n])
        awaited(client, n)
        verdict, seen = first_bytes.header(client, seen)
        assert (verdict, seen) == (INCOMPLETE, n)
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == n + 1
    edge.sendall(V2[-1:])
    awaited(client, len(V2))
    verdict, _ = first_bytes.header(client, seen)
    assert isinstance(verdict, Header)
    assert client.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == 1, "any byte is news again"


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\n\r\n", proxyproto.build_v1(SOURCE, 40000, HERE, 80), V2[:12] + b"\x31" + V2[13:]]
)
def test_what_no_edge_sends_is_refused(said: bytes, pair: tuple[socket.socket, BareSocket]) -> None:
    edge, client = pair
    edge.sendall(said)
    awaited(client, len(said))
    verdict, _ = first_bytes.header(client, 0)
    assert isinstance(verdict, Reject)


def test_nothing_has_come_and_nothing_will(pair: tuple[socket.socket, BareSocket]) -> None:
    edge, client = pair
    client.setblocking(False)
    assert first_bytes.header(client, 0) == (INCOMPLETE, calls.AGAIN)
    edge.shutdown(socket.SHUT_WR)
    client.settimeout(HANG_S)
    assert client.recv(1, socket.MSG_PEEK) == b""
    assert first_bytes.header(client, 0) == (INCOMPLETE, 0)
