"""A number of a counted role, taken by transaction: unique, the lowest that is free, and the same after a reboot.

Who wants a number stands at the end of a queue, and in the same transaction counts who stands there and which numbers are
taken: with so many before it, it takes the free number after as many. So a thousand at once all aim at different ones, and
nobody tries twice but where somebody before it has given up. Only a block of the numbers is read, and the rest is counted:
a thousand that read a thousand entries each would keep an etcd busy for long.
"""

import asyncio
import contextlib
import random
import time
from dataclasses import dataclass
from typing import Final

from relay.config.roster import Member
from relay.errors import IdentityError, RegistryError
from relay.fleet.entries import Entry, EntryKeys, KeyValue, claim_value, ordinal_of, read_claim, read_entry
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import (
    NOT_FOUND,
    Compare,
    Operation,
    Refused,
    absent,
    count_from,
    delete,
    get,
    get_from,
    holds,
    put,
    unchanged,
)
from relay.fleet.identity import Vacancy
from relay.fleet.machine_id import NEW_MACHINE_ID, Daemon

# How long a place in the queue outlives whoever stands there. One that died keeps its number from others for so long.
_QUEUE_S: Final = 10
# From one look at what cannot be awaited to the next: the death of a process, the end of whoever stands before us.
_LOOK_S: Final = 0.25
# After the lease of a presence its key goes within a second (etcd looks every 500 ms); one more for the way.
_GONE_S: Final = 2.0
_BLOCKS_MAX: Final = 100  # a transaction of etcd's has at most 128 operations (--max-txn-ops)
_BLOCK_MIN: Final = 32  # below this a block more costs as much as what it saves
_NAMED_MAX: Final = 10  # of those who hold all numbers: the rest makes a message that nobody reads


@dataclass(frozen=True, slots=True)
class Claimant:
    """Who asks for a number: a machine of a service, the relay that runs on it, and where it can be reached."""

    service: str
    machine: str
    daemon: Daemon
    address: str
    ttl_s: float
    hold_s: float


def in_the_way(entry: Entry, me: Claimant) -> str:
    """What is said when somebody else is there by the number that this machine has or wants."""
    where = f"{entry.member.id} at {entry.member.address}"
    if entry.machine != me.machine:
        return f"{where} is another machine; stop relay there, or ask for another number"
    if entry.member.address == me.address:
        return earlier_run(entry)
    return (
        f"{where} has the same machine id as this machine, so one is a clone of the other; on the clone run "
        f"`{NEW_MACHINE_ID}` as root, or put another id into the file that `machine_id` names there"
    )


def earlier_run(entry: Entry) -> str:
    """What is said of a relay that stands at this machine's own address with its machine id."""
    return (
        f"{entry.member.id} at {entry.member.address} is this machine itself: an earlier run of relay stands there until its "
        "lease ends (`ttl` after it was last heard of); if it stays, relay runs here twice, such as in another container: "
        "stop that one"
    )


def may_replace(entry: Entry | None, machine: str, daemon: Daemon) -> bool:
    """Whether a presence is this daemon's own, or its dead predecessor's, or makes no sense and so is nobody's."""
    if entry is None:
        return True
    return entry.machine == machine and (entry.daemon == str(daemon) or daemon.sees_dead(entry.daemon))


def have(keys: EntryKeys, role: str, ordinal: int, machine: str, lease: int) -> list[Operation]:
    """Write down that the machine has the number."""
    number = str(ordinal).encode()
    return [
        put(keys.claim(role, ordinal), claim_value(machine), lease),
        put(keys.number(role, machine), number, lease),
    ]


@dataclass(frozen=True, slots=True)
class Claimed:
    """A number that was taken, and the leases of what was newly written: its presence, and a number not held before."""

    ordinal: int
    leases: tuple[int, ...]


async def claim(client: EtcdClient, me: Claimant, vacancy: Vacancy, count: int) -> Claimed:
    """Take a number of `vacancy.role`, below `count`, and say that this machine is there, busy as yet.

    Raises IdentityError when there is none for it, or when it has the machine id of another one; RegistryError when etcd
    does not answer.
    """
    return await _Claim(client, me, vacancy, count).run()


@dataclass(frozen=True, slots=True)
class _Line:
    """Those who wait for a number of the role, and how many of its numbers are taken, block by block; at one revision."""

    revision: int
    before: int  # so many stand before us
    taken: tuple[int, ...]


