"""One flow's record in the ledger, and how its client stands in it."""

import mmap
import struct
from dataclasses import dataclass
from typing import Final

from relay.address import Address, host_text, map_host
from relay.ledger.layout import State


@dataclass(slots=True)
class FlowRecord:
    """One flow as the ledger tells it. Byte counts are at most a second old.

    Not frozen: that makes one take three times as long, and a new worker makes thousands while clients wait.
    """

    worker: int
    index: int
    state: int
    slot: int
    client_fd: int
    target_fd: int  # -1: none
    up_pipe: tuple[int, int]  # its ends; (-1, -1): none
    down_pipe: tuple[int, int]
    flags: int
    target_slot: int  # -1: none, or not on an edge
    started_ns: int  # CLOCK_MONOTONIC
    received_bytes: int
    sent_bytes: int
    peer: str
    came_to: Address | None = None  # where an edge says that the client has connected to


# state, slot, client fd, target fd, the ends of both pipes, started, received, sent, flags, target's slot, the client: the
# peer's text ("[ffff:…%interface]:65535" fits), or what `by_ends` makes
_RECORD: Final = struct.Struct("=IIiiiiiiQQQIi64s")
CLIENT_AT: Final = 64  # byte of the record
CLIENT_BYTES: Final = 64
# What no text begins with; the peer, and where it connected to, IPv4 mapped into IPv6; room for more.
_NAMED: Final = struct.Struct("!B16sH16sH27x")
_IS_NAMED: Final = 1


def by_text(peer: str) -> bytes:
    """How a client stands in the record: by its address with the port."""
    return peer.encode().ljust(CLIENT_BYTES, b"\0")


def by_ends(peer: bytes, peer_port: int, came_to: bytes, came_to_port: int) -> bytes:
    """The same of one whom an edge has named together with what it connected to; hosts as 4 or 16 bytes."""
    return _NAMED.pack(_IS_NAMED, map_host(peer), peer_port, map_host(came_to), came_to_port)


def read(memory: mmap.mmap, at: int, worker: int, index: int) -> FlowRecord | None:
    """The record at this byte, which is number `index` of this worker's; None: there is no flow in it."""
    now, slot, client, target, up_r, up_w, down_r, down_w, started, received, sent, flags, aimed, who = (
        _RECORD.unpack_from(memory, at)
    )
    if now == State.FREE:
        return None
    came_to = None
    if who[0] == _IS_NAMED:
        _, host, port, came_host, came_port = _NAMED.unpack(who)
        peer, came_to = str(Address(host_text(host), port)), Address(host_text(came_host), came_port)
    else:
        peer = who.rstrip(b"\0").decode(errors="replace")
    up, down = (up_r, up_w), (down_r, down_w)
    return FlowRecord(
        worker, index, now, slot, client, target, up, down, flags, aimed, started, received, sent, peer, came_to
    )  # fmt: skip
