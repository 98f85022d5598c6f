"""When control may put something in force, and when another upgrade may begin."""

import asyncio
from collections.abc import Iterator

import pytest

from relay.control.upgrading import Upgrading
from relay.errors import OperatorError, ReplacedError
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with new_ledger(workers=2) as made:
        yield made


class Here:
    """It, with a clock in the test's hands."""

    def __init__(self, ledger: Ledger) -> None:
        self.now_s, self.stopped = 100.0, asyncio.Event()
        self.it = Upgrading(ledger, lambda: self.now_s, self.stopped)


async def test_nothing_is_under_way(ledger: Ledger) -> None:
    it = Here(ledger).it
    await it.settle()
    assert (it.is_under_way, it.is_stuck, it.is_awaited, it.is_being_replaced) == (False, False, False, False)
    assert it.notes([1]) == ["worker 1 has not answered yet"]
    with it.beginning(), pytest.raises(OperatorError, match="under way"), it.beginning():
        pytest.fail("there is one already")
    with it.beginning():
        pass


async def test_what_was_asked_for_is_waited_for_until_this_control_ends(ledger: Ledger) -> None:
    here = Here(ledger)
    here.it.asked()
    waits = asyncio.ensure_future(here.it.settle())
    for _ in range(5):
        await asyncio.sleep(0)
    assert not waits.done()
    ledger.words[DaemonWord.PROGRAM] = 1
    here.stopped.set()
    with pytest.raises(ReplacedError, match="ask again"):
        await asyncio.wait_for(waits, HANG_S)


async def test_where_the_keeper_stays_as_it_is_this_control_goes_on(ledger: Ledger) -> None:
    here = Here(ledger)
    here.it.asked()
    waits = asyncio.ensure_future(here.it.settle())
    await asyncio.sleep(0)
    here.it.heard("the new program cannot be executed")
    await asyncio.wait_for(waits, HANG_S)
    assert (here.it.failed, here.it.is_under_way) == ("the new program cannot be executed", False)


async def test_a_keeper_that_says_nothing_is_not_waited_for_for_ever(ledger: Ledger) -> None:
    here = Here(ledger)
    here.it.asked()
    here.now_s += 10.0
    await asyncio.wait_for(here.it.settle(), HANG_S)


async def test_workers_of_the_program_before(ledger: Ledger) -> None:
    """A new control: reloads are its own from the first moment. Another upgrade may begin when this one has failed."""
    ledger.words[DaemonWord.PROGRAM] = 1
    ledger.worker(0)[Word.PROGRAM] = 1
    here = Here(ledger)
    await here.it.settle()
    assert (here.it.is_under_way, here.it.is_awaited, here.it.text()) == (True, True, "")
    told = here.it.notes([0, 1])
    assert told[0] == "worker 0 has not answered yet"
    assert told[1].startswith("worker 1 is still of the program before")
    with pytest.raises(OperatorError, match="under way"), here.it.beginning():
        pytest.fail("this one has to come to its end first")
    here.it.heard("worker-1 could not be taken over")
    assert (here.it.is_stuck, here.it.is_awaited) == (True, False)
    assert "has not come to its end" in here.it.text()
    with here.it.beginning():
        pass
    here.it.heard("")
    assert not here.it.is_stuck
    here.now_s += 10.0
    assert here.it.is_stuck, "there was time enough, whatever is said"
