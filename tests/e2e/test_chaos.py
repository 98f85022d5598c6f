"""Workers are killed at any moment, and nobody who is connected notices."""

import contextlib
import os
import random
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conformance.proc import descriptors, opened
from tests.conftest import Daemons
from tests.e2e import streams
from tests.e2e.chaos import Streams, assert_accounted, await_visits, kill_holders_too, kill_workers, renew_workers
from tests.e2e.peers import settled
from tests.e2e.streams import DENIED_SOURCE, SHAPES, Shape, Target
from tests.harness import Daemon, eventually, one_endpoint
from tests.ports import free_port

_SEED: Final = int(os.environ.get("RELAY_CHAOS_SEED", "20261123"))
# What allocators keep of their own accord: control takes a quarter of this over its first 600 kills, and nothing after
# that. Of 1,000 kills each could leave one KiB and be noticed.
_GROWTH_BYTES: Final = 1024 * 1024


@dataclass(frozen=True)
class Way:
    """One kind of endpoint, how many workers serve it, the shapes that can go through it, and its steps (faults.py)."""

    keys: dict[str, Any]
    workers: int
    unix: bool
    shapes: tuple[Shape, ...]
    walk: str


TCP: Final = Way(
    {"protocol": "tcp"},
    1,
    False,
    tuple(SHAPES.keys() - {streams.stranger, streams.gone}),
    "walk",
)
# A Unix socket has no resets that a target could send.
HTTP: Final = Way(
    {"protocol": "http", "send_proxy": "v2", "limits": {"per_source": 100}},
    2,
    True,
    tuple(SHAPES.keys() - {streams.cut_off}),
    "walk-http",
)


@dataclass(frozen=True)
class Site:
    """A daemon, its target, and the streams that go through it."""

    daemon: Daemon
    target: Target
    streams: Streams

    def check(self) -> None:
        """Both sides and relay's account agree, exactly: each stream ended in its own way, and was counted once."""
        daemon, done = self.daemon, self.streams.done
        assert self.target.failures == []
        assert list(daemon.events("bug")) == []

        assert_accounted(settled(daemon), done)
        if self.target.introductions:
            assert self.target.introductions == self.streams.client.sources


@contextlib.contextmanager
def site(daemons: Daemons, directory: Path, way: Way, *, workers: int, **keys: Any) -> Iterator[Site]:
    """A daemon and its target. At the end everything must be accounted for."""
    path = str(directory / "target") if way.unix else None
    with streams.target(path, introduced="send_proxy" in way.keys, second=not way.unix) as (target, address):
        port = free_port()
        endpoint = one_endpoint(port, address, access=[{"deny": DENIED_SOURCE}], **way.keys)
        daemon = daemons(endpoint, {"workers": workers, "log": {"level": "warning"}}, **keys)
        made = Site(
            daemon, target, Streams(("127.0.0.1", port), _SEED, sorted(way.shapes, key=lambda shape: shape.__name__))
        )
        yield made
        made.check()


@pytest.mark.slow
def test_workers_are_killed(daemons: Daemons, tmp_path: Path, long: bool) -> None:
    kills = int(os.environ.get("RELAY_CHAOS_KILLS", "1000" if long else "200"))
    with site(daemons, tmp_path, TCP, workers=2) as at, at.streams.running(12):
        kill_workers(at.daemon, random.Random(_SEED), at.streams.turns(kills), (0.0, 0.15))
        eventually(lambda: at.daemon.status()["worker_restarts"] >= kills, "every kill was followed by a start")
        assert sum(worker["flows_adopted"] for worker in at.daemon.status()["workers"]) > 0


@pytest.mark.slow
def test_holders_are_killed_too(daemons: Daemons, tmp_path: Path, long: bool) -> None:
    """In any order with workers, one at a time: each worker gets a holder again before it is in danger."""
    kills = 300 if long else 60
    with site(daemons, tmp_path, TCP, workers=2) as at, at.streams.running(12):
        holders = kill_holders_too(at.daemon, random.Random(_SEED), at.streams.turns(kills))
        eventually(lambda: len(list(at.daemon.events("holder died"))) == holders, "no worker died with its own")
        assert list(at.daemon.events("not guarded")) == []


