"""What stands where in the ledger (ledger.py), by name: words, counters, states, reasons and causes."""

import os
import struct
from typing import Final

from relay.errors import RelayBug

MAGIC: Final = 0x31474C59414C4552  # "RELAYLG1", little-endian
VERSION: Final = 5  # of everything below. Whoever changes the layout changes it, and convert.py

WORD_BYTES: Final = 8
HEADER_WORDS: Final = 512  # one page: attaching reads nothing else
WORKER_WORDS: Final = 1024  # a page of words that have a meaning, and one of SCRATCH
SLOT_WORDS: Final = 128
SLOTS: Final = 1024  # endpoints one instance can declare; untouched rows cost no memory
RECORD_BYTES: Final = 128
SOURCE_WORDS: Final = 32_768  # of a worker: counts by source stood here, see source_tables.py; now a message does, at
COPY_AT_WORDS: Final = WORKER_WORDS + SLOTS * SLOT_WORDS  # this word: copying.py. Whole pages, as what is before it
COPY_BYTES: Final = 16 * 1024  # from about twice as much on, splicing a message costs less than copying it
TARGETS: Final = 1024  # instances times endpoints that one edge can lead to
TARGET_WORDS: Final = 16
FIRST_WORKER: Final = HEADER_WORDS + TARGETS  # of a new ledger; the health is one word for each target
SCRATCH: Final = 512  # from this word of a worker on: for whoever wants to try something out

REASONS_MAX: Final = 16  # room for more, in every row that there is
CAUSES_MAX: Final = 32
STATES_MAX: Final = 16

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
    "told",  # an edge asked how the application is, and was told
    "gone",  # the instance at one of its ends is not there any more: its lease ran out
    "peer_dead",  # one side has not answered for too long; the other was told by a reset
    "passed",  # it is another endpoint's from here on, and goes on: it came to this machine's relay, and named that one
    "target_down",  # its target was found down by a probe, and `on_down` has connections end with it
    "lifetime",  # it has lasted for as long as a connection may
)
"""How a flow ended, in the order of the counters. Every flow ends with exactly one, and may have been `passed` before."""

CLEAN_CAUSES: Final = ("client_fin", "target_fin")
"""All that was sent has been passed on."""

NAMES_RCODES: Final = ("NOERROR", "NXDOMAIN", "REFUSED", "FORMERR", "NOTIMP", "BADVERS", "dropped")
"""How a question to the name server was answered, in the order of the counters."""

CONNECT_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of `relay_connect_duration_seconds`: from a local socket's 0.1 ms to the default timeout."""
DURATION_BOUNDS_S: Final = (0.005, 0.025, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 3600.0, 21600.0, 86400.0)
"""Upper bounds of `relay_connection_duration_seconds`: from one request to a database session of a day."""


class DaemonWord:
    """Words of the header."""

    MAGIC: Final = 0
    VERSION: Final = 1
    WORKERS: Final = 2
    FLOWS_PER_WORKER: Final = 3
    STARTED_NS: Final = 4  # CLOCK_REALTIME
    RELOAD_OK: Final = 5  # 1 or 0: did the last reload take
    RELOAD_OK_AT_NS: Final = 6  # CLOCK_REALTIME of the last one that took
    RELOADS_FAILED: Final = 7
    CONTROL_RESTARTS: Final = 8
    HOLDER_RESTARTS: Final = 9
    DRAIN_UNTIL_NS: Final = 10  # CLOCK_MONOTONIC; 0: not draining
    ROSTER_AT_NS: Final = 13  # CLOCK_REALTIME at which a registry last confirmed the roster; 0: none is asked
    ROSTER_REJECTED: Final = 14  # entries of a registry that were not believed
    NAMES_QUERIES: Final = 16  # the first of as many words as NAMES_RCODES has
    BUSY_UNTIL_NS: Final = 12  # CLOCK_REALTIME; until then probes are refused, so that edges send nobody; 0: not
    GENERATION: Final = 15  # of the snapshot by which the keeper holds what it holds
    PROGRAM: Final = 11  # times the keeper replaced its program: which one it runs now
    CONTROL_BEAT_NS: Final = 24  # CLOCK_MONOTONIC, once a second from control's loop; see processes/watch.py
    HUNG: Final = 25  # processes that the keeper killed because they hung
    SOURCES_AT: Final = 26  # index of the first table of sources; 0: there is none yet. See source_tables.py
    SOURCES_ENTRIES: Final = 27  # places of each: a power of two
    SOURCES_KEY: Final = 28  # random: what sources are called goes by it
    # By CLOCK_MONOTONIC what stands above by CLOCK_REALTIME. Durations go by these alone: see clocks.py.
    BUSY_UNTIL_MONOTONIC_NS: Final = 29
    STARTED_MONOTONIC_NS: Final = 30
    ROSTER_AT_MONOTONIC_NS: Final = 31
    WORKERS_AT: Final = 32  # index of the first worker's words
    RELOAD_OK_AT_MONOTONIC_NS: Final = 33
    BUSY_TAKEN_NS: Final = 34  # the BUSY_UNTIL_NS that BUSY_UNTIL_MONOTONIC_NS was written for
    # CLOCK_MONOTONIC: the oldest last good answer of a source of instances; 0: there is none. A new control begins with it.
    ANSWERED_AT_MONOTONIC_NS: Final = 35
    END: Final = 36


