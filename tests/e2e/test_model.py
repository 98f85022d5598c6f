"""A real daemon through random reloads, held against the reference: who is cut, who goes on, who is let in."""

import contextlib
import errno
import os
import random
import signal
import socket
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e.model import PORTS, SOURCES, Connection, World
from tests.envelope import reference
from tests.harness import HANG_S, Daemon, Echo, denied, eventually, patched
from tests.ports import free_ports

SEED: Final = int(os.environ.get("RELAY_CHAOS_SEED", "20261123"))
CONNECTIONS: Final = 60
PROBES: Final = 20  # clients after each reload that come from anywhere
REASONS: Final = ("access", "roster")
CUT_S: Final = 1.0  # what is promised
START_S: Final = 10 * CUT_S  # where a worker is killed, the next one has to start, and other tests run meanwhile


class Run:
    """The daemon, the world as its file describes it, the connections that are open, and the account that must be."""

    def __init__(self, daemon: Daemon, world: World, chance: random.Random) -> None:
        self.daemon = daemon
        self.world = world
        self.chance = chance
        self.open: list[Connection] = []
        self.counts: Counter[str] = Counter()
        self.workers: set[int] = set()  # that had connections
        self.took_s: list[float] = []  # from asking for a reload until the last cut of it was seen
        # By endpoint, since it was opened: accepted, client_fin, revoked, and refusals by reason, those that audit too.
        self._account: dict[str, Counter[str]] = {name: Counter() for name in world.endpoints()}

    # --- connections ----------------------------------------------------------------------------------------------

    def probe(self, count: int) -> None:
        """Connect from anywhere to any endpoint."""
        for _ in range(count):
            self._connect(self.chance.choice(self.world.endpoints()), self.chance.choice(SOURCES))

    def fill(self) -> None:
        """Open as many connections as there shall be, from sources that may connect, if there are any."""
        world = self.world
        pairs = [(name, source) for name in world.endpoints() for source in SOURCES if world.allows(name, source)]
        for pair in self.chance.choices(pairs, k=CONNECTIONS - len(self.open)) if pairs else ():
            self._connect(*pair)

    def _connect(self, endpoint: str, source: str) -> None:
        """Be let in, or not, as the reference says. A connection stays while there is room."""
        world, account, port = self.world, self._account[endpoint], self.chance.choice(self.world.listening(endpoint))
        reason = "roster" if reference.find(world.service, endpoint)["type"] == "internal" else "access"
        if not world.allows(endpoint, source):
            assert denied(port, host=world.host, source=source), f"{source} was let in to {endpoint}"
            account[reason] += 1
            self.counts["refused"] += 1
            return
        if not reference.decide(world.service, endpoint, source).permit:
            account[f"would {reason}"] += 1
            self.counts["let in by audit"] += 1
        client = Connection(endpoint, source, world.host, port)
        account["accepted"] += 1
        self.counts["let in"] += 1
        client.send(self.chance.randbytes(100))
        assert client.settle(), f"{source} was not let in to {endpoint}"
        if len(self.open) < CONNECTIONS:
            self.open.append(client)
        else:
            client.sock.close()
            account["client_fin"] += 1

    # --- reloads --------------------------------------------------------------------------------------------------

    def reload(self, *, kill: bool = False) -> None:
        """Put the world as it now is in force, after asking what that would do. `kill`: a worker dies just before."""
        doomed = [each for each in self.open if not self.world.allows(each.endpoint, each.source)]
        self._send_some()
        self.daemon.write_service(self.world.service)
        plan = self._plan(doomed)
        if kill:
            os.kill(self.chance.choice(self.daemon.status()["workers"])["pid"], signal.SIGKILL)
        began_s = time.monotonic()
        code, answer = self.daemon.ask("POST", "/v1/reload")
        until_s = time.monotonic() + (START_S if kill else CUT_S)
        assert code == 200, answer
        assert (answer["changes"], answer["notes"]) == (plan["changes"], [])
        late = [each for each in doomed if not each.is_reset(max(0.0, until_s - time.monotonic()))]
        assert [(each.endpoint, each.source) for each in late] == [], "not cut in time"
        if doomed:
            self.took_s.append(time.monotonic() - began_s)
        for client in doomed:
            self.open.remove(client)
            client.sock.close()
            self._account[client.endpoint]["revoked"] += 1
        self.counts["cut"] += len(doomed)
        self.counts["reloads that cut"] += bool(doomed)
        self.counts["reloads that cut and spared"] += bool(doomed and self.open)
        self._account = {name: self._account.get(name, Counter()) for name in self.world.endpoints()}
        self._all_alive()

    def reload_what_is_wrong(self) -> None:
        """A file with an error, asked about and reloaded: nothing happens to anybody."""
        self._send_some()
        self.daemon.write_service({**self.world.service, "roles": {}})
        for resource in ("/v1/reload?dry_run=1", "/v1/reload"):
            code, answer = self.daemon.ask("POST", resource)
            assert (code, len(answer["problems"])) == (409, 1), answer
        self._all_alive()

    def _send_some(self) -> None:
        """Have bytes under way while it is decided."""
        for client in self.open:
            client.send(self.chance.randbytes(self.chance.choice([0, 1, 1000])))

    def _plan(self, doomed: list[Connection]) -> dict[str, Any]:
        """What a reload would do. It says exactly who would be cut, and cuts nobody."""
        code, plan = self.daemon.ask("POST", "/v1/reload?dry_run=1")
        assert code == 200, plan
        predicted: Counter[tuple[str, str]] = Counter()
        for line in plan["cut"]:
            predicted[line["endpoint"], line["network"]] += line["connections"]
        assert predicted == Counter((each.endpoint, network(each.source)) for each in doomed)
        self._all_alive()
        self._send_some()
        return dict(plan)

    def _all_alive(self) -> None:
        """Every byte that was sent before comes back, and so does what is sent now."""
        for client in self.open:
            client.send(self.chance.randbytes(50))
            assert client.settle(), f"{client.source} to {client.endpoint}"
        self.counts["kept"] += len(self.open)

    # --- what the daemon says ---------------------------------------------------------------------------------------

    def check_account(self) -> None:
        """What the daemon counts is what happened, to each endpoint since it was opened."""
        active = Counter(client.endpoint for client in self.open)
        expected = {
            name: {
                "active": active[name],
                "accepted": account["accepted"],
                "closed": {cause: account[cause] for cause in ("client_fin", "revoked") if account[cause]},
                "denied": {reason: account[reason] for reason in REASONS if account[reason]},
                "would_deny": {reason: account[f"would {reason}"] for reason in REASONS if account[f"would {reason}"]},
            }
            for name, account in self._account.items()
        }
        seen: dict[str, dict[str, Any]] = {}

        def equal() -> bool:
            status = {each["name"]: each for each in self.daemon.status()["endpoints"]}
            seen.update({name: {key: status[name][key] for key in keys} for name, keys in expected.items()})
            return status.keys() == expected.keys() and seen == expected

        with contextlib.suppress(AssertionError):
            eventually(equal, "the account")
        assert seen == expected
        code, connections = self.daemon.ask("GET", "/v1/connections")
        assert code == 200
        self.workers |= {each["worker"] for each in connections}

    def check_ports(self) -> None:
        """Nothing listens that is not declared. The keeper closes its own copy of a socket a moment after the workers."""
        world = self.world
        declared = {(world.host, port) for name in world.endpoints() for port in world.listening(name)}
        shut = {(host, port) for host in world.hosts for port in world.ports} - declared
        eventually(lambda: all(refused(*address) for address in shut), "what is not declared is closed")

    def check_end(self) -> None:
        """The log says the same. And it was no empty exercise."""

        def revoked() -> int:
            return sum(record["cause"] == "revoked" for record in self.daemon.events("connection"))

        eventually(lambda: revoked() >= self.counts["cut"], "the log is written")
        assert revoked() == self.counts["cut"]
        assert list(self.daemon.events("bug")) == []
        assert self.workers == {0, 1}


