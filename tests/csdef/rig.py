"""Endpoints of a definition, each on a line of its own."""

from relay.csdef.definition import InputEndpoint, InstanceEndpoint, InternalEndpoint

LINES = iter(range(1, 10_000))


def public(port: int, local: int | None, protocol: str = "tcp") -> InputEndpoint:
    return InputEndpoint(f"in{port}", (next(LINES), 1), protocol, port, local, None, None, None, ())


def internal(ports: tuple[int, int] | None, protocol: str = "tcp") -> InternalEndpoint:
    return InternalEndpoint(f"internal{ports}", (next(LINES), 1), protocol, ports, ())


def instance(local: int, protocol: str = "tcp") -> InstanceEndpoint:
    return InstanceEndpoint(f"instance{local}", (next(LINES), 1), protocol, local, (10_100, 10_109), ())
