"""Fault injection: a worker that kills itself at every window of a connection's way, one after the other.

`RELAY_FAULT=walk` in the daemon's environment makes each worker die at a kind of step that the workers before it have not
died at; when all kinds have been visited, it begins anew. A step is the moment before or after each call that changes the
ledger, a descriptor or a socket, or the moment at which a call failed; between two steps nothing happens that a successor
could see half done. So a test that runs traffic meanwhile visits every window instead of hoping for it. `walk-http` is for
an endpoint whose connections are looked at, and whose target is told who the client is; `walk-edge` is for an edge, and
`walk-header` for an instance behind one. They have the steps of everybody and their own, which never come elsewhere. For
tests alone: without the variable nothing here is imported.
"""

import os
import random
import signal
from typing import Final

from relay import steps
from relay.ledger.layout import SCRATCH, Word
from relay.ledger.ledger import WorkerLedger
from relay.log import Logger

_Steps = tuple[str, ...]

# In the order of a connection's way: accept, decide, dial, move, close; then what a successor does.
_EVERYBODY: Final[_Steps] = (
    "Listener.take",
    "Gate.admit",
    "sockets.not_blocking",
    "sockets.target_socket",
    "sockets.connect",
    "WorkerLedger.begin",
    "Gate.accepted",
    "Poller.want",
    "splice.splice",
    "sockets.no_delay",
    "PipePool.take",
    "Mover._new_scratch",
    "WorkerLedger.hold",
    "Mover._keep",
    "PipePool.adopt",  # after one that leaves a pipe to adopt
    "PipePool.give_back",
    "WorkerLedger.moved",
    "WorkerLedger.flag",
    "Lane.finish",
    "WorkerLedger.ending",
    "Adoption._finish",  # after one that leaves an end to finish
    "sockets.finish_on_close",
    "Gate.release",
    "Poller.close",
    "Poller.bury",
    "Accepted.close",
    "WorkerLedger.end",
    "Adoption._scratch",
    "WorkerLedger.reconcile",
    "Adoption._resume",
    "Adoption._pipe",
    "Gate.readmit",
    "Session.resume",
    "Adoption._arrivals",
)
_DENIALS_AND_RESETS: Final[_Steps] = (
    "Gate.denied",
    "Mover.abandon",
    "Mover.drop",
    "sockets.reset_on_close",
)
# Where a target answers at once there is nothing to advance to but CLOSE, or from LOOK. A Unix socket's peer has no
# resets to send, and nothing is on its way any more when one is closed.
_TCP: Final[_Steps] = (*_DENIALS_AND_RESETS, "Mover.discard", "WorkerLedger.advance")
_HTTP: Final[_Steps] = (
    *_DENIALS_AND_RESETS,
    "first_bytes.first_bytes",
    "WorkerLedger.advance",
    "dial.introduce",
    "SourceCounts.add",
)
_EDGE: Final[_Steps] = (
    "first_bytes.first_bytes",
    "WorkerLedger.advance",
    "Pool.choose",
    "dial.introduce",
    "Pool.enter",
    "WorkerLedger.aim",
)
_HEADER: Final[_Steps] = (
    "first_bytes.header",
    "WorkerLedger.identify",
    "first_bytes.take",
    "Gate.identify",
    "first_bytes.first_bytes",
    "WorkerLedger.advance",
)
WALKS: Final = {
    "walk": _EVERYBODY + _TCP,
    "walk-http": _EVERYBODY + _HTTP,
    "walk-edge": _EVERYBODY + _EDGE,
    "walk-header": _EVERYBODY + _HEADER,
}
"""The steps of each value of RELAY_FAULT."""

# A socket's error is told once, and here the one that was told it dies. It comes where somebody resets.
_FAILS: Final = {"walk": ("splice.splice",), "walk-http": ("splice.splice",), "walk-edge": (), "walk-header": ()}
# How likely it dies at a step that it wants: so it is the first one of its kind at times, and at times a later one.
_LIKELY: Final = 0.5
# A worker that has not met what it wants by then dies where it is: that is rare, or comes after a death alone.
_PATIENCE_STEPS: Final = 5_000


def names(walk: str = "walk") -> list[str]:
    """Every kind of step of this walk."""
    kinds = [f"{when} {name}" for name in WALKS[walk] for when in ("before", "after")]
    return kinds + [f"failed {name}" for name in _FAILS[walk]]


def install(ledger: WorkerLedger, log: Logger, walk: str) -> None:
    """Make this worker die at a step of this walk that its predecessors have visited the least."""
    first = ledger.word_index(SCRATCH)  # how often each kind was visited
    at = {name: first + n for n, name in enumerate(names(walk))}
    least = min(ledger.words[each] for each in at.values())
    wanted = {name for name, each in at.items() if ledger.words[each] == least}
    chance, patience = random.Random(ledger[Word.RESTARTS]), _PATIENCE_STEPS

    def step(name: str) -> None:
        nonlocal patience
        if name not in at and not name.startswith("failed"):
            return  # of another walk
        patience -= 1
        if patience < 0 or (name in wanted and chance.random() < _LIKELY):
            log.event("error", "fault", step=name)
            if name in at and not log.dropped:
                ledger.words[at[name]] += 1
            os.kill(os.getpid(), signal.SIGKILL)

    steps.watch(step)