class _Claim:
    def __init__(self, client: EtcdClient, me: Claimant, vacancy: Vacancy, count: int) -> None:
        self._client, self._me, self._vacancy, self._count = client, me, vacancy, count
        self._role = vacancy.role
        self._keys = EntryKeys(me.service)
        self._block = max(_BLOCK_MIN, -(-count // _BLOCKS_MAX))
        self._doubtful: set[int] = set()  # numbers by which somebody is there, who may be anybody
        self._occupied: set[int] = set()  # numbers that nobody has, and by which somebody else is there all the same
        self._claim_lease = self._presence_lease = self._queue_lease = 0
        self._held = False  # the number was ours before
        self._in_doubt = False  # the number may be ours: the transaction was sent, and its answer has not come
        self._line_until_s: float | None = None
        self._other_until_s: float | None = None

    async def run(self) -> Claimed:
        try:
            while (ordinal := await self._try_again()) is None:
                pass
        except BaseException:
            await self._clean_up()
            raise
        leases = (self._presence_lease,) if self._held else (self._presence_lease, self._claim_lease)
        return Claimed(ordinal, leases)

    async def _clean_up(self) -> None:
        """Leave the queue. Also when cancelled; where it fails, the leases end by themselves."""
        leases = [self._queue_lease] if self._in_doubt else [self._queue_lease, self._presence_lease, self._claim_lease]
        with contextlib.suppress(RegistryError):
            for lease in filter(None, leases):
                await self._client.revoke(lease)

    async def _try_again(self) -> int | None:
        try:
            return await self._try()
        except Refused as error:
            if error.code != NOT_FOUND:
                raise
            self._in_doubt = False  # a lease has run out, because we were held up: nothing was written
            return None

    async def _try(self) -> int | None:
        """One look, and one attempt where there is something to attempt. None: look again."""
        mine = await self._mine()
        ordinal = self._vacancy.ordinal
        if ordinal is not None and ordinal != mine and (owner := await self._get(self._key_of(ordinal))) is not None:
            raise IdentityError(
                f"{await self._holder(ordinal, owner)} is held by that machine; ask for another number, or wait until "
                "it has been gone for `hold`"
            )
        if ordinal is None:
            ordinal = mine if mine is not None and mine < self._count else await self._next_free()
        return ordinal if ordinal is not None and await self._take(ordinal, mine) else None

    async def _mine(self) -> int | None:
        """The number that this machine has."""
        number = await self._get(self._keys.number(self._role, self._me.machine))
        ordinal = ordinal_of((number.value or b"").decode(errors="replace")) if number is not None else None
        if ordinal is None:
            return None
        claimed = await self._get(self._key_of(ordinal))
        return ordinal if claimed is not None and claimed.value == claim_value(self._me.machine) else None

    async def _next_free(self) -> int | None:
        """The free number after those that the others in the line before us will take. None: not known yet."""
        line = await self._stand_in_line()
        rank = line.before
        for n, taken in enumerate(line.taken):
            numbers = range(n * self._block, min((n + 1) * self._block, self._count))
            free = len(numbers) - taken - len(self._occupied.intersection(numbers))
            if rank < free:
                return await self._free_of(numbers, rank, line.revision)
            rank -= max(free, 0)
        # Those before us will take the rest, unless one of them is dead.
        now_s = time.monotonic()
        self._line_until_s = self._line_until_s or now_s + 2 * _QUEUE_S
        if sum(line.taken) >= self._count or now_s > self._line_until_s:
            await self._refuse_full()
        await asyncio.sleep(_LOOK_S)
        return None

    async def _stand_in_line(self) -> _Line:
        """Go to the end of the line: whoever stands there then stands before us."""
        if not self._queue_lease or not await self._client.keep_alive(self._queue_lease):
            self._queue_lease = await self._client.grant(_QUEUE_S)
        queue = self._keys.queue(self._role)
        starts = range(0, self._count, self._block)
        look = [
            put(queue + self._me.machine, b"", self._queue_lease),
            count_from(queue, queue[:-1] + "0"),  # "0" is what follows "/"
            *(count_from(self._key_of(n), self._key_of(min(n + self._block, self._count))) for n in starts),
        ]
        answer = await self._client.txn((), look)
        waiting, *taken = answer.counts
        return _Line(answer.revision, waiting - 1, tuple(taken))

    async def _free_of(self, numbers: range, rank: int, revision: int) -> int | None:
        """The free number among `numbers` that comes after so many, as it was at the revision."""
        first, end = self._key_of(numbers.start), self._key_of(numbers.stop)
        (claims,) = (await self._client.txn((), [get_from(first, end, revision=revision)])).found
        taken = {each.key for each in claims}
        free = [n for n in numbers if self._key_of(n) not in taken and n not in self._occupied]
        return free[rank] if rank < len(free) else None

    async def _take(self, ordinal: int, mine: int | None) -> bool:
        """Take the number if nothing is in the way: whether it is ours."""
        keys, role, machine = self._keys, self._role, self._me.machine
        key, self._held = self._key_of(ordinal), ordinal == mine
        compare: list[Compare] = [holds(key, claim_value(machine)) if ordinal == mine else absent(key)]
        # A number that was ours, where another one is asked for now, or there are fewer.
        given_up = [mine] if mine is not None and mine != ordinal else []
        for n in (ordinal, *given_up):
            # By a free number nobody is there: seeing to that is left to the transaction.
            look = n == mine or n in self._doubtful
            found = await self._get(keys.member(role, n)) if look else None
            if found is not None and not await self._may_replace(n, found, owned=n == mine):
                return False
            compare.append(absent(keys.member(role, n)) if found is None else unchanged(found))
        self._claim_lease = await self._lease(self._claim_lease, self._me.hold_s)
        self._presence_lease = await self._lease(self._presence_lease, self._me.ttl_s)
        # Busy until it says otherwise: it is there, and takes no connections yet.
        entry = Entry(Member(role, ordinal, self._me.address, busy=True), machine, str(self._me.daemon))
        then = [
            *have(keys, role, ordinal, machine, self._claim_lease),
            put(keys.member(role, ordinal), entry.to_value(), self._presence_lease),
            delete(keys.queue(role) + machine),
            *(delete(key) for n in given_up for key in (self._key_of(n), keys.member(role, n))),
        ]
        self._in_doubt = True
        if (await self._client.txn(compare, then)).succeeded:
            return True
        # An answer that was lost, of a transaction that was made again, leaves our lease there.
        found = await self._get(keys.member(role, ordinal))
        if found is not None and found.lease == self._presence_lease:
            return True
        self._in_doubt = False
        if found is not None:
            self._doubtful.add(ordinal)
        await asyncio.sleep(random.uniform(0, _LOOK_S))
        return False

    async def _lease(self, lease: int, ttl_s: float) -> int:
        """A lease that has just begun: the one of a former attempt, or a new one."""
        return lease if lease and await self._client.keep_alive(lease) else await self._client.grant(ttl_s)

    async def _may_replace(self, ordinal: int, found: KeyValue, *, owned: bool) -> bool:
        """Whether a presence is ours. While another one stays, False; and IdentityError when it outlives its lease."""
        entry = read_entry((self._role, ordinal), found.value or b"")
        if entry is None or may_replace(entry, self._me.machine, self._me.daemon):
            return True
        if not owned and self._vacancy.ordinal is None:
            self._occupied.add(ordinal)  # any other number will do
            return False
        if entry.machine == self._me.machine and (pid := self._me.daemon.runs_here(entry.daemon)):
            raise IdentityError(
                f"relay runs on this machine already, as {entry.member.id}: process {pid}; stop it first"
            )
        now_s = time.monotonic()
        self._other_until_s = self._other_until_s or now_s + self._me.ttl_s + _GONE_S
        if now_s > self._other_until_s:
            raise IdentityError(in_the_way(entry, self._me))
        await asyncio.sleep(_LOOK_S)
        return False

    async def _get(self, key: str) -> KeyValue | None:
        (found,) = (await self._client.txn((), [get(key)])).found
        return found[0] if found else None

    def _key_of(self, ordinal: int) -> str:
        return self._keys.claim(self._role, ordinal)

    async def _refuse_full(self) -> None:
        some = get_from(self._key_of(0), self._key_of(self._count), limit=_NAMED_MAX)
        (claims,) = (await self._client.txn((), [some])).found
        named = [await self._holder(int(each.key[-6:]), each) for each in claims]
        more = f" and {self._count - len(named)} more" if self._count > len(named) else ""
        which = f"all {self._count} numbers" if self._count > 1 else "the one number"
        verb = "are" if self._count > 1 else "is"
        raise IdentityError(
            f"{which} of role {self._role} {verb} held by {', '.join(named)}{more}; raise `instances`, or wait until one "
            "has been gone for `hold`"
        )

    async def _holder(self, ordinal: int, claimed: KeyValue) -> str:
        found = await self._get(self._keys.member(self._role, ordinal))
        entry = read_entry((self._role, ordinal), found.value or b"") if found is not None else None
        machine = read_claim(claimed.value or b"")[:8] or "unknown"
        return f"{self._role}_IN_{ordinal} ({entry.member.address if entry else f'machine {machine}, not there now'})"
