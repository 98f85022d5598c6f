"""How the tests are spread over processes (pytest-xdist), and what is said meanwhile: which of them run, since when."""

import threading
import time
from collections.abc import Iterable
from typing import Any, Final

import pytest
from xdist.scheduler import LoadScopeScheduling

ALONE: Final = "alone"  # the mark, and the name of the last unit of work
_ALONE_KEY: Final = "relay/alone"
_SAID_EVERY_S: Final = 20.0


def arranged(items: Iterable[pytest.Item]) -> list[pytest.Item]:
    """The items in the order in which they go out: first the files that take long, last the tests that run alone.

    So no process is left with a long file when the others have nothing more to do.
    """
    items = list(items)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    return sorted(items, key=lambda item: (_is_alone(item), item.path not in slow))


def tell_alone(config: pytest.Config, items: Iterable[pytest.Item]) -> None:
    """Tell the process that spreads the tests, which reads none of them itself, which are alone."""
    # By pytest's cache, because it is told of a test nothing but its id. (pytest-xdist's `loadgroup` writes a group into the
    # id, but into a field that pytest has no more since 9.2.) Before the ids: so it is there when they are spread.
    process: dict[str, str] = getattr(config, "workerinput", {})
    if process.get("workerid") == "gw0":
        config.cache.set(_ALONE_KEY, [process["testrunuid"], [item.nodeid for item in items if _is_alone(item)]])


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker(ALONE) is not None


class Spread(LoadScopeScheduling):  # type: ignore[misc]  # pytest-xdist has no types
    """A file at a time for each process; and the tests that are alone for the last one, when all others have ended."""

    def __init__(self, config: pytest.Config, log: Any = None) -> None:
        config.option.loadscopereorder = False  # the order is that of `arranged`
        super().__init__(config, log)

    def schedule(self) -> None:
        """Every process has read the tests: begin. Raises UsageError when it was not told which are alone."""
        run = self.nodes[0].workerinput["testrunuid"]
        cache = getattr(self.config, "cache", None)
        told_by, alone = (cache.get(_ALONE_KEY, None) if cache else None) or ("", [])
        if told_by != run:
            raise pytest.UsageError("which tests run alone is told by pytest's cache, one run of a checkout at a time")
        self._alone = set(alone)
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return ALONE if nodeid in self._alone else nodeid.split("::")[0]

    def _assign_work_unit(self, node: Any) -> None:
        if next(iter(self.workqueue)) != ALONE or self.nodes == [node]:
            super()._assign_work_unit(node)

    def _reschedule(self, node: Any) -> None:
        if list(self.workqueue) == [ALONE] and any(not each.shutting_down for each in self.nodes if each is not node):
            node.shutdown()  # it does the rest of what it has; the last one that was not told this waits for it
        else:
            super()._reschedule(node)

    def remove_node(self, node: Any) -> str | None:
        """It has ended: perhaps the one that is left is alone now. Or it crashed, in the test that is returned.

        Then the others end what they have, and that is all: nothing is run twice.
        """
        units = self.assigned_work.pop(node).values()
        left = [nodeid for unit in units for nodeid, is_done in unit.items() if not is_done]
        if left:
            self.workqueue.clear()
        for each in self.nodes:
            self._reschedule(each)
        return left[0] if left else None


class Running:
    """Says every now and then, on the terminal, how far the run is and what runs: for a reader who wonders."""

    def __init__(self, terminal: pytest.TerminalReporter) -> None:
        self._terminal = terminal
        self.began_s = time.monotonic()
        self._since_s: dict[str, float] = {}
        self._ended, self._all = 0, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._say, name="running tests", daemon=True)
        self._thread.start()

    def pytest_sessionfinish(self) -> None:
        """Say nothing more."""
        self._over.set()
        self._thread.join()

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """A process has read all tests, and found these."""
        self._all = len(ids)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """A test begins."""
        self._since_s[nodeid] = time.monotonic()

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """A test has ended."""
        self._since_s.pop(nodeid, None)
        self._ended += 1

    def line(self, now_s: float) -> str:
        """What is said."""
        running = dict(self._since_s)  # in the order of their beginning; the other thread goes on
        said = "".join(f"\n    {now_s - since_s:3.0f} s  {nodeid}" for nodeid, since_s in running.items())
        return f"{now_s - self.began_s:.0f} s: {self._ended} of {self._all} tests done, running:{said or ' none'}"

    def _say(self) -> None:
        while not self._over.wait(_SAID_EVERY_S):
            self._terminal.write_line(f"\n{self.line(time.monotonic())}")  # the cursor stands behind some dots
