"""Which answer of a source stands. Pure: it is told what was answered, and when.

Whoever asks DNS often meets a server that has lost its zone, a resolver that lies, or a file that is half written: answers
that are right in form and wrong. So the last good answer stands as long as nothing better is known, and one that takes
away everything, or half, is believed only when it has stayed so for a while.
"""

import math
from typing import Final, Literal

from relay.fleet.places import Place, SourceAnswer, in_order

DOUBT_S: Final = 30.0
"""An answer that is empty, or at most half of what stands, is believed after it stayed so for so long."""
AGAIN_S: Final = 5.0
"""Meanwhile it is asked again at least so often."""

Verdict = Literal["same", "changed", "doubted", "believed"]
"""What an answer has done: nothing; it stands at once; it is doubted; or it stands, after it was doubted."""


class StandingAnswer:
    """The places of one source that stand. Times are in seconds of any clock that only goes forward."""

    def __init__(self, known: tuple[Place, ...] | None = None) -> None:
        """`known` is what stood before; None: nothing was ever answered, so the first answer stands at once."""
        self.places = in_order(known or ())
        self._is_known = known is not None
        self._doubted_since_s = math.inf
        self._doubted = 0  # how many places the last answer had that was doubted

    @property
    def is_doubting(self) -> bool:
        """Whether the last answer does not stand."""
        return self._doubted_since_s < math.inf

    def hear(self, answer: SourceAnswer, now_s: float) -> Verdict:
        """This was answered now. Of an IP version that is unsure, what stands stays."""
        kept = (place for place in self.places if place.version in answer.unsure)
        heard = in_order((*answer.places, *kept))
        is_doubtful = self._is_known and bool(self.places) and 2 * len(heard) <= len(self.places)
        if is_doubtful:
            if not self.is_doubting or len(heard) < self._doubted:  # the less is left, the more it must be sure
                self._doubted_since_s = now_s
            self._doubted = len(heard)
            if now_s - self._doubted_since_s < DOUBT_S:
                return "doubted"
        changed = heard != self.places
        self.places, self._is_known, self._doubted_since_s = heard, True, math.inf
        return "believed" if is_doubtful else "changed" if changed else "same"

    def wait_s(self, ttl_s: float, now_s: float) -> float:
        """How long to wait before it is asked again, after an answer that may be remembered for `ttl_s`."""
        if not self.is_doubting:
            return ttl_s
        left_s = self._doubted_since_s + DOUBT_S - now_s
        return min(ttl_s, AGAIN_S, left_s if left_s > 0 else AGAIN_S)
