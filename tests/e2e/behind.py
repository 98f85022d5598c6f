"""An edge and two instances with nginx, Redis and PostgreSQL, each a machine of its own, and who was lost when they end.

A request that failed is one of two. **In flight**: an application's kernel had taken its connection, and that application
ended, or was only beginning, before the answer. Its instance's relay has it in its log, since connect(2) told it and nobody
else. What has become of such a request nobody can say, so nobody may ask again for its client. **Lost**: every other one.
Either no kernel of a target has taken it, and the other instance could have served it, or nothing happened to its target.
"""

import contextlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.conftest import Daemons
from tests.e2e import apps, asking
from tests.e2e.apps import App, Web
from tests.e2e.asking import CLIENTS, Asked, Crowd
from tests.e2e.installed import Installed, asked
from tests.e2e.netns import Network
from tests.e2e.peers import typed
from tests.harness import HANG_S, Daemon, eventually

EDGE, INSTANCES = "10.77.0.1", ("10.77.0.11", "10.77.0.12")
HOSTS: Final = {"client": CLIENTS, "edge": [EDGE], "web0": [INSTANCES[0]], "web1": [INSTANCES[1]]}
NAMES: Final = {"http": 80, "redis": 6379, "postgres": 5432}
"""The endpoints, and their public ports."""
STANDS_STILL_S: Final = (
    3.0  # the http probe finds it out after so long; and a busy machine is not taken for one that does
)
HELD_PORT: Final = 81
"""The public port of one more endpoint that leads to nginx: its clients wait while there is none."""
_ASKS: Final = {"http": asking.http, "redis": asking.redis, "postgres": asking.postgres}
_SOME: Final = 15  # requests
_SELDOM_S: Final = 0.05  # between two looks at the edge: each costs as much as many connections
_OFTEN: Final = "200ms"
# How a connection ends that had reached its target. After a worker's death `connect_s` is not known any more.
_REACHED: Final = ("client_fin", "target_fin", "client_reset", "target_reset", "idle", "peer_dead")


@dataclass
class Machine:
    """An instance: its relay and its applications, by their endpoints' names."""

    number: int
    relay: Daemon
    apps: dict[str, App]
    had: set[str] = field(default_factory=set)  # clients who were connected to its applications when it was ended

    @property
    def web(self) -> Web:
        """Its nginx."""
        found = self.apps["http"]
        assert isinstance(found, Web)
        return found

    def taken(self) -> set[str]:
        """The clients whose connection one of its applications has taken, by what its relay has told so far."""
        return self.had | {
            said["peer"]
            for said in self.relay.events("connection")
            if said["target"] and (said["connect_s"] > 0 or said["cause"] in _REACHED)
        }

    def end_relay(self) -> None:
        """Its relay ends at once."""
        # `drain` will be the cause of all that are open.
        self.had |= {each["peer"] for each in connections(self.relay) if each["state"] in ("splice", "close")}
        self.relay.stop()


@dataclass
class Judged:
    """What became of requests: how many, which failed, and which were answered by both instances' nginx."""

    asked: int
    in_flight: list[Asked]
    lost: list[Asked]
    twice: list[Asked]


def connections(daemon: Daemon) -> list[dict[str, Any]]:
    """Who is connected, as soon as the daemon says it."""
    found: list[dict[str, Any]] = []

    def says() -> bool:
        with contextlib.suppress(OSError):
            code, found[:] = daemon.ask("GET", "/v1/connections")
            return code == 200
        return False

    eventually(says, "it says who is connected")
    return found


