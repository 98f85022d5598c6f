"""Log lines for refusals and for what could not be dialled: the first of every second in full, then how many more."""

from collections import Counter
from typing import Final, Literal

from relay.log import Logger

Event = Literal["denied", "would deny", "dial"]

# Each second and worker: enough to see who it is, too few for a flood to fill a disk. What this machine cannot do, it
# cannot do for anybody.
_FULL_LINES: Final[dict[Event, int]] = {"denied": 10, "would deny": 10, "dial": 1}
_LEVELS: Final[dict[Event, Literal["warning", "error"]]] = {
    "denied": "warning",
    "would deny": "warning",
    "dial": "error",
}


class Denials:
    """Counts refusals between two ticks and writes about them. What is counted is bounded by endpoints x reasons.

    What would be refused, where the envelope is not enforced, is an event of its own, with its own number of full lines; and
    so is a dial that this machine cannot even begin.
    """

    def __init__(self, log: Logger) -> None:
        self._log = log
        self._written: Counter[Event] = Counter()
        self._left_out: Counter[tuple[Event, str, str]] = Counter()

    def note(
        self,
        endpoint: str,
        peer: str,
        reason: str,
        detail: str = "",
        event: Event = "denied",
    ) -> None:
        """One refusal, of who is at `peer` (`host:port`). `detail` stands only in a full line, for it may be anything."""
        if self._written[event] < _FULL_LINES[event]:
            self._written[event] += 1
            self._log.event(
                _LEVELS[event],
                event,
                endpoint=endpoint,
                peer=peer,
                reason=reason,
                **({"detail": detail} if detail else {}),
            )
        else:
            self._left_out[event, endpoint, reason] += 1

    def note_unseen(self, endpoint: str, reason: str, count: int) -> None:
        """So many refusals of which nothing is known but their number."""
        self._left_out["denied", endpoint, reason] += count

    def tick(self) -> None:
        """A second is over: say what was left out, and start anew."""
        for (event, endpoint, reason), count in self._left_out.items():
            self._log.event(_LEVELS[event], event, endpoint=endpoint, reason=reason, left_out=count)
        self._written.clear()
        self._left_out.clear()
