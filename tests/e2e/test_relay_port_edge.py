"""An edge that talks to the instances' relays at `relay_port`, and one that does not yet, or whose instances do not."""

import contextlib
import re
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.test_edge import EDGE, INSTANCES, Backend, Site, is_reset
from tests.harness import Daemon, denied, eventually
from tests.ports import free_port

ALL = ("edge", "web_IN_0", "web_IN_1")


class Told(Site):
    """An edge and two instances, of which these have been told of `relay_port`."""

    def __init__(self, daemons: Daemons, backends: list[Backend], told: Collection[str] = ALL, **keys: Any) -> None:
        self.relays = free_port("0.0.0.0")
        self.told = set(told)
        super().__init__(daemons, backends, **keys)
        self.wait_health("up", "up")

    def service(self, ordinal: int | None, count: int | None = None, **changes: Any) -> dict[str, Any]:
        file = super().service(ordinal, count, **changes)
        told = ("edge" if ordinal is None else f"web_IN_{ordinal}") in self.told
        return {**file, "relay_port": self.relays} if told else file

    def tell(self, *told: str) -> None:
        """These know of it from now on, and nobody else."""
        self.told = set(told)
        for daemon, n in ((self.edge, None), *((each, n) for n, each in enumerate(self.instances))):
            daemon.write_service(self.service(n))
            assert daemon.relay("reload").returncode == 0

    def asks(self, sources: int = 40) -> list[str]:
        """Who answers clients from so many addresses, each once, many at the same time."""
        ask: Callable[[int], str] = lambda n: self.ask(source=f"127.0.0.{n}")  # noqa: E731
        with ThreadPoolExecutor(8) as together:
            return list(together.map(ask, range(10, 10 + sources)))

    def came(self, n: int) -> tuple[int, int]:
        """Connections that came to this instance by the endpoint's name, and at all; the edge's questions too."""
        rows = self.instances[n].status()["endpoints"]
        passed = [row["closed"].get("passed", 0) for row in rows if row["type"] == "relay"]
        return sum(passed), next(row["accepted"] for row in rows if row["type"] == "input")

    def await_names(self) -> None:
        """Until what comes to both instances comes by its endpoint's name."""

        def all_by_name() -> bool:
            before = [self.came(n) for n in range(2)]
            self.asks()
            grown = [
                (now[0] - was[0], now[1] - was[1]) for was, now in zip(before, map(self.came, range(2)), strict=True)
            ]
            return all(by_name == in_all > 0 for by_name, in_all in grown)

        eventually(all_by_name, "connections name their endpoint")


@pytest.fixture
def pair() -> Iterator[list[Backend]]:
    """Backends for two instances."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Backend(f"web_IN_{n}"))) for n in range(2)]


def quiet(*daemons: Daemon) -> None:
    for daemon in daemons:
        assert list(daemon.events("bug")) == []


def test_an_edge_names_the_endpoint_and_loses_nothing(daemons: Daemons, pair: list[Backend]) -> None:
    site = Told(daemons, pair, access=[{"deny": "127.0.0.66"}])
    site.await_names()
    answers = site.asks()
    assert {answer.split()[0] for answer in answers} == {"web_IN_0", "web_IN_1"}
    assert [answer.split()[1] for answer in answers] == [f"127.0.0.{n}" for n in range(10, 50)], "the client is known"
    assert is_reset(site.public, host=EDGE, source="127.0.0.66")
    assert denied(site.relays, host=INSTANCES[0], source="127.0.0.9")
    pair[0].close()
    assert {answer.split()[0] for answer in site.asks(50)} == {"web_IN_1"}
    site.wait_health("down", "up")
    text = site.instances[0].relay("status").stdout
    assert re.search(rf"web/@relay +relay +tcp +{INSTANCES[0]}:{site.relays}", text)
    quiet(site.edge, *site.instances)


def test_ports_of_single_instances(daemons: Daemons, pair: list[Backend]) -> None:
    site = Told(daemons, pair)
    site.await_names()
    for n in range(2):
        assert site.ask(port=site.direct + n) == f"web_IN_{n} 127.0.0.9"


def test_instances_that_are_told_later_and_one_that_is_taken_back(daemons: Daemons, pair: list[Backend]) -> None:
    site = Told(daemons, pair, told=["edge"])
    assert {answer.split()[0] for answer in site.asks()} == {"web_IN_0", "web_IN_1"}
    site.tell(*ALL)
    site.await_names()
    with ThreadPoolExecutor(1) as meanwhile:
        told = meanwhile.submit(partial(site.tell, "edge", "web_IN_1"))
        while not told.done():
            assert {answer.split()[0] for answer in site.asks()} <= {"web_IN_0", "web_IN_1"}
        told.result()
    # Whoever was about to be passed on was reset, and came to the other one; this one is tried last for a moment.
    both = lambda: {answer.split()[0] for answer in site.asks()} == {"web_IN_0", "web_IN_1"}  # noqa: E731
    eventually(both, "the other port leads there")
    site.wait_health("up", "up")
    quiet(site.edge, *site.instances)


def test_an_edge_that_is_told_later(daemons: Daemons, pair: list[Backend]) -> None:
    site = Told(daemons, pair, told=["web_IN_0", "web_IN_1"])
    assert {answer.split()[0] for answer in site.asks()} == {"web_IN_0", "web_IN_1"}
    assert [site.came(n)[0] for n in range(2)] == [0, 0]
    site.tell(*ALL)
    site.await_names()
