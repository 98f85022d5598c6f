"""Instances and edges that die, fall silent or stand still, each a machine of its own: what that costs a client."""

import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from relay.targets.pool import EJECT_S
from tests.conftest import Daemons
from tests.e2e import farm
from tests.e2e.farm import CLIENTS, EDGES, LATE, NAMES, OFTEN, SELDOM, Farm, Load, slowed, stopped
from tests.e2e.netns import Network
from tests.harness import HANG_S, eventually

pytestmark = [
    pytest.mark.real("ip", "nginx", "wrk"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """The machines, with nginx on each instance."""
    with contextlib.ExitStack() as stack:
        made = stack.enter_context(Network(farm.hosts()))
        for n in range(len(NAMES)):
            stack.enter_context(farm.nginx(made, n, tmp_path_factory.mktemp(f"nginx-{n}")))
        yield made


def lost(site: Farm) -> list[str]:
    """How the edge's connections ended that a target was to blame for. wrk itself resets some, when its time is up."""
    causes = site.edges[0].endpoint("web/in")["closed"]
    return [cause for cause in causes if not cause.endswith("_fin") and not cause.startswith("client_")]


def stop(site: Farm, instance: int) -> None:
    """Have it end as soon as nobody is connected."""
    process = site.instances[instance].process
    assert process is not None
    process.send_signal(signal.SIGTERM)
    assert process.wait(HANG_S) == 0


@pytest.mark.alone
def test_an_instance_that_is_drained_and_stopped_costs_no_request(network: Network, daemons: Daemons) -> None:
    site = Farm(network, daemons, timeouts=LATE)
    with Load(network) as load:
        eventually(lambda: site.targets()[1]["connected"], "it is at work")
        assert site.instances[1].relay("drain", "--for", "1h").returncode == 0
        site.wait_health("up", "down", "up", "up")
        stop(site, 1)
        site.none_held_up()
        site.serve()
    assert (load.measured.failed, lost(site)) == (0, [])
    assert load.measured.requests > 50


@pytest.mark.alone
def test_an_instance_that_is_stopped_costs_no_request(network: Network, daemons: Daemons) -> None:
    """Its ports refuse, and no probe tells the edge: every connection that meets it is made to another one."""
    site = Farm(network, daemons, probe=SELDOM, timeouts=LATE)
    with Load(network) as load:
        eventually(lambda: site.targets()[1]["connected"], "it is at work")
        stop(site, 1)
        # Or the edge has heard of it first, by its line.
        eventually(lambda: site.targets()[1]["failures"] or site.targets()[1]["health"] == "down", "it is met")
        site.none_held_up()
        site.serve()
    assert (load.measured.failed, lost(site)) == (0, [])


@pytest.mark.alone
def test_an_instance_that_is_killed_costs_its_open_connections_and_no_new_one(
    network: Network, daemons: Daemons
) -> None:
    site = Farm(network, daemons, probe=SELDOM, timeouts=LATE)
    with Load(network, connections=8) as load:
        eventually(lambda: site.targets()[1]["connected"], "it is at work")
        site.instances[1].kill()
        eventually(lambda: site.targets()[1]["failures"] >= 1, "it is met")
        site.none_held_up()
        site.serve()
    assert load.measured.connect == load.measured.timeout == load.measured.status == 0
    # Each of wrk's connections twice at the most: open when the worker died, and made anew into the backlog of the listening
    # socket, which is there until the last of the processes that have it is gone.
    assert load.measured.failed <= 2 * 8
    eventually(lambda: site.targets()[1]["health"] == "down", "the edge has asked it, as the dial had failed")
    failures = site.targets()[1]["failures"]
    with Load(network, connections=8) as load:
        site.none_held_up()
        site.serve()
    assert (load.measured.failed, site.targets()[1]["failures"]) == (0, failures), "nobody meets it again"


def test_an_instance_that_falls_silent_costs_a_second_now_and_then(network: Network, daemons: Daemons) -> None:
    """Its packets vanish. The edge waits for a quarter of `connect` and at most 1 s, and asks it again ever more seldom."""
    site = Farm(network, daemons, probe=SELDOM, distribution="source-ip", timeouts=LATE)
    source = next(each for each in CLIENTS if site.ask(each).instance == NAMES[2])
    network.cable("web2", plugged=False)
    try:
        began_s = time.monotonic()
        met = [site.ask(source) for _ in range(30)]
        took_s = time.monotonic() - began_s
    finally:
        network.cable("web2", plugged=True)
    assert NAMES[2] not in {each.instance for each in met}
    assert len({each.instance for each in met}) == 1, "its clients stay together, and move to one"
    assert met[0].took_s >= 1.0, "the first one waits"
    assert max(each.took_s for each in met) < HANG_S, "and none for as long as `connect`"
    failures = site.targets()[2]["failures"]
    assert failures >= 1
    assert sum(1.0 + rest_s for rest_s in EJECT_S[: failures - 1]) <= took_s, "it rests, longer each time"
    assert sum(each.took_s >= 1.0 for each in met) < 10
    eventually(lambda: site.ask(source).instance == NAMES[2], "it is asked again, and is back")


@pytest.mark.alone
def test_an_instance_that_stands_still_is_found_by_its_probes(network: Network, daemons: Daemons) -> None:
    """Its kernel takes connections, so no dial fails: those that met it wait for it, and go on when it does.

    Nor does a tcp probe, which asks for no more than that; an http probe waits for an answer.
    """
    asking = {**OFTEN, "timeout": "3s", "protocol": "http", "path": "/"}
    site = Farm(network, daemons, probe=asking, distribution="source-ip")
    source = next(each for each in CLIENTS if site.ask(each).instance == NAMES[3])
    with stopped(site.instances[3]), Load(network) as load:
        site.serve()
        site.wait_health("up", "up", "up", "down")
        assert NAMES[3] not in {site.ask(each).instance for each in (source, *CLIENTS[:20])}
    assert load.measured.connect == load.measured.read == 0
    site.wait_health("up", "up", "up", "up")
    assert site.ask(source).instance == NAMES[3]


@pytest.mark.alone
def test_an_instance_that_is_slow_costs_no_request(network: Network, daemons: Daemons) -> None:
    site = Farm(network, daemons, probe={"interval": "200ms", "timeout": "10s"})
    with slowed(site.instances[0]), Load(network) as load:
        eventually(lambda: site.targets()[0]["connected"] >= 100, "it has served many")
    assert load.measured.connect == load.measured.read == load.measured.status == 0
    assert [each["failures"] for each in site.targets()] == [0, 0, 0, 0]


def test_edges_agree_and_either_may_die(network: Network, daemons: Daemons) -> None:
    site = Farm(network, daemons, edges=2, probe=SELDOM, distribution="source-ip")
    sources = CLIENTS[:40]
    home = {source: site.ask(source).instance for source in sources}
    assert set(home.values()) == set(NAMES)
    assert {source: site.ask(source, edge=1).instance for source in sources} == home
    for dead, other in ((0, 1), (1, 0)):
        site.edges[dead].kill()
        assert {source: site.ask(source, edge=other).instance for source in sources} == home
        site.start(site.edges[dead], f"edge{dead}")


def test_one_instance_more_or_less_moves_its_own_share_of_clients(network: Network, daemons: Daemons) -> None:
    site = Farm(network, daemons, known=3, probe=SELDOM, distribution="source-ip")
    edge = site.edges[0]

    def spread(count: int) -> dict[str, str]:
        edge.write_service(site.service(count))
        done = edge.relay("reload")
        assert done.returncode == 0, done
        return {source: site.ask(source).instance for source in CLIENTS}

    three = {source: site.ask(source).instance for source in CLIENTS}
    four = spread(4)
    moved = [source for source in CLIENTS if three[source] != four[source]]
    assert 0 < len(moved) <= (1 / 4 + 0.05) * len(CLIENTS)
    assert {four[source] for source in moved} == {NAMES[3]}, "nobody moves but to the new one"
    assert spread(3) == three
    shares = Counter(four.values())
    assert set(shares) == set(NAMES), f"{shares}; by way of {EDGES[0]}"
