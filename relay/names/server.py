"""A DNS server on a loopback address: packets in and out by UDP and TCP, whoever makes the answers (zone.py).

Any program of this machine may send anything. Nobody's packets cost others more than one turn of the loop: a turn answers
one query that came by TCP, whichever connection it is from, and a few of UDP's.
"""

import asyncio
import contextlib
import errno
import socket
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final

from relay.address import join_host_port
from relay.errors import ListenError, os_reason
from relay.kernel.accepting import Acceptor, Resting, is_over
from relay.log import Logger
from relay.names.wire import HEADER_BYTES, QUERY_MAX_BYTES, rcode_of

CONNECTIONS_MAX: Final = 128  # a resolver that asks by TCP has one open, for a moment
# RFC 7766 section 6.2.3 wants a few seconds. It is the time for a whole query to come, and for its answer to be read.
IDLE_S: Final = 10.0
_SWEEP_S: Final = 1.0
_BACKLOG: Final = 128
_SOCKET_BYTES: Final = 65_536  # one answer, and more queries than are asked at once; left alone, it grows to megabytes
_DATAGRAMS: Final = 32  # answered in one turn
_DATAGRAM_BYTES: Final = 65_535
_LENGTH_BYTES: Final = 2  # in front of each message over TCP (RFC 1035 section 4.2.2)
_RESOLVED: Final = ("127.0.0.53", "127.0.0.54")  # systemd-resolved.service(8): its stub, and its proxy

Answer = Callable[[bytes, bool], bytes | None]
"""From a packet, and whether it came by TCP, to the answer; None: silence. Raises nothing."""


