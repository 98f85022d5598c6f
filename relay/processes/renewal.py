"""After a live upgrade's execve(2) of the keeper: new holders take the old ones' places, one after the other.

So the connections of one worker stand still at a time, and never those of all; new ones are accepted by the others.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final

from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger
from relay.log import Logger

LOOK_S: Final = 0.005  # how often to look whether one is up: the connections of the next wait for it
_PATIENCE_S: Final = 10.0  # it is up within milliseconds; where it is not, the next is started ever later


def behind(ledger: Ledger) -> list[int]:
    """Workers that still run in the program that was replaced, or are just being started in the new one."""
    program = ledger.words[DaemonWord.PROGRAM]
    return [n for n in range(ledger.workers) if ledger.worker(n)[Word.PROGRAM] != program]


class Renewal:
    """Has the holders succeeded. `step` it until `done`."""

    def __init__(
        self, ledger: Ledger, log: Logger, succeed: Callable[[int], None], workers: Sequence[int] = ()
    ) -> None:
        """`workers` are to be renewed; `succeed` starts the successor of one's holder."""
        self._ledger = ledger
        self._log = log
        self._succeed = succeed
        self._left = list(workers)
        self._until_s = 0.0  # 0: the first one's successor has not been started yet
        self._patience_s = _PATIENCE_S
        self._began_s = time.monotonic()

    @property
    def done(self) -> bool:
        """Whether every worker runs in the new program."""
        return not self._left

    def step(self, now_s: float) -> None:
        """Look whether the one that was started is up, and start the next."""
        while self._left:
            index = self._left[0]
            if index not in behind(self._ledger):
                self._left.pop(0)
                self._until_s = 0.0
                if not self._left:
                    self._log.event("info", "upgraded", took_s=round(now_s - self._began_s, 3))
            elif now_s >= self._until_s:
                if self._until_s:
                    self._patience_s *= 2
                    message = f"worker-{index} is not up in the new program; that is tried again"
                    self._log.event("error", "upgrade", message=message)
                self._until_s = now_s + self._patience_s
                self._succeed(index)
            else:
                return
