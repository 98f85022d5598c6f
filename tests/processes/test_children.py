"""The keeper's judgement of its children, without any. The end-to-end tests kill real ones."""

import errno
import os
import signal
import subprocess
import time
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay import systemd
from relay.kernel import channel
from relay.ledger.layout import Word
from relay.processes import succession
from relay.processes.children import Children
from relay.processes.holder import EXIT_NOTHING_TAKEN, NO_PROCESS_S
from tests.e2e.peers import gone
from tests.harness import HANG_S, eventually
from tests.ledger.rig import new_ledger


def test_a_holder_that_dies_before_it_has_a_worker_takes_no_other_childs_end_along() -> None:
    """Its worker has no pid yet, and to waitpid(2) nought is any child: control's end would never be noticed."""
    with new_ledger() as ledger:
        children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=None)), lambda _: None, (), lambda: None)
        [holder] = children.workers
        holder.pid = 1
        with subprocess.Popen(["false"]) as other:
            eventually(lambda: gone(other.pid), "it has ended")
            assert children._unguarded(holder) == 0
            assert other.wait() == 1


def test_a_worker_that_never_came_up_is_not_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no pid, and to kill(2) nought is the whole of the keeper's process group."""
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signal: killed.append(pid))
    with new_ledger(workers=2) as ledger:
        children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=None)), lambda _: None, (), lambda: None)
        children.workers[0].pid, children.workers[1].pid = 1000, 1001
        ledger.worker(1)[Word.PID] = 2001
        children.kill()
    assert killed == [1000, 1001, 2001]


def test_what_ends_at_its_start_is_counted_for_others_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder in the ledger, beside what it counted of its worker; control, for the next one, and systemd is told."""
    told: list[str] = []
    monkeypatch.setattr(systemd, "notify", told.append)
    log = SimpleNamespace(event=lambda *_, **__: None)
    with new_ledger() as ledger:
        state = SimpleNamespace(ledger=ledger, log=log, control_crashes=0)
        children = Children(cast(Any, state), lambda _: None, (), lambda: None)
        for child in children:
            child.started_s = time.monotonic()
        ledger.worker(0)[Word.CRASHES] = 2
        for count in range(1, 4):
            children._on_death(children.control, 1 << 8)
            children._on_death(children.workers[0], 1 << 8)
            assert (state.control_crashes, ledger.worker(0)[Word.CRASHES]) == (count, max(2, count))
    assert told == ["STATUS=control ends at its start, 3 times in a row (see the log); forwarding goes on"]


def test_a_process_that_cannot_be_started_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    said: list[dict[str, Any]] = []
    log = SimpleNamespace(event=lambda *_, **more: said.append(more))
    with new_ledger() as ledger:
        children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=log)), lambda _: None, (), lambda: None)
        monkeypatch.setattr(os, "fork", full)
        children.start(children.control)
        assert (children.control.pid, said[0]["message"].split(":")[0]) == (0, "control cannot be started")
        [again_s] = children.restarts_at_s()
        assert 0 < again_s - time.monotonic() <= NO_PROCESS_S


@pytest.mark.parametrize("dead", [0, 1])
def test_the_end_of_a_holder_takes_nothing_from_another(dead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is succeeded and its worker is up; its own end may be seen only when the second was called already.

    What is left for the second is taken back when it is the second that has ended, and will never hear.
    """
    hand = channel.pair()
    with new_ledger(workers=2) as ledger, hand[0], hand[1]:
        children = Children(
            cast(Any, SimpleNamespace(ledger=ledger, log=None, hand=hand)), lambda _: None, (), lambda: None
        )
        for number, child in enumerate(children.workers):
            child.pid = 1000 + number
        children.workers[0].successor = 2000
        monkeypatch.setattr(os, "fork", lambda: 2001)
        monkeypatch.setattr(os, "kill", lambda _pid, _signal: None)
        children.succeed(1)
        children._on_death(children.workers[dead], 0)
        assert children.workers[dead].pid == 2000 + dead
        end = succession.fetched(hand[1])
        assert (end is None) is (dead == 1)
        if end is not None:
            end.close()