def network(source: str) -> str:
    """What a dry run calls a source: its network."""
    return f"{source.rpartition('.')[0]}.0/24"


def refused(host: str, port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == errno.ECONNREFUSED


@pytest.fixture
def run(daemons: Daemons, echo: Echo, killing: bool) -> Iterator[Run]:
    """A daemon with two workers by a random service, and clients."""
    chance = random.Random(SEED)
    network = f"127.{20 + os.getpid() % 200}.{chance.randrange(256)}"  # so that two runs on a machine never meet
    hosts = f"{network}.1", f"{network}.2"
    world = World(chance, hosts, free_ports(PORTS, hosts[0]), echo.target)
    # A worker that has to start, and to wait for a CPU, applies late, and then the answer would have a note.
    program = {"program": patched("relay.control.delivery._APPLY_S", value=HANG_S)} if killing else {}
    made = Run(daemons(world.service, {"workers": 2}, **program), world, chance)
    try:
        made.fill()
        yield made
    finally:
        for client in made.open:
            client.sock.close()


@pytest.mark.slow
@pytest.mark.parametrize("killing", [pytest.param(False, marks=pytest.mark.alone), True])
def test_after_each_reload_exactly_the_right_connections_are_alive(run: Run, killing: bool, long: bool) -> None:
    reloads = int(os.environ.get("RELAY_MODEL_RELOADS", "500" if long else "25")) // (2 if killing else 1)
    for number in range(reloads):
        if run.chance.random() < 0.1:
            run.reload_what_is_wrong()
        changes = run.world.change()
        try:
            run.reload(kill=killing)
            run.check_ports()
            run.probe(PROBES)
            run.fill()
            run.check_account()
        except Exception as error:
            error.add_note(f"at reload {number} of seed {SEED}: {', '.join(changes) or 'nothing changed'}")
            raise
    run.check_end()
    # A busy machine makes some slow. What makes half of them slow is relay; a worker that has to start is another matter.
    assert killing or statistics.median(run.took_s) < CUT_S, run.took_s
    assert run.counts["cut"] > reloads
    assert run.counts["refused"] > reloads
    assert run.counts["let in by audit"]
    assert run.counts["reloads that cut and spared"] > reloads // 10
