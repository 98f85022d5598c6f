"""Applications behind an edge are stopped, killed, restarted, unwell and gone with their machine, and no client is lost."""

import contextlib
import itertools
import os
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import pytest

from tests.e2e.asking import Crowd
from tests.e2e.behind import HELD_PORT, Machine, Service, service
from tests.e2e.meanwhile import killing, upgrading
from tests.harness import Daemon

_SEED: Final = int(os.environ.get("RELAY_CHAOS_SEED", "20261130"))
_PAUSE_S: Final = 0.3  # at the most, before an event and in the middle of a restart

pytestmark = [
    pytest.mark.slow,
    pytest.mark.real("ip", "nginx", "redis-server", "initdb", "postgres", "pg_isready"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

Meanwhile = Callable[[Sequence[Daemon], random.Random], contextlib.AbstractContextManager[None]]
Event = Callable[[Service, Machine, Callable[[], None]], None]
EVENTS: Final[dict[str, Event]] = {
    "stop": Service.stop,
    "kill": Service.kill,
    "restart": Service.restart,
    "take out": Service.take_out,
    "unwell": Service.be_unwell,
    "gone": Service.be_gone,
}
_COST_NOTHING: Final = ("take out", "unwell", "still")  # not even those in flight


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """The service; all tests of this file use it, one after the other."""
    with service(tmp_path_factory.mktemp("behind")) as made:
        yield made


def nobody_is_lost(site: Service, name: str, times: int, meanwhile: Meanwhile) -> None:
    """Do it so many times, to the one instance and to the other in turn, under load and at random moments."""
    chance = random.Random(f"{_SEED} {name}")

    def pause() -> None:
        time.sleep(chance.uniform(0, _PAUSE_S))  # a random moment, which is the point

    with site.asked_by_all() as crowds, meanwhile(site.relays, chance):
        for machine in itertools.islice(itertools.cycle(site.machines), times):
            site.wait_at_work(machine)
            pause()
            EVENTS[name](site, machine, pause)
    all_is_well(site, crowds, name)


def all_is_well(site: Service, crowds: list[Crowd], name: str) -> None:
    """Nobody is lost, nobody was served twice, and no relay has a bug. Says how many failed in flight."""
    judged = site.judge(crowds)
    sys.stdout.write(
        f"{name}: {judged.asked} asked, {len(judged.in_flight)} failed in flight, {len(judged.lost)} lost\n"
    )
    assert not judged.lost, site.tell(judged.lost)
    assert name not in _COST_NOTHING or not judged.in_flight, site.tell(judged.in_flight)
    # Of a machine that is gone nobody hears whether its application has taken the connection.
    assert name == "gone" or not judged.twice, site.tell(judged.twice)
    assert site.bugs() == []


@pytest.mark.parametrize("name", EVENTS)
def test_nobody_is_lost(site: Service, name: str, long: bool) -> None:
    nobody_is_lost(site, name, 100 if long else 5, lambda *_: contextlib.nullcontext())


@pytest.mark.parametrize("name", EVENTS)
def test_nobody_is_lost_while_workers_are_killed(site: Service, name: str, long: bool) -> None:
    nobody_is_lost(site, name, 100 if long else 1, killing)


@pytest.mark.parametrize("name", EVENTS)
def test_nobody_is_lost_while_relays_are_upgraded(site: Service, name: str, long: bool) -> None:
    nobody_is_lost(site, name, 100 if long else 1, upgrading)


def test_who_comes_after_the_probe_has_found_an_application_standing_still_is_served(site: Service, long: bool) -> None:
    """Its kernel takes connections in its name, and nobody knows better before the probe has no answer in time."""
    chance = random.Random(_SEED)
    after = site.clients()
    with site.asked_by_all() as before:
        for machine in itertools.islice(itertools.cycle(site.machines), 100 if long else 2):
            site.wait_at_work(machine)
            time.sleep(chance.uniform(0, _PAUSE_S))
            with machine.web.standing_still():
                site.wait_down("http", machine)
                with after.asking():  # each has its answer before the application goes on
                    after.wait_asked(len(after.asked) + 50)
    all_is_well(site, before, "still")
    assert [one for one in after.asked if one.failure] == []


def test_nobody_is_lost_where_clients_wait_for_applications_that_all_restart(site: Service, long: bool) -> None:
    chance = random.Random(_SEED)

    def pause() -> None:
        time.sleep(chance.uniform(0, _PAUSE_S))

    crowd = site.clients(HELD_PORT)
    with crowd.asking():
        for _ in range(100 if long else 5):
            crowd.wait_asked(len(crowd.asked) + 15)
            pause()
            site.restart_everywhere(pause)
    all_is_well(site, [crowd], "restart everywhere")
