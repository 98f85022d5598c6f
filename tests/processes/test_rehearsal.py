"""A worker tries its start out before an upgrade, and leaves nothing."""

import gc
import os
import time
from collections.abc import Iterator
from typing import NoReturn

import pytest

from relay.dataplane import worker
from relay.errors import OperatorError
from relay.kernel.process import has_ended
from relay.kernel.sockets import open_descriptors
from relay.ledger.layout import Word
from relay.ledger.ledger import Ledger
from relay.processes import rehearsal
from relay.processes.rehearsal import rehearse
from tests.config.rig import EDGE, SERVICE, compiled, service
from tests.harness import eventually


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Neither a process nor a descriptor."""
    end = rehearsal._end
    gc.collect()  # what other tests left open closes now; so does a ledger's mapping below
    before = open_descriptors()

    def ended(pid: int, ledger: Ledger) -> None:
        worker_pid = ledger.worker(0)[Word.STARTED_PID]
        end(pid, ledger)
        assert has_ended(pid)
        eventually(lambda: has_ended(worker_pid), "its worker is gone too")

    monkeypatch.setattr(rehearsal, "_end", ended)
    yield
    gc.collect()
    assert open_descriptors() == before


@pytest.mark.parametrize("text", [SERVICE, EDGE])
def test_a_worker_that_comes_up(text: str) -> None:
    rehearse(compiled("web_IN_0", service=service(text)))


def test_a_worker_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> NoReturn:
        raise RuntimeError("broken release")

    monkeypatch.setattr(worker.Worker, "run", fails)
    with pytest.raises(OperatorError, match="its worker does not start: RuntimeError: broken release"):
        rehearse(compiled("web_IN_0"))


def test_a_worker_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.Worker, "run", lambda _: os.kill(os.getpid(), 9))
    with pytest.raises(OperatorError, match="its worker does not start: it ends by signal 9"):
        rehearse(compiled("web_IN_0"))


def test_a_worker_that_ends_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ends(_: worker.Worker) -> None:
        pass

    monkeypatch.setattr(worker.Worker, "run", ends)
    with pytest.raises(OperatorError, match="its worker does not start: it ends at its start"):
        rehearse(compiled("web_IN_0"))


def test_a_worker_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker.Worker, "run", lambda _: time.sleep(1000))
    monkeypatch.setattr(rehearsal, "_START_S", 0.2)
    with pytest.raises(OperatorError, match="it gives no sign of life within 0"):
        rehearse(compiled("web_IN_0"))
