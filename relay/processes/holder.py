"""A holder: it starts a worker with which it shares its descriptor table, waits, and starts the next one.

Nothing else happens in here, and nothing is opened or closed, so that nothing can fail. When the worker dies, every
socket and pipe that it had is still open in the holder, and so in the next worker.

At a live upgrade its successor calls it (SIGUSR2): it kills the worker and gives every descriptor away (succession.py):
the new program's first worker takes over what the old one's last worker left, as after any other kill.
"""

import contextlib
import errno
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable, Collection
from dataclasses import replace
from functools import partial
from typing import Final

from relay.config.snapshot import Snapshot
from relay.dataplane import worker
from relay.dataplane.inherits import WorkerInherits
from relay.dataplane.worker import STEADY_S
from relay.kernel import process
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger, WorkerLedger
from relay.log import Logger
from relay.processes import succession
from relay.processes.beginning import Beginning

BACKOFF_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)  # before the n-th restart of one that does not last
NO_PROCESS_S: Final = 1.0  # from one try to the next where the limit of processes is reached, or memory is short
# A worker's memory grows with its connections, and its successor takes them over: when memory is short it is to go first,
# then control (daemon.py). Holders and keeper stay as they were started, for without them connections are lost.
_SPARED_LESS_BY: Final = 200
_SPARED_LESS_TO: Final = 100
KILL_AFTER_S: Final = 5.0  # beyond the drain's own deadline, a process that does not stop is killed
EXIT_BUG: Final = 70  # sysexits(3), EX_SOFTWARE
EXIT_NOTHING_TAKEN: Final = 75  # EX_TEMPFAIL: a successor that could not take over; it never was a holder


class Alone:
    """Whether the keeper has ended, and until when a worker may go on then."""

    def __init__(self, keeper_pid: int, drain_until: Callable[[], int], drain_s: float) -> None:
        """`drain_until`: by the ledger; CLOCK_MONOTONIC, ns, or 0. `drain_s`: of the snapshot with which the holder began."""
        self._keeper_pid = keeper_pid
        self._drain_until = drain_until
        self._drain_s = drain_s
        self._noticed_s = 0.0

    def is_so(self) -> bool:
        """Whether the keeper has ended."""
        return os.getppid() != self._keeper_pid

    def until_s(self) -> float:
        """When a worker that still runs has to be killed: CLOCK_MONOTONIC.

        A worker that works writes down how long it drains, by the newest snapshot. One that hangs does not.
        """
        self._noticed_s = self._noticed_s or time.monotonic()
        return (self._drain_until() / 1e9 or self._noticed_s + self._drain_s) + KILL_AFTER_S