class Service:
    """All of it at work. Made by `service`."""

    def __init__(self, network: Network, edge: Daemon, machines: list[Machine]) -> None:
        self.network, self.edge, self.machines = network, edge, machines
        self._crowds: list[Crowd] = []
        self._changes: list[tuple[float, float]] = []  # when applications ended or began (CLOCK_MONOTONIC)

    @contextlib.contextmanager
    def asked_by_all(self) -> Iterator[list[Crowd]]:
        """Clients of each endpoint ask meanwhile. Some may wait for an instance that is gone, and others must go on."""
        with contextlib.ExitStack() as stack:
            self._crowds = [Crowd(self.network, (EDGE, NAMES[name]), ask, 3) for name, ask in _ASKS.items()]
            for crowd in self._crowds:
                stack.enter_context(crowd.asking())
            yield self._crowds

    def clients(self, port: int = NAMES["http"]) -> Crowd:
        """Clients of nginx, at this public port."""
        return Crowd(self.network, (EDGE, port), asking.http, 3)

    def _serve(self) -> None:
        """Until clients of each endpoint have some more answers."""
        enough = [len(crowd.asked) + _SOME for crowd in self._crowds]
        for crowd, count in zip(self._crowds, enough, strict=True):
            crowd.wait_asked(count)

    def targets(self, number: int) -> dict[str, dict[str, Any]]:
        """What the edge says of an instance, by the endpoints' names; nothing while nobody answers."""
        time.sleep(_SELDOM_S)
        status = asked(self.edge) or {"endpoints": []}
        found = {each["name"].removeprefix("web/"): each["target_set"][number] for each in status["endpoints"]}
        return {name: target for name, target in found.items() if name in NAMES}

    def wait_at_work(self, machine: Machine) -> None:
        """Until this instance gets connections on every endpoint, and the other one may get them as well."""
        before: dict[str, dict[str, Any]] = {}

        def is_served() -> bool:
            now = [self.targets(n) for n in (0, 1)]
            if not all(now) or any(each["health"] != "up" for found in now for each in found.values()):
                return False
            before.update({name: each for name, each in now[machine.number].items() if name not in before})
            return all(each["connected"] > before[name]["connected"] for name, each in now[machine.number].items())

        eventually(is_served, "the instance is at work")
        self._settle()

    def _settle(self) -> None:
        """Until nobody waits any more for an instance that was away, of those who are connected now.

        Who does goes to the other one, which may not be taken away just then.
        """
        held = {each["peer"] for each in connections(self.edge)}
        eventually(
            lambda: not held.intersection(each["peer"] for each in connections(self.edge)),
            "each connection of that time has ended",
        )

    def wait_down(self, name: str, machine: Machine, reason: str = "") -> None:
        """Until the edge has the instance down on this endpoint; with this reason, if one is given."""

        def is_down() -> bool:
            seen = self.targets(machine.number).get(name, {"health": "", "reason": ""})
            return seen["health"] == "down" and reason in seen["reason"]

        eventually(is_down, "the edge has it down")

    def judge(self, crowds: list[Crowd]) -> Judged:
        """What became of all that they asked, once every relay has told all that it has to tell."""
        every = [one for crowd in crowds for one in crowd.asked]
        failed = [one for one in every if one.failure]
        served = Counter(number for machine in self.machines for number in machine.web.served())
        twice = [one for one in every if served[one.number] > 1]

        def judged() -> Judged:
            taken = set.union(*(machine.taken() for machine in self.machines))
            in_flight = [one for one in failed if one.peer in taken and self._met_a_change(one)]
            return Judged(len(every), in_flight, [one for one in failed if one not in in_flight], twice)

        with contextlib.suppress(AssertionError):
            eventually(lambda: not judged().lost, "nobody is lost", within_s=10.0)
        return judged()

    def _met_a_change(self, one: Asked) -> bool:
        return any(one.began_s <= ended_s and began_s <= one.ended_s for began_s, ended_s in self._changes)

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """Applications end or begin meanwhile."""
        began_s = time.monotonic()
        try:
            yield
        finally:
            self._changes.append((began_s, time.monotonic()))

    def _each(self, machine: Machine, do: Callable[[App], object]) -> None:
        """Do that to all applications of an instance, at the same time."""
        with self._change(), ThreadPoolExecutor(len(machine.apps)) as pool:
            list(pool.map(do, machine.apps.values()))

    def tell(self, lost: list[Asked]) -> str:
        """What the logs say of those who are lost."""
        lines = []
        for one in lost[:5]:
            said = [
                {key: line.get(key) for key in ("endpoint", "target", "cause", "reason", "connect_s", "attempts")}
                for daemon in self.relays
                for event in ("connection", "denied")
                for line in daemon.events(event)
                if line["peer"] == one.peer
            ]
            lines.append(f"{one}: {json.dumps(said)}")
        return f"{len(lost)} lost:\n" + "\n".join(lines)

    # --- what is done to an instance -----------------------------------------------------------------------------------

    def stop(self, machine: Machine, pause: Callable[[], None]) -> None:
        """Its applications are stopped, and some time later started."""
        self._each(machine, App.stop)
        self._serve()
        self._each(machine, App.start)

    def kill(self, machine: Machine, pause: Callable[[], None]) -> None:
        """Its applications are killed, and some time later started."""
        self._each(machine, App.kill)
        self._serve()
        self._each(machine, App.start)

    def restart(self, machine: Machine, pause: Callable[[], None]) -> None:
        """Its applications are restarted."""
        self._each(machine, App.stop)
        pause()
        self._each(machine, App.start)

    def restart_everywhere(self, pause: Callable[[], None]) -> None:
        """The nginx of both instances restart, at the same time."""
        with self._change():
            for machine in self.machines:
                machine.web.stop()
            pause()
            for machine in self.machines:
                machine.web.start()

    def take_out(self, machine: Machine, pause: Callable[[], None]) -> None:
        """It is drained, and when nobody is there any more its applications are stopped."""
        self._tell(machine, "drain", "--wait", "--timeout", f"{HANG_S:g}s")
        self._each(machine, App.stop)
        self._serve()
        self._each(machine, App.start)
        self._tell(machine, "drain", "off")

    def _tell(self, machine: Machine, *command: str) -> None:
        done = typed(*command, "--settings", str(machine.relay.settings_file))
        assert done.returncode == 0, done

    def be_unwell(self, machine: Machine, pause: Callable[[], None]) -> None:
        """Its nginx answers 503 to the probe."""
        machine.web.be_well(False)
        self.wait_down("http", machine, "HTTP 503")
        self._serve()
        machine.web.be_well(True)

    def be_gone(self, machine: Machine, pause: Callable[[], None]) -> None:
        """It loses its cable. What it was is not there any more when it comes back."""
        host = f"web{machine.number}"
        with self._change():
            self.network.cable(host, plugged=False)
            try:
                self._serve()
                machine.end_relay()  # its log is whole; and nobody on the network can hear what else it says
                self._each(machine, App.kill)
            finally:
                self.network.cable(host, plugged=True)
            self._each(machine, App.start)
            with self.network.inside(host):
                machine.relay.start()

    @property
    def relays(self) -> list[Daemon]:
        """All relays of the service."""
        return [self.edge, *(machine.relay for machine in self.machines)]

    def bugs(self) -> list[dict[str, Any]]:
        """What any relay has said of its own mistakes."""
        return [bug for daemon in self.relays for bug in daemon.events("bug")]


