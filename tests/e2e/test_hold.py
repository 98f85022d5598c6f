"""A restart of the only application behind an endpoint fails nobody: who comes meanwhile waits."""

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from relay.dataplane import faults
from tests.conftest import Daemons
from tests.e2e.chaos import kill_workers
from tests.e2e.installed import Installed
from tests.e2e.restarts import Application, Load, ask
from tests.harness import Daemon, Scrape, eventually, one_endpoint, web_and_store
from tests.ports import free_port

EDGE: Final = "127.250.0.1"
INSTANCE: Final = "127.1.0.1"
AWAY_S: Final = 2.0  # how long the application is away
_WALK_S: Final = 250.0  # a bound for hanging
HOLD: Final[dict[str, Any]] = {"timeouts": {"hold": "60s"}}
HTTP: Final = {"protocol": "http", "probe": {"protocol": "http", "path": "/healthz"}}
# Those that end a connection whose target's kernel had taken it before the application closed its port.
TAKEN: Final = {"target_reset", "client_reset"}


def direct(
    daemons: Callable[..., Daemon], application: Application, **keys: Any
) -> tuple[tuple[str, int], list[Daemon]]:
    """One instance without an edge."""
    port = free_port()
    return ("127.0.0.1", port), [daemons(one_endpoint(port, application.target, **keys), {"workers": 2})]