def open_names_sockets(host: str, port: int) -> tuple[socket.socket, socket.socket]:
    """A UDP and a listening TCP socket on one address and port; with port 0, on one that is free. Raises ListenError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as opened:
        try:
            tcp = opened.enter_context(_socket(family, socket.SOCK_STREAM))
            # Connections that a predecessor closed may still be in TIME_WAIT. Not for UDP, where two could share it.
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            for buffer in (socket.SO_SNDBUF, socket.SO_RCVBUF):  # those of its connections are as large
                tcp.setsockopt(socket.SOL_SOCKET, buffer, _SOCKET_BYTES)
            tcp.bind((host, port))
            udp = opened.enter_context(_socket(family, socket.SOCK_DGRAM))
            udp.bind((host, tcp.getsockname()[1]))
            tcp.listen(_BACKLOG)
        except OSError as error:
            where = join_host_port(host, port)
            raise ListenError(
                f"cannot serve names on {where}: {os_reason(error)}; {_fix(error, host, port)}"
            ) from error
        opened.pop_all()
    return udp, tcp


def _socket(family: int, kind: int) -> socket.socket:
    return socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def _fix(error: OSError, host: str, port: int) -> str:
    key = "`names.listen` in instance.yaml"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"ports below 1024 need CAP_NET_BIND_SERVICE (the unit in systemd/ has it), or set another port in {key}"
    if error.errno == errno.EADDRINUSE and port == 53 and host in _RESOLVED:
        return f"systemd-resolved listens on {' and '.join(_RESOLVED)}; set {key} to 127.0.0.153:53"
    if error.errno == errno.EADDRINUSE:
        return f"another DNS server may listen there, or on every address; set another loopback address in {key}"
    return f"set another loopback address in {key}, or remove it"


async def serve_names(
    udp: socket.socket, tcp: socket.socket, answer: Answer, log: Logger | None = None
) -> "NamesServer":  # fmt: skip
    """Answer on both sockets until the server is closed; it closes them too. What the keeper holds of them stays open.

    `log` is told why nobody is let in.
    """
    server = NamesServer(answer, asyncio.get_running_loop())
    server.udp = Resting(udp, _Datagrams(server, udp).answer, log)
    server.tcp = Acceptor(tcp, lambda: _Connection(server), log)
    return server


class NamesServer:
    """A running server. `answer` may be replaced at any time; `counts` are the answers so far by response code.

    `counts["dropped"]` are packets that got no answer: no queries, or answers that the socket had no room for.
    """

    def __init__(self, answer: Answer, loop: asyncio.AbstractEventLoop) -> None:
        self.answer = answer
        self.counts: Counter[str] = Counter()
        self.udp: Resting | None = None
        self.tcp: Acceptor | None = None
        self._loop = loop
        # By the time of what they last did, with the one that has been quiet for longest in front.
        self._open: OrderedDict[_Connection, float] = OrderedDict()
        self._waiting: deque[_Connection] = deque()  # those that have a whole query, each once
        self._sweeping = loop.call_later(_SWEEP_S, self._sweep)

    @property
    def connections(self) -> int:
        """How many TCP connections are open."""
        return len(self._open)

    async def close(self) -> None:
        """Stop at once: open connections are cut."""
        self._sweeping.cancel()
        self._waiting.clear()
        for each in (self.udp, self.tcp):
            if each is not None:
                each.close()
        for connection in list(self._open):
            connection.cut()

    def answered(self, packet: bytes, *, tcp: bool) -> bytes | None:
        """The answer, counted."""
        found = self.answer(packet, tcp)
        self.counts["dropped" if found is None else rcode_of(found)] += 1
        return found

    def opened(self, connection: "_Connection") -> None:
        """One connection more. Above the limit the quietest one goes: who opens many loses its own."""
        self._open[connection] = self._loop.time()
        if len(self._open) > CONNECTIONS_MAX:
            quietest = next(iter(self._open))
            self.closed(quietest)
            quietest.cut()

    def closed(self, connection: "_Connection") -> None:
        """It is gone, or as good as gone."""
        self._open.pop(connection, None)

    def wait(self, connection: "_Connection") -> None:
        """It has a whole query, and its turn will come."""
        if connection not in self._waiting:
            self._waiting.append(connection)
            if len(self._waiting) == 1:
                self._loop.call_soon(self._turn)

    def _turn(self) -> None:
        if not self._waiting:
            return
        connection = self._waiting.popleft()
        if self._waiting:
            self._loop.call_soon(self._turn)
        if connection in self._open and connection.take_turn():
            self._open[connection] = self._loop.time()
            self._open.move_to_end(connection)

    def _sweep(self) -> None:
        self._sweeping = self._loop.call_later(_SWEEP_S, self._sweep)
        before = self._loop.time() - IDLE_S
        for connection in [each for each, since in self._open.items() if since < before]:
            self.closed(connection)
            connection.cut()


class _Datagrams:
    """Queries by UDP, each answered at once."""

    def __init__(self, server: NamesServer, sock: socket.socket) -> None:
        self._server = server
        self._sock = sock

    def answer(self) -> OSError | None:
        """Answer some of those that wait; the error that will stay."""
        errors = 0
        for _ in range(_DATAGRAMS):
            try:
                data, address = self._sock.recvfrom(_DATAGRAM_BYTES)
            except BlockingIOError:
                return None
            except OSError as error:
                errors += 1
                if not is_over(error, errors):
                    return error
                continue  # somebody did not wait for an answer (ICMP)
            errors = 0
            found = self._server.answered(data, tcp=False)
            if found is not None:
                self._send(found, address)
        return None

    def _send(self, found: bytes, address: Any) -> None:
        try:
            self._sock.sendto(found, address)
        except BlockingIOError:  # a resolver asks again; a queue of answers would only grow
            self._server.counts.update({rcode_of(found): -1, "dropped": 1})
        except OSError:  # such as port 0, which cannot be sent to
            pass


class _Connection(asyncio.BufferedProtocol):
    """One TCP connection: queries one after the other, as many as the client likes, answered in their order."""

    def __init__(self, server: NamesServer) -> None:
        self._server = server
        self._received = bytearray(_LENGTH_BYTES + QUERY_MAX_BYTES)  # the longest query there is
        self._filled = 0
        self._full = False  # the client does not read what it asked for
        self._ended = False  # it sends nothing more

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # the socket's own is enough of what a client has not read
        self._server.opened(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.closed(self)

    def cut(self) -> None:
        """Close it without waiting for anything."""
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        return memoryview(self._received)[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        self._look()

    def eof_received(self) -> bool:
        self._ended = True
        return self._full or self._whole() > 0  # what was asked for before is answered before it is closed

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._look()

    def take_turn(self) -> bool:
        """Answer one query, if there is still one; whether there was."""
        if self._full or not (end := self._whole()):
            return False
        found = self._server.answered(bytes(self._received[_LENGTH_BYTES:end]), tcp=True)
        self._received[: self._filled - end] = self._received[end : self._filled]
        self._filled -= end
        if found is None:  # not a query: whatever follows it is no better
            self.cut()
            return False
        self._transport.write(struct.pack("!H", len(found)) + found)
        self._look()
        return True

    def _whole(self) -> int:
        """Where the first query ends, its length included; 0: it is not there in full."""
        end = _LENGTH_BYTES + int.from_bytes(self._received[:_LENGTH_BYTES])
        return end if self._filled >= _LENGTH_BYTES and end <= self._filled else 0

    def _look(self) -> None:
        """Decide what is next: a turn, more bytes, or the end."""
        if self._transport.is_closing():
            return
        length = int.from_bytes(self._received[:_LENGTH_BYTES])
        if self._filled >= _LENGTH_BYTES and not HEADER_BYTES <= length <= QUERY_MAX_BYTES:
            self.cut()
            return
        whole = self._whole() > 0
        if not self._ended:
            # With a query in hand nothing more is read: who sends faster than it reads waits in its own socket.
            if whole or self._full:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()
        if whole and not self._full:
            self._server.wait(self)
        elif self._ended and not self._full:
            self._transport.close()
