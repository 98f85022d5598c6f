"""Which holder is to be succeeded next, and when it is tried again. The end-to-end tests upgrade, and kill holders."""

import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.kernel import process
from relay.ledger.layout import DaemonWord, Word
from relay.processes import renewal
from relay.processes.child import Child
from relay.processes.renewal import Renewal
from relay.processes.standing import unguarded
from tests.ledger.rig import new_ledger


class Kept:
    """A keeper's children, which do what a test says."""

    def __init__(self, ledger: Any) -> None:
        self.ledger = ledger
        self.workers = [Child(f"worker-{n}", lambda: None, pid=100 + n) for n in range(ledger.workers)]
        self.called: list[int] = []
        self.was_heard = True
        self.beginning: set[int] = set()
        self.told: list[str] = []
        self.said: list[tuple[str, str]] = []
        for n in range(ledger.workers):
            ledger.worker(n)[Word.PID], ledger.worker(n)[Word.HOLDER_PID] = 200 + n, 100 + n

    def unguarded(self) -> list[int]:
        return unguarded(self.ledger)

    def succeed(self, index: int) -> None:
        self.called.append(index)
        self.workers[index].successor = 300 + index

    def heard(self) -> bool:
        return self.was_heard

    def is_beginning(self, index: int) -> bool:
        return index in self.beginning

    def give_up(self, index: int) -> None:
        self.workers[index].successor = 0

    def holder_dies(self, index: int) -> None:
        self.ledger.worker(index)[Word.HOLDER_PID] = 0
        self.workers[index] = Child(f"worker-{index}", lambda: None, pid=200 + index)

    def is_taken_over(self, index: int) -> None:
        child, part = self.workers[index], self.ledger.worker(index)
        child.pid, child.successor, child.replaced = child.successor, 0, False
        part[Word.HOLDER_PID], part[Word.PROGRAM] = child.pid, self.ledger.words[DaemonWord.PROGRAM]

    def fails(self, index: int) -> None:
        self.workers[index].successor = 0

    def event(self, _level: str, event: str, message: str = "", **_: Any) -> None:
        self.said.append((event, message))


@pytest.fixture
def kept() -> Iterator[Kept]:
    with new_ledger(workers=3) as ledger:
        yield Kept(ledger)


def renewing(kept: Kept, *, upgraded: bool = False) -> Renewal:
    kept.ledger.words[DaemonWord.PROGRAM] += upgraded
    for child in kept.workers:
        child.replaced = upgraded
    log = SimpleNamespace(event=kept.event)
    return Renewal(kept.ledger, cast(Any, log), cast(Any, kept), kept.told.append, 0.0 if upgraded else None)


def test_where_all_is_well_there_is_nothing_to_do(kept: Kept) -> None:
    it = renewing(kept)
    it.step(0.0)
    assert (it.at_s(0.0), kept.called, kept.said) == (None, [], [])


def test_an_upgrade_takes_one_after_the_other(kept: Kept) -> None:
    it = renewing(kept, upgraded=True)
    for n in range(3):
        it.step(float(n))
        it.step(float(n))
        assert kept.called == list(range(n + 1))
        assert it.at_s(float(n)) == pytest.approx(n + renewal.LOOK_S)
        kept.is_taken_over(n)
    it.step(3.0)
    assert (it.at_s(3.0), kept.said, kept.told) == (None, [("upgraded", "")], [""])


def test_what_fails_is_tried_again_ever_later_and_the_others_wait(kept: Kept) -> None:
    it = renewing(kept, upgraded=True)
    now_s, pauses_s = 0.0, []
    for turn in range(4):
        it.step(now_s)
        assert kept.called == [0] * (turn + 1)
        kept.fails(0)
        it.step(now_s)
        again_s = it.at_s(now_s)
        assert again_s is not None
        it.step(again_s - 0.1)
        assert len(kept.called) == turn + 1
        pauses_s.append(again_s - now_s)
        now_s = again_s
    assert pauses_s == [10.0, 20.0, 40.0, 80.0]
    assert kept.told[0] == "worker-0 could not be taken over; that is tried again in 10 s"


def test_a_dead_holder_comes_before_an_upgrade(kept: Kept) -> None:
    it = renewing(kept, upgraded=True)
    kept.holder_dies(2)
    it.step(0.0)
    assert kept.called == [2]
    kept.is_taken_over(2)
    it.step(0.0)
    assert (kept.called, kept.said) == ([2, 0], [("guarded", "worker-2 has a holder again")])


