"""Roles without relay on their machines: what cannot stand there, and what is doubtful."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from relay.config.document import Document, KeyPath
from relay.config.instances import SOURCES_MAX
from relay.config.model import Role, Service
from relay.errors import Problem

__all__ = ["bare_errors", "bare_warnings"]

# What an endpoint's own relay does on its machine, and nobody else can.
_OF_OWN_RELAY: Final = {
    "target": "`port` is where the application itself listens",
    "target_distribution": "`port` is where the application itself listens",
    "unsafe_target": "`port` is where the application itself listens",
    "source_addresses": "only a target at a loopback address is dialled from several",
    "transparent": "its answers to a client's own address would not come by way of the edge, and `send_proxy` tells it",
}


def bare_errors(service: Service, document: Document) -> Iterator[Problem]:
    """What a role's `bare` does not go with, and what needs it."""
    for name, role in service.roles.items():
        yield from _from_named(service, document, name, role)
        if role.bare:
            yield from _of_bare(document, name, role)


def _of_bare(document: Document, name: str, role: Role) -> Iterator[Problem]:
    path: KeyPath = ("roles", name)
    if role.counted:
        what = "a count is of instances whose relays take numbers, and this role has no relay"
        yield document.problem((*path, "instances"), what, "list where they are")
    if role.uses:
        what = "a door is opened by the relay of its machine, and this role has none"
        yield document.problem((*path, "uses"), what, "remove it", key=True)
    for endpoint_name, endpoint in role.endpoints.items():
        here: KeyPath = (*path, "endpoints", endpoint_name)
        for key, why in _OF_OWN_RELAY.items():
            if (*here, key) in document.values:
                yield document.problem(
                    (*here, key), f"there is no relay on these machines: {why}", "remove it", key=True
                )
        if len(endpoint.listen_ports) > 1:
            what = "an edge, or a door, leads to one port of an instance, and this is a range"
            yield document.problem((*here, "port"), what, "declare an endpoint for each of its ports")
        if role.named and endpoint.instance_ports is not None:
            what = "each port leads to the instance with a number, and which address has it is not known here"
            fix = "remove it, or list addresses under `instances`"
            yield document.problem((*here, "instance_ports"), what, fix)
    if role.named and len(role.items) > SOURCES_MAX:
        what = f"has {len(role.items)} items, and a role whose instances names or files tell has {SOURCES_MAX} at most"
        yield document.problem((*path, "instances"), what, "split the role")
    carrying = [index for index, each in enumerate(role.items) if each.kind in ("srv", "file")]
    if carrying and len(role.endpoints) > 1:
        what = "it says the port as well, and the role has several endpoints"
        fix = "declare a role for each of them"
        yield document.problem((*path, "instances", carrying[0]), what, fix)


def _from_named(service: Service, document: Document, name: str, role: Role) -> Iterator[Problem]:
    for endpoint_name, endpoint in role.endpoints.items():
        for index, other in enumerate(endpoint.from_roles or ()):
            if other in service.roles and service.roles[other].named:
                what = (
                    f"the addresses of `{other}` are what a name or a file says, and that would decide who may connect"
                )
                where: KeyPath = ("roles", name, "endpoints", endpoint_name, "from", index)
                yield document.problem(where, what, "remove it, or list the addresses of that role")


def bare_warnings(service: Service, document: Document) -> Iterator[Problem]:
    """What nobody enforces, because there is no relay on an endpoint's machines."""
    for name, role in service.roles.items():
        for endpoint_name, endpoint in role.endpoints.items() if role.bare else ():
            path: KeyPath = ("roles", name, "endpoints", endpoint_name)
            where, closed = f"port {endpoint.listen_ports}", "close it to others by a firewall there"
            if endpoint.type == "internal":
                key = "from" if endpoint.from_roles is not None else "type"
                what = f"nobody enforces it: whoever reaches {where} of these machines may connect"
                yield _warning(document, (*path, key), what, f"{closed}, or be sure that nobody does")
                if endpoint.limits.model_fields_set:
                    what = "a door counts what is its own machine's alone, and has no limits"
                    yield _warning(document, (*path, "limits"), what, "remove them, or set them at the application")
            elif service.edge is None:
                what = "there is no edge, and no relay on these machines: nobody listens on its public port"
                yield _warning(document, (*path, "type"), what, "write `edge`, or `type: internal` and doors")
            elif endpoint.access or endpoint.limits.model_fields_set:
                what = f"the edge alone enforces it: whoever reaches {where} of these machines goes by"
                yield _warning(document, (*path, "access" if endpoint.access else "limits"), what, closed)


def _warning(document: Document, path: KeyPath, what: str, fix: str) -> Problem:
    return replace(document.problem(path, what, fix, key=True), severity="warning")
