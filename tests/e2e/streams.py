"""Streams of every shape, each checked at both ends, and a target that does what each of them asks for.

A client begins with the head of an HTTP request, which says what the target shall do; so the same streams go through any
endpoint. Each shape ends in one way, which stands in SHAPES and which relay's account must agree with.
"""

import contextlib
import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

from relay.envelope import proxyproto
from relay.envelope.verdict import Incomplete
from tests.conformance.peers import await_acknowledged, reset
from tests.harness import HANG_S
from tests.ports import free_port

DENIED_SOURCE: Final = "127.0.0.66"
_HEAD_END: Final = b"\r\n\r\n"
# Acknowledged by the next kernel even when nobody reads there: it fits any first window.
_ACKNOWLEDGED_BYTES: Final = 48 * 1024

# Less than is copied at a time. All of them are more than the send buffer that relay has towards a client: over loopback
# 2.6 MB, for ten segments of 64 KiB and as much again (net/ipv4/tcp_input.c, tcp_sndbuf_expand).
_DROP_BYTES: Final = 12_000
_DROP_S: Final = 0.002
_DRIPPED_BYTES: Final = 3_600_000


class Target:
    """Serves connections until `close`. `failures` says what a client did that relay should not have made of it."""

    def __init__(self, listener: socket.socket, *, introduced: bool) -> None:
        self.failures: list[str] = []
        self.introductions: set[tuple[bytes, int]] = set()  # addresses and ports of clients, as PROXY headers told
        self._listener = listener
        self._introduced = introduced
        self._pool = ThreadPoolExecutor(64, thread_name_prefix="target")
        self._thread = threading.Thread(target=self._accept, name="target accept")
        self._thread.start()

    def close(self) -> None:
        """Accept nobody else, and wait for those that are served."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        self._pool.shutdown()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._listener.accept()
                peer.settimeout(HANG_S)
                self._pool.submit(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                words, rest = self._head(peer)
                match words:
                    case ["echo"]:
                        self._echo(peer, rest)
                    case ["leave"]:
                        self._be_left(peer, rest)
                    case ["give", size, seed]:
                        peer.sendall(random.Random(int(seed)).randbytes(int(size)))
                    case ["drip", size, seed]:
                        self._drip(peer, random.Random(int(seed)).randbytes(int(size)))
                    case ["cut", size, seed]:
                        peer.sendall(random.Random(int(seed)).randbytes(int(size)))
                        await_acknowledged(peer)
                        reset(peer)
            except OSError:
                return  # the client sees that, and says so
            except Exception as error:
                self.failures.append(repr(error))

    def _head(self, peer: socket.socket) -> tuple[list[str], bytes]:
        """What is asked for, and what came behind it. No words from a client that has left; a dead worker's dial is one."""
        data = b""
        if self._introduced:
            while isinstance(header := proxyproto.parse(data), Incomplete):
                if not (more := peer.recv(65536)):
                    return [], b""
                data += more
            assert isinstance(header, proxyproto.Header), header
            assert header.src is not None
            self.introductions.add((header.src, header.src_port))
            data = data[header.length :]
        while _HEAD_END not in data:
            if not (more := peer.recv(65536)):
                assert not data, f"a client that ended in its head: {data!r}"
                return [], b""
            data += more
        head, _, rest = data.partition(_HEAD_END)
        return head.split(b" ")[1].decode().strip("/").split("/"), rest

    def _echo(self, peer: socket.socket, data: bytes) -> None:
        while data or (data := peer.recv(256 * 1024)):
            peer.sendall(data)
            data = b""
        peer.shutdown(socket.SHUT_WR)

    def _drip(self, peer: socket.socket, data: bytes) -> None:
        for first in range(0, len(data), _DROP_BYTES):
            peer.sendall(data[first : first + _DROP_BYTES])
            time.sleep(_DROP_S)  # so that it is read by itself, which is the point

    def _be_left(self, peer: socket.socket, data: bytes) -> None:
        """A client that resets. Over TCP that must arrive as what it is; a Unix socket has no resets."""
        try:
            self._echo(peer, data)
        except ConnectionResetError:
            return
        assert peer.family == socket.AF_UNIX, "a client's reset came as the end of its stream"


