"""Where a flow can stand, where it can go from there, and what can end it there. docs/why/a-connection.md says why.

No worker asks this table. The tests hold every move against it that they see one make, also while workers die (faults.py).
"""

from collections.abc import Mapping
from typing import Final

from relay.ledger.layout import State

MOVES: Final[Mapping[int, tuple[int, ...]]] = {
    State.FREE: (State.HEADER, State.LOOK, State.DIAL, State.ASK, State.HOLD, State.SPLICE),
    State.HEADER: (State.LOOK, State.DIAL, State.HOLD, State.SPLICE, State.LINE),
    State.LOOK: (State.DIAL, State.ASK, State.HOLD, State.SPLICE),
    State.DIAL: (State.DIAL, State.ASK, State.HOLD, State.SPLICE),
    State.ASK: (State.ASK, State.DIAL, State.TAKEN, State.HOLD, State.SPLICE),
    State.HOLD: (State.DIAL, State.ASK, State.SPLICE),
    State.TAKEN: (State.SPLICE,),
    State.SPLICE: (State.CLOSE,),
    State.CLOSE: (),
    State.LINE: (),
}
"""From where to where. To itself as well, but from FREE: a new worker puts a flow where it found it."""

ENDS: Final[Mapping[int, tuple[str, ...]]] = {
    State.HEADER: ("client_gone", "client_reset", "first_byte_timeout", "protocol", "denied", "told"),
    State.LOOK: ("client_gone", "client_reset", "first_byte_timeout", "protocol"),
    State.DIAL: ("connect_failed", "connect_timeout"),
    State.ASK: ("connect_failed", "connect_timeout", "denied", "client_reset"),
    State.HOLD: ("connect_failed", "connect_timeout", "client_reset"),
    State.TAKEN: ("client_reset", "target_reset"),
    State.SPLICE: (
        "client_fin",
        "target_fin",
        "client_reset",
        "target_reset",
        "idle",
        "peer_dead",
        "target_down",
        "lifetime",
    ),
    State.CLOSE: ("client_reset", "target_reset", "peer_dead"),
    State.LINE: ("told",),
}
"""Where a flow can end by itself, and with which causes."""

FROM_OUTSIDE: Final = ("revoked", "drain", "error", "gone")
"""What ends a flow wherever it stands: the envelope, the end of a drain, a bug or a machine that has no more to give, and
that an instance is not there any more."""


ELSEWHERE: Final[Mapping[int, str]] = {State.HEADER: "passed"}
"""Where a flow can go over to another endpoint: with which cause it ends for the one before, while it goes on there."""


def misstep(before: int, after: int, cause: str) -> str:
    """What is wrong with this move, as text; nothing is wrong: "". `cause` is that of an END."""
    if after == State.END:
        right = cause in ENDS.get(before, ()) or (cause in FROM_OUTSIDE and before in ENDS)
    else:
        right = after in MOVES[before] or (after == before and before in ENDS)
    return "" if right else f"a flow may not go from state {before} to {after} {cause}".rstrip()
