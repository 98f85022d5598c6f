"""Which port each endpoint of a role gets on the instances, and which endpoints relay cannot have at all."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from relay.config.values import PORTS_MAX
from relay.config.wording import shown
from relay.csdef.definition import DefinedRole, Endpoint, InputEndpoint, InstanceEndpoint, InternalEndpoint, Span
from relay.errors import ConfigError, Problem

__all__ = ["FREE_FROM", "AccessOf", "PlacedEndpoint", "cannot", "join", "no_port_left", "place"]

FREE_FROM: Final = 20_000
"""Where ports are looked for that are left to the platform: above what services of a distribution listen on, below the
ports that Linux gives to outgoing connections (ip_local_port_range, 32768), as long as there are any."""

AccessOf = Callable[[Endpoint], str | None]
"""Tells the access list of an endpoint."""


@dataclass(frozen=True, slots=True)
class PlacedEndpoint:
    """An endpoint's `listen` ports on each instance, and the ports of `target` on its loopback address.

    `joined`: the instance endpoint that became one with it. `why`: what is not as defined, "" for nothing.
    """

    endpoint: Endpoint
    listen: Span
    target: Span
    joined: InstanceEndpoint | None
    why: str


def cannot(endpoint: Endpoint) -> str:
    """Why relay cannot have the endpoint; "" where it can."""
    if endpoint.protocol == "udp":
        return "udp: relay forwards TCP, because a datagram has no connection to decide on"
    if isinstance(endpoint, InternalEndpoint):
        if endpoint.protocol == "any" and endpoint.ports is None:
            example = "`port: 1-1024` with `target: 127.0.0.1:1-1024`"
            return f"any protocol on any port: write the TCP ports in use as a range, such as {example}"
        count = endpoint.ports[1] - endpoint.ports[0] + 1 if endpoint.ports else 1
        if count > PORTS_MAX:
            return f"{count} ports, and a range has at most {PORTS_MAX}: write the ports in use as ranges"
    return ""


def place(role: DefinedRole, file: str, access_of: AccessOf) -> list[PlacedEndpoint]:
    """The role's endpoints that relay can have, in their order.

    An instance endpoint becomes one with an input endpoint that leads to the same port, where both admit the same
    clients. Ports that other roles dial come first; an input endpoint, which is dialled by its public port, takes
    another port where its own is taken. Raises ConfigError, which names `file`, when no port is left.
    """
    kept, joined = join([each for each in role.endpoints if not cannot(each)], access_of)
    found = _Ports(kept, joined).placed()
    if found is None:
        raise no_port_left(role, file)
    return found


def no_port_left(role: DefinedRole, file: str) -> ConfigError:
    """What is said of a role, in this file, that has more endpoints than ports."""
    what, fix = f"has no port left for all endpoints of {shown(role.name)}", "write narrower ranges"
    return ConfigError([Problem(file, *role.at, "Endpoints", what, fix)])


def join(
    endpoints: list[Endpoint], access_of: AccessOf
) -> tuple[list[Endpoint], dict[tuple[int, int], InstanceEndpoint]]:
    """The endpoints that stay, and by the place of an input endpoint the instance endpoint that becomes one with it."""
    found: dict[tuple[int, int], InstanceEndpoint] = {}
    alone = {
        (each.local_port, access_of(each)): each
        for each in reversed(endpoints)
        if isinstance(each, InputEndpoint) and each.local_port is not None
    }
    for each in endpoints:
        if isinstance(each, InstanceEndpoint):
            host = alone.pop((each.local_port, access_of(each)), None)
            if host is not None:
                found[host.at] = each
    absorbed = {each.at for each in found.values()}
    return [each for each in endpoints if each.at not in absorbed], found


class _Ports:
    """The ports of one role, while they are given out."""

    def __init__(self, endpoints: list[Endpoint], joined: dict[tuple[int, int], InstanceEndpoint]) -> None:
        self.endpoints = endpoints
        self.joined = joined
        self.taken = bytearray(65536)
        self.taken[0] = 1
        self.given: dict[tuple[int, int], Span] = {}

    def placed(self) -> list[PlacedEndpoint] | None:
        """All of them, in the order of the endpoints; None where no port is left."""
        # Fixed ports before chosen ones, and those that other roles dial before all.
        for each in self.endpoints:
            if isinstance(each, InternalEndpoint) and each.ports is not None:
                self._take(each, each.ports)
        for each in self.endpoints:
            if not isinstance(each, InternalEndpoint) and each.local_port is not None:
                self._take(each, (each.local_port, each.local_port))
        for each in self.endpoints:
            if isinstance(each, InputEndpoint) and each.local_port is None:
                self._take(each, (each.port, each.port))
        for each in self.endpoints:
            if each.at not in self.given:
                if (port := self._free()) is None:
                    return None
                self._take(each, (port, port))
        return [self._placed(each) for each in self.endpoints]

    def _take(self, endpoint: Endpoint, span: Span) -> None:
        """Give the ports to the endpoint, if they are free."""
        if 1 not in self.taken[span[0] : span[1] + 1]:
            self.taken[span[0] : span[1] + 1] = b"\1" * (span[1] - span[0] + 1)
            self.given[endpoint.at] = span

    def _free(self) -> int | None:
        above = self.taken.find(0, FREE_FROM)
        port = above if above >= 0 else self.taken.find(0)
        return None if port < 0 else port

    def _placed(self, endpoint: Endpoint) -> PlacedEndpoint:
        listen = self.given[endpoint.at]
        target, why = listen, ""
        if isinstance(endpoint, InternalEndpoint):
            if endpoint.ports is None:
                why = f"the platform chose its port, relay does not: the application must listen on {listen[0]}"
        elif endpoint.local_port is None:
            why = f'the platform chose its port (localPort="*"), relay does not: the application must listen on {listen[0]}'
        elif listen[0] != endpoint.local_port:
            target = (endpoint.local_port, endpoint.local_port)
            why = f"port {target[0]} is another endpoint's, so relay listens on {listen[0]} and still leads to {target[0]}"
        return PlacedEndpoint(endpoint, listen, target, self.joined.get(endpoint.at), why)