@contextlib.contextmanager
def target(where: str | None = None, *, introduced: bool = False, second: bool = False) -> Iterator[tuple[Target, str]]:
    """A target on a Unix path, or on TCP: (target, its address as a file has it). `introduced`: by PROXY headers.

    `where`: a path, or an address and port; by default any port.
    `second`: it listens at the second address of `localhost`, and the first one refuses.
    """
    if where is None and second:
        port = free_port()
        listener = socket.create_server(("::1", port), family=socket.AF_INET6, backlog=512)
        address = f"localhost:{port}"
    elif where is None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    elif not where.startswith("/"):
        host, _, number = where.rpartition(":")
        listener = socket.create_server((host, int(number)), backlog=512)
        address = where
    else:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(where)
        listener.listen(512)
        address = f"unix:{where}"
    made = Target(listener, introduced=introduced)
    try:
        yield made, address
    finally:
        made.close()


@dataclass
class Client:
    """Opens connections through relay. `sources` are the addresses and ports of all that asked for something."""

    address: tuple[str, int]
    sources: set[tuple[bytes, int]] = field(default_factory=set)

    def connect(self, source: str = "127.0.0.1", *, rcvbuf_bytes: int | None = None) -> socket.socket:
        """A connection on which nothing was sent yet."""
        sock = socket.socket()
        if rcvbuf_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf_bytes)
        try:
            sock.settimeout(HANG_S)
            sock.bind((source, 0))
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        return sock

    def ask(self, chance: random.Random, words: str, *, rcvbuf_bytes: int | None = None) -> socket.socket:
        """A connection whose target was asked for something; at times in two pieces, with a moment between them."""
        sock = self.connect(rcvbuf_bytes=rcvbuf_bytes)
        host, port = sock.getsockname()
        head = f"GET /{words} HTTP/1.1\r\nHost: relay{_HEAD_END.decode()}".encode()
        if chance.random() < 0.3:
            cut = chance.randrange(1, len(head) - len(_HEAD_END))
            sock.sendall(head[:cut])
            time.sleep(0.01)  # what has come by then is looked at, which is the point
            head = head[cut:]
        sock.sendall(head)
        self.sources.add((socket.inet_aton(host), port))
        return sock


def bulk(chance: random.Random, client: Client) -> None:
    """Megabytes in pieces of every size, both ways at once."""
    _both_ways(chance, client, chance.randrange(1 << 20, 8 << 20))


def slow_reader(chance: random.Random, client: Client) -> None:
    """A client that reads slower than it sends, and has no room: pipes and buffers fill."""
    _both_ways(chance, client, chance.randrange(1 << 19, 2 << 20), pause_s=0.002, rcvbuf_bytes=32768)


def short(chance: random.Random, client: Client) -> None:
    """A few bytes or none, and the end."""
    _both_ways(chance, client, chance.choice([0, 1, 100]))


def ping_pong(chance: random.Random, client: Client) -> None:
    """Messages one after the other, each awaited."""
    with client.ask(chance, "echo") as sock:
        _talk(chance, sock, chance.randrange(5, 60))


def half_closed(chance: random.Random, client: Client) -> None:
    """Everything is sent and ended before anything is read."""
    data = chance.randbytes(chance.randrange(1, 200_000))
    with client.ask(chance, "echo") as sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        time.sleep(chance.uniform(0, 0.3))  # stays half closed for a while, which is the point
        assert _rest(sock) == hashlib.sha256(data).digest(), "not what was sent"


def idle(chance: random.Random, client: Client) -> None:
    """Nothing for a while, then one message after the other."""
    with client.ask(chance, "echo") as sock:
        time.sleep(chance.uniform(0, 0.5))  # idle, which is the point
        _talk(chance, sock, chance.randrange(5, 60))


def given(chance: random.Random, client: Client) -> None:
    """The target sends, and closes before the client does."""
    seed, size = chance.randrange(1 << 30), chance.randrange(1, 400_000)
    with client.ask(chance, f"give/{size}/{seed}") as sock:
        assert _rest(sock) == hashlib.sha256(random.Random(seed).randbytes(size)).digest(), "not what was sent"


def dripping(chance: random.Random, client: Client) -> None:
    """The target sends piece after piece, each small enough to be copied, until there is no room before the client."""
    seed = chance.randrange(1 << 30)
    with client.ask(chance, f"drip/{_DRIPPED_BYTES}/{seed}", rcvbuf_bytes=4096) as sock:
        time.sleep(_DRIPPED_BYTES / _DROP_BYTES * _DROP_S)  # reads nothing for a while, which is the point
        assert _rest(sock) == hashlib.sha256(random.Random(seed).randbytes(_DRIPPED_BYTES)).digest(), (
            "not what was sent"
        )


