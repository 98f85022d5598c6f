"""A machine of its own with an edge before a bare role, whose instances a DNS server on it names."""

import contextlib
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, Final

from tests.conftest import Daemons
from tests.e2e.netns import Network
from tests.fleet.dnses import Lying
from tests.harness import HANG_S, Daemon, Echo, echoed

EDGE: Final = "10.77.0.1"
PORT: Final = 5432  # of everything
ONE, TWO, THREE, SIX = "10.77.0.2", "10.77.0.3", "10.77.0.4", "2001:db8:77::2"
NAME: Final = "db.test"


def file(*items: Any, **endpoint: Any) -> dict[str, Any]:
    """A service whose role `db` has these items under `instances`."""
    pg = {"type": "input", "public_port": PORT, "port": PORT, "timeouts": {"connect": "2s"}, **endpoint}
    role = {"bare": True, "instances": list(items), "endpoints": {"pg": pg}}
    return {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": {"db": role}}


class Machine:
    """It, with something that answers at each of its other addresses, and its DNS server."""

    def __init__(self, network: Network, stack: ExitStack, daemons: Daemons) -> None:
        self.network, self._daemons = network, daemons
        with network.inside("edge"):
            self.echoes = {address: stack.enter_context(Echo((address, PORT))) for address in (ONE, TWO, THREE, SIX)}
            self.server = stack.enter_context(Lying(port=53))

    @property
    def wrapper(self) -> tuple[str, ...]:
        """Before a command that is to run there."""
        return ("ip", "netns", "exec", self.network.namespace("edge"))

    def edge(self, *items: Any, **keys: Any) -> Daemon:
        """Its relay, with these items under `instances`."""
        settings = {"workers": 2, "names": {"resolvers": [self.server.server]}, **keys.pop("settings", {})}
        wrapper = (*self.wrapper, *keys.pop("wrapper", ()))
        return self._daemons(file(*items), settings, instance="edge_IN_0", wrapper=wrapper, **keys)

    def dial(self) -> socket.socket:
        """A client's connection."""
        with self.network.inside("edge"):
            return socket.create_connection((EDGE, PORT), HANG_S)

    def leads_to(self) -> str:
        """Where a new connection comes out; empty: nowhere."""
        before = {address: echo.accepted for address, echo in self.echoes.items()}
        with contextlib.suppress(ConnectionError), self.dial() as client:
            if echoed(client) == b"ping":
                return next(address for address, echo in self.echoes.items() if echo.accepted > before[address])
        return ""

    def asked(self, name: str = NAME) -> int:
        """How often somebody has asked for the name's addresses."""
        return self.server.asked[name, "A", "udp"]


@contextlib.contextmanager
def machine(daemons: Daemons) -> Iterator[Machine]:
    """The machine, until the end. Its relays end before it does."""
    with ExitStack() as stack:
        network = stack.enter_context(Network({"edge": [EDGE, ONE, TWO, THREE, SIX]}))
        yield Machine(network, stack, daemons)


def there(daemon: Daemon) -> dict[str, str]:
    """The ids of the instances of `db` that are in force, by address."""
    _, found = daemon.ask("GET", "/v1/instances?role=db")
    return {each["address"]: each["id"] for each in found}


def source(daemon: Daemon, name: str = NAME) -> dict[str, Any]:
    """A source's part of the status."""
    (found,) = (each for each in daemon.status()["sources"] if each["source"] == name)
    return dict(found)


def said(daemon: Daemon) -> list[str]:
    """What the log has of sources."""
    return [line["message"] for line in daemon.events("source")]
