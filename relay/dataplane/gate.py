"""One endpoint at work: who is let in, and how many. Its declaration may change under it; its counts stay.

Limits are the instance's, not a worker's. What a worker has open stands in the ledger, where it alone writes it, and a
limit is held against the sum over all workers: first count oneself in, then look, then take it back. So two workers
that let the last one in at the same moment may both refuse it, and can never both admit it.
"""

from typing import Final, Protocol

from relay.address import network_of, packed_host
from relay.config.snapshot import EndpointRow, TargetRow
from relay.kernel.bare_socket import BareSocket
from relay.ledger import layout
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import CAUSES, ENVELOPE_REASONS, REASONS, Health
from relay.ledger.ledger import WorkerLedger
from relay.targets import why
from relay.targets.health import is_found_down, own_health
from relay.targets.pool import Pool

# Verdicts, and what a limit calls them, remembered by source address. A flood of invented sources only empties it: 16,384
# entries are about 2 MiB.
_REMEMBERED_MAX: Final = 16384
_REASON: Final = {name: layout.Count.DENIED + n for n, name in enumerate(REASONS)}
_CAUSE: Final = {name: layout.Count.CLOSED + n for n, name in enumerate(CAUSES)}
_TOLD_HOLD_S: Final = 60.0  # a connection waits so long for instances that say that they hold new ones
_SLOW_WINDOW_S: Final = 60  # in which a rate below one a second is counted, so that `30/m` means 30 and not none


class Queue(Protocol):
    """Who waits for a target: held.py."""

    def reached(self) -> None:
        """A connection has reached it."""