class Holder:
    """Keeps one worker running until it ends by itself (it has drained) or SIGTERM came. `run` does not return."""

    def __init__(
        self,
        name: str,
        ledger: WorkerLedger,
        hand: socket.socket,
        own: Collection[int],
        log: Logger,
        worker_main: Callable[[Callable[[], set[int]]], None],
        alone: "Alone",
    ) -> None:
        """`own` are the descriptors that are not the worker's; what is to be given away comes over `hand`."""
        self._name = name
        self._ledger = ledger
        self._hand = hand
        self._own = own
        self._log = log
        self._worker_main = worker_main
        self._alone = alone
        self._worker_pid = 0
        self._beginning: Beginning | None = None  # of the first worker, until that is told to go on

    def begin(self, end: socket.socket, conclude: Callable[[], None]) -> None:
        """Start the first worker, which touches nothing before `run`; it closes `end` then.

        Should this process die before, the worker does `conclude` instead. Raises OSError where it does not come up.
        """
        self._beginning = Beginning(end, conclude)
        while True:
            pid = process.fork_sharing_descriptors()
            if pid == 0:
                self._be_worker()
            self._worker_pid = self._ledger[Word.STARTED_PID] = pid
            if self._beginning.expect(pid):
                return
            os.waitpid(pid, 0)
            self._worker_pid = 0

    def abandon(self) -> None:
        """End what `begin` has started: nothing is this holder's."""
        if self._worker_pid:
            os.kill(self._worker_pid, signal.SIGKILL)
            os.waitpid(self._worker_pid, 0)

    def run(self) -> None:
        """Start workers, one after the other; go on with the one that `begin` has started."""
        self._ledger[Word.HOLDER_PID] = os.getpid()
        signal.signal(signal.SIGTERM, self._pass_on)
        signal.signal(signal.SIGUSR2, self._renew)
        signal.signal(signal.SIGALRM, self._end_alone)
        crashes = self._ledger[Word.CRASHES]  # a holder's before this one's, or the keeper's count of holders
        while True:
            started_s = time.monotonic()
            process.block()  # `_renew` must know of every worker
            try:
                if self._beginning is not None:
                    self._beginning.go()
                    self._beginning = None
                else:
                    self._worker_pid = self._start()
            except OSError as error:
                process.unblock()
                self._log.event("error", "not started", message=no_process(self._name, error))
                time.sleep(NO_PROCESS_S)
                continue
            process.unblock()
            status = self._wait()
            self._ledger[Word.OPEN] = 0  # newcomers are not left to nobody
            if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0:
                return
            crashes = crashes_now(crashes, status, time.monotonic() - started_s)
            self._ledger[Word.CRASHES] = crashes
            if self._ledger[Word.UNSHARED]:
                os._exit(EXIT_BUG)  # there is nothing to hold; the keeper starts both anew, with what stands now
            delay_s = BACKOFF_S[min(crashes, len(BACKOFF_S) - 1)]
            self._ledger[Word.RESTARTS] += 1
            self._log.event("error", "died", message=self._name, how=how_it_ended(status), restart_in_s=delay_s)
            time.sleep(delay_s)

    def _start(self) -> int:
        """The pid of a new worker. Raises OSError where there can be no new process at the moment."""
        try:
            pid = process.fork_sharing_descriptors()
            self._ledger[Word.UNSHARED] = 0
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.ENOMEM):  # fork(2): it will pass, and what is held waits for it
                raise
            if not self._ledger[Word.UNSHARED]:
                message = "no shared descriptor table to be had (clone3): a crash of this worker loses its connections"
                self._log.event("warning", "unshared", message=message, reason=os.strerror(error.errno or 0))
            self._ledger[Word.UNSHARED] = 1
            pid = os.fork()
        # By both, so that whoever looks when one of them has died finds it.
        self._ledger[Word.STARTED_PID] = pid or os.getpid()
        if pid == 0:
            self._be_worker()
        return pid

    def _be_worker(self) -> None:
        status = EXIT_BUG
        try:
            for sig in (signal.SIGTERM, signal.SIGALRM, signal.SIGUSR2):
                signal.signal(sig, signal.SIG_DFL)
            process.unblock(all_but=signal.SIGUSR2)  # which waits until the worker can serve it: dataplane/giving.py
            process.name(f"relay-{self._name}")
            process.spare_less(_SPARED_LESS_BY, _SPARED_LESS_TO)
            self._worker_main(set if self._beginning is None else self._beginning.wait)
            status = 0
        except BaseException as error:
            if self._beginning is not None:
                self._beginning.fails("".join(traceback.format_exception_only(error)).strip())
            self._log.event("error", "crash", message=self._name, traceback=traceback.format_exc())
        finally:
            os._exit(status)

    def _wait(self) -> int:
        """The worker's wait status, once it has ended."""
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, self._worker_pid, os.WEXITED | os.WNOWAIT)
        process.block()  # or `_stop_worker` could kill a process that got the number next
        try:
            _, status = os.waitpid(self._worker_pid, 0)
        except ChildProcessError:  # `_stop_worker` has seen its end, and nobody took over
            status = signal.SIGKILL
        self._worker_pid = 0
        process.unblock()
        return status

    def _renew(self, _sig: int, _frame: object) -> None:
        """Give everything to the successor and end. Returns only when that fails; a worker is then started again."""
        process.block()  # nothing comes between: a stop is served by the successor, or here afterwards
        try:
            if not succession.is_called(self._hand):
                return
            # First: what is fetched is in the worker's table as well, where one that has just begun closes whatever it does
            # not know; and then the number is a connection's.
            self._stop_worker()
            end = succession.fetched(self._hand)
            if end is None:
                return
            with end:
                _give(self._own, end)
        except OSError as error:
            message = f"{self._name} goes on in the old code: {error.strerror or error}"
            self._log.event("error", "upgrade failed", message=message)
        finally:
            process.unblock()

    def _stop_worker(self) -> None:
        """From here on nobody opens or closes anything in the table."""
        if self._worker_pid:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self._worker_pid, signal.SIGKILL)
                os.waitpid(self._worker_pid, 0)
            self._ledger[Word.OPEN] = 0  # until the successor's worker is there
        self._ledger.copying.bring_home()  # the program that is next may not know how

    def _end_alone(self, *_: object) -> None:
        """Without a keeper nobody else ends a worker that hangs, and it would keep the ports: see to it."""
        left_s = self._alone.until_s() - time.monotonic()
        if left_s > 0:
            signal.setitimer(signal.ITIMER_REAL, left_s)
            return
        if self._worker_pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._worker_pid, signal.SIGKILL)
        os._exit(EXIT_BUG)

    def _pass_on(self, sig: int, _frame: object) -> None:
        if self._alone.is_so():  # it is the kernel's, for the keeper's end: see Children._become
            self._end_alone()
        # A worker that is just being started finds in the ledger that the daemon drains.
        if self._worker_pid:
            try:
                os.kill(self._worker_pid, sig)
            except ProcessLookupError:
                return


