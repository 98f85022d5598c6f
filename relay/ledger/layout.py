"""What stands where in the ledger (ledger.py), by name: words, counters, states, reasons and causes."""

import os
import struct
from enum import IntEnum
from typing import Final

from relay.errors import RelayBug

MAGIC: Final = 0x31474C59414C4552  # "RELAYLG1", little-endian
VERSION: Final = 4  # of everything below; a change of layout is a change of this number

WORD_BYTES: Final = 8
HEADER_WORDS: Final = 512  # one page: attaching reads nothing else
WORKER_WORDS: Final = 512
SLOT_WORDS: Final = 64
SLOTS: Final = 1024  # endpoints one instance can declare; untouched rows cost no memory
RECORD_BYTES: Final = 128
SOURCE_ENTRIES: Final = 16_384  # of one worker's table of sources, see sources.py: 256 KiB, taken as it is used

SOURCE_WORDS: Final = 2 * SOURCE_ENTRIES
TARGETS: Final = 1024  # instances times endpoints that one edge can lead to
TARGET_WORDS: Final = 8
FIRST_WORKER: Final = HEADER_WORDS + TARGETS  # the health is one word for each target

ENVELOPE_REASONS: Final = ("access", "roster")
"""Why the envelope refuses a connection, or would where it is not enforced, in the order of the counters."""

REASONS: Final = (*ENVELOPE_REASONS, "connections", "per_source", "rate", "protocol", "no_target")
"""Why a connection was refused, in the order of the counters."""

CAUSES: Final = (
    "client_fin",  # the client finished first, then the target
    "target_fin",  # the target finished first, then the client
    "client_reset",
    "target_reset",
    "idle",
    "connect_failed",
    "connect_timeout",
    "first_byte_timeout",
    "client_gone",  # left before it had sent what the protocol asks for
    "protocol",  # looked at, and not what the endpoint declares
    "denied",  # let in from the edge, and the client that it names may not connect
    "revoked",
    "drain",
    "error",  # relay or the machine failed this flow
)
"""How a flow ended, in the order of the counters. Every flow ends with exactly one."""

NAMES_RCODES: Final = ("NOERROR", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "BADVERS", "dropped")
"""How a question to the name server was answered, in the order of the counters."""

