"""The processes that the keeper keeps running: control, and a holder for each worker. It forks them and waits for them."""

import contextlib
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

from relay import systemd
from relay.kernel import process
from relay.ledger.layout import DaemonWord, Word
from relay.processes import succession
from relay.processes.child import CRASHES_SAID, Child
from relay.processes.holder import (
    BACKOFF_S,
    EXIT_BUG,
    EXIT_NOTHING_TAKEN,
    NO_PROCESS_S,
    crashes_now,
    how_it_ended,
    no_process,
)
from relay.processes.inherited import Inherited, be_holder, be_successor


class Children:
    """Starts the keeper's processes, and each one again when it has died."""

    def __init__(
        self,
        state: Inherited,
        control_main: Callable[[Inherited], None],
        of_keeper: tuple[int, ...],
        hear: Callable[[], None],
    ) -> None:
        """`of_keeper`: descriptors that only the keeper has. `hear` takes in what control has said."""
        self._state = state
        self._of_keeper = of_keeper
        self._hear = hear
        self._keeper_pid = os.getpid()
        self._parts = [state.ledger.worker(n) for n in range(state.ledger.workers)]  # they are looked at each second
        self._called: Child | None = None  # whose holder was told last to give everything to its successor
        self.control = Child("control", partial(control_main, state))
        self.workers = [Child(f"worker-{n}", partial(be_holder, state, n)) for n in range(state.ledger.workers)]

    def __iter__(self) -> Iterator[Child]:
        """All of them."""
        return iter([*self.workers, self.control])

    # --- starting -----------------------------------------------------------------------------------------------

    def start(self, child: Child) -> None:
        """Start it with nothing from before. Where there can be no process at the moment, that is tried again."""
        if child is self.control:
            self._hear()  # what the one before said last: the next one begins with it
        child.started_s, child.restart_at_s = time.monotonic(), None
        try:
            child.pid = self._fork(child.name, child.main)
        except OSError as error:
            child.restart_at_s = child.started_s + NO_PROCESS_S
            self._state.log.event("error", "not started", message=no_process(child.name, error))

    def start_due(self, now_s: float) -> None:
        """Start those whose time has come."""
        for child in self:
            if child.restart_at_s is not None and now_s >= child.restart_at_s:
                if self._ends(child):
                    child.restart_at_s = None
                else:
                    self.start(child)

    def restarts_at_s(self) -> list[float]:
        """When `start_due` has something to do (CLOCK_MONOTONIC)."""
        return [child.restart_at_s for child in self if child.restart_at_s is not None]

    def succeed(self, index: int) -> None:
        """Start a holder of this program beside the one that is there, to which that one gives everything when it is called.

        The successor calls it (SIGUSR2), as soon as it is ready.
        """
        child = self.workers[index]
        if not child.pid or child.successor:
            return  # it is just being started in this program; the last successor has not given up yet
        try:
            ours, theirs = succession.pair()
            with ours, theirs:
                succession.call(self._state.hand, theirs)
                self._called = child
                main = partial(be_successor, self._state, index, child.pid, ours, theirs)
                child.successor = self._fork(child.name, main)
        except OSError as error:
            self._state.log.event("error", "not started", message=no_process(child.name, error))

    def heard(self) -> bool:
        """Whether who was called last to give everything away has heard it; if not, it will not any more."""
        return not succession.recall(self._state.hand)

    def give_up(self, index: int) -> None:
        """End a successor that has taken too long, unless it has everything: then the one before it, which hangs."""
        child = self.workers[index]
        has_all = child.successor and self._state.ledger.worker(index)[Word.HOLDER_PID] == child.successor
        for pid in [child.pid if has_all else child.successor]:
            if pid:
                os.kill(pid, signal.SIGKILL)

    def _fork(self, name: str, main: Callable[[], None]) -> int:
        """The pid of a process of this name, which is `main`. Raises OSError where there can be none at the moment."""
        if pid := os.fork():
            return pid
        status = EXIT_BUG
        try:
            self._become(name)
            main()
            status = 0
        except BaseException:
            self._state.log.event("error", "crash", message=name, traceback=traceback.format_exc())
        finally:
            os._exit(status)

    def _become(self, name: str) -> None:
        """In the new process: what was the keeper's and is not the child's."""
        signal.set_wakeup_fd(-1)
        for sig in (signal.SIGCHLD, signal.SIGTERM):
            signal.signal(sig, signal.SIG_DFL)
        for sig in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):  # a terminal sends them to all; the keeper decides
            signal.signal(sig, signal.SIG_IGN)
        for fd in self._of_keeper:
            os.close(fd)
        process.name(f"relay-{name}")
        # Without a keeper nobody starts anything again: control ends, and a holder passes it on to its worker.
        process.die_with_parent(self._keeper_pid, process.STOP)

    # --- ending -------------------------------------------------------------------------------------------------

    def reap(self) -> None:
        """Take note of all that have died."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for child in self:
                if pid == child.pid:
                    self._on_death(child, status)
                elif pid == child.successor:
                    child.successor = 0

    def _on_death(self, child: Child, status: int) -> None:
        if os.waitstatus_to_exitcode(status) == EXIT_NOTHING_TAKEN:
            status = child.before  # it ended for that end
        was_replaced, child.replaced = child.replaced, False
        child.pid = self._unguarded(child)
        if child.successor:
            if self._called is child:  # the next one's worker may be up before this one's end is seen
                succession.recall(self._state.hand)  # or, where it never heard, the successor would wait for nothing
            if child.pid:  # a holder that had begun to give would have ended its worker first
                os.kill(child.successor, signal.SIGKILL)
            else:
                child.pid, child.successor, child.before = child.successor, 0, status
        if child.pid or self._ends(child):
            return
        if was_replaced and child is self.control:
            self.start(child)
            return
        child.crashes = crashes_now(child.crashes, status, time.monotonic() - child.started_s)
        if child is self.control:
            self._state.control_crashes = child.crashes
            if child.crashes >= CRASHES_SAID:  # it cannot say so itself
                text = f"control ends at its start, {child.crashes} times in a row (see the log); forwarding goes on"
                systemd.notify(f"STATUS={text}")
        else:  # its worker ends this count when it has lived for a while
            part = self._state.ledger.worker(self.workers.index(child))
            part[Word.CRASHES] = max(part[Word.CRASHES], child.crashes)
        delay_s = BACKOFF_S[min(child.crashes, len(BACKOFF_S) - 1)]
        child.restart_at_s = time.monotonic() + delay_s
        head = DaemonWord.CONTROL_RESTARTS if child is self.control else DaemonWord.HOLDER_RESTARTS
        self._state.ledger.words[head] += 1
        how = how_it_ended(status)
        self._state.log.event("error", "died", message=child.name, how=how, restart_in_s=delay_s)

    def _ends(self, child: Child) -> bool:
        """Whether it is not wanted any more, once it has ended: the daemon drains. Control goes last."""
        return child is not self.control and bool(self._state.ledger.words[DaemonWord.DRAIN_UNTIL_NS])

    def _unguarded(self, child: Child) -> int:
        """The pid of the worker whose holder has just died, if it lives: it works on, and is ours to wait for. Else 0."""
        if child is self.control:
            return 0
        part = self._state.ledger.worker(self.workers.index(child))
        for pid in {part[Word.PID], part[Word.STARTED_PID]} - {0, child.pid}:  # the second may have yet to begin
            try:
                ended, _status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                continue
            if not ended:
                part[Word.PID], part[Word.HOLDER_PID] = pid, 0
                until = "" if self._ends(child) else ", until it has another one"
                message = f"{child.name} works on, without a net{until}"
                self._state.log.event("error", "holder died", message=message, pid=pid)
                return pid
        return 0

    def unguarded(self) -> list[int]:
        """Workers that work on though their holder is dead: it is they who are waited for in its place."""
        return [
            n
            for n, (child, part) in enumerate(zip(self.workers, self._parts, strict=True))
            if child.pid and child.pid == part[Word.PID] and child.pid != part[Word.HOLDER_PID]
        ]

    def is_beginning(self, index: int) -> bool:
        """Whether a worker lives whose holder has died, beside who is waited for: it is about to take that one's place."""
        started = self._state.ledger.worker(index)[Word.STARTED_PID]
        if started in (0, self.workers[index].pid):
            return False
        try:
            return os.waitid(os.P_PID, started, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:  # it has a holder; a dead one's worker is the keeper's (PR_SET_CHILD_SUBREAPER)
            return False

    def holder_pids(self) -> list[int]:
        """Of all holders and their successors; of a worker whose holder has died, its own."""
        return [pid for child in self.workers for pid in (child.pid, child.successor) if pid]

    def signal_holders(self, sig: signal.Signals) -> None:
        """Send it to each; those that have a worker pass it on."""
        for pid in self.holder_pids():
            os.kill(pid, sig)

    def kill(self) -> None:
        """Kill the holders first, or each would start its worker again; then the workers."""
        self.signal_holders(signal.SIGKILL)
        ledger = self._state.ledger
        for n in range(ledger.workers):
            if pid := ledger.worker(n)[Word.PID]:  # 0: none has come yet; to kill(2) that is all of the keeper's group
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