class Word:
    """Words of a worker."""

    PID: Final = 0
    HEARTBEAT_NS: Final = 1  # CLOCK_MONOTONIC, once a second
    GENERATION: Final = 2  # of the snapshot it works by
    ACCEPT_PAUSES: Final = 3  # times it stopped accepting: no descriptors or memory, or the kernel refused
    PIPES: Final = 4  # open now
    PIPES_DEGRADED: Final = 5  # pipes that the kernel gave smaller than asked, ever
    PIPES_REFUSED: Final = 6  # times no pipe was to be had
    LOG_DROPPED: Final = 7  # log lines that nobody took in time
    FLOWS_ADOPTED: Final = 8
    FLOWS_HIGH: Final = 9  # records from here on were never used: reading them would only cost memory
    SCRATCH_R: Final = 10  # the scratch pipe's ends (0: none)
    SCRATCH_W: Final = 11
    SCRATCH_OWNER: Final = 12  # whose bytes are in it, see `owner_of`; 0: nobody's
    SNAPSHOT_FD: Final = 13  # a memory file with the snapshot in force; 0: the one that the holder started with
    RESTARTS: Final = 14  # times the holder started this worker again
    UNSHARED: Final = 15  # 1: the kernel refused a shared descriptor table, so a crash loses this worker's flows
    HOLDER_PID: Final = 16  # 0: it is dead, and the worker works on without a net
    PROGRAM: Final = 17  # which one it runs, as in the header
    # 1 + the record that ended, was passed on, or became a line last: the only one of them that may not be counted yet
    ENDING: Final = 18
    LAYOUT: Final = 19  # the VERSION in which it writes; else its part here is a copy, see convert.py
    OPEN: Final = 20  # 1 + its connections that are open; 0: it takes no newcomers. See dataplane/share.py
    CRASHES: Final = 21  # times in a row that it, or its holder, ended at its start; 0 when it has lived for a while
    UNSERVED: Final = 22  # addresses that its snapshot declares and it has no socket for. Stored before GENERATION
    SOURCES_UNCOUNTED: Final = 23  # times a source found no place in the table of sources
    STARTED_PID: Final = 24  # of the process that was started last to be the worker; it may have yet to begin
    HUNG: Final = 25  # times it was killed because it hung
    COPY_OWNER: Final = 26  # whose message is being copied, see `owner_of`; 0: nobody's yet. See copying.py
    COPY_RECEIVE: Final = 32  # a struct mmsghdr and its struct iovec: ten words at most
    COPY_SEND: Final = 48
    END: Final = 64


class Count:
    """Words of an endpoint in one worker."""

    ACCEPTED: Final = 0
    RECEIVED: Final = 1  # bytes from the client that the target's socket took
    SENT: Final = 2  # bytes from the target that the client's socket took
    CONNECT_FAILURES: Final = 3
    TARGET_UP: Final = 4  # the last dial: when (CLOCK_MONOTONIC, ns) << 1 | whether it was answered; 0: none yet
    CONNECT_SUM_NS: Final = 5
    DURATION_SUM_NS: Final = 6
    ACTIVE: Final = 7  # open now, of this worker
    RATE_WINDOW: Final = 8  # number of the second (or minute) << 32 | connections let in in it
    HOLDER: Final = 9  # whose row it is, see `claim`
    HELD: Final = 10  # of this worker, in HOLD now
    # Each of these is the first of as many as there is room for.
    DENIED: Final = 16
    CLOSED: Final = 32
    CONNECT_BUCKETS: Final = 64
    DURATION_BUCKETS: Final = 80
    WOULD_DENY: Final = 96  # let in, because the envelope is not enforced
    DIAL_WHY: Final = 112  # of the last dial that failed: targets/why.py. Stored before TARGET_UP says that it failed
    OTHER_SOURCE: Final = 113  # dials of a loopback target from another address, because the usual one had no port left
    # In worker 0's row, where control writes them: see targets/health.py.
    HEALTH: Final = 114  # the target as control found it
    LOOKED_NS: Final = 115  # CLOCK_MONOTONIC of the look that HEALTH is from
    HOLD_UNTIL_NS: Final = 116  # CLOCK_MONOTONIC; until then new connections go to HOLD (`relay hold`); 0: they do not
    END: Final = 117