def behind_an_edge(
    daemons: Callable[..., Daemon], application: Application, **keys: Any
) -> tuple[tuple[str, int], list[Daemon]]:
    """An edge, and one instance."""
    public, private = free_port(EDGE), free_port(INSTANCE)
    own = {"type": "input", "public_port": public, "port": private, "target": application.target, **keys}
    roles = {"web": {"instances": [INSTANCE], "endpoints": {"in": own}}}
    file = {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": roles}
    made = [daemons(file, {"workers": 2}, instance=instance) for instance in ("edge_IN_0", "web_IN_0")]
    (target,) = made[0].endpoint("web/in")["target_set"]
    eventually(lambda: made[0].endpoint("web/in")["target_set"][0]["health"] == "up", f"{target} is up")
    return (EDGE, public), made


def through_a_door(
    daemons: Callable[..., Daemon], application: Application, **keys: Any
) -> tuple[tuple[str, int], list[Daemon]]:
    """A door out, and the one store that it leads to."""
    door, port = free_port(), free_port(INSTANCE)
    pg = {"type": "internal", "port": port, "target": application.target, "from": ["web"], **keys}
    file = web_and_store(["127.0.0.1"], [INSTANCE], f"127.0.0.1:{door}", {"pg": pg})
    made = [daemons(file, {"workers": 2}, instance=instance) for instance in ("web_IN_0", "store_IN_0")]
    return ("127.0.0.1", door), made


def through_a_door_that_asks(
    daemons: Callable[..., Daemon], application: Application, **keys: Any
) -> tuple[tuple[str, int], list[Daemon]]:
    """The same, and the door reaches the store by the relays' own port."""

    def with_port(file: dict[str, Any], settings: dict[str, Any], **names: Any) -> Daemon:
        return daemons({**file, "relay_port": port}, settings, **names)

    port = free_port("0.0.0.0")
    address, made = through_a_door(with_port, application, **keys)
    eventually(lambda: made[0].endpoint("web/db")["target_set"][0]["health"] == "up", "the store is up")
    return address, made


def one_of_several(
    daemons: Callable[..., Daemon], application: Application, **keys: Any
) -> tuple[tuple[str, int], list[Daemon]]:
    """Two targets of one machine, of which the other one never is there."""
    port = free_port()
    file = one_endpoint(port, "", **keys)
    file["roles"]["web"]["endpoints"]["in"]["target"] = [application.target, f"127.0.0.1:{free_port()}"]
    return ("127.0.0.1", port), [daemons(file, {"workers": 2})]


def edge_before_bare(
    daemons: Callable[..., Daemon], application: Application, **keys: Any
) -> tuple[tuple[str, int], list[Daemon]]:
    """The same of two machines without a relay, behind an edge."""
    public = free_port(EDGE)
    own = {"type": "input", "public_port": public, "port": application.address[1], **keys}
    role = {"bare": True, "instances": [application.address[0], INSTANCE], "endpoints": {"in": own}}
    file = {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": {"web": role}}
    return (EDGE, public), [daemons(file, {"workers": 2}, instance="edge_IN_0")]


def door_to_bare(
    daemons: Callable[..., Daemon], application: Application, **keys: Any
) -> tuple[tuple[str, int], list[Daemon]]:
    """The same behind a door out."""
    door, host = free_port(), application.address[0]
    pg = {"type": "internal", "port": application.address[1], "from": ["web"], **keys}
    file = web_and_store([EDGE], [host, INSTANCE], f"127.0.0.1:{door}", {"pg": pg})
    file["roles"]["store"]["bare"] = True
    return ("127.0.0.1", door), [daemons(file, {"workers": 2}, instance="web_IN_0")]


Way = Callable[..., tuple[tuple[str, int], list[Daemon]]]


@contextmanager
def site(daemons: Callable[..., Daemon], way: Way, **keys: Any) -> Iterator[tuple[Application, Load, list[Daemon]]]:
    """An application, requests to it all the time, and the daemons in between, the one nearest to the clients first."""
    with Application(free_port()) as application:
        address, made = way(daemons, application, **keys)
        load = Load(address)
        with load.running():
            yield application, load, made
        assert max(application.answered.values()) == 1, "no request was answered twice"
        assert set(load.done) <= set(application.answered)
        for daemon in made:
            assert list(daemon.events("bug")) == []


def restart(application: Application, away_s: float = AWAY_S) -> None:
    application.stop()
    threading.Event().wait(away_s)  # it is away, which is the point
    application.start()


def assert_none_failed(load: Load, daemon: Daemon, endpoint: str = "web/in") -> None:
    """None but those that the application's kernel had taken when it closed its port."""
    failed = {
        cause: count for cause, count in daemon.endpoint(endpoint)["closed"].items() if not cause.endswith("_fin")
    }
    assert set(failed) <= TAKEN, (failed, load.failed)
    assert len(load.failed) <= sum(failed.values()), (failed, load.failed)
    assert daemon.endpoint(endpoint)["denied"] == {}


WAYS: Final = [
    pytest.param(direct, HOLD, id="one instance"),
    pytest.param(behind_an_edge, HOLD, id="edge and instance"),
    pytest.param(behind_an_edge, {**HOLD, "probe": {}}, id="edge that probes"),
    pytest.param(behind_an_edge, {**HOLD, **HTTP}, id="edge that probes by http"),
]


@pytest.mark.parametrize(("way", "keys"), WAYS)
def test_a_restart_of_the_only_application_fails_nobody(daemons: Daemons, way: Way, keys: dict[str, Any]) -> None:
    with site(daemons, way, **keys) as (application, load, (first, *_)):
        restart(application)
    assert_none_failed(load, first)
    eventually(lambda: first.endpoint("web/in")["held"] == 0, "nobody waits any more")


@pytest.mark.slow
@pytest.mark.parametrize(("way", "keys"), WAYS)
def test_the_same_while_workers_are_killed(daemons: Daemons, way: Way, keys: dict[str, Any]) -> None:
    chance = random.Random(14)
    with site(daemons, way, **keys) as (application, load, made):
        application.stop()
        for daemon in made:
            kill_workers(daemon, chance, range(6), (0.0, 0.2))
        application.start()
        for daemon in made:
            kill_workers(daemon, chance, range(3), (0.0, 0.1))
    assert_none_failed(load, made[0])


SEVERAL: Final = [(one_of_several, "web/in"), (edge_before_bare, "web/in"), (door_to_bare, "web/db")]


@pytest.mark.parametrize(("way", "name"), SEVERAL)
def test_the_same_where_no_relay_stands_before_several(daemons: Daemons, way: Way, name: str) -> None:
    chance = random.Random(16)
    with site(daemons, way, **HOLD) as (application, load, (first,)):
        application.stop()
        kill_workers(first, chance, range(3), (0.0, 0.1))
        eventually(lambda: first.endpoint(name)["held"] == 4, "all clients wait")
        kill_workers(first, chance, range(3), (0.0, 0.1))
        application.start()
        kill_workers(first, chance, range(3), (0.0, 0.1))
    assert_none_failed(load, first, name)
    eventually(lambda: first.endpoint(name)["held"] == 0, "nobody waits any more")


@pytest.mark.slow
@pytest.mark.parametrize("way", [direct, behind_an_edge])
def test_workers_die_at_every_step_of_waiting(daemons: Daemons, way: Way, walking: dict[str, str]) -> None:
    def made(*args: Any, **keys: Any) -> Daemon:
        return daemons(*args, **keys, environment=walking | {"RELAY_FAULT": "walk-hold"})

    with site(made, way, **HOLD) as (application, load, (first, *_)):

        def visited() -> bool:
            restart(application, 0.3)
            load.go_on()
            seen = {record["step"] for record in first.events("fault")}
            return set(faults.names("walk-hold")) <= seen

        eventually(visited, "every kind of step has been visited", _WALK_S)
    assert_none_failed(load, first)


@pytest.mark.parametrize(
    ("way", "where", "name"), [(through_a_door, 1, "store/pg"), (through_a_door_that_asks, 0, "web/db")]
)
def test_behind_a_door_out_they_wait_where_the_choice_is(daemons: Daemons, way: Way, where: int, name: str) -> None:
    with site(daemons, way, **HOLD) as (application, load, made):
        application.stop()
        eventually(lambda: made[where].endpoint(name)["held"] == 4, "all clients wait there")
        application.start()
    assert_none_failed(load, made[0], "web/db")


BY_HAND: Final = [
    pytest.param(direct, "web/in", 0, {}, id="one instance"),
    pytest.param(behind_an_edge, "web/in", 1, {}, id="instance behind an edge"),
    pytest.param(behind_an_edge, "web/in", 1, {"probe": {}}, id="instance that is probed"),
    pytest.param(behind_an_edge, "web/in", 1, HTTP, id="instance that is probed by http"),
    pytest.param(behind_an_edge, "web/in", 0, {}, id="edge"),
    pytest.param(through_a_door, "store/pg", 1, {}, id="store"),
    pytest.param(through_a_door, "web/db", 0, {}, id="door"),
    pytest.param(through_a_door_that_asks, "store/pg", 1, {}, id="store whose door asks"),
    pytest.param(through_a_door_that_asks, "web/db", 0, {}, id="door that asks"),
]


@pytest.mark.parametrize(("way", "name", "where", "keys"), BY_HAND)
def test_a_planned_restart_behind_relay_hold_fails_nobody(
    daemons: Daemons, way: Way, name: str, where: int, keys: dict[str, Any]
) -> None:
    with site(daemons, way, **keys) as (application, load, made):
        held = made[where].relay("hold", name)
        assert (held.returncode, held.stdout.split(" for ")[0]) == (0, f"{name} holds new connections"), held
        # Who is on his way is answered: then the application has nobody.
        eventually(lambda: all_wait(made), "whoever comes now waits")
        restart(application)
        for daemon in made:
            for pid in (worker["pid"] for worker in daemon.status()["workers"]):
                os.kill(pid, signal.SIGKILL)
        os.kill(made[where].status()["control"]["pid"], signal.SIGKILL)
        eventually(lambda: made[where].relay("release", name).returncode == 0, "it is released")
    assert load.failed == []


def test_it_is_held_over_an_upgrade(daemons: Daemons, installed: Installed) -> None:
    port, answers = free_port(), []
    with Application(free_port()) as application:
        daemon = daemons(one_endpoint(port, application.target), wrapper=installed.wrapper)
        assert daemon.relay("hold", "web/in", "--for", "1h").returncode == 0
        asking = threading.Thread(target=lambda: answers.append(ask(("127.0.0.1", port), "a")))
        asking.start()
        eventually(lambda: daemon.endpoint("web/in")["held"] == 1, "it waits")
        installed.release()
        assert daemon.relay("upgrade").returncode == 0
        now = daemon.endpoint("web/in")
        assert (now["held"], now["hold_for_s"] > 0, application.answered) == (1, True, {})
        assert daemon.relay("release", "web/in").returncode == 0
        asking.join()
    assert answers[0].endswith("a")


def all_wait(made: list[Daemon]) -> bool:
    """Whether all four clients wait, at one daemon or at another, and nobody else is connected."""
    return [each["held"] for daemon in made for each in daemon.status()["endpoints"]].count(4) == 1


def test_who_waits_is_told(daemons: Daemons) -> None:
    port, metrics = free_port(), free_port()
    with Application(free_port()) as application:
        settings = {"workers": 1, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
        daemon = daemons(one_endpoint(port, application.target, **HOLD), settings)
        unknown = daemon.relay("hold", "web/out")
        assert unknown.returncode == 1
        assert "no endpoint `web/out` on web_IN_0, which has web/in" in unknown.stderr
        assert daemon.relay("hold", "web/in", "--for", "1h").returncode == 0
        asking = threading.Thread(target=ask, args=(("127.0.0.1", port), "a"))
        asking.start()
        eventually(lambda: daemon.endpoint("web/in")["held"] == 1, "it waits")
        assert Scrape(metrics).value("relay_connections_held", endpoint="in") == 1
        text = daemon.relay("status").stdout
        assert "HOLD: web/in holds new connections for " in text
        assert "1 (1 held)" in text
        assert " hold " in daemon.relay("status", "--connections").stdout
        released = daemon.relay("release", "web/in")
        assert released.stdout == "web/in holds nobody any more; 1 connection waited\n"
        asking.join()
        assert daemon.endpoint("web/in")["hold_for_s"] == 0
