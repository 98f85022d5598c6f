"""How far a registry is believed. Pure: the time is told.

Entries that make no sense are left out and counted, and an instance whose entry is overwritten with such keeps the former
one. A store that is another than before (wiped, restored) knows nobody yet: who is missing there has some time to register
again. The same holds after a time in which the registry could not be reached, for then it could not be reached by the
others either, and their leases have run out although they are there.

Whoever is missing without having said that it leaves is lost at first. It is still there, busy, so nothing is cut for it and
nobody is sent to it, until the store is asked again after a while: a store takes leases away that have not run out (a leader
that stood still, https://github.com/etcd-io/etcd/issues/15247), and then its machine registers again at once. Who stays away
after being removed is gone: its lease ran out. Who was only found missing has left somehow.
"""

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from relay.config.roster import Member
from relay.fleet.entries import EntryKeys, KeyValue, read_entry

_GRACE_LEASES: Final = 3  # whoever is there has tried to register again this often
_GRACE_MIN_S: Final = 30.0  # a machine that backs off, and an etcd that has just been started, are slower than a lease

GONE_S: Final = 600.0
"""How long it is remembered who is gone: by then nobody is connected to them any more."""

AWAY_S: Final = 3.0
"""Who is lost stays for so long, and is looked for then. Whoever is there has registered again within a fraction of it."""

Place = tuple[str, int]
"""A role and an ordinal."""


@dataclass(frozen=True, slots=True)
class _Lost:
    """One that is missing and did not say that it leaves. `removed`: that was seen, so its lease ran out."""

    member: Member
    look_s: float  # when to look for it
    removed: bool


def grace_s(ttl_s: float) -> float:
    """How long those stay that are missing in another store."""
    return max(_GRACE_LEASES * ttl_s, _GRACE_MIN_S)


class Places:
    """Members by role and ordinal, always in order: a fleet that starts asks for all of them after each that comes."""

    def __init__(self, known: Mapping[Place, Member] | None = None) -> None:
        self._order = sorted(known or {})
        self._members = [known[place] for place in self._order] if known else []
        self._tuple: tuple[Member, ...] | None = None

    @property
    def members(self) -> tuple[Member, ...]:
        """All of them; the same tuple as long as nothing changes."""
        if self._tuple is None:
            self._tuple = tuple(self._members)
        return self._tuple

    def items(self) -> Iterable[tuple[Place, Member]]:
        """Places with members, in order."""
        return zip(self._order, self._members, strict=True)

    def get(self, place: Place) -> Member | None:
        """The member of a place."""
        at = bisect_left(self._order, place)
        return self._members[at] if self._order[at : at + 1] == [place] else None

    def put(self, place: Place, member: Member) -> None:
        """Let this be the member of the place."""
        at = bisect_left(self._order, place)
        if self._order[at : at + 1] != [place]:
            self._order.insert(at, place)
            self._members.insert(at, member)
        elif self._members[at] == member:
            return
        self._members[at] = member
        self._tuple = None

    def pop(self, place: Place) -> None:
        """Let the place have no member."""
        at = bisect_left(self._order, place)
        if self._order[at : at + 1] == [place]:
            del self._order[at], self._members[at]
            self._tuple = None