def left(chance: random.Random, client: Client) -> None:
    """The client resets."""
    sock = client.ask(chance, "leave")
    try:
        _talk(chance, sock, chance.randrange(1, 5))
    finally:
        reset(sock)


def cut_off(chance: random.Random, client: Client) -> None:
    """The target sends and then resets, while the client reads little or nothing. All that was sent comes first."""
    seed, size = chance.randrange(1 << 30), chance.randrange(1, _ACKNOWLEDGED_BYTES)
    received = b""
    with client.ask(chance, f"cut/{size}/{seed}", rcvbuf_bytes=4096) as sock:
        time.sleep(chance.uniform(0, 0.1))  # reads nothing for a while, which is the point
        try:
            while data := sock.recv(65536):
                received += data
        except ConnectionResetError:
            assert received == random.Random(seed).randbytes(size), "not what was sent"
        else:
            raise AssertionError("the target's reset came as the end of its stream")


def denied(_chance: random.Random, client: Client) -> None:
    """Somebody who may not connect."""
    assert _thrown_out(lambda: client.connect(DENIED_SOURCE), b"")


def stranger(_chance: random.Random, client: Client) -> None:
    """Somebody who does not speak what the endpoint declares."""
    assert _thrown_out(client.connect, b"\x16\x03\x01\x02\x00")


def gone(chance: random.Random, client: Client) -> None:
    """Somebody who leaves before there is a whole line."""
    with client.connect() as sock:
        sock.sendall(b"GET /echo HTTP/1.1"[: chance.randrange(1, 18)])
        sock.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert sock.recv(1) == b""


Shape = Callable[[random.Random, Client], None]
CLEAN: Final = "client_fin target_fin"
SHAPES: Final[dict[Shape, str]] = {
    bulk: CLEAN,
    ping_pong: CLEAN,
    half_closed: CLEAN,
    idle: CLEAN,
    slow_reader: CLEAN,
    short: CLEAN,
    given: CLEAN,
    dripping: CLEAN,
    left: "client_reset",
    cut_off: "target_reset",
    denied: "",  # it never was a connection
    stranger: "protocol",
    gone: "client_gone",
}
"""Each shape, and the causes that may end it."""

WELL_ENDED: Final = tuple(shape for shape, causes in SHAPES.items() if causes == CLEAN)


def _both_ways(
    chance: random.Random, client: Client, size: int, pause_s: float = 0, rcvbuf_bytes: int | None = None
) -> None:
    block, sent, failed = chance.randbytes(1 << 17), hashlib.sha256(), []

    def send(sock: socket.socket) -> None:
        left = size
        try:
            while left:
                part = block[: min(left, chance.choice([1, 64, 1000, 65536, 1 << 17]))]
                sock.sendall(part)
                sent.update(part)
                left -= len(part)
            sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            failed.append(error)

    with client.ask(chance, "echo", rcvbuf_bytes=rcvbuf_bytes) as sock:
        sender = threading.Thread(target=send, args=(sock,), name="sender")
        sender.start()
        received = _rest(sock, pause_s)
        sender.join()
    assert not failed, failed
    assert received == sent.digest(), "not what was sent"


def _talk(chance: random.Random, sock: socket.socket, messages: int) -> None:
    for _ in range(messages):
        message = chance.randbytes(chance.choice([1, 64, 1000, 20_000]))
        sock.sendall(message)
        back = b""
        while len(back) < len(message):
            data = sock.recv(len(message) - len(back))
            assert data, "ended in the middle of a message"
            back += data
        assert back == message, "a message came back changed"


def _thrown_out(connect: Callable[[], socket.socket], data: bytes) -> bool:
    try:
        with connect() as sock:
            sock.sendall(data)
            return sock.recv(1) == b"?"
    except ConnectionError:  # from connect already, when the reset is quicker than its return
        return True


def _rest(sock: socket.socket, pause_s: float = 0) -> bytes:
    """The hash of everything until the peer's end."""
    received = hashlib.sha256()
    while data := sock.recv(65536):
        received.update(data)
        if pause_s:
            time.sleep(pause_s)  # the pace of a slow reader
    return received.digest()
