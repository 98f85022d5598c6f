"""`relay drain --wait`: who sends is told at once, and when the command returns nobody is about to send anything."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import control_pid, control_restarted, next_worker, settled
from tests.e2e.test_edge import EDGE, Backend, Site, line
from tests.harness import Daemon, dial, eventually

ENDLESS = {"interval": "1h", "timeout": "1h"}  # nobody finds out anything by asking


@pytest.fixture
def backends() -> Iterator[list[Backend]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Backend(f"web_IN_{n}"))) for n in range(2)]


def told_by(instance: Daemon) -> dict[str, Any]:
    """Who could send connections to it, and how each is told."""
    return {each["who"]: each["by"] for each in instance.status()["senders"]}


def lined(*instances: Daemon, edges: int = 1) -> None:
    """Wait until each edge holds a line to each of them."""
    expected = {f"edge_IN_{n}": "line" for n in range(edges)}
    for instance in instances:
        eventually(lambda instance=instance: told_by(instance) == expected, "lines are held")  # type: ignore[misc]


class Load:
    """Clients of the edge, one after the other in each of some threads. `answers`: who answered; `failures`: what failed."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._stop = threading.Event()
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []

    @contextlib.contextmanager
    def running(self, count: int = 4) -> Iterator["Load"]:
        threads = [threading.Thread(target=self._loop, args=(n,)) for n in range(count)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    def _loop(self, number: int) -> None:
        for turn in range(1_000_000):
            if self._stop.is_set():
                return
            try:
                answer = self._site.ask(source=f"127.0.{20 + number}.{1 + turn % 200}")
                if not answer:
                    self.failures.append("an end without an answer")
                self.answers[answer.partition(" ")[0]] += 1
            except OSError as error:
                self.failures.append(repr(error))

    def more(self, count: int = 100) -> None:
        """Wait until so many more were answered."""
        seen = self.answers.total()
        eventually(lambda: self.answers.total() >= seen + count or self.failures, "answers")


def test_when_it_returns_the_application_may_stop_and_nothing_fails(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends, probe=ENDLESS)
    lined(*site.instances)
    with Load(site).running() as load:
        load.more()
        began_s = time.monotonic()
        drained = site.instances[0].relay("drain", "--wait", "--timeout", "60s")
        assert drained.returncode == 0, drained
        backends[0].close()
        assert time.monotonic() - began_s < 60.0
        before = load.answers["web_IN_0"]
        load.more()
        assert load.failures == []
        assert load.answers["web_IN_0"] == before
    assert drained.stdout.endswith("nobody is about to send, and no connection is open\n")
    assert site.health() == ["down", "up"]
    assert site.edge.endpoint("web/in")["target_set"][0]["failures"] == 0
    assert site.instances[0].endpoint("web/in")["closed"].get("connect_failed", 0) == 0


def test_back_in_rotation_is_told_as_well(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends, probe=ENDLESS)
    lined(*site.instances)
    for _ in range(2):
        assert site.instances[1].relay("drain", "--wait").returncode == 0
        assert site.health()[1] == "down", "it was written down before it was said back"
        assert site.instances[1].relay("drain", "off").returncode == 0
        eventually(lambda: site.health()[1] == "up", "the edge looks at once")
    assert site.instances[1].ask("POST", "/v1/drain?for=5")[0] == 200

    def falls() -> int:
        return [each["endpoint"] for each in site.edge.events("target down")].count("web/in")

    eventually(lambda: falls() == 3, "it is told")
    eventually(lambda: site.health()[1] == "up", "the end of the time is told too")


def test_who_is_connected_is_waited_for(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:1], probe=ENDLESS)
    lined(*site.instances)
    with dial(site.public, host=EDGE) as client:
        assert line(client).startswith("web_IN_0")
        late = site.instances[0].relay("drain", "--wait", "--timeout", "300ms")
        assert (late.returncode, late.stderr) == (3, "relay: not within 300ms: 1 connection open\n")
        assert line(client).startswith("web_IN_0"), "it goes on"
    assert site.instances[0].relay("drain", "--wait").returncode == 0


