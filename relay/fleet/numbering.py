"""Which instance is where, of a role whose items are sources: numbers that stay with their addresses. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from relay.config.instances import SOURCES_MAX, Listed
from relay.config.model import Role, Service
from relay.config.roster import Member
from relay.fleet.places import SHARE_MAX, Place

Key = tuple[str, str]
"""What a source is known by over a reload that changes its weight: its kind, and its text."""

_BETWEEN: Final = ", "  # the names of a member that several sources have


def key_of(item: Listed) -> Key:
    """See `Key`."""
    return item.kind, item.text


def sources_of(role: Role) -> dict[Key, Listed]:
    """The items of a role that are not plain addresses, each once, in the file's order."""
    found: dict[Key, Listed] = {}
    for item in role.items:
        if item.kind != "address":
            found.setdefault(key_of(item), item)
    return found


def numbered(
    name: str, role: Role, answers: Mapping[Key, Sequence[Place]], before: Iterable[Member]
) -> tuple[tuple[Member, ...], int]:
    """The instances of the role of this name, by what its sources say; and how many have no number, for there are too many.

    `before` are those that are there: an address and port that stay keep their number, whoever else comes or goes. The others
    get the lowest free ones in the order of the file. An address from two items is one instance: with the first one's weight,
    and no backup if either is none.
    """
    own = own_port(role)
    wanted: dict[tuple[str, int], list[_Told]] = {}
    for told in _all_told(role, answers):
        wanted.setdefault((told.place.address, told.place.port or own), []).append(told)
    numbers: dict[tuple[str, int], int] = {}
    for member in before:
        at = member.address, member.port or own
        if member.role == name and at in wanted and 0 <= member.ordinal < SOURCES_MAX:
            numbers[at] = member.ordinal
    taken = set(numbers.values())
    free = (number for number in range(SOURCES_MAX) if number not in taken)
    fresh = [at for at in wanted if at not in numbers]
    numbers.update(zip(fresh, free, strict=False))
    found = [_member(name, numbers[at], told) for at, told in wanted.items() if at in numbers]
    return tuple(sorted(found)), len(wanted) - len(found)


class _Told(NamedTuple):
    """A place, and by which item of the file; with its weight among that item's."""

    item: Listed
    place: Place
    weight: int


def _member(name: str, number: int, told: list[_Told]) -> Member:
    """The instance that all of these tell of. A port that is told is kept, also where it is the endpoint's own now."""
    return Member(
        name,
        number,
        told[0].place.address,
        weight=told[0].weight,
        backup=all(each.item.backup or each.place.backup for each in told),
        port=max(each.place.port for each in told),
        name=_BETWEEN.join(dict.fromkeys(str(each.item) for each in told if each.item.kind != "address")),
    )


def _all_told(role: Role, answers: Mapping[Key, Sequence[Place]]) -> Iterable[_Told]:
    """Every place of every item, in the file's order."""
    for item in role.items:
        places = (Place.of(item.text),) if item.kind == "address" else answers.get(key_of(item), ())
        for place, weight in zip(places, _weights(item, places), strict=True):
            yield _Told(item, place, weight)


def own_port(role: Role) -> int:
    """The port of the only endpoint of a role; 0: it has several, or none."""
    return next(iter(role.endpoints.values())).listen_ports.first if len(role.endpoints) == 1 else 0


def _weights(item: Listed, places: Sequence[Place]) -> list[int]:
    if not item.weight:
        return [0] * len(places)
    given = [place.share * item.weight for place in places]
    most = max(given, default=1)
    scale = SHARE_MAX / most if most > SHARE_MAX else 1
    return [max(1, round(weight * scale)) for weight in given]


def known(role: Role, members: Iterable[Member]) -> dict[Key, tuple[Place, ...]]:
    """What each source said by the members of its role that are in force. Those that are in none have said nothing yet.

    So a control that is started anew goes on from where the one before was.
    """
    labels = {str(item): (key, item) for key, item in sources_of(role).items()}
    found: dict[Key, list[Place]] = {}
    for member in members:
        for label in _labels(member.name, labels):
            key, item = labels[label]
            share = member.weight / item.weight if item.weight else 1.0
            backup = member.backup and not item.backup
            port = 0 if item.kind == "name" else member.port
            found.setdefault(key, []).append(Place.of(member.address, port, share, backup))
    return {key: tuple(places) for key, places in found.items()}


def _labels(text: str, labels: Iterable[str]) -> list[str]:
    whole = f"{_BETWEEN}{text}{_BETWEEN}"
    return [label for label in labels if f"{_BETWEEN}{label}{_BETWEEN}" in whole]


def everybody(service: Service, registered: Iterable[Member], looked_up: Iterable[Member]) -> tuple[Member, ...]:
    """Whom a registry tells of, and whom sources do: each is believed of its own roles alone."""
    named = frozenset(service.named)
    return (
        *(member for member in registered if member.role not in named),
        *(member for member in looked_up if member.role in named),
    )