class Gate:
    """Admission to one endpoint. `declared` is its row in the snapshot in force."""

    def __init__(self, declared: EndpointRow, ledger: WorkerLedger, sources: SourceCounts) -> None:
        self.counts_at = ledger.claim(declared.slot, declared.name)
        self._holder = ledger.words[self.counts_at + layout.Count.HOLDER]
        self._all_counts_at = ledger.all_counts_at(declared.slot)
        self.hold_until_at = self._all_counts_at[0] + layout.Count.HOLD_UNTIL_NS
        self.held: dict[int, Queue] = {}  # who waits for a target, by the port that it came to (0: any)
        self._words = ledger.numbers
        self._sources = sources
        self._per_source: dict[str, int] = {}  # connections of this worker, by address
        # `sources` has them by networks so long (IPv4, IPv6); None: not at all.
        self._bits: tuple[int, int] | None = None
        self._names: dict[str, int] = {}  # what it calls them
        self._ledger = ledger
        self.slot = declared.slot
        self.pool: Pool | None = None  # of several targets
        self.declared = declared
        self.declare(declared)

    def declare(self, declared: EndpointRow) -> None:
        """Work by this declaration from now on."""
        if declared.targets != self.declared.targets:
            self._words[self.counts_at + layout.Count.TARGET_UP] = 0  # the new one has not been dialled yet
        if declared.distribution is None:
            self.pool = None
        elif self.pool is None or declared.targets != self.pool.targets or declared != self.declared:
            self.pool = Pool(declared, self._ledger)
        # Of several of this machine's own a dial finds that none is left; then an edge hears why, and has another instance.
        self.cuts_down = declared.probe is not None and declared.probe.on_down == "cut"
        self._asked = None if declared.is_own else self.pool
        self.declared = declared
        self._edges = frozenset(declared.edges)
        self.is_brought = declared.is_brought
        # Looked up for every connection: an attribute of a row costs as much as ten of these.
        self.looks = declared.protocol != "tcp"
        self.connect_s = declared.connect_s
        self.sends_proxy = declared.send_proxy is not None
        own = declared.targets[0] if declared.distribution is None and declared.targets else None
        self.own_target = own if own is not None and own.port_count == 1 else None
        self.drops = bool(declared.drop_filter)
        self.has_edges = bool(declared.edges)
        self.dials_plainly = not declared.transparent and not declared.dial_from
        self.audits = declared.enforce == "audit"
        self._envelope = declared.envelope
        self._verdicts: dict[str, bool] = {}
        self._is_limited = (declared.connections, declared.per_source, declared.rate_per_s) != (None, None, None)
        limited, bits = declared.per_source is not None, (declared.per_source_ipv4_bits, declared.per_source_ipv6_bits)
        if (bits if limited else None) != self._bits:
            self._recount(bits if limited else None)

    def forget(self) -> None:
        """Its endpoint is gone. The counters are nought for whoever gets the row next, unless somebody has it already."""
        if self._ledger.words[self.counts_at + layout.Count.HOLDER] == self._holder:
            self._ledger.clear(self.declared.slot)

    def permits(self, source: str) -> bool:
        """The envelope's answer alone: may this address connect."""
        permit = self._verdicts.get(source)
        if permit is None:
            if len(self._verdicts) >= _REMEMBERED_MAX:
                self._verdicts.clear()
            permit = self._verdicts[source] = self._envelope.decide(packed_host(source)).permit
        return permit

    def keeps(self, source: str, via: str, *, brings_nobody: bool = False) -> bool:
        """Whether an open connection may stay open: of `source`, which came by the edge's address `via` ("": directly).

        `brings_nobody`: the edge's own question, or it has yet to say whose the connection is.
        """
        if self._edges and (via not in self._edges or brings_nobody):
            return via in self._edges
        return self.audits or self.permits(source)

    def may_bring(self, via: str, source: str) -> bool:
        """Whether the machine at `via` may bring a connection of `source`: an edge anybody's, another one its own alone."""
        return via in self._edges if self._edges else via == source

    def admit(self, source: str, now_s: float) -> str | None:
        """Let a connection in (None), or say why not: one of `ledger.REASONS`.

        One that is let in is `accepted` once it is in the ledger, and must be `release`d when it ends.

        The envelope comes before the limits, so that a source that may not connect uses nobody's share up. One that is
        let in all the same, because the envelope is not enforced, is held to the limits like any other.
        """
        if self._edges:
            if source not in self._edges:
                return "roster"
            self._enter(source, 1)  # whom it brings is asked about in `identify`
            return None
        return self._admit(source, now_s)

    def identify(self, edge: str, source: str, now_s: float) -> str | None:
        """As `admit`, of the client that the edge names for a connection that was let in from it.

        None: the connection is the client's from here on. Else it is still the edge's, to be released.
        """
        self._enter(edge, -1)
        reason = self._admit(source, now_s)
        if reason is not None:
            self._enter(edge, 1)
        return reason

    def _admit(self, source: str, now_s: float) -> str | None:
        declared = self.declared
        # The usual answer is remembered; written out because a flood of refusals passes here.
        permit = self._verdicts.get(source)
        if not (self.permits(source) if permit is None else permit) and not self.audits:
            return declared.denied_reason
        if self._asked is not None and not self._asked.any_left() and not self.hold_s(int(now_s * 1e9)):
            return "no_target"
        name = self._enter(source, 1)
        if not self._is_limited:
            return None
        if declared.connections is not None and self._total(layout.Count.ACTIVE) > declared.connections:
            reason = "connections"
        elif declared.per_source is not None and self._sources.total(name) > declared.per_source:
            reason = "per_source"
        elif declared.rate_per_s is not None and self._exceeds(declared.rate_per_s, now_s):
            reason = "rate"
        else:
            return None
        self._enter(source, -1)
        return reason

    def accepted(self) -> None:
        """Count a connection that was let in and stands in the ledger: see `WorkerLedger.reconcile`."""
        self._words[self.counts_at + layout.Count.ACCEPTED] += 1

    def readmit(self, source: str) -> None:
        """Count in a connection that was let in by a predecessor, which has counted it as accepted."""
        self._enter(source, 1)

    def release(self, source: str, cause: str) -> None:
        """A connection that was let in has ended, for one of `ledger.CAUSES`."""
        self._enter(source, -1)
        self._words[self.counts_at + _CAUSE[cause]] += 1

    def dial_failed(self) -> None:
        """Count a dial that came to nothing."""
        self._words[self.counts_at + layout.Count.CONNECT_FAILURES] += 1

    def target_failed(self, dialled_ns: int, dial_why: int) -> None:
        """None of the targets took the connection; the last dial began then (CLOCK_MONOTONIC). See `health.failed_dial`."""
        self._words[self.counts_at + layout.Count.DIAL_WHY] = dial_why
        self._words[self.counts_at + layout.Count.TARGET_UP] = dialled_ns << 1

    def target_answered(self, dialled_ns: int) -> None:
        """The dial that began then was answered."""
        self._words[self.counts_at + layout.Count.TARGET_UP] = dialled_ns << 1 | 1

    def was_held(self) -> bool:
        """Whether somebody has ever asked for that. For a look that costs nothing."""
        return self._words[self.hold_until_at] != 0

    def is_held(self, now_ns: int) -> bool:
        """Whether new connections are to wait, as somebody asked by hand (`relay hold`)."""
        return self._words[self.hold_until_at] > now_ns

    def hold_s(self, now_ns: int) -> float | None:
        """How long a connection waits for a target while there is none; None: it does not, or enough others do."""
        declared, until_ns = self.declared, self._words[self.hold_until_at]
        told = self.pool is not None and self.pool.is_held()
        found_s = [declared.hold_s or 0.0, (until_ns - now_ns) / 1e9, _TOLD_HOLD_S if told else 0.0]
        if max(found_s) <= 0 or (declared.held_max is not None and self._total(layout.Count.HELD) >= declared.held_max):
            return None
        return max(found_s)

    def reached(self, client: BareSocket) -> None:
        """A connection has reached a target: those who wait for the same follow."""
        if (held := self.held.get(self.held_at(client))) is not None:
            held.reached()

    def held_at(self, client: BareSocket) -> int:
        """By which port this client's connection waits in `held`: each of a range may lead to a target of its own."""
        return int(client.getsockname()[1]) if self.declared.port_count > 1 else 0

    def from_other_source(self) -> bool:
        """Count a dial from an address that is not the usual one; whether it is the first of all workers."""
        first = not self._total(layout.Count.OTHER_SOURCE)
        self._words[self.counts_at + layout.Count.OTHER_SOURCE] += 1
        return first

    def is_down(self, target: TargetRow) -> bool:
        """Whether control has found this target down, and not only that it asks for nobody. Of one that has left: no."""
        if self.pool is not None:
            place = self.pool.place_of(target)
            return place is not None and self.pool.is_down(place)
        there = is_found_down(self._words[self._all_counts_at[0] + layout.Count.HEALTH])
        return there and any(each.includes(target) for each in self.declared.targets)

    def fault(self) -> int:
        """Why the application is down, as an edge is told that asks for no more (targets/why.py); 0: it may be up."""
        declared = self.declared
        if declared.is_let_be:
            return why.NOTHING  # who is down would never be found to be back: nobody would be sent, and nobody looks
        if self.pool is not None:
            return self.pool.fault()
        proves, decided = declared.dial_proves, declared.is_decided
        found = own_health(self._words, self._all_counts_at, proves=proves, decided=decided)
        return (found.why or why.TOLD) if found.health == Health.DOWN else why.NOTHING

    def denied(self, reason: str, count: int = 1) -> None:
        """Count a refusal, or several."""
        self._words[self.counts_at + _REASON[reason]] += count

    def would_deny(self) -> None:
        """Count one whom the envelope refuses, and who is let in because it is not enforced."""
        self._words[self.counts_at + layout.Count.WOULD_DENY + ENVELOPE_REASONS.index(self.declared.denied_reason)] += 1

    def _enter(self, source: str, change: int) -> int:
        """One connection more, or one less; what the limit calls its source, 0 where there is none."""
        words, at, sources = self._words, self.counts_at + layout.Count.ACTIVE, self._per_source
        count = sources.get(source, 0) + change
        if count < 0:  # it was not counted in, and takes from nobody
            return 0
        if change > 0 or words[at]:  # a row that another endpoint was given begins at nought
            words[at] += change
        if count:
            sources[source] = count
        else:
            del sources[source]
        if self._bits is None:
            return 0
        name = self._name(source)
        self._sources.add(name, change)
        return name

    def _recount(self, bits: tuple[int, int] | None) -> None:
        """Count sources by networks of so many leading bits from now on; None: not at all."""
        if self._bits is not None:
            for source, count in self._per_source.items():
                self._sources.add(self._name(source), -count)
        self._bits, self._names = bits, {}
        if bits is not None:
            for source, count in self._per_source.items():
                self._sources.add(self._name(source), count)

    def _name(self, source: str) -> int:
        name = self._names.get(source)
        if name is None:
            assert self._bits is not None  # asked where there is a limit alone
            if len(self._names) >= _REMEMBERED_MAX:
                self._names.clear()
            network = network_of(packed_host(source), *self._bits)
            name = self._names[source] = self._sources.name(self.declared.slot, network)
        return name

    def _total(self, count: int) -> int:
        words = self._words
        return sum([words[at + count] for at in self._all_counts_at])

    def _exceeds(self, rate_per_s: float, now_s: float) -> bool:
        """Count one more in this second (or minute); whether that is more than the rate allows, over all workers.

        The word is the window's number and the count in it, so that a count of an older window counts as none.
        """
        window_s = 1 if rate_per_s >= 1 else _SLOW_WINDOW_S
        window = int(now_s / window_s)
        words, mine = self._words, self.counts_at + layout.Count.RATE_WINDOW
        own = words[mine]
        words[mine] = own + 1 if own >> 32 == window else (window << 32) + 1
        counted = [words[at + layout.Count.RATE_WINDOW] for at in self._all_counts_at]
        used = sum([word & 0xFFFFFFFF for word in counted if word >> 32 == window])
        if used > rate_per_s * window_s:
            words[mine] -= 1
            return True
        return False
