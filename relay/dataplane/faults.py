"""Fault injection: a worker that kills itself at every window of a connection's way, one after the other.

`RELAY_FAULT=walk` in the daemon's environment makes each worker die at a kind of step that the workers before it have not
died at; when all kinds have been visited, it begins anew. A step is the beginning or the end of a function that changes the
ledger, a descriptor or a socket. So a test that runs traffic meanwhile visits every window instead of hoping for it. Where
the order of single stores is what counts, a test of its own has a process die at each line. Each time a flow is put
somewhere (`Flow.stand SPLICE`) is a kind of its own, and is held against stages.py.

`walk-http` is for an endpoint whose connections are looked at, and whose target is told who the client is; `walk-several`
for the same with several targets, of this machine or of a bare role; `walk-edge` is for an edge, and `walk-header` for an
instance behind one. They have the steps of everybody and their own, which never come elsewhere. `walk-hold` has those of a
connection that waits for a target, and no others.

Where a worker is, the interpreter tells (PyEval_SetTrace), of compiled code that was built for it as well (setup.py). For
tests alone: without the variable nothing here is imported.
"""

import os
import random
import signal
from typing import Final

from relay.dataplane import flow, stages
from relay.dataplane.tracing import CALL, RETURN, Traced, places, trace
from relay.errors import RelayBug
from relay.ledger.layout import SCRATCH, STATE_NAMES, Word
from relay.ledger.ledger import WorkerLedger
from relay.log import Logger

_Steps = tuple[str, ...]

# In the order of a connection's way: accept, decide, dial, move, close; then what a successor does.
_EVERYBODY: Final[_Steps] = (
    "Listener.take",
    "Gate.admit",
    "connecting.target_socket",
    "connecting.connect",
    "Flow.stand SPLICE",
    "WorkerLedger.begin",
    "Gate.accepted",
    "Poller.want",
    "Mover._copy",
    "CopyBuffer.take_in",
    "CopyBuffer.pass_on",
    "CopyBuffer.set_aside",
    "CopyBuffer.forget",
    "CopyBuffer.prepare",
    "Mover._splice",
    "Mover._hurry",
    "PipePool.take",
    "Mover._new_scratch",
    "WorkerLedger.hold",
    "Mover._keep",
    "PipePool.adopt",  # after one that leaves a pipe to adopt
    "PipePool.give_back",
    "WorkerLedger.moved",
    "WorkerLedger.flag",
    "Lane.finish",
    "Flow.stand END",
    "WorkerLedger.ending",
    "Adoption._finish",  # after one that leaves an end to finish
    "Gate.release",
    "Poller.close",
    "Poller.bury",
    "BareSocket.close",
    "WorkerLedger.end",
    "CopyBuffer.bring_home",
    "Adoption._scratch",
    "WorkerLedger.reconcile",
    "Adoption._resume",
    "Adoption._pipe",
    "Gate.readmit",
    "Forwarding.resume",
    "Adoption._arrivals",
)
_DENIALS_AND_RESETS: Final[_Steps] = (
    "Gate.denied",
    "Mover.abandon",
    "Mover.drop",
    "sockets.reset_on_close",
)
# The first of its two targets refuses: a dial that is to be waited for. A Unix socket's peer has no resets to send, and
# nothing is on its way any more when one is closed.
_TCP: Final[_Steps] = (
    *_DENIALS_AND_RESETS,
    "Flow.stand DIAL",
    "Flow.stand CLOSE",
    "Mover.discard",
    "WorkerLedger.advance",
)
_HTTP: Final[_Steps] = (
    *_DENIALS_AND_RESETS,
    "Flow.stand LOOK",
    "Greeting.resume",
    "first_bytes.first_bytes",
    "WorkerLedger.advance",
    "dialling.introduce",
    "SourceCounts.clear",
    "SourceCounts.add",
)
_CHOICE: Final[_Steps] = ("Pool.choose", "Pool.enter", "WorkerLedger.aim")
_SEVERAL: Final[_Steps] = (
    "Flow.stand LOOK",
    "Greeting.resume",
    "first_bytes.first_bytes",
    "WorkerLedger.advance",
    "dialling.introduce",
    *_CHOICE,
)
_EDGE: Final[_Steps] = (
    "Flow.stand LOOK",
    "Greeting.resume",
    "first_bytes.first_bytes",
    "WorkerLedger.advance",
    *_CHOICE,
    "Flow.stand ASK",
    "Asking._offer",
    "Asking._send",
    "Flow.stand TAKEN",
    "Asking._take_out",
    "Asking._discard",
    "Asking.resume",
)
_HEADER: Final[_Steps] = (
    "Flow.stand HEADER",
    "Flow.stand LOOK",
    "Flow.stand LINE",  # an edge's control holds one, and each worker's successor stands there again
    "Line._say",
    "Line.resume",
    "Greeting.resume",
    "first_bytes.header",
    "WorkerLedger.identify",
    "WorkerLedger.pass_on",
    "first_bytes.take",
    "telling.tell",
    "telling.tell_taken",
    "Gate.identify",
    "first_bytes.first_bytes",
    "WorkerLedger.advance",
)
_HOLD: Final[_Steps] = ("Flow.stand HOLD", "Holding.wait", "Holding.go", "Dialling.resume_hold")
WALKS: Final = {
    "walk": _EVERYBODY + _TCP,
    "walk-http": _EVERYBODY + _HTTP,
    "walk-several": _EVERYBODY + _SEVERAL,
    "walk-edge": _EVERYBODY + _EDGE,
    "walk-header": _EVERYBODY + _HEADER,
    "walk-hold": _HOLD,
}
"""The steps of each value of RELAY_FAULT."""

