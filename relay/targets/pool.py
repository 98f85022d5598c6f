"""The targets of one endpoint at work, in one worker: which may get a connection, and how each has done.

Whether a target is up is control's to say: it writes what it found into the ledger. One that is down is tried after the
others; where it is probed, only if a connection finds out by itself whether the application takes it, so that none is lost.
What this worker's own dials met is remembered here for a while: a target that refused, or did not answer, is tried after
the others.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from relay.address import join_host_port
from relay.config.roster import split_instance
from relay.config.snapshot import EndpointRow, TargetRow
from relay.ledger.layout import Health, Knows, TargetCount, health_at
from relay.ledger.ledger import WorkerLedger
from relay.targets.choose import Ranking, Turns, bucket
from relay.targets.health import TargetHealth, is_found_down, knows_at, latest, may_be_back, risen_share, state_in
from relay.targets.why import BUSY, HELD, NOTHING, TOLD

# Of a connection's, before it tries nobody any more that is down: where all are, each costs a dial.
_TRIES_MAX: Final = 3
EJECT_S: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 30.0)  # after the n-th failure in a row; then a dial asks again


class Pool:
    """Chooses among the targets of `row`, which has a distribution."""

    def __init__(self, row: EndpointRow, ledger: WorkerLedger) -> None:
        self.targets = row.targets
        self.relays = tuple(replace(each, port=each.relay_port) if each.relay_port else None for each in row.targets)
        self._distribution = row.distribution
        self._words = ledger.words
        rows = [ledger.target_counts_at(each.slot) for each in row.targets]
        self._counts_at = [ledger.claim_target(each.slot, f"{row.name} {each.text}") for each in row.targets]
        self._claims = [ledger.claims.get(each.slot) for each in row.targets]
        self._claims_now = ledger.claims
        self._all_counts_at = rows
        self._health = [health_at(each.slot) for each in row.targets]
        self._forbids = row.is_judged  # a target that is down gets nobody
        self._knows = [knows_at(ledger, each.slot) for each in row.targets]
        self._looked = [first + TargetCount.LOOKED_NS for first, *_ in rows]
        self._dial_proves = row.dial_proves
        self._direct = row.direct
        self._slow_start_ns = int((row.slow_start_s or 0) * 1e9)
        self._backups = frozenset(n for n, each in enumerate(row.targets) if each.backup)
        self._turns = Turns(len(row.targets), ledger.index)
        self._share([each.weight for each in row.targets])
        self._by_slot = {each.slot: n for n, each in enumerate(row.targets)}
        self._by_text = {each.text: n for n, each in enumerate(row.targets)}
        there = ((n, each) for n, each in enumerate(self.relays) if each is not None)
        self._by_relay = {join_host_port(each.host, each.port): n for n, each in there}
        # The n-th port leads to the instance with that number, which may not be there.
        self._by_port = (
            {row.listen_port + split_instance(each.instance)[1]: n for n, each in enumerate(row.targets)}
            if row.distribution == "instance"
            else {}
        )

    def _share(self, shares: list[int]) -> None:
        """Spread connections by these shares from now on."""
        self._shares = shares
        by_share = self._distribution != "instance"  # a machine that has a port of its own is meant
        self._some = [n for n, share in enumerate(shares) if share or not by_share]
        self._even = len({shares[n] for n in self._some}) < 2
        self._ranking = Ranking([each.text for each in self.targets], shares)

    def _rise(self, now_ns: int) -> None:
        """Give those that have come up the share that they are due by now."""
        words, slow_ns, forbids = self._words, self._slow_start_ns, self._forbids
        shares = [
            risen_share(words[at], each.weight, now_ns, slow_ns, probed=forbids)
            for at, each in zip(self._health, self.targets, strict=True)
        ]
        if shares != self._shares:
            self._share(shares)

    @property
    def is_single(self) -> bool:
        """Whether there is no other target that a connection could go to."""
        return len(self._some) < 2

    def any_left(self) -> bool:
        """Whether there is a target that may get a connection."""
        if not self._forbids:
            return bool(self._some)
        return any(not self._is_down(n) or self._may_be_back(n) for n in self._some)

    def _is_down(self, place: int) -> bool:
        return state_in(self._words[self._health[place]]) == Health.DOWN

    def _finds_out(self, place: int) -> bool:
        """Whether a connection finds out if the application is there, and is not lost where it is not."""
        return self._dial_proves and (self._direct or self.knows(place, Knows.TAKEN | Knows.NAMES))

    def _may_be_back(self, place: int) -> bool:
        words = self._words
        knows = self._direct or words[self._knows[place]]
        return may_be_back(words[self._health[place]], knows, proves=self._dial_proves)

    def is_held(self) -> bool:
        """Whether the last that is known of a target is that it holds new connections (`relay hold`)."""
        return any(each.why == HELD for each in self._latest())

    def fault(self) -> int:
        """Why none of those is up that may get a connection, by the last that is known (targets/why.py); 0: one may be."""
        every = list(self._latest())
        found = [every[n] for n in self._some]
        if any(each.health != Health.DOWN for each in found):
            return NOTHING
        return (found[0].why if found else NOTHING) or TOLD

    def is_down(self, place: int) -> bool:
        """Whether control has found this target down, and not only that it asks for nobody."""
        return is_found_down(self._words[self._health[place]])

    def _latest(self) -> Iterator[TargetHealth]:
        words, proves = self._words, not self._forbids  # else no dial says that a target is up
        for found, looked, at in zip(self._health, self._looked, self._counts_at, strict=True):
            dialled, dial_why = words[at + TargetCount.DIALLED], words[at + TargetCount.DIAL_WHY]
            yield latest(words[found], words[looked], dialled, dial_why, proves=proves)

    def knows(self, place: int, what: int) -> bool:
        """Whether its relay knows this (`Knows`), as control found out."""
        return bool(self._words[self._knows[place]] & what)

    def unlearn(self, place: int, what: int) -> None:
        """It does not, as a connection found out. Control asks again."""
        if self._has_its_row(place):
            self._words[self._knows[place]] &= ~what

    def choose(
        self, source: bytes, source_port: int, port: int, tried: int, now_ns: int, *, down_too: bool = False
    ) -> int | None:
        """The place of the target for a connection to `port` from `source` (packed); None: there is none left.

        `tried` has a bit for each place that failed already. An ejected target is better than none; one that is down is too.
        But an edge sends nobody to one that is down unless a connection itself finds out whether it is (`_may_be_back`); all
        of these with `down_too`, for one that has waited.
        """
        words, forbids = self._words, self._forbids
        if self._slow_start_ns:
            self._rise(now_ns)
        untried = [n for n in self._order(source, source_port, port) if not tried >> n & 1]
        left = [n for n in untried if not (forbids and self._is_down(n))]
        if not left and down_too:
            left = [n for n in untried if self._finds_out(n)]
        elif not left and tried.bit_count() < _TRIES_MAX:
            left = [n for n in untried if self._may_be_back(n)]
        if not left:
            return None
        ready = [n for n in left if words[self._counts_at[n] + TargetCount.EJECTED_UNTIL_NS] <= now_ns] or left
        if not forbids:
            ready = [n for n in ready if not self._is_down(n)] or ready
        if self._backups:
            ready = [n for n in ready if n not in self._backups] or ready
        if self._distribution == "least-connections":  # of equals the first in the order, which spreads them
            return min(ready, key=self.active if self._even else self._load)
        if self._distribution == "round-robin":
            return self._turns.next(ready, self._shares)
        return ready[0]

    def _load(self, place: int) -> float:
        """How much it has to do for its share, once it has one connection more."""
        return (self.active(place) + 1) / self._shares[place]

    def _order(self, source: bytes, source_port: int, port: int) -> Sequence[int]:
        if self._distribution == "instance":
            place = self._by_port.get(port)
            return () if place is None else (place,)
        if self._distribution == "round-robin":
            return self._some
        assert self._distribution is not None  # a pool has one
        return self._ranking.order(bucket(self._distribution, source, source_port, port))

    def place_of(self, target: TargetRow, slot: int = -1) -> int | None:
        """The place of the one that is where this target is, or whose relay is; None: it is not among them any more.

        `slot`: which had it in the ledger, once; that may be another one's by now.
        """
        if (place := self._by_text.get(target.text, self._by_relay.get(target.text))) is not None:
            return place
        place = self._by_slot.get(slot)
        return place if place is not None and self.targets[place].may_be(target) else None

    def place_in(self, slot: int) -> int | None:
        """The place of the one that has this slot in the ledger now."""
        return self._by_slot.get(slot)

    def active(self, place: int) -> int:
        """Connections to the target now, from all workers."""
        words = self._words
        return sum([words[at + TargetCount.ACTIVE] for at in self._all_counts_at[place]])

    def answered(self, place: int, took_s: float, now_ns: int) -> None:
        """A dial was answered."""
        if not self._has_its_row(place):
            return
        words, at = self._words, self._counts_at[place]
        if not words[at + TargetCount.FAILED_IN_A_ROW]:  # else it has yet to be `proved`
            words[at + TargetCount.DIALLED] = now_ns << 1 | 1
        words[at + TargetCount.CONNECTED] += 1
        words[at + TargetCount.CONNECT_SUM_NS] += int(took_s * 1e9)

    def proved(self, place: int, now_ns: int) -> None:
        """The target is as it should be: former failures do not count any more."""
        if not self._has_its_row(place):
            return
        words, at = self._words, self._counts_at[place]
        words[at + TargetCount.EJECTED_UNTIL_NS] = words[at + TargetCount.FAILED_IN_A_ROW] = 0
        words[at + TargetCount.DIALLED] = now_ns << 1 | 1

    def failed(self, place: int, now_ns: int, why: int) -> None:
        """A dial was refused, or not answered (`why`): others first, for a while that grows with each failure.

        Under load many dials fail at once. Those that had begun when the target was ejected say nothing new of it: else one
        short outage would eject it for as long as a long one.
        """
        if not self._has_its_row(place):
            return
        words, at = self._words, self._counts_at[place]
        words[at + TargetCount.DIAL_WHY] = why
        words[at + TargetCount.DIALLED] = now_ns << 1
        if why in (BUSY, HELD):  # it is about to be taken out by somebody, and well
            words[at + TargetCount.EJECTED_UNTIL_NS] = now_ns + int(EJECT_S[0] * 1e9)
            return
        words[at + TargetCount.FAILURES] += 1
        if words[at + TargetCount.EJECTED_UNTIL_NS] > now_ns:
            return
        rest_s = EJECT_S[min(words[at + TargetCount.FAILED_IN_A_ROW], len(EJECT_S) - 1)]
        words[at + TargetCount.EJECTIONS] += 1
        words[at + TargetCount.FAILED_IN_A_ROW] += 1
        words[at + TargetCount.EJECTED_UNTIL_NS] = now_ns + int(rest_s * 1e9)

    def retried(self, place: int) -> None:
        """For a connection that failed there another target is dialled."""
        if self._has_its_row(place):
            self._words[self._counts_at[place] + TargetCount.RETRIES] += 1

    def enter(self, place: int, change: int) -> None:
        """One connection more, or one less."""
        words, at = self._words, self._counts_at[place] + TargetCount.ACTIVE
        if self._has_its_row(place) and (change > 0 or words[at]):
            words[at] += change

    def _has_its_row(self, place: int) -> bool:
        """Whether what is counted of this target is still its own.

        A connection goes on when its target has left the set, and so does a dial. Some reloads later another target has the
        row, or the same one again, which begins at nought.
        """
        return self._claims_now.get(self.targets[place].slot) == self._claims[place]

    def recount(self) -> None:
        """Forget who is connected: a predecessor's connections are about to be counted anew."""
        for at in self._counts_at:
            self._words[at + TargetCount.ACTIVE] = 0
