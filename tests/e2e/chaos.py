"""Streams that go on and on (streams.py), and somebody who kills processes meanwhile."""

import contextlib
import itertools
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from relay.dataplane import faults
from tests.e2e.peers import children
from tests.e2e.streams import SHAPES, WELL_ENDED, Client, Shape, denied
from tests.harness import HANG_S, Daemon, eventually

_WALK_S = 250  # a bound for hanging


@dataclass
class Streams:
    """Runs streams of these shapes until told to stop. `done` counts the good ones; `failures` says what went wrong."""

    address: tuple[str, int]
    seed: int
    shapes: Sequence[Shape] = WELL_ENDED
    client: Client = field(init=False)
    stop: threading.Event = field(default_factory=threading.Event)
    done: Counter[Shape] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    _enough: int = 0  # that many good ones mean something
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.client = Client(self.address)

    @contextlib.contextmanager
    def running(self, count: int) -> Iterator[None]:
        """So many loops meanwhile, each doing one stream after the other. Asserts that all were right, and were enough."""
        self.stop.clear()
        self._enough = self.done.total() + count + 1
        threads = [threading.Thread(target=self._loop, args=(n,), name=f"stream {n}") for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            in_time = self.enough()  # before the loops do the rest in peace
            self.stop.set()
            for thread in threads:
                thread.join()
        assert self.failures == []
        assert in_time, "too little went through to mean anything"

    def enough(self) -> bool:
        """Whether enough went through, since they run, to mean anything; or something is wrong, and the rest is no use."""
        return bool(self.failures) or self.done.total() >= self._enough

    def turns(self, count: int) -> Iterator[int]:
        """So many turns of what is done to them, and as many more as it takes until enough went through meanwhile."""
        until_s = 0.0
        for number in itertools.count():
            if number >= count:
                until_s = until_s or time.monotonic() + HANG_S
                if self.enough() or time.monotonic() > until_s:
                    return
            yield number

    def _loop(self, number: int) -> None:
        chance = random.Random(self.seed * 1000 + number)
        while not self.stop.is_set():
            shape = chance.choice(self.shapes)
            try:
                shape(chance, self.client)
            except Exception as error:
                self.failures.append(f"{shape.__name__}: {error!r}")
            else:
                with self._lock:
                    self.done[shape] += 1


def assert_accounted(account: dict[str, Any], done: Counter[Shape]) -> None:
    """The endpoint's account agrees with these streams, exactly: each ended in its own way, and was counted once."""
    closed = dict(account["closed"])
    expected = {causes: sum(done[shape] for shape in SHAPES if SHAPES[shape] == causes) for causes in SHAPES.values()}
    expected.pop("")
    found = {causes: sum(closed.pop(cause, 0) for cause in causes.split()) for causes in expected}
    assert (found, closed) == (expected, {})
    # A refusal is counted when it is done, so a kill between the two loses it, and never makes one up.
    assert account["denied"].get("access", 0) <= done[denied]


def kill_workers(
    daemon: Daemon, chance: random.Random, turns: Iterable[object], between_s: tuple[float, float]
) -> None:
    """Send SIGKILL to a random worker at each turn. Workers are found in /proc, so that nobody need answer."""
    holders = [worker["holder_pid"] for worker in daemon.status()["workers"]]
    killed: set[int] = set()
    for _ in turns:
        before = len(killed)
        while len(killed) == before:
            time.sleep(chance.uniform(*between_s))  # a random moment, which is the point
            for pid in children(chance.choice(holders)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)


def kill_holders_too(daemon: Daemon, chance: random.Random, turns: Iterable[object]) -> int:
    """Kill a holder or a worker at each turn, once all that was killed before is made good; how many holders that were."""

    def whole(killed: int) -> list[dict[str, Any]]:
        workers: list[dict[str, Any]] = daemon.status()["workers"]
        good = all(
            each["survives_crash"] and killed not in (each["pid"], each["holder_pid"]) and children(each["holder_pid"])
            for each in workers
        )
        return workers if good else []

    killed = holders = 0
    for _ in turns:
        workers = eventually(partial(whole, killed), "every worker works, and has a holder")
        time.sleep(chance.uniform(0.0, 0.05))  # a random moment, which is the point
        which = chance.choice(["holder_pid", "holder_pid", "pid"])
        killed = chance.choice(workers)[which]
        holders += which == "holder_pid"
        with contextlib.suppress(ProcessLookupError):
            os.kill(killed, signal.SIGKILL)
    return holders


def await_visits(streams: Streams, walks: Mapping[Daemon, str]) -> None:
    """Until workers of each daemon have died at every kind of step of its walk (faults.py), and enough streams went through.

    Says which steps are left when it is late.
    """

    def left() -> list[list[str]]:
        seen = {daemon: {record["step"] for record in daemon.events("fault")} for daemon in walks}
        return [sorted(set(faults.names(walk)) - seen[daemon]) for daemon, walk in walks.items()]

    def visited() -> bool:
        return bool(streams.failures) or (not any(left()) and streams.enough())

    try:
        eventually(visited, "every kind of step has been visited", _WALK_S)
    except AssertionError as late:
        raise AssertionError(f"{late}: {left()}") from None


def renew_workers(daemon: Daemon) -> None:
    """Until every worker is one that has just started and has its scratch pipe alone: others keep some pipes for later."""
    last = [worker["pid"] for worker in daemon.status()["workers"]]
    for pid in last:
        with contextlib.suppress(ProcessLookupError):  # it was killed just before, and its successor is on its way
            os.kill(pid, signal.SIGKILL)

    def renewed() -> bool:
        workers = daemon.status()["workers"]
        return all(worker["pid"] != pid and worker["pipes"] == 1 for worker, pid in zip(workers, last, strict=True))

    eventually(renewed, "the next workers are at work")