def _file(targets: dict[str, str]) -> dict[str, Any]:
    """The service file of a machine whose applications are there."""

    def endpoint(port: int, app: str, probe: dict[str, Any] | None, **timeouts: str) -> dict[str, Any]:
        often = {"interval": _OFTEN, "timeout": f"{STANDS_STILL_S:g}s"}
        return {
            "type": "input",
            "protocol": "http" if app == "http" else "tcp",
            "public_port": port,
            "port": 10_000 + port,
            "target": targets[app],
            "probe": False if probe is None else {**often, **probe},
            "timeouts": {"dead": "5s", "keepalive": "1s", **timeouts},
        }

    healthz = {"protocol": "http", "path": "/healthz"}
    endpoints = {
        "http": endpoint(NAMES["http"], "http", healthz),
        "held": endpoint(HELD_PORT, "http", healthz, hold=f"{HANG_S:g}s"),
        "redis": endpoint(NAMES["redis"], "redis", None),  # only connections find out how it is
        "postgres": endpoint(NAMES["postgres"], "postgres", {}),
    }
    roles = {"web": {"instances": list(INSTANCES), "endpoints": endpoints}}
    return {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": roles}


@contextlib.contextmanager
def service(directory: Path) -> Iterator[Service]:
    """Everything started, and every instance up."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(Network(HOSTS))
        # Not below the test's directory, which is closed to the user that PostgreSQL runs as.
        open_directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="relay-behind-")))
        open_directory.chmod(0o755)
        installed = Installed(directory)
        installed.patient()
        daemons = Daemons(directory)
        stack.callback(daemons.end)
        machines = []

        def place(name: str) -> Path:
            made = open_directory / name
            made.mkdir()
            return made

        data = apps.database(place("data"))
        for n in range(len(INSTANCES)):
            host = f"web{n}"
            made: dict[str, App] = {
                "http": apps.nginx(network, host, place(f"nginx-{n}")),
                "redis": apps.redis(network, host, place(f"redis-{n}")),
                "postgres": apps.postgres(network, host, place(f"postgres-{n}"), data),
            }
            for app in made.values():
                stack.callback(app.stop)
            file = _file({name: app.target for name, app in made.items()})
            relay = daemons.make(file, {"workers": 1}, instance=f"web_IN_{n}", wrapper=installed.wrapper)
            machine = Machine(n, relay, made)
            for app in made.values():
                app.start()
            with network.inside(host):
                relay.start()
            machines.append(machine)
        edge = daemons.make(file, {"workers": 2}, instance="edge_IN_0", wrapper=installed.wrapper)
        with network.inside("edge"):
            edge.start()
        yield Service(network, edge, machines)
