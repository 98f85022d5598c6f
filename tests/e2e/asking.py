"""Clients who ask all the time, each request on a connection of its own, and what became of each."""

import contextlib
import itertools
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.e2e.netns import Network
from tests.harness import HANG_S, eventually

CLIENTS: Final = tuple(f"10.77.1.{n}" for n in range(1, 51))
_FIRST_PORT, _PORTS_EACH = 10_000, 50_000
_PAUSE_S: Final = 0.03  # between two requests of one client: the machine has other tests to run
_numbers = itertools.count()


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. `failure` says what was wrong with its answer; empty: nothing. Times are CLOCK_MONOTONIC."""

    number: int
    began_s: float
    ended_s: float
    failure: str

    @property
    def peer(self) -> str:
        """The client's address and port, by which logs know the connection."""
        return "{}:{}".format(*_source(self.number))


def _source(number: int) -> tuple[str, int]:
    """Each request has an address and port that no other one has."""
    return CLIENTS[number // _PORTS_EACH], _FIRST_PORT + number % _PORTS_EACH


def _read(sock: socket.socket, is_whole: Callable[[bytes], bool]) -> bytes:
    came = b""
    while not is_whole(came) and (part := sock.recv(65536)):
        came += part
    return came


def http(sock: socket.socket, number: int) -> bool:
    """nginx' answer has the number."""
    sock.sendall(b"GET /%d HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n" % number)
    answer = _read(sock, lambda came: False)
    return answer.startswith(b"HTTP/1.1 200 ") and answer.endswith(b"\r\n\r\n/%d\n" % number)


def redis(sock: socket.socket, number: int) -> bool:
    """Nobody has had this number before."""
    sock.sendall(b"INCR %d\r\n" % number)
    return _read(sock, lambda came: came.endswith(b"\r\n")) == b":1\r\n"


def postgres(sock: socket.socket, number: int) -> bool:
    """A session of one query (protocol 3.0, PostgreSQL documentation, 55.2), whose answer has the number."""
    start = struct.pack("!I", 196608) + b"user\0relay\0database\0postgres\0\0"
    sock.sendall(struct.pack("!I", len(start) + 4) + start)
    if not _read(sock, _is_ready).endswith(b"I"):
        return False
    query = b"SELECT 'number %d'\0" % number
    sock.sendall(b"Q" + struct.pack("!I", len(query) + 4) + query)
    answer = _read(sock, _is_ready)
    sock.sendall(b"X" + struct.pack("!I", 4))
    return b"number %d" % number in answer and answer.endswith(b"I")


def _is_ready(came: bytes) -> bool:
    """The last message is ReadyForQuery, outside of a transaction."""
    return came.endswith(b"Z\0\0\0\5I")


@dataclass
class Crowd:
    """So many clients who ask by `ask` at one address."""

    network: Network
    to: tuple[str, int]
    ask: Callable[[socket.socket, int], bool]
    count: int
    asked: list[Asked] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """They ask meanwhile. Afterwards every request has ended."""
        self._stop.clear()
        threads = [threading.Thread(target=self._go_on, name=f"{self.ask.__name__} client") for _ in range(self.count)]
        with self.network.inside("client"):
            for thread in threads:
                thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def wait_asked(self, count: int) -> None:
        """Until so many requests have ended, of all so far."""
        eventually(lambda: len(self.asked) >= count, "more requests have ended")

    def _go_on(self) -> None:
        while not self._stop.wait(_PAUSE_S):
            self.asked.append(self._once(next(_numbers)))

    def _once(self, number: int) -> Asked:
        began_s, failure = time.monotonic(), ""
        try:
            with socket.create_connection(self.to, HANG_S, source_address=_source(number)) as sock:
                if not self.ask(sock, number):
                    failure = "the answer is none"
        except OSError as error:
            failure = repr(error)
        return Asked(number, began_s, time.monotonic(), failure)