@pytest.mark.slow
@pytest.mark.parametrize("way", [TCP, HTTP], ids=["tcp", "http"])
def test_every_step_of_the_way_is_visited(daemons: Daemons, tmp_path: Path, way: Way, walking: dict[str, str]) -> None:
    """Workers die at every kind of step, so every window has had a kill in it."""
    with (
        site(daemons, tmp_path, way, workers=way.workers, environment=walking | {"RELAY_FAULT": way.walk}) as at,
        at.streams.running(6),
    ):
        await_visits(at.streams, {at.daemon: way.walk})


@pytest.mark.slow
def test_workers_are_stopped_and_continued_and_control_is_killed_and_files_reloaded(
    daemons: Daemons, tmp_path: Path
) -> None:
    chance = random.Random(_SEED)
    with site(daemons, tmp_path, TCP, workers=2) as at, at.streams.running(12):
        daemon = at.daemon
        for _ in at.streams.turns(20):
            worker = chance.choice(daemon.status()["workers"])["pid"]
            with contextlib.suppress(ProcessLookupError):  # it may have been killed just before
                os.kill(worker, signal.SIGSTOP)
                threading.Event().wait(chance.uniform(0, 0.05))
                os.kill(worker, signal.SIGCONT)
            os.kill(daemon.status()["control"]["pid"], signal.SIGKILL)
            kill_workers(daemon_when_back(daemon), chance, range(2), (0.0, 0.05))
            os.kill(daemon.pid, signal.SIGHUP)


def daemon_when_back(daemon: Daemon) -> Daemon:
    """The daemon, once its control process answers again."""

    def answers() -> bool:
        try:
            return bool(daemon.status())
        except (OSError, AssertionError):
            return False

    eventually(answers, "control answers again")
    return daemon


@dataclass(frozen=True)
class Standing:
    """What the processes that live on hold while nothing is open: descriptors, memory of their own, ledger pages."""

    descriptors: dict[str, int]
    memory_bytes: dict[str, int]

    @classmethod
    def of(cls, daemon: Daemon) -> "Standing":
        """With a worker that has just started: one that has worked keeps some pipes for later."""
        eventually(lambda: daemon.endpoint("web/in")["active"] == 0, "every flow has ended")
        renew_workers(daemon)
        status = daemon.status()
        (worker,) = status["workers"]
        pids = {"keeper": daemon.pid, "control": status["control"]["pid"], "holder": worker["holder_pid"]}
        return cls(
            {name: descriptors(pid) for name, pid in pids.items()},
            {name: anonymous_bytes(pid) for name, pid in {**pids, "worker": worker["pid"]}.items()}
            | {"ledger": ledger_bytes(daemon.pid)},
        )


def anonymous_bytes(pid: int) -> int:
    """Resident memory that no file stands behind: what the process itself has written. The ledger is not in it."""
    found = re.search(r"^Anonymous: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def ledger_bytes(pid: int) -> int:
    """Memory that the ledger takes: the pages of its memory file that were ever written."""
    fd = next(fd for fd, leads_to in opened(pid).items() if "memfd:relay-ledger" in leads_to)
    return fd.stat().st_blocks * 512


@pytest.mark.slow
@pytest.mark.alone
def test_nothing_is_left_behind(daemons: Daemons, tmp_path: Path, long: bool) -> None:
    """Descriptors and memory are flat over many kills, in every process that lives on and in the next worker."""
    chance = random.Random(_SEED)
    with site(daemons, tmp_path, TCP, workers=1) as at:
        with at.streams.running(4):
            kill_workers(at.daemon, chance, at.streams.turns(30), (0.0, 0.05))
        before = Standing.of(at.daemon)
        with at.streams.running(4):
            kill_workers(at.daemon, chance, at.streams.turns(1000 if long else 100), (0.03, 0.06))
        after = Standing.of(at.daemon)
    assert after.descriptors == before.descriptors
    grown_bytes = {name: after.memory_bytes[name] - before.memory_bytes[name] for name in before.memory_bytes}
    assert {name: grown for name, grown in grown_bytes.items() if grown > _GROWTH_BYTES} == {}
