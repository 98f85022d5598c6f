"""What is done to processes that hang, with processes of the test's own. The end-to-end tests stop real ones."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.kernel import process
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger
from relay.processes.children import Children
from relay.processes.hung import Hung
from relay.processes.watch import CONTROL_HUNG_S, EVERY_S, HUNG_S
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger


class Case:
    """One worker and control, both of which are processes that do nothing; and a clock."""

    def __init__(self, ledger: Ledger) -> None:
        self.said: list[dict[str, Any]] = []
        log = SimpleNamespace(event=lambda *_, **more: self.said.append(more))
        self.words, self.part = ledger.words, ledger.worker(0)
        self.children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=log)), lambda _: None, (), lambda: None)
        [self.worker] = self.children.workers
        self.control = self.children.control
        self.processes = [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
        # A worker without a holder: it is the keeper's own child.
        self.worker.pid = self.part[Word.PID] = self.processes[0].pid
        self.control.pid = self.processes[1].pid
        self.now_s = self.control.started_s = float(int(time.monotonic()))  # so that sums of seconds are exact
        self.hung = Hung(ledger, cast(Any, log), self.children, self.now_s)

    def beat(self) -> None:
        """Both give a sign of life."""
        self.words[DaemonWord.CONTROL_BEAT_NS] = self.part[Word.HEARTBEAT_NS] = int(self.now_s * 1e9)

    def go_on(self, seconds: float) -> None:
        """Nobody gives a sign of life for so long, and the keeper looks each second."""
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += EVERY_S
            self.hung.step(self.now_s)

    def killed(self) -> list[bool]:
        """Which of the two: their ends are waited for if they were said."""
        for each in self.processes:
            if any(line["pid"] == each.pid for line in self.said):
                each.wait(HANG_S)
        return [each.poll() == -signal.SIGKILL for each in self.processes]


@pytest.fixture
def case() -> Iterator[Case]:
    with new_ledger() as ledger:
        made = Case(ledger)
        try:
            yield made
        finally:
            for each in made.processes:
                each.kill()
                each.wait()


def test_who_beats_is_let_be(case: Case) -> None:
    for _ in range(20):
        case.beat()
        case.go_on(1.0)
    assert (case.killed(), case.said) == ([False, False], [])


def test_a_silent_worker_is_killed_said_and_counted(case: Case) -> None:
    case.beat()
    case.go_on(HUNG_S - 1)
    assert case.killed() == [False, False]
    case.go_on(1.0)
    assert case.killed() == [True, False]
    [said] = case.said
    assert said["message"].startswith(
        "worker-0 has given no sign of life for 5.0 s; it is killed, and the next one takes"
    )
    assert (case.part[Word.HUNG], case.words[DaemonWord.HUNG]) == (1, 1)


def test_one_that_cannot_be_killed_is_counted_once(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "kill", lambda *_: None)
    case.go_on(4 * HUNG_S)
    assert (case.part[Word.HUNG], len([each for each in case.said if each["pid"] == case.worker.pid])) == (1, 4)


def test_a_silent_control_is_killed_later(case: Case) -> None:
    case.go_on(1.0)  # it was heard after it had been started
    case.beat()
    case.part[Word.HEARTBEAT_NS] *= 2  # the worker beats on
    case.go_on(CONTROL_HUNG_S - 1)
    assert case.killed() == [False, False]
    case.go_on(1.0)
    assert case.killed() == [False, True]
    assert (case.part[Word.HUNG], case.words[DaemonWord.HUNG]) == (0, 1)


@pytest.mark.parametrize("change", ["successor", "pid", "late", "none"])
def test_what_happens_to_it_gives_it_its_time_anew(case: Case, change: str) -> None:
    case.part[Word.HEARTBEAT_NS] = 0
    case.go_on(HUNG_S - 1)
    if change == "successor":
        case.worker.successor = 1
        case.go_on(10 * HUNG_S)
        assert case.killed()[0] is False, "one that gives all away has a patience of its own"
        case.worker.successor = 0
    elif change == "pid":
        case.worker.pid += 1
    elif change == "late":
        case.now_s += 100.0
    case.go_on(1.0)
    if change == "pid":  # its holder is another process, and so is its parent
        case.worker.pid -= 1
    assert case.killed()[0] is (change == "none")


def test_a_number_that_is_another_process_is_not_killed(case: Case) -> None:
    """A worker that has ended, and was waited for, while its holder waits for its time."""
    case.part[Word.PID] = 1
    case.go_on(10 * HUNG_S)
    assert (case.killed()[0], case.said) == (False, [])


def test_a_stopped_holder_is_woken_and_then_killed(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its worker has ended, and nobody has waited for it."""
    fd = os.pidfd_open(case.processes[0].pid)
    woken: list[int] = []

    def kill(_pid: int, sig: int) -> None:
        woken.append(sig)
        signal.pidfd_send_signal(fd, sig)

    case.part[Word.PID] = 1
    monkeypatch.setattr(process, "state_of", lambda pid: ("Z" if pid == 1 else "T", os.getpid()))
    monkeypatch.setattr(os, "kill", kill)
    case.go_on(HUNG_S)
    assert woken == [signal.SIGCONT]
    case.go_on(HUNG_S)
    os.close(fd)
    assert (woken, case.killed()[0]) == ([signal.SIGCONT, signal.SIGKILL], True)
    assert [each["message"].split(" for ")[0] for each in case.said] == [
        "the holder of worker-0 has not noticed",
        "the holder of worker-0 has given no sign of life",
    ]
    assert (case.part[Word.HUNG], case.words[DaemonWord.HUNG]) == (0, 1)
