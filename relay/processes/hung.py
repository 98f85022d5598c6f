"""What the keeper does about a process that hangs: watch.py says which one it is."""

import os
import signal

from relay.kernel import process
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger, WorkerLedger
from relay.log import Logger
from relay.processes.child import Child
from relay.processes.children import Children
from relay.processes.watch import Remedy, Watch, control_hangs, is_silent, remedy


class Hung:
    """Looks after the workers and control. `step` it whenever the keeper wakes, and at `due_s` at the latest."""

    def __init__(self, ledger: Ledger, log: Logger, children: Children, now_s: float) -> None:
        self._words = ledger.words
        self._log = log
        self._workers = children.workers
        self._control = children.control
        self._parts = [ledger.worker(n) for n in range(ledger.workers)]
        self._watch = Watch(ledger.workers + 1, now_s)  # control is the last one
        # Of each: the process, the one that is about to take its place, and whether it is to end.
        self._seen = [_who(child) for child in children]
        self._woken_ns = [-1] * ledger.workers  # its worker's last sign of life when the holder was woken
        self._killed = [0] * (ledger.workers + 1)  # the pid of the last one that was killed

    @property
    def due_s(self) -> float:
        """When `step` has to be called next (CLOCK_MONOTONIC)."""
        return self._watch.due_s

    def step(self, now_s: float) -> None:
        """Look at all of them, if it is time."""
        if not self._watch.look(now_s):
            return
        for index, child in enumerate(self._workers):
            # One that gives everything away, or takes it, has its own patience: succession.py.
            if self._is_as_before(index, child, now_s) and child.pid and not child.successor:
                self._look_at_worker(index, child, now_s)
        index, child = len(self._workers), self._control
        if self._is_as_before(index, child, now_s) and child.pid:
            beat_ns = self._words[DaemonWord.CONTROL_BEAT_NS]
            silent_s = self._watch.silent_s(index, beat_ns, now_s)
            if control_hangs(silent_s, heard=beat_ns / 1e9 >= child.started_s):
                self._kill(index, child.pid, "control", "is killed and started again; forwarding goes on", silent_s)
                self._watch.anew(index, now_s)

    def _is_as_before(self, index: int, child: Child, now_s: float) -> bool:
        if self._seen[index] != (now := _who(child)):
            self._seen[index] = now
            self._watch.anew(index, now_s)
            return False
        return True

    def _look_at_worker(self, index: int, child: Child, now_s: float) -> None:
        part = self._parts[index]
        beat_ns = part[Word.HEARTBEAT_NS]
        silent_s = self._watch.silent_s(index, beat_ns, now_s)
        if not is_silent(silent_s):
            return
        pid, state = _worker_of(part, (child.pid, os.getpid()))
        match remedy(silent_s, state, process.state_of(child.pid)[0], woken=beat_ns == self._woken_ns[index]):
            case Remedy.NOTHING:
                return
            case Remedy.KILL_WORKER:
                part[Word.HUNG] += pid != self._killed[index]
                what = "is killed, and the next one takes its connections over"
                self._kill(index, pid, child.name, what, silent_s)
            case Remedy.WAKE_HOLDER:
                self._woken_ns[index] = beat_ns
                message = (
                    f"the holder of {child.name} has not noticed for {silent_s:.1f} s that it has ended; it is woken"
                )
                self._log.event("error", "hung", message=message, pid=child.pid)
                os.kill(child.pid, signal.SIGCONT)
            case Remedy.KILL_HOLDER:
                what = "is not to be woken, and is killed; both are started anew, and its connections are lost"
                self._kill(index, child.pid, f"the holder of {child.name}", what, silent_s)
        self._watch.anew(index, now_s)

    def _kill(self, index: int, pid: int, name: str, what: str, silent_s: float) -> None:
        if pid != self._killed[index]:  # one that not even SIGKILL ends is counted once
            self._killed[index] = pid
            self._words[DaemonWord.HUNG] += 1
        message = f"{name} has given no sign of life for {silent_s:.1f} s; it {what}"
        self._log.event("error", "hung", message=message, pid=pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return


def _worker_of(part: WorkerLedger, parents: tuple[int, int]) -> tuple[int, str]:
    """The pid and the state (proc(5); "": there is none) of the worker that one of these has, also before it has begun."""
    for pid in (part[Word.STARTED_PID], part[Word.PID]):
        state, parent = process.state_of(pid)
        if pid and parent in parents:  # else the number is somebody else's by now
            return pid, state
    return part[Word.PID], ""


def _who(child: Child) -> tuple[int, int, bool]:
    return child.pid, child.successor, child.replaced
