"""A blocking call beside the event loop: its answer comes back, and nobody waits for one that hangs."""

import asyncio
import threading

import pytest

from relay.errors import OperatorError
from relay.kernel.aside import aside
from relay.kernel.loop import loop_factory
from tests.harness import HANG_S


async def test_what_it_gives_and_what_it_raises() -> None:
    assert await aside(lambda: threading.current_thread() is threading.main_thread()) is False
    with pytest.raises(ZeroDivisionError):
        await aside(lambda: 1 // 0)


async def test_many_that_hang_hold_up_none() -> None:
    go = threading.Event()
    hanging = [aside(lambda: go.wait(HANG_S)) for _ in range(50)]
    assert await aside(lambda: 7) == 7
    assert await asyncio.get_running_loop().run_in_executor(None, lambda: 8) == 8
    go.set()
    assert await asyncio.gather(*hanging) == [True] * 50


async def test_one_that_is_given_up_may_end_later() -> None:
    go, ended = threading.Event(), threading.Event()

    def work() -> None:
        go.wait(HANG_S)
        ended.set()

    for fails in (False, True):
        future = aside(work if not fails else lambda: 1 // 0)
        future.cancel()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await future
    assert await aside(lambda: ended.wait(HANG_S))


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, loop_factory()])
def test_the_end_of_the_loop_does_not_wait_for_it(factory: object) -> None:
    go = threading.Event()
    threads: list[threading.Thread] = []

    def work() -> None:
        threads.append(threading.current_thread())
        go.wait(HANG_S)

    async def begin() -> None:
        aside(work)

    with asyncio.Runner(loop_factory=factory) as runner:  # type: ignore[arg-type]
        runner.run(begin())
    assert threads[0].is_alive(), "the loop is closed, and it hangs on"
    go.set()
    threads[0].join(HANG_S)
    assert not threads[0].is_alive()


async def test_no_thread_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    with pytest.raises(OperatorError, match="no thread is to be had; see TasksMax="):
        aside(lambda: 7)