# How likely it dies at a step that it wants: so it is the first one of its kind at times, and at times a later one.
_LIKELY: Final = 0.5
# A worker that has not met what it wants by then dies where it is: that is rare, or comes after a death alone.
_PATIENCE_STEPS: Final = 5_000


def names(walk: str = "walk") -> list[str]:
    """Every kind of step of this walk."""
    return [f"{when} {name}" for name in WALKS[walk] for when in ("before", "after")]


_NAMES: Final = {name.partition(" ")[0] for walk in WALKS.values() for name in walk}
_WALKED: Final = [place for name, place in places().items() if name in _NAMES]  # once, and not in each worker


def install(ledger: WorkerLedger, log: Logger, walk: str) -> None:
    """Make this worker die at a step of this walk that its predecessors have visited the least."""
    first = ledger.word_index(SCRATCH)  # how often each kind was visited
    at = {name: first + n for n, name in enumerate(names(walk))}
    least = min(ledger.words[each] for each in at.values())
    wanted = {name for name, each in at.items() if ledger.words[each] == least}
    chance, patience = random.Random(ledger[Word.RESTARTS]), _PATIENCE_STEPS

    def step(name: str) -> None:
        nonlocal patience
        if name not in at:
            return  # of another walk
        patience -= 1
        if patience < 0 or (name in wanted and chance.random() < _LIKELY):
            log.event("error", "fault", step=name)
            if not log.dropped:
                ledger.words[at[name]] += 1
            os.kill(os.getpid(), signal.SIGKILL)

    stood = ""

    def moved(before: int, after: int, cause: str) -> None:
        nonlocal stood
        if wrong := stages.misstep(before, after, cause):
            raise RelayBug(wrong)
        stood = STATE_NAMES[after].upper()
        step(f"before Flow.stand {stood}")

    def follow(place: Traced, what: int, _line: int) -> None:
        if place.name != "Flow.stand":
            step(f"{'before' if what == CALL else 'after'} {place.name}")
        elif what == RETURN:
            step(f"after Flow.stand {stood}")

    flow.MOVES.append(moved)
    trace(_WALKED, follow, lines=False)
