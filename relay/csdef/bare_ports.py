"""Which port each endpoint has on machines without relay: the one where its application listens, and nobody moves."""

from collections import Counter
from collections.abc import Iterator
from itertools import chain

from relay.csdef.definition import DefinedRole, Endpoint, InputEndpoint, InstanceEndpoint, InternalEndpoint
from relay.csdef.ports import FREE_FROM, AccessOf, PlacedEndpoint, cannot, join, no_port_left

__all__ = ["bare_cannot", "bare_place"]


def bare_cannot(endpoint: Endpoint) -> str:
    """Why a role without relay cannot have the endpoint; "" where it can."""
    ports = endpoint.ports if isinstance(endpoint, InternalEndpoint) else None
    if isinstance(endpoint, InternalEndpoint) and endpoint.protocol != "udp":
        several = f"ports {ports[0]}-{ports[1]}" if ports and ports[0] != ports[1] else ""
        if several or (endpoint.protocol == "any" and ports is None):
            fix = "write an endpoint for each that others shall find by a name or a door"
            return f"{several or 'any protocol on any port'}: an endpoint of machines without relay has one port: {fix}"
    return cannot(endpoint)


def bare_place(role: DefinedRole, file: str, access_of: AccessOf) -> list[list[PlacedEndpoint]]:
    """The role's endpoints that can be had, in their order: those of the role, then of a further role for the same machines
    where several have one port, and so on. A role of ours has an endpoint on a port.

    An instance endpoint becomes one with an input endpoint, as in `place`. Where the files do not say on which port the
    application listens, one is guessed: the public port, or else the first one that nothing of the role has. Raises
    ConfigError, which names `file`, when no port is left to guess.
    """
    kept, joined = join([each for each in role.endpoints if not bare_cannot(each)], access_of)
    guesses = _Guesses(role)
    seen: Counter[int] = Counter()
    roles: list[list[PlacedEndpoint]] = [[]]
    for each in kept:
        own, why = _own_port(each), ""
        if own is None:
            own = guesses.port(each)
            if own is None:
                raise no_port_left(role, file)
            why = f"the platform chose its port, and no file says which: {own} is a guess, write the application's"
        if seen[own] == len(roles):
            roles.append([])
        roles[seen[own]].append(PlacedEndpoint(each, (own, own), (own, own), joined.get(each.at), why))
        seen[own] += 1
    return roles


def _own_port(endpoint: Endpoint) -> int | None:
    """Where the application listens; None where the platform chose."""
    if isinstance(endpoint, InternalEndpoint):
        return endpoint.ports[0] if endpoint.ports else None
    return endpoint.local_port


class _Guesses:
    """The ports of a role's machines that nothing in the files has."""

    def __init__(self, role: DefinedRole) -> None:
        self.taken: set[int] = set()
        for each in role.endpoints:
            if isinstance(each, InternalEndpoint) and each.ports and not cannot(each):
                self.taken.update(range(each.ports[0], each.ports[1] + 1))
            elif isinstance(each, InputEndpoint | InstanceEndpoint) and each.local_port and not cannot(each):
                self.taken.add(each.local_port)
        self.free: Iterator[int] = iter(chain(range(FREE_FROM, 65536), range(1, FREE_FROM)))

    def port(self, endpoint: Endpoint) -> int | None:
        """A port for the endpoint, which is nobody else's from now on; None when none is left."""
        found: int | None = None
        if isinstance(endpoint, InputEndpoint) and endpoint.port not in self.taken:
            found = endpoint.port
        else:
            found = next((port for port in self.free if port not in self.taken), None)
        if found is not None:
            self.taken.add(found)
        return found
