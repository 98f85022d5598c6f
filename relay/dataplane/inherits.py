"""What a holder gives a new worker, and how much the machine lets it take."""

import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay.config.snapshot import Snapshot
from relay.dataplane.giving import Give
from relay.kernel import memory
from relay.ledger.layout import Word
from relay.ledger.ledger import WorkerLedger

NOFILE_RESERVED: Final = 64  # descriptors for everything that is not a flow
# Two sockets, and one direction's pipe. Only a flow that stalls both ways needs more, and it then waits for one.
NOFILE_PER_FLOW: Final = 4


@dataclass(frozen=True, slots=True)
class WorkerInherits:
    """What a holder gives a new worker. They share the descriptor table, so nothing here is ever closed."""

    index: int
    ledger: WorkerLedger
    keeper_pid: int
    program: int  # which of the daemon's programs this one runs, see `Head.PROGRAM`
    drain_until: Callable[[], int]  # CLOCK_MONOTONIC, ns; 0: the daemon does not drain
    control: socket.socket
    log_sink: socket.socket
    snapshot: Snapshot  # the one that stood when the holder began
    baseline: dict[int, str]  # the holder's own descriptors
    called: Callable[[], socket.socket | None] = lambda: None  # see giving.py
    give: Give | None = None
    # Returns when all that a predecessor left is this worker's; the numbers of what that took, and is closed again.
    begins: Callable[[], set[int]] = set


def snapshot_in_force(inherited: WorkerInherits) -> Snapshot:
    """What a predecessor worked by last, where that is newer than what its holder began with."""
    return Snapshot.from_json(memory.read(inherited.ledger[Word.SNAPSHOT_FD]))


def flows_max(nofile: int) -> int:
    """How many flows a worker may hold, with `nofile` descriptors for its process."""
    return max(1, (nofile - NOFILE_RESERVED) // NOFILE_PER_FLOW)
