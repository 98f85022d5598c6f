"""What a registry's keys and values mean. Pure: texts and bytes in, members out; what makes no sense gives None.

/relay/SERVICE/store                  tells this store from another one: a random word
/relay/SERVICE/members/ROLE/ORDINAL   an instance that is there; goes with its lease, `ttl` after it was last heard of
/relay/SERVICE/slots/ROLE/ORDINAL     which machine has the number; goes with its lease, after `hold`
/relay/SERVICE/queue/ROLE/MACHINE     a machine that is about to take a number
"""

import json
import re
from dataclasses import dataclass
from typing import Any, Final

from relay.config import values
from relay.config.roster import Member
from relay.config.wording import printable

# Many times what an instance with a hundred endpoints says. Past this somebody else writes there.
_VALUE_MAX_BYTES: Final = 64 * 1024
_REASON_MAX_CHARS: Final = 200  # a path and a few words


@dataclass(frozen=True, slots=True)
class KeyValue:
    """What the registry has, or had, under a key. `value` None: the key was deleted."""

    key: str
    value: bytes | None
    mod_revision: int = 0
    lease: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """An instance as its machine wrote it down: `machine` is a hash of its machine id, `daemon` the running relay.

    `leaving`: it is about to end its lease itself. An entry that goes without this mark has a lease that ran out.
    """

    member: Member
    machine: str
    daemon: str
    leaving: bool = False

    def to_value(self) -> bytes:
        """What `read_entry` reads."""
        member = self.member
        plain = {
            "address": member.address,
            "metrics": member.metrics,
            "busy": member.busy,
            "down": list(member.down),
            "reasons": member.faults,
            "machine": self.machine,
            "daemon": self.daemon,
        }
        return json.dumps({**plain, "leaving": True} if self.leaving else plain).encode()


@dataclass(frozen=True, slots=True)
class EntryKeys:
    """The keys of a service."""

    service: str

    @property
    def store(self) -> str:
        """The key whose value tells this store from another one."""
        return f"/relay/{self.service}/store"

    @property
    def all_members(self) -> str:
        """The prefix of every instance's presence."""
        return f"/relay/{self.service}/members/"

    def members(self, role: str) -> str:
        """The prefix of the presence of a role's instances."""
        return f"{self.all_members}{role}/"

    def member(self, role: str, ordinal: int) -> str:
        """An instance's presence."""
        return f"{self.members(role)}{ordinal}"

    def claims(self, role: str) -> str:
        """The prefix of who has a role's numbers."""
        return f"/relay/{self.service}/slots/{role}/"

    def claim(self, role: str, ordinal: int) -> str:
        """Who has a number. With leading zeros, so that the order of keys is that of numbers, and ranges can be counted."""
        return f"{self.claims(role)}{ordinal:06}"

    def number(self, role: str, machine: str) -> str:
        """Which number a machine has."""
        return f"/relay/{self.service}/numbers/{role}/{machine}"

    def queue(self, role: str) -> str:
        """The prefix of those that wait for a number of the role."""
        return f"/relay/{self.service}/queue/{role}/"

    def place_of(self, key: str) -> tuple[str, int] | None:
        """The role and the ordinal of a presence key; None for any other key."""
        if not key.startswith(self.all_members):
            return None
        role, _, number = key.removeprefix(self.all_members).partition("/")
        ordinal = ordinal_of(number)
        return (role, ordinal) if ordinal is not None and re.fullmatch(values.ROLE_NAME_PATTERN, role) else None


def ordinal_of(text: str) -> int | None:
    """An ordinal in the one way to write it; None for anything else."""
    return int(text) if re.fullmatch("0|[1-9][0-9]{0,5}", text) else None


def read_entry(place: tuple[str, int], value: bytes) -> Entry | None:
    """The instance that a value describes. None: it describes none. Keys that a later relay adds are let be."""
    plain = _mapping(value)
    try:
        address, metrics, busy, down = (plain[key] for key in ("address", "metrics", "busy", "down"))
        machine, daemon = plain["machine"], plain["daemon"]
        address = str(values.address(address))
        metrics = str(values.host_port(metrics)) if metrics != "" else ""
        down = tuple(values.endpoint_name(name) for name in down)
    except (KeyError, TypeError, ValueError):
        return None
    if not isinstance(busy, bool) or not isinstance(machine, str) or not isinstance(daemon, str):
        return None
    told = plain.get("reasons")  # not by relay 0.1.0
    reasons = tuple(_reason(told.get(name)) for name in down) if isinstance(told, dict) else ()
    member = Member(*place, address, metrics, busy, down, reasons if any(reasons) else ())
    return Entry(member, machine, daemon, leaving=plain.get("leaving") is True)


def _reason(told: object) -> str:
    """Words that another machine wrote, as far as people are shown them."""
    return printable(told[:_REASON_MAX_CHARS]) if isinstance(told, str) else ""


def claim_value(machine: str) -> bytes:
    """What stands in the claim of the machine with this hash: always the same bytes, so that they can be compared."""
    return json.dumps({"machine": machine}).encode()


def read_claim(value: bytes) -> str:
    """The hash of the machine that has the number; empty where the value does not tell."""
    machine = _mapping(value).get("machine")
    return machine if isinstance(machine, str) else ""


def _mapping(value: bytes) -> dict[str, Any]:
    if len(value) > _VALUE_MAX_BYTES:
        return {}
    try:
        plain = json.loads(value)
    except (ValueError, RecursionError):  # a UnicodeDecodeError is a ValueError
        return {}
    return plain if isinstance(plain, dict) else {}
