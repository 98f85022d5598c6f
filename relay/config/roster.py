"""Who is in the service, and where: one immutable value, wherever it comes from.

A role lists its instances' addresses in the service file, or says how many there may be; of those a registry
(relay/fleet) tells who is there.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from relay.errors import WrongValue

if TYPE_CHECKING:  # a worker that starts in new code must not wait for pydantic: it would be half of its pause
    from relay.config.model import Service

EDGE = "edge"
"""What an edge's id has in place of a role: `edge_IN_0`."""


@dataclass(frozen=True, slots=True, order=True)
class Member:
    """One instance that is there. Addresses are texts, as `str(IPv4Address)` writes them."""

    role: str
    ordinal: int
    address: str
    metrics: str = ""  # host:port that answers `GET /metrics`; empty: not told
    busy: bool = False  # it asks for no new connections (`relay drain`)
    down: tuple[str, ...] = ()  # its endpoints whose local service does not answer
    reasons: tuple[str, ...] = ()  # why, of each of these; none where it does not tell
    # Of what the service file says of it, or whoever it asks: see config/instances.py.
    weight: int = 1
    backup: bool = False
    port: int = 0  # where all of its endpoints are; 0: at their own
    name: str = ""  # that led to it; empty: the file has its address

    @property
    def id(self) -> str:
        """`web_IN_0`."""
        return f"{self.role}_IN_{self.ordinal}"

    @property
    def faults(self) -> dict[str, str]:
        """Why its endpoints are down, of those of which it tells."""
        return dict(zip(self.down, self.reasons, strict=False))

    def with_faults(self, faults: Mapping[str, str]) -> "Member":
        """The same, whose endpoints of these names are down, and no others, with the reason of each."""
        down = tuple(sorted(faults))
        return replace(self, down=down, reasons=tuple(faults[name] for name in down))

    def serves(self, endpoint: str) -> bool:
        """Whether new connections to its endpoint of this name are wanted, by all that it tells."""
        return not self.busy and endpoint not in self.down


@dataclass(frozen=True, slots=True)
class Roster:
    """Every instance of the service that is there, by role in the file's order and by ordinal. No id is there twice."""

    members: tuple[Member, ...] = ()

    def __iter__(self) -> Iterator[Member]:
        return iter(self.members)

    def of(self, role: str) -> tuple[Member, ...]:
        """The instances of a role, or of `edge`, by ordinal."""
        return tuple(member for member in self.members if member.role == role)

    def get(self, instance: str) -> Member | None:
        """The instance with this id."""
        return next((member for member in self.members if member.id == instance), None)

    def with_own(self, instance: str, busy: bool, faults: Mapping[str, str]) -> "Roster":
        """The same, with what the instance with this id knows of itself: its endpoints that are down, with the reason.

        That it is busy may also be told.
        """
        me = self.get(instance)
        if me is None:
            return self
        told = replace(me.with_faults(faults), busy=busy or me.busy)
        return self if told == me else Roster(tuple(told if each is me else each for each in self.members))

    def absent(self, addresses: Iterable[str]) -> tuple[str, ...]:
        """Those of the addresses at which nobody is, in order."""
        return tuple(sorted(set(addresses) - {member.address for member in self.members}))

    @classmethod
    def of_service(cls, service: "Service", registered: Iterable[Member] = (), me: Member | None = None) -> "Roster":
        """Those that the service file lists, and of its counted roles those that are `registered`, and `me`.

        Whoever is registered and can have no place there (another role, an ordinal beyond the count, the address of
        somebody else, above all mine) is left out: a registry is not believed in everything.
        """
        listed = list(_listed(service))
        taken = {member.address for member in listed}
        places: dict[tuple[str, int], Member] = {}
        others = sorted(member for member in registered if me is None or member.id != me.id)
        for member in (*([me] if me is not None else []), *others):
            role = service.roles.get(member.role)
            if role is None or not (role.counted or role.named) or not 0 <= member.ordinal < role.count:
                continue
            if (member.role, member.ordinal) in places or (member.address in taken and not role.named):
                continue
            if not role.named:  # who has a relay is known by its address; of others several may have the same
                taken.add(member.address)
            places[member.role, member.ordinal] = member
        order = {name: n for n, name in enumerate((*service.roles, EDGE))}
        everybody = [*listed, *places.values()]
        return cls(tuple(sorted(everybody, key=lambda member: (order[member.role], member.ordinal))))

    def to_plain(self) -> list[dict[str, Any]]:
        """The roster as plain data for JSON.

        What came after the first version is left out where it is at its default: then that one's readers take it too.
        """
        return [
            {key: value for key, value in asdict(member).items() if key not in _LATER or value != _LATER[key]}
            for member in self.members
        ]

    @classmethod
    def from_plain(cls, plain: Iterable[Mapping[str, Any]]) -> "Roster":
        """What `to_plain` wrote. Raises TypeError or KeyError for anything else."""
        lists = ("down", "reasons")
        return cls(tuple(Member(**{**each, **{key: tuple(each.get(key, ())) for key in lists}}) for each in plain))


def difference(old: Roster, new: Roster, gone: Collection[str] = ()) -> dict[str, list[str]]:
    """The ids of who `joined`, `left`, and is there as before but `changed`; and of who was at an address that is `gone`."""
    before, after = ({member.id: member for member in roster} for roster in (old, new))
    return {
        "joined": [name for name in after if name not in before],
        "left": [name for name in before if name not in after],
        "changed": [name for name, member in after.items() if name in before and before[name] != member],
        "gone": [name for name, member in before.items() if member.address in gone],
    }


def split_instance(instance: str) -> tuple[str, int]:
    """`web_IN_0` as ("web", 0). Raises WrongValue for anything else."""
    role, mark, number = instance.rpartition("_IN_")
    if not mark or not role or not number.isascii() or not number.isdecimal() or str(int(number)) != number:
        raise WrongValue(f"`{instance}` is not an instance id", "write ROLE_IN_NUMBER, such as web_IN_0")
    return role, int(number)


def _listed(service: "Service") -> Iterator[Member]:
    """Whom the file itself says where they are; not those of a role some of whose instances only others know."""
    for name, role in service.roles.items():
        for ordinal, each in enumerate(() if role.named else role.items):
            yield Member(name, ordinal, each.text, weight=each.weight, backup=each.backup)
    for ordinal, address in enumerate(service.edge.instances if service.edge is not None else ()):
        yield Member(EDGE, ordinal, str(address))


_LATER: Final = {"weight": 1, "backup": False, "port": 0, "name": ""}