class Believed:
    """The instances of a service, by what the registry says."""

    def __init__(self, keys: EntryKeys, grace_s: float, known: Iterable[Member] = ()) -> None:
        self._keys = keys
        self._grace_s = grace_s
        self._there = Places({(member.role, member.ordinal): member for member in known})
        self._kept_until_s: dict[Place, float] = {}  # of those in `_there` that the store does not have
        self._lost: dict[str, _Lost] = {}  # by address; none of them is in `_there`
        self._leaving: set[Place] = set()  # said so in the last entry of the place
        self._gone_until_s: dict[str, float] = {}  # addresses, and when they are forgotten
        self._bad: dict[str, int] = {}  # the revision of entries that make no sense, so that each is counted once
        self.rejected = 0

    def reread(self, found: Iterable[KeyValue], now_s: float, *, keep: bool) -> None:
        """Take all that the store has. `keep`: who is missing in it has a grace from now."""
        before, kept = self._there, self._kept_until_s
        self._there, self._kept_until_s = Places(), {}
        keys = set()
        for each in found:
            keys.add(each.key)
            self._take(each, before)
        self._bad = {key: revision for key, revision in self._bad.items() if key in keys}
        for place, member in before.items():
            until_s = now_s + self._grace_s if keep else kept.get(place)
            if self._there.get(place) is not None:
                continue
            if until_s is not None:
                self._there.put(place, member)
                self._kept_until_s[place] = until_s
            elif place not in self._leaving:
                self._lose(member, now_s, removed=False)
        if keep:
            self._lost = {
                address: _Lost(each.member, now_s + self._grace_s, removed=False)
                for address, each in self._lost.items()
            }

    def change(self, events: Iterable[KeyValue], now_s: float, *, sure: bool) -> None:
        """Take what has changed in the store since. `sure`: not, where leases that run out say nothing of their machines."""
        for each in events:
            place = self._keys.place_of(each.key)
            if each.value is not None or place is None:
                self._take(each, self._there)
            else:
                self._bad.pop(each.key, None)
                self._drop(place, now_s, removed=sure)

    def members(self, now_s: float) -> tuple[Member, ...]:
        """Who is there, in order. Those whose grace is over are forgotten."""
        for place in [place for place, until_s in self._kept_until_s.items() if until_s <= now_s]:
            self._there.pop(place)
            del self._kept_until_s[place]
        there = self._with_address()
        if not self._lost:
            return there
        addresses, places = {member.address for member in there}, {(member.role, member.ordinal) for member in there}
        found = [each.member for address, each in self._lost.items() if address not in addresses]
        lost = {(member.role, member.ordinal): replace(member, busy=True) for member in found}
        return tuple(sorted([*there, *(member for place, member in lost.items() if place not in places)]))

    def _with_address(self) -> tuple[Member, ...]:
        """Those who are there, and those who are kept and whose address nobody else has."""
        if not self._kept_until_s:
            return self._there.members
        fresh = {member.address for place, member in self._there.items() if place not in self._kept_until_s}
        # A kept one whose address somebody has registered is that one, by another number.
        return tuple(
            member
            for place, member in self._there.items()
            if place not in self._kept_until_s or member.address not in fresh
        )

    def gone(self, now_s: float) -> tuple[str, ...]:
        """The addresses of those whose lease ran out not long ago, in order. Nobody who is there has one of them."""
        self._gone_until_s = {each: until_s for each, until_s in self._gone_until_s.items() if until_s > now_s}
        return tuple(sorted(self._gone_until_s))

    @property
    def look_s(self) -> float | None:
        """When to look for the first of those who are lost; None: nobody is."""
        return min((each.look_s for each in self._lost.values()), default=None)

    def due(self, now_s: float) -> list[Member]:
        """Whom to look for now."""
        return [each.member for each in self._lost.values() if each.look_s <= now_s]

    def postpone(self, now_s: float) -> None:
        """The store could not be asked, so nobody could register again either: look for all of them later."""
        self._lost = {address: replace(each, look_s=now_s + AWAY_S) for address, each in self._lost.items()}

    def looked(self, asked: Iterable[Member], found: Iterable[KeyValue], now_s: float) -> None:
        """The store was asked for some who were due. Who is not among those found has left, and is gone if it was removed.

        Whoever has come back meanwhile is there.
        """
        entries = ((self._keys.place_of(each.key), each.value or b"") for each in found)
        there = {entry.member.address for place, value in entries if place and (entry := read_entry(place, value))}
        due = {member.address for member in self.due(now_s)}
        for address in due.intersection(member.address for member in asked):
            lost = self._lost.pop(address)
            if address in there:  # the watch is late, and will tell
                self._lost[address] = replace(lost, look_s=now_s + AWAY_S)
            elif lost.removed:
                self._gone_until_s[address] = now_s + GONE_S

    def _drop(self, place: Place, now_s: float, *, removed: bool) -> None:
        """The store has nobody there any more."""
        member, left = self._there.get(place), place in self._leaving or place in self._kept_until_s
        self._there.pop(place)
        self._kept_until_s.pop(place, None)
        if member is not None and not left:
            self._lose(member, now_s, removed=removed)

    def _lose(self, member: Member, now_s: float, *, removed: bool) -> None:
        # One that has taken another number is there by that.
        if not any(member.address == other.address for _, other in self._there.items()):
            self._lost[member.address] = _Lost(member, now_s + AWAY_S, removed)

    def _take(self, each: KeyValue, before: Places) -> None:
        place = self._keys.place_of(each.key)
        entry = read_entry(place, each.value) if place is not None and each.value is not None else None
        if entry is not None and place is not None:
            self._there.put(place, entry.member)
            self._kept_until_s.pop(place, None)
            self._bad.pop(each.key, None)
            self._lost.pop(entry.member.address, None)
            self._gone_until_s.pop(entry.member.address, None)
            (self._leaving.add if entry.leaving else self._leaving.discard)(place)
            return
        if each.value is not None and self._bad.get(each.key) != each.mod_revision:
            self._bad[each.key] = each.mod_revision
            self.rejected += 1
        if place is not None and (former := before.get(place)) is not None:
            self._there.put(place, former)
            self._kept_until_s.pop(place, None)
