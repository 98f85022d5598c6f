"""Fixtures for every test; and the rule about programs that may be missing."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from relay import ENGINE, engine
from tests import ports
from tests.harness import Daemon, stop_all, takes_filters
from tests.spread import Running, Spread, arranged, tell_alone

_REFUSE_TO_SKIP = os.environ.get("RELAY_REQUIRE_REAL") == "1"  # set by .ci/run

_PROCESSES_MAX = 8  # more would wait for the longest file, and each needs its block of ports
_LONG_S = 1200  # for one test of a long run: a bound for hanging


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--long`."""
    parser.addoption("--long", action="store_true", help="1,000 kills where there are 100, and 20 times the examples")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis' profile, before the tests' modules are read (see `harness.examples`); and the time that this takes."""
    settings.register_profile("usual", settings(), deadline=None)  # a busy machine is no fault of an example
    settings.load_profile("usual")
    settings.register_profile("long", settings(), max_examples=20 * settings().max_examples)
    if config.getoption("--long"):
        settings.load_profile("long")
        config.option.timeout = config.option.timeout or _LONG_S


def pytest_report_header() -> str:
    """Which form of the engine is tested."""
    return f"relay: {ENGINE}"


def pytest_sessionstart(session: pytest.Session) -> None:
    """One that spreads the tests says what runs; one that runs them takes a block of ports."""
    terminal = session.config.pluginmanager.get_plugin("terminalreporter")
    if not session.config.option.numprocesses:
        ports.block()  # now: later the first to ask may be a test in a namespace, or one that counts descriptors
    elif terminal is not None:
        session.config.pluginmanager.register(Running(terminal))


def pytest_xdist_auto_num_workers() -> int | None:
    """`-n auto`: a test waits more than half of its time, so there are two processes for each CPU."""
    if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ:
        return None
    return min(2 * len(os.sched_getaffinity(0)), _PROCESSES_MAX)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Spread:
    """Which process gets which tests."""
    return Spread(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The order of the tests: the same in every process, and without processes."""
    items[:] = arranged(_of_this_form(config, items))
    tell_alone(config, items)


def _of_this_form(config: pytest.Config, items: list[pytest.Item]) -> list[pytest.Item]:
    """Those that can run with this process' form of the engine; scripts/check runs the others with another one."""
    compiled, traced = ENGINE.compiled, os.path.isabs(os.environ.get(engine.VARIABLE, ""))
    left_out = {"interpreted": compiled, "told": compiled and not traced}
    here = [
        item for item in items if not any(each and item.get_closest_marker(name) for name, each in left_out.items())
    ]
    config.hook.pytest_deselected(items=[item for item in items if item not in here])
    return here


@pytest.fixture
def long(request: pytest.FixtureRequest) -> bool:
    """Whether this is a long run."""
    return bool(request.config.getoption("--long"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """A test marked `real(...)` needs those programs: skipped by name without them, failed where skipping is refused."""
    for mark in item.iter_markers("real"):
        missing = [name for name in mark.args if not _find(name)]
        if missing and _REFUSE_TO_SKIP:
            pytest.fail(f"not installed: {', '.join(missing)}")
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.fixture
def filters() -> None:
    """For tests of `deny: drop`: the kernel takes a packet filter from us. Recent ones want CAP_NET_ADMIN for it."""
    if not takes_filters():
        message = "this kernel gives a TCP socket a filter only with CAP_NET_ADMIN"
        pytest.fail(message) if _REFUSE_TO_SKIP else pytest.skip(message)


def _find(program: str) -> str | None:
    """Debian keeps servers out of an ordinary user's PATH."""
    places = os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/lib/postgresql/15/bin"
    return shutil.which(program, path=places)


class Daemons:
    """Makes daemons, each in a directory of its own, and ends what a test leaves running."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._made: list[Daemon] = []

    def __call__(self, service: dict[str, Any], settings: dict[str, Any] | None = None, **keys: Any) -> Daemon:
        """A daemon, started and ready."""
        return self.make(service, settings, **keys).start()

    def make(self, service: dict[str, Any], settings: dict[str, Any] | None = None, **keys: Any) -> Daemon:
        """A daemon, not started."""
        directory = self._directory / f"relay-{len(self._made)}"
        directory.mkdir()
        daemon = Daemon(directory, service, settings, **keys)
        self._made.append(daemon)
        return daemon

    def end(self) -> None:
        """Stop all that run, all at the same time, and whatever becomes of one of them."""
        stop_all(self._made)


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    """Start daemons with `daemons(service)`; they end with the test."""
    made = Daemons(tmp_path)
    try:
        yield made
    finally:
        made.end()