def test_a_holder_that_dies_while_it_is_called_is_made_good_at_once(kept: Kept) -> None:
    it = renewing(kept, upgraded=True)
    it.step(0.0)
    kept.holder_dies(0)
    it.step(0.0)
    assert kept.called == [0, 0]


def test_nor_is_one_waited_for_that_dies_later(kept: Kept) -> None:
    it = renewing(kept, upgraded=True)
    it.step(0.0)
    kept.fails(0)
    it.step(0.0)
    kept.holder_dies(0)
    it.step(0.1)
    assert kept.called == [0, 0]


def test_a_worker_that_does_not_hear_hinders_no_upgrade_of_the_others(kept: Kept) -> None:
    """One of a program that knows nothing of it."""
    it = renewing(kept, upgraded=True)
    kept.holder_dies(1)
    it.step(0.0)
    kept.fails(1)
    it.step(0.0)
    assert kept.called == [1, 0]
    kept.is_taken_over(0)
    it.step(0.5)
    assert kept.called == [1, 0, 2]
    kept.is_taken_over(2)
    it.step(0.5)
    it.step(1.0)
    assert kept.called == [1, 0, 2, 1]


def test_where_the_kernel_shares_no_table_another_holder_does_not_help(kept: Kept) -> None:
    it = renewing(kept)
    kept.ledger.worker(1)[Word.UNSHARED] = 1
    kept.holder_dies(1)
    it.step(0.0)
    assert (it.at_s(0.0), kept.called) == (None, [])


@pytest.mark.parametrize(("worker_ended", "signals"), [(False, [9]), (True, [18, 9])])
def test_a_holder_that_hears_nothing_hangs(
    kept: Kept, worker_ended: bool, signals: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its worker gives by itself. Where there is none, nobody else has what it holds: it may have been stopped by hand."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda *it: sent.append(it))
    monkeypatch.setattr(process, "has_ended", lambda _pid: worker_ended)
    kept.was_heard = False
    it, now_s = renewing(kept, upgraded=True), 0.0
    for turn in range(len(signals)):
        it.step(now_s)
        it.hear("timed out")  # the successor has called, and waited
        kept.fails(0)
        it.step(now_s)
        assert sent == [(100, number) for number in signals[: turn + 1]]
        now_s += 1.0


def test_a_successor_that_dies_once_its_worker_lives_has_not_failed(kept: Kept) -> None:
    """The worker takes over alone, and has another holder at once."""
    it = renewing(kept, upgraded=True)
    it.step(0.0)
    kept.beginning.add(0)
    kept.fails(0)
    it.step(0.0)
    assert it.at_s(0.0) == pytest.approx(renewal.LOOK_S)
    kept.beginning.clear()
    kept.holder_dies(0)
    it.step(0.0)
    assert (kept.called, kept.said) == ([0, 0], [])


def test_a_successor_that_ends_without_a_word_may_not_have_called(kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr(os, "kill", lambda _pid, number: sent.append(number))
    kept.was_heard = False
    it = renewing(kept, upgraded=True)
    it.step(0.0)
    kept.fails(0)
    it.step(0.0)
    assert sent == [], "its holder is not to blame"


def test_a_holder_of_this_program_is_not_called_though_its_worker_is_not_up_yet(kept: Kept) -> None:
    """The one before has died with its worker while it gave, and there is a new one that has nothing from before."""
    it = renewing(kept, upgraded=True)
    it.step(0.0)
    kept.workers[0] = Child("worker-0", lambda: None, pid=400)
    for now_s in (0.0, 0.1, 1.0):
        it.step(now_s)
    assert kept.called == [0]
    part = kept.ledger.worker(0)
    part[Word.HOLDER_PID], part[Word.PROGRAM] = 400, kept.ledger.words[DaemonWord.PROGRAM]
    it.step(1.1)
    assert kept.called == [0, 1]


def test_a_worker_that_dies_before_it_has_given_anything_is_not_guarded(kept: Kept) -> None:
    it = renewing(kept)
    kept.holder_dies(0)
    it.step(0.0)
    it.hear("Broken pipe")
    kept.is_taken_over(0)  # by a holder that has nothing from before
    it.step(0.1)
    assert (kept.said, it.at_s(0.1)) == ([], None)


def test_who_takes_too_long_is_given_up(kept: Kept) -> None:
    it = renewing(kept, upgraded=True)
    it.step(0.0)
    it.step(9.9)
    assert kept.workers[0].successor
    it.step(10.0)
    assert not kept.workers[0].successor
    assert kept.said[0][0] == "upgrade failed"