if len(REASONS) > REASONS_MAX or len(CAUSES) > CAUSES_MAX or max(len(CONNECT_BOUNDS_S), len(DURATION_BOUNDS_S)) > 15:
    raise RelayBug("an endpoint's counters do not fit their row")


class TargetCount:
    """Words of a target in one worker."""

    CONNECTED: Final = 0  # dials that were answered
    FAILURES: Final = 1
    ACTIVE: Final = 2
    EJECTED_UNTIL_NS: Final = 3  # CLOCK_MONOTONIC; until then others are tried first
    EJECTIONS: Final = 4
    FAILED_IN_A_ROW: Final = 5
    CONNECT_SUM_NS: Final = 6
    HOLDER: Final = 7  # whose row it is, see `claim`
    DIALLED: Final = (
        8  # the last dial: when (CLOCK_MONOTONIC, ns) << 1 | whether the target took the connection; 0: none yet
    )
    DIAL_WHY: Final = 9  # of the last dial that failed: targets/why.py. Stored before DIALLED says that it failed
    RETRIES: Final = 12  # connections for which another target was dialled after this one had failed
    # In worker 0's row, where control writes them:
    LOOKED_NS: Final = 10  # when the health that stands there was found
    KNOWS: Final = 11  # bits of `Knows`


class Knows:
    """What a target's relay is known to know; bits."""

    TAKEN: Final = 1  # it says when a client's connection was taken, at the endpoint's port: envelope/asking.py
    NAMES: Final = 2  # it answers at its own port, where a connection names its endpoint; and says so there too


class Health:
    """How a target is."""

    UNKNOWN: Final = 0  # not looked at yet: new connections are sent
    UP: Final = 1
    DOWN: Final = 2


class State:
    """Where a flow stands; the first word of its record. FREE means that there is no flow."""

    FREE: Final = 0
    LOOK: Final = 1  # waiting for the first bytes that the declared protocol asks for
    DIAL: Final = 2  # waiting for the target
    SPLICE: Final = 3  # bytes move
    HEADER: Final = 6  # waiting for the edge to say who the client is
    CLOSE: Final = 4  # one side was reset; the other has not yet taken what was sent before
    END: Final = 5  # over; its descriptors are being closed
    ASK: Final = 7  # the instance's relay has a copy of what came, and has yet to say that its target has taken it
    TAKEN: Final = 8  # it has said so: that answer and what was copied are taken out of the sockets
    HOLD: Final = 9  # no target is to be had now: it waits until one is
    LINE: Final = 10  # a machine that sends connections here is told whether they are wanted; it is none itself


STATE_NAMES: Final = {
    State.LOOK: "look",
    State.DIAL: "dial",
    State.SPLICE: "splice",
    State.HEADER: "header",
    State.ASK: "ask",
    State.TAKEN: "taken",
    State.HOLD: "hold",
    State.CLOSE: "close",
    State.LINE: "line",
    State.END: "end",
}
"""What people are told of a flow that there is."""


class Flag:
    """What a flow's record says beside its state; bits."""

    CLIENT_RESET: Final = 1
    TARGET_RESET: Final = 2
    UP_FIN: Final = 4  # the end of the stream was passed on to the target, or is about to be
    DOWN_FIN: Final = 8
    PROBE: Final = 16  # the edge's own: it asks whether the application takes connections
    PEER_DEAD: Final = 32  # of the side that broke first: its peer did not answer any more
    ASKS_WHY: Final = 64  # and where it does not, why: envelope/asking.py, THROUGH
    ASKS_RELAY: Final = 128  # or it asks us alone: RELAY
    ASKS_TAKEN: Final = 192  # both bits: whether the target took the connection, TAKEN
    ASKS_LINE: Final = 1 << 16  # or wants a line: LINE. Not in END, where the cause is
    CAUSE_SHIFT: Final = 8  # from this bit on, in END: the index of its cause


def health_at(slot: int) -> int:
    """Index into `words` of the health of one of several targets: targets/health.py. Control writes it, workers read it."""
    return HEADER_WORDS + slot


def layout_version(fd: int) -> int | None:
    """The layout's version of the ledger in a memory file; None where there is no ledger in it."""
    magic, version = struct.unpack("=QQ", os.pread(fd, 2 * WORD_BYTES, 0).ljust(2 * WORD_BYTES, b"\0"))
    return version if magic == MAGIC else None
