"""Byte streams that tell a lost, doubled or swapped piece by their hash, and what moves them."""

import hashlib
import select
import socket
import time
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Final

from tests.conformance.proc import is_asleep
from tests.harness import HANG_S

KIB: Final = 1024
MIB: Final = 1024 * 1024
_CHUNK_BYTES: Final = 64 * KIB
_STRIDE_BYTES: Final = 4099  # prime: the window into the random block repeats only after 64 Ki chunks, 4 GiB
_LOOK_S: Final = 0.03  # so often it is asked whether there is room, and who is at work
_QUIET_LOOKS: Final = 10  # together longer than a kernel puts an acknowledgement off (tcp.h, TCP_DELACK_MAX: 0.2 s)


class Stream:
    """An endless stream that depends on `seed` alone."""

    def __init__(self, seed: int) -> None:
        self._block = memoryview(Random(seed).randbytes(2 * _CHUNK_BYTES))

    def part(self, offset: int, limit_bytes: int) -> memoryview:
        """At least one and at most `limit_bytes` bytes from `offset` on."""
        number, inside = divmod(offset, _CHUNK_BYTES)
        start = number * _STRIDE_BYTES % _CHUNK_BYTES + inside
        return self._block[start : start + min(limit_bytes, _CHUNK_BYTES - inside)]

    def head(self, size_bytes: int) -> bytes:
        """The first `size_bytes`."""
        data = bytearray()
        while len(data) < size_bytes:
            data += self.part(len(data), size_bytes - len(data))
        return bytes(data)

    def sha256(self, size_bytes: int) -> str:
        """The hash of the first `size_bytes`."""
        digest, offset = hashlib.sha256(), 0
        while offset < size_bytes:
            part = self.part(offset, size_bytes - offset)
            digest.update(part)
            offset += len(part)
        return digest.hexdigest()

    def send(self, sock: socket.socket, size_bytes: int, offset: int = 0) -> None:
        """Send the `size_bytes` from `offset` on."""
        end = offset + size_bytes
        while offset < end:
            part = self.part(offset, end - offset)
            sock.sendall(part)
            offset += len(part)

    def fill(self, sock: socket.socket, most_bytes: int, pids: Collection[int] = ()) -> int:
        """Send from the start until `sock` takes no more, because nobody reads; how many bytes it took.

        `pids` are the processes that pass bytes on. One of them that waits for a CPU may still make room.
        """
        sock.setblocking(False)
        offset, quiet, deadline_s = 0, 0, time.monotonic() + HANG_S
        while offset < most_bytes and quiet < _QUIET_LOOKS:
            assert time.monotonic() < deadline_s, f"it still takes bytes, or somebody is at work, after {offset}"
            if select.select([], [sock], [], _LOOK_S)[1]:
                offset += sock.send(self.part(offset, most_bytes - offset))
                quiet = 0
            else:
                quiet = quiet + 1 if all(map(is_asleep, pids)) else 0
        sock.settimeout(HANG_S)
        return offset


@lru_cache(maxsize=2048)
def stream(seed: int) -> Stream:
    """The stream of `seed`."""
    return Stream(seed)


def send_whole(sock: socket.socket, seed: int, size_bytes: int) -> None:
    """Send the first `size_bytes` of the stream of `seed`, and a FIN."""
    stream(seed).send(sock, size_bytes)
    sock.shutdown(socket.SHUT_WR)


@dataclass(frozen=True)
class Received:
    """What came until the end: how much, its hash, and how it ended."""

    size_bytes: int
    sha256: str
    fin: bool
    """True: a FIN; False: a reset."""


def receive(sock: socket.socket, begun_with: bytes | bytearray = b"") -> Received:
    """Read until the stream ends, either way; `begun_with` was read before. Raises TimeoutError after a silence."""
    digest, size, buffer = hashlib.sha256(begun_with), len(begun_with), bytearray(256 * KIB)
    view = memoryview(buffer)
    while True:
        try:
            count = sock.recv_into(buffer)
        except ConnectionResetError:
            return Received(size, digest.hexdigest(), fin=False)
        if not count:
            return Received(size, digest.hexdigest(), fin=True)
        digest.update(view[:count])
        size += count


def receive_exactly(sock: socket.socket, size_bytes: int) -> bytes:
    """The next `size_bytes`, and not one more. Raises EOFError when the stream ends before."""
    data = bytearray()
    while len(data) < size_bytes:
        part = sock.recv(size_bytes - len(data))
        if not part:
            raise EOFError(f"the stream ended after {len(data)} of {size_bytes} bytes")
        data += part
    return bytes(data)


def whole(seed: int, size_bytes: int, *, fin: bool = True) -> Received:
    """What `receive` gives when exactly the first `size_bytes` of the stream of `seed` came."""
    return Received(size_bytes, stream(seed).sha256(size_bytes), fin)
