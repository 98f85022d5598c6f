"""What is made of the answers to probes, where they are counted. Pure: the time is told."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

from relay.config.snapshot import ProbeRow
from relay.ledger.layout import Health
from relay.targets.why import BUSY, HELD, is_of_application

_FLAPS: Final = 3  # as many falls within so many intervals, and one good answer is not believed any more
_FLAP_INTERVALS: Final = 20
_GOOD_ANSWERS: Final = 3  # in a row, of one that flaps
_ASKED_FOR: Final = (BUSY, HELD)  # by somebody, and at once: who asks for nobody has not failed


@dataclass(slots=True)
class Judge:
    """Answers in, health out. `health` is one of `Health`, at first what an earlier control process found."""

    probe: ProbeRow
    health: int = Health.UNKNOWN
    _good_in_a_row: int = 0
    _bad_in_a_row: int = 0
    _falls_s: deque[float] = field(default_factory=lambda: deque(maxlen=_FLAPS))

    def hear(self, fault: int, now_s: float) -> int:
        """The target's health after one more answer: why it is down (targets/why.py), or 0.

        `fall` bad answers in a row are down, `rise` good ones are up; of a target that has fallen several times of late at
        least as many as of one that flaps. The first answer of all decides at once.
        """
        if fault:
            self._good_in_a_row = 0
            self._bad_in_a_row += 1
            is_failure = fault not in _ASKED_FOR
            # A relay's word is what came of all answers that it has counted itself. That there is none, nobody has counted.
            is_counted = self.probe.kind == "relay" and is_of_application(fault)
            if self.health == Health.UP and is_failure:
                if self._bad_in_a_row < self.probe.fall and not is_counted:
                    return self.health
                self._falls_s.append(now_s)
            self.health = Health.DOWN
            return self.health
        self._bad_in_a_row = 0
        self._good_in_a_row += 1
        if self.health == Health.UNKNOWN or self._good_in_a_row >= self._needed(now_s):
            self.health = Health.UP
        return self.health

    def _needed(self, now_s: float) -> int:
        return max(self.probe.rise, _GOOD_ANSWERS if self._flaps(now_s) else 1)

    def _flaps(self, now_s: float) -> bool:
        within_s = _FLAP_INTERVALS * self.probe.interval_s
        return len(self._falls_s) == _FLAPS and now_s - self._falls_s[0] < within_s
