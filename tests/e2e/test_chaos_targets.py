"""Workers are killed at any moment where connections go to one of several targets that no relay stands before."""

import contextlib
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e import streams
from tests.e2e.chaos import Streams, assert_accounted, await_visits, kill_workers
from tests.e2e.installed import Installed, upgraded
from tests.e2e.peers import settled
from tests.e2e.streams import DENIED_SOURCE, SHAPES, Shape, Target, target
from tests.harness import Daemon, eventually
from tests.ports import free_port

_SEED: Final = int(os.environ.get("RELAY_CHAOS_SEED", "20261123"))
_EDGE: Final = "127.250.0.1"
_BARE: Final = ("127.2.0.1", "127.2.0.2")


@dataclass(frozen=True)
class Way:
    """An endpoint or a door at work, the targets behind it, and the streams that go through it."""

    daemon: Daemon
    name: str
    streams: Streams
    targets: list[Target]

    def check(self) -> None:
        """Each stream ended in its own way and was counted once, and nobody is connected to a target any more."""

        def nobody() -> bool:
            # A worker that dies between the two counts of a flow's end leaves the second to its successor.
            return {each["active"] for each in self.daemon.endpoint(self.name)["target_set"]} == {0}

        eventually(nobody, "no target has a connection")
        account = settled(self.daemon, self.name)
        assert_accounted(account, self.streams.done)
        assert all(each["connected"] for each in account["target_set"]), "a target got none"
        assert [failure for each in self.targets for failure in each.failures] == []
        assert list(self.daemon.events("bug")) == []


def shapes(*without: Shape) -> list[Shape]:
    """All others, in an order that a seed can go by."""
    return sorted(SHAPES.keys() - set(without), key=lambda shape: shape.__name__)


def told_and_looked_at(**keys: Any) -> dict[str, Any]:
    """Of an endpoint: its client is named to the target, and what it says first is looked at."""
    # One worker after the other dies while it takes over, and nobody is accepted meanwhile: for longer than is usual.
    patient = {"connect": "2m", "first_byte": "2m"}
    return {"protocol": "http", "send_proxy": "v2", "timeouts": patient, **keys}


def own_and_door(port: int, door: int, bare: int, own: list[Any]) -> dict[str, Any]:
    """A role with several targets of its own, and a door to a bare role at this port."""
    listed = told_and_looked_at(type="input", public_port=port, target=own, target_distribution="round-robin")
    listed["access"] = [{"deny": DENIED_SOURCE}]
    uses = {"db": {"endpoint": "db/app", "listen": f"127.0.0.1:{door}", "connect": "2m"}}
    app = told_and_looked_at(type="internal", port=bare) | {"from": ["web"]}
    roles = {
        "web": {"instances": ["127.0.0.1"], "endpoints": {"in": listed}, "uses": uses},
        "db": {"bare": True, "instances": list(_BARE), "endpoints": {"app": app}},
    }
    return {"version": 1, "service": "test", "roles": roles}


def edge_before(public: int, bare: int) -> dict[str, Any]:
    """An edge before the same bare machines."""
    app = told_and_looked_at(type="input", public_port=public, port=bare, distribution="five-tuple")
    app["access"] = [{"deny": DENIED_SOURCE}]
    role = {"bare": True, "instances": [{"address": _BARE[0], "weight": 2}, _BARE[1]], "endpoints": {"app": app}}
    return {"version": 1, "service": "front", "edge": {"instances": [_EDGE]}, "roles": {"shop": role}}


@contextlib.contextmanager
def ways(daemons: Daemons, directory: Path, *, workers: int, **keys: Any) -> Iterator[list[Way]]:
    """A list of three targets, one of them at a Unix socket; a door to a bare role; and an edge before one."""
    port, door, public, bare = free_port(), free_port(), free_port(_EDGE), free_port("0.0.0.0")
    with contextlib.ExitStack() as stack:
        places = (None, None, str(directory / "app.sock"), *(f"{host}:{bare}" for host in _BARE))
        made = [stack.enter_context(target(each, introduced=True)) for each in places]
        own, machines = [at for at, _ in made[:3]], [at for at, _ in made[3:]]
        one, two, unix = (text for _, text in made[:3])
        file = own_and_door(port, door, bare, [one, {"address": two, "weight": 2}, unix])
        settings = {"workers": workers, "log": {"level": "warning"}, "state": str(directory)}
        web = daemons(file, settings, instance="web_IN_0", **keys)
        edge = daemons(edge_before(public, bare), settings, instance="edge_IN_0", **keys)
        found = [
            Way(
                web, "web/in", Streams(("127.0.0.1", port), _SEED, shapes(streams.cut_off)), own
            ),  # over the Unix socket no reset
            Way(web, "web/db", Streams(("127.0.0.1", door), _SEED, shapes(streams.denied)), machines),
            Way(edge, "shop/app", Streams((_EDGE, public), _SEED, shapes()), machines),
        ]
        yield found
        for way in found:
            way.check()
        assert set().union(*(each.introductions for each in own)) == found[0].streams.client.sources
        assert found[2].streams.client.sources <= set().union(*(each.introductions for each in machines))


@pytest.mark.slow
def test_workers_are_killed(daemons: Daemons, tmp_path: Path, long: bool) -> None:
    kills = int(os.environ.get("RELAY_CHAOS_KILLS", "1000" if long else "120"))
    chance = random.Random(_SEED)
    with ways(daemons, tmp_path, workers=2) as found, contextlib.ExitStack() as stack:
        for way in found:
            stack.enter_context(way.streams.running(4))
        both = list(dict.fromkeys(way.daemon for way in found))
        for _ in found[0].streams.turns(kills):
            kill_workers(chance.choice(both), chance, range(1), (0.0, 0.08))
            assert [failure for way in found for failure in way.streams.failures] == []
        for daemon in both:
            assert sum(worker["flows_adopted"] for worker in daemon.status()["workers"]) > 0


@pytest.mark.slow
def test_every_step_of_the_way_is_visited(daemons: Daemons, tmp_path: Path, walking: dict[str, str]) -> None:
    """Workers die at every kind of step, before a list, a door to a bare role and an edge before one."""
    walk = "walk-several"
    with (
        ways(daemons, tmp_path, workers=1, environment=walking | {"RELAY_FAULT": walk}) as found,
        contextlib.ExitStack() as stack,
    ):
        for way in found:
            stack.enter_context(way.streams.running(4))
        for way in found:
            await_visits(way.streams, {way.daemon: walk})


@pytest.mark.slow
def test_upgrades_with_weights_by_hand_lose_nothing(daemons: Daemons, tmp_path: Path, installed: Installed) -> None:
    installed.patient()
    with ways(daemons, tmp_path, workers=2, wrapper=installed.wrapper) as found, contextlib.ExitStack() as stack:
        both = list(dict.fromkeys(way.daemon for way in found))
        for way in found:
            each = way.daemon.endpoint(way.name)["target_set"][-1]
            told = way.daemon.relay("weight", way.name, each["instance"] or each["target"], "3")
            assert told.returncode == 0, told
            stack.enter_context(way.streams.running(3))
        for daemon in both:
            assert daemon.ask("POST", "/v1/upgrade")[0] == 202
        for daemon in both:
            upgraded(daemon)
            assert list(daemon.events("upgrade failed")) == []
        weights = [[each["weight"] for each in way.daemon.endpoint(way.name)["target_set"]] for way in found]
        assert weights == [[1, 2, 3], [1, 3], [2, 3]]
        assert [failure for way in found for failure in way.streams.failures] == []
