"""Workers of an edge and of the instances behind it are killed at any moment, and nobody who is connected notices."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.chaos import Streams, await_visits, kill_workers
from tests.e2e.peers import settled
from tests.e2e.streams import target
from tests.harness import Daemon, eventually
from tests.ports import free_port

_SEED = int(os.environ.get("RELAY_CHAOS_SEED", "20261123"))
_KILLS = int(os.environ.get("RELAY_CHAOS_KILLS", "200")) // 2
_EDGE = "127.250.0.1"
_CLEAN = {"client_fin", "target_fin"}


@contextmanager
def traffic(
    daemons: Daemons, *, instances: int, loops: int, workers: int, walk: dict[str, str] | None = None, **keys: Any
) -> Iterator[tuple[Daemon, list[Daemon], Streams]]:
    """An edge, instances of one echo server, and streams through them. Asserts that all of them were right."""
    with target() as (at, address):
        public, private = free_port(_EDGE), free_port("0.0.0.0")
        own = {"type": "input", "public_port": public, "port": private, "target": address, **keys}
        role = {"instances": [f"127.1.0.{n + 1}" for n in range(instances)], "endpoints": {"in": own}}
        file = {"version": 1, "service": "test", "edge": {"instances": [_EDGE]}, "roles": {"web": role}}
        if walk:  # by way of the relay's own port, which has all the steps of the endpoint's
            file["relay_port"] = free_port("0.0.0.0")
        settings = {"workers": workers, "log": {"level": "warning"}}

        def start(instance: str, fault: str) -> Daemon:
            return daemons(file, settings, instance=instance, environment=walk and walk | {"RELAY_FAULT": fault})

        behind = [start(f"web_IN_{n}", "walk-header") for n in range(instances)]
        edge = start("edge_IN_0", "walk-edge")
        streams = Streams((_EDGE, public), _SEED)
        with streams.running(loops):
            yield edge, behind, streams
        assert at.failures == []
        assert_balanced(edge, behind, streams.done.total())


def assert_balanced(edge: Daemon, behind: list[Daemon], done: int) -> None:
    """Every stream was counted once by the edge and by an instance, and nobody is connected any more."""

    def nobody() -> bool:
        # A worker that dies between the two counts of a flow's end leaves the second to its successor.
        return [target["active"] for target in edge.endpoint("web/in")["target_set"]] == [0] * len(behind)

    eventually(nobody, "no target has a connection")
    seen = settled(edge)
    assert seen["accepted"] == done
    assert set(seen["closed"]) <= _CLEAN
    assert all(target["connected"] for target in seen["target_set"]), "an instance got none"
    carried = 0
    for daemon in behind:
        closed = settled(daemon)["closed"]
        # A dial that the edge's worker died in is one that nothing more comes of, and the next worker dials anew. And the
        # edge asks now and then.
        assert set(closed) <= _CLEAN | {"client_gone", "told"}
        carried += sum(closed.get(cause, 0) for cause in _CLEAN)
        for relay in [each["name"] for each in daemon.status()["endpoints"] if each["type"] == "relay"]:
            # Of those that it has passed on, each was accepted once; the first of all came to the endpoint's port.
            assert 0 < settled(daemon, relay)["closed"]["passed"] <= sum(closed.values())
    assert carried >= done
    for daemon in (edge, *behind):
        assert list(daemon.events("bug")) == []


@pytest.mark.slow
def test_workers_of_edge_and_instances_are_killed(daemons: Daemons) -> None:
    chance = random.Random(_SEED)
    with traffic(daemons, instances=2, loops=8, workers=2) as (edge, behind, streams):
        for _ in streams.turns(_KILLS):
            kill_workers(chance.choice([edge, *behind]), chance, range(1), (0.0, 0.1))
            assert streams.failures == []
        for daemon in (edge, *behind):
            assert sum(worker["flows_adopted"] for worker in daemon.status()["workers"]) > 0


@pytest.mark.slow
def test_every_step_of_the_way_through_an_edge_is_visited(daemons: Daemons, walking: dict[str, str]) -> None:
    """Workers of both die at every kind of step, at the same time; both look at what the streams begin with."""
    # One worker after the other dies while it takes over, and nobody is accepted meanwhile: for longer than is usual.
    patient = {"connect": "2m", "first_byte": "2m"}
    made = traffic(daemons, instances=1, loops=6, workers=1, walk=walking, protocol="http", timeouts=patient)
    with made as (edge, (instance,), streams):
        await_visits(streams, {edge: "walk-edge", instance: "walk-header"})