CONNECT_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of `relay_connect_duration_seconds`: from a local socket's 0.1 ms to the default timeout."""
DURATION_BOUNDS_S: Final = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Upper bounds of `relay_connection_duration_seconds`: from one request to a database session of a day."""


class DaemonWord(IntEnum):
    """Words of the header."""

    MAGIC = 0
    VERSION = 1
    WORKERS = 2
    FLOWS_PER_WORKER = 3
    STARTED_NS = 4  # CLOCK_REALTIME
    RELOAD_OK = 5  # 1 or 0: did the last reload take
    RELOAD_OK_AT_NS = 6  # CLOCK_REALTIME of the last one that took
    RELOADS_FAILED = 7
    CONTROL_RESTARTS = 8
    HOLDER_RESTARTS = 9
    DRAIN_UNTIL_NS = 10  # CLOCK_MONOTONIC; 0: not draining
    ROSTER_AT_NS = 13  # CLOCK_REALTIME at which a registry last confirmed the roster; 0: none is asked
    ROSTER_REJECTED = 14  # entries of a registry that were not believed
    NAMES_QUERIES = 16  # the first of as many words as NAMES_RCODES has
    BUSY_UNTIL_NS = 12  # CLOCK_REALTIME; until then probes are refused, so that edges send nobody; 0: not
    GENERATION = 15  # of the snapshot by which the keeper holds what it holds
    PROGRAM = 11  # times the keeper replaced its program: which one it runs now


class Word(IntEnum):
    """Words of a worker."""

    PID = 0
    HEARTBEAT_NS = 1  # CLOCK_MONOTONIC, once a second
    GENERATION = 2  # of the snapshot it works by
    ACCEPT_PAUSES = 3  # times it stopped accepting for want of descriptors or memory
    PIPES = 4  # open now
    PIPES_DEGRADED = 5  # pipes that the kernel gave smaller than asked, ever
    PIPES_REFUSED = 6  # times no pipe was to be had
    LOG_DROPPED = 7  # log lines that nobody took in time
    FLOWS_ADOPTED = 8
    FLOWS_HIGH = 9  # records from here on were never used: reading them would only cost memory
    SCRATCH_R = 10  # the scratch pipe's ends (0: none)
    SCRATCH_W = 11
    SCRATCH_OWNER = 12  # whose bytes are in it, see `owner_of`; 0: nobody's
    SNAPSHOT_FD = 13  # a memory file with the snapshot in force; 0: the one that the holder started with
    RESTARTS = 14  # times the holder started this worker again
    UNSHARED = 15  # 1: the kernel refused a shared descriptor table, so a crash loses this worker's flows
    HOLDER_PID = 16
    PROGRAM = 17  # which one it runs, as in the header
    ENDING = 18  # 1 + the record of the flow that ended last: of those at END the only one that may not be counted yet


class Count(IntEnum):
    """Words of an endpoint in one worker."""

    ACCEPTED = 0
    RECEIVED = 1  # bytes from the client that the target's socket took
    SENT = 2  # bytes from the target that the client's socket took
    CONNECT_FAILURES = 3
    TARGET_UP = 4  # the last dial: when (CLOCK_MONOTONIC, ns) << 1 | whether it was answered; 0: none yet
    CONNECT_SUM_NS = 5
    DURATION_SUM_NS = 6
    ACTIVE = 7  # open now, of this worker
    RATE_WINDOW = 8  # number of the second (or minute) << 32 | connections let in in it
    HOLDER = 9  # whose row it is, see `claim`
    DENIED = 10
    CLOSED = DENIED + len(REASONS)
    CONNECT_BUCKETS = CLOSED + len(CAUSES)
    DURATION_BUCKETS = CONNECT_BUCKETS + len(CONNECT_BOUNDS_S) + 1
    WOULD_DENY = DURATION_BUCKETS + len(DURATION_BOUNDS_S) + 1  # let in, because the envelope is not enforced
    END = WOULD_DENY + len(ENVELOPE_REASONS)


if Count.END > SLOT_WORDS:
    raise RelayBug("an endpoint's counters do not fit their row")


class TargetCount(IntEnum):
    """Words of a target in one worker."""

    CONNECTED = 0  # dials that were answered
    FAILURES = 1
    ACTIVE = 2
    EJECTED_UNTIL_NS = 3  # CLOCK_MONOTONIC; until then others are tried first
    EJECTIONS = 4
    FAILED_IN_A_ROW = 5
    CONNECT_SUM_NS = 6
    HOLDER = 7  # whose row it is, see `claim`


class Health(IntEnum):
    """What a target's probes say."""

    UNKNOWN = 0  # not probed yet: new connections are sent
    UP = 1
    DOWN = 2


class State(IntEnum):
    """Where a flow stands; the first word of its record. FREE means that there is no flow."""

    FREE = 0
    LOOK = 1  # waiting for the first bytes that the declared protocol asks for
    DIAL = 2  # waiting for the target
    SPLICE = 3  # bytes move
    HEADER = 6  # waiting for the edge to say who the client is
    CLOSE = 4  # one side was reset; the other has not yet taken what was sent before
    END = 5  # over; its descriptors are being closed


class Flag(IntEnum):
    """What a flow's record says beside its state; bits."""

    CLIENT_RESET = 1
    TARGET_RESET = 2
    UP_FIN = 4  # the end of the stream was passed on to the target, or is about to be
    DOWN_FIN = 8
    PROBE = 16  # the edge's own: it asks whether the application takes connections
    CAUSE_SHIFT = 8  # from this bit on, in END: the index of its cause


def health_at(slot: int) -> int:
    """Index into `words` of a target's health, one of `Health`. Control writes it, workers read it."""
    return HEADER_WORDS + slot


def layout_version(fd: int) -> int | None:
    """The layout's version of the ledger in a memory file; None where there is no ledger in it."""
    magic, version = struct.unpack("=QQ", os.pread(fd, 2 * WORD_BYTES, 0).ljust(2 * WORD_BYTES, b"\0"))
    return version if magic == MAGIC else None
