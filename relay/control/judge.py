"""What an edge makes of the answers to its probes. Pure: the time is told."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from relay.config.snapshot import ProbeRow
from relay.ledger.layout import Health
from relay.targets.why import BUSY

_FLAPS: Final = 3  # as many falls within so many intervals, and one good answer is not believed any more
_FLAP_INTERVALS: Final = 20
_GOOD_ANSWERS: Final = 3  # in a row, of one that flaps


@dataclass(slots=True)
class Judge:
    """Answers in, health out. `health` is one of `Health`, at first what an earlier control process found."""

    probe: ProbeRow
    health: int = Health.UNKNOWN
    _good_in_a_row: int = 0
    _falls_s: deque[float] = field(default_factory=lambda: deque(maxlen=_FLAPS))

    def hear(self, fault: int, now_s: float) -> int:
        """The target's health after one more answer: why it is down (targets/why.py), or 0.

        A bad answer is down at once. One good answer is up, but of a target that has fallen several times of late, several
        in a row are asked for.
        """
        if fault:
            self._good_in_a_row = 0
            if self.health == Health.UP and fault != BUSY:  # who asks for nobody has not fallen
                self._falls_s.append(now_s)
            self.health = Health.DOWN
            return self.health
        self._good_in_a_row += 1
        if self._good_in_a_row >= (_GOOD_ANSWERS if self._flaps(now_s) else 1):
            self.health = Health.UP
        return self.health

    def _flaps(self, now_s: float) -> bool:
        within_s = _FLAP_INTERVALS * self.probe.interval_s
        return len(self._falls_s) == _FLAPS and now_s - self._falls_s[0] < within_s
