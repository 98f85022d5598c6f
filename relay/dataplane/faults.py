"""Fault injection: a worker that kills itself at every window of a connection's way, one after the other.

`RELAY_FAULT=walk` in the daemon's environment makes each worker die at a kind of step that the workers before it have not
died at; when all kinds have been visited, it begins anew. A step is the moment before or after each call that changes the
ledger, a descriptor or a socket, or the moment at which a call failed; between two steps nothing happens that a successor
could see half done. So a test that runs traffic meanwhile visits every window instead of hoping for it. `walk-http` is for
an endpoint whose connections are looked at, and whose target is told who the client is; `walk-edge` is for an edge, and
`walk-header` for an instance behind one. They have the steps of everybody and their own, which never come elsewhere. For
tests alone: without the variable nothing here is imported.
"""

import functools
import os
import random
import signal
from collections.abc import Callable
from typing import Any, Final

from relay.dataplane import dial, first_bytes, listener, session, splice
from relay.dataplane.adopt import Adoption
from relay.dataplane.gate import Gate
from relay.dataplane.listener import Listener
from relay.dataplane.pipes import PipePool
from relay.kernel.poller import Poller
from relay.kernel.sockets import Accepted
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import SCRATCH, Word
from relay.ledger.ledger import WorkerLedger
from relay.log import Logger
from relay.targets.pool import Pool

_Steps = tuple[tuple[Any, str], ...]

# In the order of a connection's way: accept, decide, dial, move, close; then what a successor does.
_EVERYBODY: Final[_Steps] = (
    (Listener, "take"),
    (Gate, "admit"),
    (listener, "not_blocking"),
    (dial, "target_socket"),
    (dial, "connect"),
    (WorkerLedger, "begin"),
    (Gate, "accepted"),
    (Poller, "want"),
    (splice, "splice"),
    (splice, "no_delay"),
    (PipePool, "take"),
    (splice.Mover, "_new_scratch"),
    (WorkerLedger, "hold"),
    (splice.Mover, "_keep"),
    (PipePool, "adopt"),  # after one that leaves a pipe to adopt
    (PipePool, "give_back"),
    (WorkerLedger, "moved"),
    (WorkerLedger, "flag"),
    (splice.Lane, "finish"),
    (WorkerLedger, "ending"),
    (Adoption, "_finish"),  # after one that leaves an end to finish
    (session, "finish_on_close"),
    (Gate, "release"),
    (Poller, "close"),
    (Poller, "bury"),
    (Accepted, "close"),
    (WorkerLedger, "end"),
    (Adoption, "_scratch"),
    (WorkerLedger, "reconcile"),
    (Adoption, "_resume"),
    (Adoption, "_pipe"),
    (Gate, "readmit"),
    (session.Session, "resume"),
    (Adoption, "_arrivals"),
)
_DENIALS_AND_RESETS: Final[_Steps] = (
    (Gate, "denied"),
    (splice.Mover, "abandon"),
    (splice.Mover, "drop"),
    (session, "reset_on_close"),
)
# Where a target answers at once there is nothing to advance to but CLOSE, or from LOOK. A Unix socket's peer has no
# resets to send, and nothing is on its way any more when one is closed.
_TCP: Final[_Steps] = (*_DENIALS_AND_RESETS, (splice.Mover, "discard"), (WorkerLedger, "advance"))
_HTTP: Final[_Steps] = (
    *_DENIALS_AND_RESETS,
    (first_bytes, "first_bytes"),
    (WorkerLedger, "advance"),
    (session, "introduce"),
    (SourceCounts, "add"),
)
_EDGE: Final[_Steps] = (
    (first_bytes, "first_bytes"),
    (WorkerLedger, "advance"),
    (Pool, "choose"),
    (session, "introduce"),
    (Pool, "enter"),
    (WorkerLedger, "aim"),
)
_HEADER: Final[_Steps] = (
    (first_bytes, "header"),
    (WorkerLedger, "identify"),
    (first_bytes, "take"),
    (Gate, "identify"),
    (first_bytes, "first_bytes"),
    (WorkerLedger, "advance"),
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
    kinds = [f"{when} {_name(owner, attribute)}" for owner, attribute in WALKS[walk] for when in ("before", "after")]
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
        patience -= 1
        if patience < 0 or (name in wanted and chance.random() < _LIKELY):
            log.event("error", "fault", step=name)
            if name in at and not log.dropped:
                ledger.words[at[name]] += 1
            os.kill(os.getpid(), signal.SIGKILL)

    for owner, attribute in WALKS[walk]:
        setattr(owner, attribute, _stepping(getattr(owner, attribute), _name(owner, attribute), step))


def _name(owner: Any, attribute: str) -> str:
    return f"{owner.__name__}.{attribute}".rpartition("relay.dataplane.")[2]


def _stepping(call: Callable[..., Any], name: str, step: Callable[[str], None]) -> Callable[..., Any]:
    @functools.wraps(call)
    def stepping(*args: Any, **keys: Any) -> Any:
        step(f"before {name}")
        try:
            result = call(*args, **keys)
        except BlockingIOError:  # there was nothing to do
            raise
        except OSError:
            step(f"failed {name}")
            raise
        step(f"after {name}")
        return result

    return stepping
