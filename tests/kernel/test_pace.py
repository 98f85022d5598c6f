"""Moments that come again and again, and are everybody's."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as some

from relay.kernel.pace import to_next

SLACK_S = 0.01  # as long after a moment the next one is the one after it


class Clock(asyncio.SelectorEventLoop):
    """A loop whose clock a test sets."""

    now_s = 0.0

    def time(self) -> float:
        return self.now_s


def wait_s(now_s: float, every_s: float) -> float:
    async def work() -> float:
        return to_next(every_s)

    with asyncio.Runner(loop_factory=Clock) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, Clock)
        loop.now_s = now_s
        return runner.run(work())


@pytest.mark.parametrize(
    ("now_s", "every_s", "expected_s"),
    [
        (100.0, 1.0, 1.0),
        (100.3, 1.0, 0.7),
        (100.3, 0.5, 0.2),
        (100.3, 3.0, 1.7),
        (100.995, 1.0, 1.005),  # a timer that has ended too early is not set again for what is left
    ],
)
def test_how_long_to_wait(now_s: float, every_s: float, expected_s: float) -> None:
    assert wait_s(now_s, every_s) == pytest.approx(expected_s)


@given(some.floats(0, 1e6), some.sampled_from([0.02, 0.5, 1.0, 3.0]))
def test_whoever_asks_waits_for_the_same_moments(now_s: float, every_s: float) -> None:
    waits_s = wait_s(now_s, every_s)
    assert SLACK_S / 2 < waits_s <= every_s + SLACK_S
    moment = (now_s + waits_s) / every_s
    assert moment == pytest.approx(round(moment), abs=1e-6)
