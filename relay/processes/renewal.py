"""New holders take the places of those that are of a replaced program (after a live upgrade's execve(2)), or dead.

One after the other, so the connections of one worker stand still at a time, and never those of all; new ones are accepted
by the others. A dead holder's worker gives its table itself (dataplane/giving.py). What fails is tried again, ever later,
for each time costs the connections a pause; at once where the holder has died meanwhile.
"""

import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay.kernel import process
from relay.ledger.layout import Word
from relay.ledger.ledger import Ledger
from relay.log import Logger
from relay.processes.children import Children
from relay.processes.standing import behind

LOOK_S: Final = 0.005  # how often to look whether one is up: the connections of the next wait for it
_PATIENCE_S: Final = 10.0  # it is up within milliseconds
_AGAIN_S: Final = 10.0  # to the next try at an upgrade, and then twice as long each time
_GUARD_AGAIN_S: Final = 1.0  # the same for a worker without a holder, whose crash would cost its connections
_AGAIN_MAX_S: Final = 3600.0


@dataclass(slots=True)
class _Try:
    """What was tried for one worker, and what comes next. Times are CLOCK_MONOTONIC."""

    alone: bool = False  # its holder was dead
    pid: int = 0  # who was to give everything away
    until_s: float = 0.0
    again_s: float = 0.0
    pause_s: float = 0.0  # to the one after the next
    continued: bool = False  # its holder hung without a worker, and was sent SIGCONT


class Renewal:
    """Has the holders succeeded that must be. `step` it after whatever has happened, and at `at_s`."""

    def __init__(
        self,
        ledger: Ledger,
        log: Logger,
        children: Children,
        told: Callable[[str], None],
        began_s: float | None = None,
    ) -> None:
        """`told` hears why an upgrade does not go on, and "" when it does after all; `began_s`: when one began, if it did."""
        self._told = told
        self._ledger = ledger
        self._log = log
        self._children = children
        self._upgrade_began_s = began_s
        self._tries: dict[int, _Try] = {}
        self._under_way: int | None = None
        self._why = ""

    def hear(self, why: str) -> None:
        """The successor that was started last says why it ends."""
        self._why = why

    def at_s(self, now_s: float) -> float | None:
        """When there is something to do next (CLOCK_MONOTONIC); None: there is nothing."""
        wanted = self._wanted()
        if self._under_way is not None or any(self._children.workers[index].successor for index in wanted):
            return now_s + LOOK_S
        return min((self._of(index).again_s for index in wanted), default=None)

    def step(self, now_s: float) -> None:
        """Look whether the one that was started is up, and start the next."""
        if self._under_way is not None and self._is_over(self._under_way, now_s):
            self._under_way = None
        if self._upgrade_began_s is not None and not behind(self._ledger):
            self._log.event("info", "upgraded", took_s=round(now_s - self._upgrade_began_s, 3))
            self._upgrade_began_s = None
            self._told("")
        if self._under_way is None:
            due = (index for index in self._wanted() if self._is_due(index, now_s))
            if (index := next(due, None)) is not None:
                self._begin(index, now_s)

    def _wanted(self) -> list[int]:
        """Whose holder is to be succeeded: all whose connections are in danger, and the first one of the old program's."""
        alone = [n for n in self._children.unguarded() if not self._ledger.worker(n)[Word.UNSHARED]]
        others: list[int] = []
        if any(child.replaced for child in self._children.workers):
            others = [n for n in behind(self._ledger) if n not in alone and self._children.workers[n].replaced]
        return sorted(alone, key=lambda n: self._of(n).again_s) + others[:1]

    def _of(self, index: int) -> _Try:
        return self._tries.setdefault(index, _Try())

    def _is_due(self, index: int, now_s: float) -> bool:
        tried = self._of(index)
        # Since the last try: there is no use in waiting.
        has_died = not tried.alone and index in self._children.unguarded()
        return (now_s >= tried.again_s or has_died) and not self._children.workers[index].successor

    def _begin(self, index: int, now_s: float) -> None:
        tried = self._of(index)
        tried.alone = index in self._children.unguarded()
        tried.pid, tried.until_s = self._children.workers[index].pid, now_s + _PATIENCE_S
        self._under_way, self._why = index, ""
        self._children.succeed(index)

    def _is_over(self, index: int, now_s: float) -> bool:
        """Whether what is under way has come to its end, whichever it is."""
        child, tried = self._children.workers[index], self._of(index)
        is_up = index not in behind(self._ledger) and index not in self._children.unguarded()
        if is_up and self._ledger.worker(index)[Word.HOLDER_PID]:
            del self._tries[index]
            if tried.alone and not self._why:  # else it has died as well, and both were started with nothing
                self._log.event("info", "guarded", message=f"worker-{index} has a holder again", pid=child.pid)
            return True
        if child.pid != tried.pid and index in self._children.unguarded():  # its holder has died, and nothing was given
            return True
        if child.pid == tried.pid and not child.successor and not self._children.is_beginning(index):
            self._failed(index, now_s)
            return True
        if now_s < tried.until_s:  # also where the successor has died: its worker takes over alone
            return False
        self._children.give_up(index)
        self._failed(index, now_s)
        return True

    def _failed(self, index: int, now_s: float) -> None:
        """What was tried has come to nothing. Who was to give everything away goes on, or hangs."""
        child, tried = self._children.workers[index], self._of(index)
        heard = self._children.heard() or not self._why  # one that ended without a word may not have called it
        if heard or tried.alone:
            pause_s = tried.pause_s or (_GUARD_AGAIN_S if tried.alone else _AGAIN_S)
            tried.again_s, tried.pause_s = now_s + pause_s, min(2 * pause_s, _AGAIN_MAX_S)
            what = "not guarded" if tried.alone else "upgrade failed"
            why = f": {self._why}" if self._why else ""
            message = f"worker-{index} could not be taken over{why}; that is tried again in {pause_s:g} s"
            self._log.event("error", what, message=message)
            if not tried.alone:
                self._told(message)
            return
        tried.again_s = now_s + _GUARD_AGAIN_S
        if process.has_ended(self._ledger.worker(index)[Word.PID]) and not tried.continued:
            # What it holds is nowhere else. If it was stopped by hand it can go on, and does what it was called for.
            tried.continued = True
            os.kill(child.pid, signal.SIGCONT)
        else:
            self._log.event("error", "hung", message=f"the holder of worker-{index} hangs, and is ended", pid=child.pid)
            os.kill(child.pid, signal.SIGKILL)