def holder_of(
    index: int,
    ledger: Ledger,
    *,
    keeper_pid: int,
    log_sink: socket.socket,
    control: socket.socket,
    hand: socket.socket,
    snapshot: Snapshot,
    baseline: dict[int, str],
) -> Holder:
    """The holder of worker `index`. Its `run` is until the daemon has drained, or its successor has everything.

    `baseline`: descriptors that are not its worker's. What else is open is what a worker before had, or nobody needs.
    """
    words = ledger.words
    inherited = WorkerInherits(
        index=index,
        ledger=ledger.worker(index),
        keeper_pid=keeper_pid,
        program=words[DaemonWord.PROGRAM],
        drain_until=lambda: words[DaemonWord.DRAIN_UNTIL_NS],
        control=control,
        log_sink=log_sink,
        snapshot=snapshot,
        baseline=baseline,
        called=partial(succession.fetched, hand),
        give=partial(_give, baseline.keys()),
    )
    alone = Alone(keeper_pid, inherited.drain_until, snapshot.drain_s)
    log = Logger(log_sink, f"worker-{index}", snapshot.log_level)

    def main(begins: Callable[[], set[int]]) -> None:
        worker.main(replace(inherited, begins=begins), ledger.flows_per_worker)

    return Holder(f"worker-{index}", inherited.ledger, hand, baseline.keys(), log, main, alone)


def _give(own: Collection[int], end: socket.socket) -> None:
    """Give everything but its `own` away, and end. Raises OSError, and then all is here as before."""
    succession.give(end, own)
    succession.leave(end)


def crashes_now(before: int, status: int, lived_s: float) -> int:
    """How many times in a row a process has crashed, after it ended with this wait status: what to back off for.

    SIGKILL is somebody's decision and not a crash: the next process starts at once.
    """
    if lived_s >= STEADY_S:
        return 0
    return before if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL else before + 1


def how_it_ended(status: int) -> str:
    """A process' wait status in words."""
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"status {os.WEXITSTATUS(status)}"


def no_process(name: str, error: OSError) -> str:
    """What is wrong when a process cannot be started."""
    why = f"{name} cannot be started: {os.strerror(error.errno or 0)}"
    return (
        f"{why}; it is tried again each second (see TasksMax= of the unit, RLIMIT_NPROC of the user, and free memory)"
    )
