"""The clock that the data plane goes by, and one that a test moves itself."""

import time

from relay.kernel.clock import Clock


class Still(Clock):
    """It says what a test says."""

    def __init__(self) -> None:
        self.ns = 5

    def now_ns(self) -> int:
        return self.ns


def test_it_says_what_other_processes_say() -> None:
    before = time.monotonic_ns()
    told = Clock().now_ns()
    assert before <= told <= time.monotonic_ns()


def test_a_clock_of_a_tests_own() -> None:
    clock = Still()
    clock.ns = 1 << 62
    assert clock.now_ns() == 1 << 62
