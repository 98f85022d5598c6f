"""Who could send connections to this instance, and whether each knows that it asks for none (`relay drain`). Pure.

An edge, and a door out of a service with a port for relays, holds a line (dataplane/line.py), on which it says that it has
acted on what it was told. Doors out go by the registry too, which tells who is busy.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Final, Literal

from typing_extensions import TypedDict

from relay.address import Address
from relay.config.roster import EDGE, Roster, split_instance
from relay.ledger.record import FlowRecord

if TYPE_CHECKING:  # whoever reads an answer must not wait for pydantic
    from relay.config.model import Service


class SenderStatus(TypedDict):
    """A machine that could send connections here. `told`: it knows whether they are wanted; `by`: how; null: it is not."""

    who: str
    told: bool
    by: Literal["line", "registry"] | None


class ToldStatus(TypedDict):
    """Who could send connections here. `untold_s`: after so long an edge has found out by itself how this instance is."""

    senders: list[SenderStatus]
    untold_s: float


NOBODY: Final[ToldStatus] = {"senders": [], "untold_s": 0.0}
"""Nobody sends connections here."""


def told_by_line(lines: Iterable[FlowRecord]) -> dict[str, bool]:
    """Of each address that holds a line here (by its records): whether it has acted on the last word, that of being busy."""
    found: dict[str, bool] = {}
    for each in lines:
        host, said = Address.parse(each.peer).host, each.sent_bytes
        # The first word is that connections are wanted, and the two take turns.
        is_told = said > 0 and said % 2 == 0 and each.received_bytes == said
        found[host] = is_told or found.get(host, False)
    return found


def senders(
    service: "Service", roster: Roster, instance: str, lines: Mapping[str, bool], registry: bool | None
) -> list[SenderStatus]:
    """Who could send connections to this instance; by what `lines` (`told_by_line`) and the registry told.

    `registry`: whether all who follow it know by now; None: none tells them.
    """
    role, _ = split_instance(instance)
    behind_edge = service.edge is not None and role in service.roles and _has_input(service, role)
    found = []
    for member in roster:
        if member.role == EDGE and behind_edge:
            found.append(_sender(member.id, lines.get(member.address), None))
        elif member.role in service.roles and _has_door(service, member.role, role):
            found.append(_sender(member.id, lines.get(member.address), registry))
    return found


def _has_input(service: "Service", role: str) -> bool:
    return any(endpoint.type == "input" for endpoint in service.roles[role].endpoints.values())


def _has_door(service: "Service", role: str, to: str) -> bool:
    return any(door.endpoint[0] == to for door in service.roles[role].uses.values())


def _sender(who: str, line: bool | None, registry: bool | None) -> SenderStatus:
    """One line for one machine. A line that is there tells more exactly than the registry; either will do."""
    if line is not None:
        return {"who": who, "told": line or bool(registry), "by": "line"}
    if registry is not None:
        return {"who": who, "told": registry, "by": "registry"}
    return {"who": who, "told": False, "by": None}