def stopped_at_rest(edge: Daemon, instance: Daemon) -> int:
    """The pid of the edge's control, stopped while it does not ask: its question would stay open as a connection."""

    def rests() -> bool:
        return bool(instance.endpoint("web/in")["active"] == 0)

    pid = control_pid(edge)
    while True:
        eventually(rests, "it does not ask")
        os.kill(pid, signal.SIGSTOP)
        if rests():
            return pid
        os.kill(pid, signal.SIGCONT)


def test_an_edge_that_does_not_hear_it_is_named(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:1], probe=ENDLESS)
    lined(*site.instances)
    pid = stopped_at_rest(site.edge, site.instances[0])
    try:
        late = site.instances[0].relay("drain", "--wait", "--timeout", "300ms")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (late.returncode, late.stderr) == (3, "relay: not within 300ms: edge_IN_0: being told\n")
    assert site.instances[0].relay("drain", "--wait").returncode == 0


def test_an_edge_without_a_line_is_waited_for_and_named(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:1], probe={"interval": "100ms", "timeout": "100ms"})
    lined(*site.instances)
    site.edge.stop()
    eventually(lambda: told_by(site.instances[0]) == {"edge_IN_0": None}, "nobody holds a line")
    done = site.instances[0].relay("drain", "--wait", "--timeout", "60s")
    assert done.returncode == 0
    assert "edge_IN_0: not told" in done.stdout
    assert done.stdout.endswith("; not told: edge_IN_0\n")


def the_instances_worker_dies(site: Site) -> None:
    before = site.instances[0].worker_pid()
    os.kill(before, signal.SIGKILL)
    next_worker(site.instances[0], before)


def the_edges_control_dies(site: Site) -> None:
    os.kill(control_pid(site.edge), signal.SIGKILL)
    control_restarted(site.edge)


def the_instance_is_upgraded(site: Site) -> None:
    assert site.instances[0].relay("upgrade").returncode == 0


def the_instance_is_reloaded(site: Site) -> None:
    site.instances[0].write_service(site.service(0, access=[{"deny": "127.0.0.77"}]))
    assert site.instances[0].relay("reload").returncode == 0


@pytest.mark.parametrize(
    "event",
    [the_instances_worker_dies, the_edges_control_dies, the_instance_is_upgraded, the_instance_is_reloaded],
    ids=lambda event: event.__name__,
)
def test_a_line_goes_on(event: Callable[[Site], None], daemons: Daemons, backends: list[Backend]) -> None:
    """Over the death of a worker, an upgrade and a reload; and a new control holds a new one."""
    site = Site(daemons, backends[:1], probe=ENDLESS)
    lined(*site.instances)
    event(site)
    lined(*site.instances)
    assert site.instances[0].relay("drain", "--wait", "--timeout", "60s").returncode == 0
    assert site.health() == ["down"]
    the_instances_worker_dies(site)
    eventually(lambda: site.instances[0].status()["senders"][0]["told"], "a successor knows what was heard")
    settled(site.instances[0])
    for daemon in (site.edge, *site.instances):
        assert list(daemon.events("bug")) == []


def test_a_machine_that_is_no_edge_any_more_loses_its_line(daemons: Daemons, backends: list[Backend]) -> None:
    site = Site(daemons, backends[:1], probe=ENDLESS)
    lined(*site.instances)
    site.edge_addresses.append("127.250.0.9")
    changed = site.service(0)
    changed["edge"]["instances"] = ["127.250.0.9"]
    site.instances[0].write_service(changed)
    assert site.instances[0].relay("reload").returncode == 0
    eventually(lambda: told_by(site.instances[0]) == {"edge_IN_0": None}, "another edge is in its place")