@pytest.mark.parametrize("began", [False, True])
def test_a_successor_of_a_holder_that_has_died(began: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder that had begun to give has ended its worker first. If that lives, nothing was given: it gives by itself."""
    ended: list[int] = []
    with new_ledger() as ledger:
        hand = channel.pair()
        said = SimpleNamespace(event=lambda *_, **__: None)
        children = Children(
            cast(Any, SimpleNamespace(ledger=ledger, log=said, hand=hand)), lambda _: None, (), lambda: None
        )
        [holder] = children.workers
        holder.pid, holder.successor = 1000, 2000
        part = ledger.worker(0)
        part[Word.PID], part[Word.HOLDER_PID] = 1001, 1000
        monkeypatch.setattr(os, "waitpid", lambda *_: (1001 * began, 0))
        monkeypatch.setattr(os, "kill", lambda pid, _signal: ended.append(pid))
        with hand[0], hand[1]:
            children._on_death(holder, 9)
        if began:
            assert (holder.pid, holder.successor, ended, children.unguarded()) == (2000, 0, [], [])
        else:
            assert (holder.pid, holder.successor, ended, children.unguarded()) == (1001, 2000, [2000], [0])
            assert part[Word.HOLDER_PID] == 0


def test_a_successor_that_has_nothing_tells_what_the_one_before_died_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker whose holder is dead is killed while it is about to give: it is that death that people look for."""
    said: list[dict[str, Any]] = []
    monkeypatch.setattr(os, "waitpid", lambda *_: (1, 0))
    with new_ledger() as ledger:
        log = SimpleNamespace(event=lambda *_, **more: said.append(more))
        children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=log)), lambda _: None, (), lambda: None)
        [worker] = children.workers
        worker.pid, worker.successor, worker.started_s = 1000, 2000, time.monotonic()
        children._on_death(worker, signal.SIGKILL)
        assert (worker.pid, said) == (2000, [])
        children._on_death(worker, EXIT_NOTHING_TAKEN << 8)
        assert [line["how"] for line in said] == ["signal 9"]
        assert worker.crashes == 0, "it was somebody's decision"


def test_a_worker_that_has_yet_to_begin_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder dies as soon as it has started it; what stands as the worker's pid is still its predecessor's."""

    def waited(pid: int, _options: int) -> tuple[int, int]:
        if pid != 1002:
            raise ChildProcessError
        return 0, 0

    with new_ledger() as ledger:
        said = SimpleNamespace(event=lambda *_, **__: None)
        children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=said)), lambda _: None, (), lambda: None)
        [holder] = children.workers
        holder.pid, part = 1000, ledger.worker(0)
        part[Word.PID], part[Word.STARTED_PID], part[Word.HOLDER_PID] = 1001, 1002, 1000
        monkeypatch.setattr(os, "waitpid", waited)
        children._on_death(holder, 9)
        assert (holder.pid, children.unguarded()) == (1002, [0])


def test_a_worker_that_is_on_its_way() -> None:
    """It lives, has no holder, and is not who is waited for."""
    with new_ledger() as ledger, subprocess.Popen(["sleep", str(HANG_S)]) as other:
        children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=None)), lambda _: None, (), lambda: None)
        [holder] = children.workers
        part = ledger.worker(0)
        assert not children.is_beginning(0)
        part[Word.STARTED_PID] = other.pid
        assert children.is_beginning(0)
        holder.pid = other.pid
        assert not children.is_beginning(0)
        holder.pid, part[Word.STARTED_PID] = 0, os.getppid()
        assert not children.is_beginning(0)
        part[Word.STARTED_PID], part[Word.PID] = other.pid, other.pid
        assert children.is_beginning(0)
        other.kill()
        eventually(lambda: not children.is_beginning(0), "it has ended")


def test_who_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The successor, unless it is the holder by now: then the one before it, which hangs."""
    ended: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _signal: ended.append(pid))
    with new_ledger() as ledger:
        children = Children(cast(Any, SimpleNamespace(ledger=ledger, log=None)), lambda _: None, (), lambda: None)
        [holder] = children.workers
        holder.pid, holder.successor = 1000, 2000
        ledger.worker(0)[Word.HOLDER_PID] = 1000
        children.give_up(0)
        ledger.worker(0)[Word.HOLDER_PID] = 2000
        children.give_up(0)
        holder.successor = 0
        children.give_up(0)
        assert ended == [2000, 1000]
