"""The recipe of a Patroni cluster as it is: writes go to the primary alone, and a switch moves them at once."""

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e import patroni
from tests.e2e.netns import Network
from tests.e2e.patroni import DATABASES, Database, Write, Writer
from tests.e2e.programs import run
from tests.e2e.recipes import health, machines, started, targets
from tests.harness import Daemon, eventually

pytestmark = [
    pytest.mark.real("ip", "postgres", "initdb", "pg_basebackup", "psql"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

RECIPE = "patroni"
PUBLIC = "198.51.100.10"
HOSTS = {
    "web": ["10.0.0.4"],
    "edge": [PUBLIC, "10.0.0.2"],
    "client": ["203.0.113.9"],
    **{host: [address] for host, address in DATABASES.items()},
}
SWITCHED_WITHIN_S = 3.0  # from the moment that the old primary's Patroni says that it is none
GONE_WITHIN_S = 4.0  # two probes without an answer, each for a second; and until a worker sees to it


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with machines(HOSTS) as made:
        yield made


@pytest.fixture(scope="module")
def databases(network: Network) -> Iterator[dict[str, Database]]:
    # Not below the test's directory, which is closed to the user that PostgreSQL runs as.
    with tempfile.TemporaryDirectory(prefix="relay-patroni-") as directory:
        Path(directory).chmod(0o755)
        with patroni.cluster(network, Path(directory)) as made:
            yield made


class Site:
    """The cluster, a machine with doors to it, an edge before it, and writers through both."""

    def __init__(self, network: Network, databases: dict[str, Database], door: Daemon, edge: Daemon) -> None:
        self.network, self.databases = network, databases
        self.ways = {"web/write": door, "primary-outside/postgres": edge}
        self.writers: list[Writer] = []

    @property
    def primary(self) -> Database:
        """The one whose Patroni says so."""
        (found,) = (each for each in self.databases.values() if each.api.says == "primary")
        return found

    def next(self) -> Database:
        """Who comes after the primary one, round."""
        every = list(self.databases.values())
        return every[(every.index(self.primary) + 1) % len(every)]

    @contextlib.contextmanager
    def writing(self) -> Iterator[list[Writer]]:
        """Two write by the door, and two by the edge; all have reached the primary one."""
        with contextlib.ExitStack() as stack:
            for host, address in (("web", "127.0.0.1"), ("client", PUBLIC)) * 2:
                with self.network.inside(host):
                    self.writers.append(stack.enter_context(Writer((address, 5432)).writing()))
            for writer in self.writers:
                writer.wait_for(self.primary.address)
            yield self.writers

    def told(self) -> list[tuple[Daemon, str]]:
        """Each relay, and by which name it leads to the primary one."""
        return [(daemon, name) for name, daemon in self.ways.items()]

    def active_at(self, database: Database) -> int:
        """How many connections relay has there."""
        return sum(int(targets(*way)[database.target]["active"]) for way in self.told())

    def held(self) -> dict[str, int]:
        """How many connections wait, by their way."""
        return {name: daemon.endpoint(name)["held"] for name, daemon in self.ways.items()}

    def written(self) -> list[Write]:
        """All that was written, and what failed."""
        return [each for writer in self.writers for each in writer.written]

    def cut(self) -> dict[str, int]:
        """How many connections each way has ended because its target was down."""
        return {name: daemon.endpoint(name)["closed"].get("target_down", 0) for name, daemon in self.ways.items()}

    def kill(self) -> None:
        """A worker and control of both relays, at once."""
        for daemon in self.ways.values():
            status = daemon.status()
            for pid in (status["workers"][0]["pid"], status["control"]["pid"]):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def site(network: Network, databases: dict[str, Database], daemons: Daemons, tmp_path: Path) -> Site:
    settings = {"state": str(tmp_path)}
    door, edge = (started(daemons, network, host, RECIPE, settings) for host in ("web", "edge"))
    made = Site(network, databases, door, edge)
    expected = ["up" if each is made.primary else "down" for each in databases.values()]
    eventually(lambda: {tuple(health(*way)) for way in made.told()} == {tuple(expected)}, "both know the primary one")
    return made


@pytest.mark.alone
@pytest.mark.parametrize("killed", [False, True], ids=["", "killed"])
def test_a_switch_moves_all_writers_and_none_stays(site: Site, killed: bool) -> None:
    """Though the old primary goes on and takes writes; and whoever of relay dies in that moment."""
    old, new = site.primary, site.next()
    with site.writing() as writers:
        began_s = time.monotonic()
        old.api.says = "neither"
        if killed:
            site.kill()
        new.promoted()
        moved_s = [writer.wait_for(new.address, began_s).ended_s - began_s for writer in writers]
        assert max(moved_s) < SWITCHED_WITHIN_S
        eventually(lambda: site.active_at(old) == 0, "relay has nobody there")
        eventually(lambda: old.clients() == [], "nor has PostgreSQL")
        assert max(writer.last_of(old.address) for writer in writers) - began_s < SWITCHED_WITHIN_S
        before, now_s = old.sql("SELECT count(*) FROM written"), time.monotonic()
        for writer in writers:
            writer.wait_for(new.address, now_s)
        assert old.sql("SELECT count(*) FROM written") == before, "nobody writes there any more"
        assert old.sql("INSERT INTO written SELECT now() RETURNING 'taken'") == "taken", "though it would take it"
    assert {each.server for each in site.written()} <= {old.address, new.address, ""}
    assert site.cut() == dict.fromkeys(site.ways, 2)


@pytest.mark.alone
def test_a_primary_whose_machine_is_gone(site: Site) -> None:
    """Who wrote there is cut off, waits for the next primary, and reaches it as soon as there is one."""
    old, new = site.primary, site.next()
    with site.writing() as writers:
        began_s = time.monotonic()
        site.network.cable(old.host, plugged=False)
        try:
            eventually(lambda: site.cut() == dict.fromkeys(site.ways, 2), "all are cut off")
            assert time.monotonic() - began_s < GONE_WITHIN_S
            eventually(lambda: site.held() == dict.fromkeys(site.ways, 2), "and wait")
            old.api.says = "neither"
            promoted_s = time.monotonic()
            new.promoted()
            moved_s = [writer.wait_for(new.address).ended_s - promoted_s for writer in writers]
            assert max(moved_s) < SWITCHED_WITHIN_S
            assert site.active_at(old) == 0
        finally:
            site.network.cable(old.host, plugged=True)
    # What was under way when the cable was pulled is lost, and no other write.
    assert sum(each.server == "" for each in site.written()) == len(site.writers)


def test_readers_reach_the_standbys_alone(site: Site) -> None:
    door = site.ways["web/write"]
    for each in site.databases.values():
        each.api.says = "primary" if each is site.primary else "replica"
    expected = ["down" if each is site.primary else "up" for each in site.databases.values()]
    eventually(lambda: health(door, "web/read") == expected, "it knows them")
    asked = (
        "-h",
        "127.0.0.1",
        "-p",
        "5433",
        "-U",
        "relay",
        "-d",
        "postgres",
        "-Atqc",
        "SELECT host(inet_server_addr())",
    )
    with site.network.inside("web"):
        found = {run("psql", *asked).decode().strip() for _ in range(4)}
    assert found <= set(DATABASES.values()) - {site.primary.address}
