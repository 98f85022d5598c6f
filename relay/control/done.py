"""What the admin API answers when it has done something, as types: see answers.py."""

from typing_extensions import TypedDict

from relay.control.answers import Count
from relay.control.senders import ToldStatus


class Hold(TypedDict):
    """For how long new connections of an endpoint wait, and how many do now."""

    endpoint: str
    hold_for_s: float
    held: Count


class Weighed(TypedDict):
    """A target's weight from now on. `by_hand`: it is not what the file says. `trouble`: why a restart forgets it."""

    endpoint: str
    target: str
    instance: str
    weight: Count
    declared_weight: Count
    by_hand: bool
    trouble: str


class Busy(ToldStatus):
    """For how long this instance asks for no new connections, who is told, and how many go on."""

    busy_for_s: float
    behind_edge: list[str]
    active: Count
    told: bool


class Reloaded(TypedDict):
    """What has changed."""

    generation: Count
    changes: list[str]
    warnings: list[str]
    notes: list[str]


class Cut(TypedDict):
    """Open connections from one network that would be cut."""

    endpoint: str
    network: str
    why: str
    connections: Count


class WouldReload(Reloaded):
    """What would change, and who would be cut."""

    cut: list[Cut]


Upgrading = TypedDict("Upgrading", {"from": str, "to": str, "program": Count})
"""The new program has tried itself out, and begins. `program`: its number."""
