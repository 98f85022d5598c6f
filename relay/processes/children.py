"""The processes that the keeper keeps running: control, and a holder for each worker. It forks them and waits for them."""

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial

from relay.kernel import process
from relay.ledger.layout import DaemonWord, Word
from relay.processes import succession
from relay.processes.child import Child
from relay.processes.holder import BACKOFF_S, EXIT_BUG, NO_PROCESS_S, crashes_now, how_it_ended, no_process
from relay.processes.inherited import Inherited, be_holder, be_successor


class Children:
    """Starts the keeper's processes, and each one again when it has died."""

    def __init__(self, state: Inherited, control_main: Callable[[Inherited], None], of_keeper: tuple[int, ...]) -> None:
        """`of_keeper`: descriptors that only the keeper has."""
        self._state = state
        self._of_keeper = of_keeper
        self._keeper_pid = os.getpid()
        self._called: Child | None = None  # whose holder was told last to give everything to its successor
        self.control = Child("control", partial(control_main, state))
        self.workers = [Child(f"worker-{n}", partial(be_holder, state, n)) for n in range(state.ledger.workers)]

    def __iter__(self) -> Iterator[Child]:
        """All of them."""
        return iter([*self.workers, self.control])

    # --- starting -----------------------------------------------------------------------------------------------

    def start(self, child: Child) -> None:
        """Start it with nothing from before. Where there can be no process at the moment, that is tried again."""
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
        """Start a holder of this program beside the one that is there, and tell that one to give it everything."""
        child = self.workers[index]
        if not child.pid or child.successor:
            return  # it is just being started in this program; the last successor has not given up yet
        try:
            ours, theirs = succession.pair()
            with ours, theirs:
                succession.call(self._state.hand, theirs)
                self._called = child
                main = partial(be_successor, self._state, index, ours, theirs)
                child.successor = self._fork(child.name, main)
        except OSError as error:
            self._state.log.event("error", "not started", message=no_process(child.name, error))
        else:
            os.kill(child.pid, signal.SIGUSR2)

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
        # Without a keeper nobody starts anything again, so a worker lets its connections end and goes.
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
        child.pid = self._unguarded(child)
        if not child.pid and child.successor:
            child.pid, child.successor = child.successor, 0
            if self._called is child:  # the next one's worker may be up before this one's end is seen
                succession.recall(self._state.hand)  # or, where it never heard, the successor would wait for nothing
        if child.pid or self._ends(child):
            return
        if child.replaced:
            child.replaced = False
            self.start(child)
            return
        child.crashes = crashes_now(child.crashes, status, time.monotonic() - child.started_s)
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
        pid = self._state.ledger.worker(self.workers.index(child))[Word.PID]
        try:
            if pid in (0, child.pid) or os.waitpid(pid, os.WNOHANG)[0] != 0:
                return 0
        except ChildProcessError:
            return 0
        self._state.ledger.worker(self.workers.index(child))[Word.UNSHARED] = 1
        self._state.log.event("error", "holder died", message=f"{child.name} works on, without a net", pid=pid)
        return pid

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
            try:
                os.kill(ledger.worker(n)[Word.PID], signal.SIGKILL)
            except ProcessLookupError:
                continue
