"""Which target a connection goes to: the one whose turn it is, and at its failure another, within the time for connecting."""

from collections.abc import Collection
from typing import Final

from relay.address import Address
from relay.config.snapshot import TargetRow
from relay.dataplane.gate import Gate
from relay.kernel.bare_socket import BareSocket
from relay.kernel.clock import Clock
from relay.kernel.sockets import connected_addresses, peer_path
from relay.ledger.layout import Knows
from relay.targets import why as reasons
from relay.targets.health import failed_dial

_ATTEMPTS_MAX: Final = 2  # without a pool: the first target and one other; a client waits for no more
# Of a pool's target, before the next is tried: a handshake that was lost is sent again after 1 s (tcp(7)), and within
# the time for connecting there must be room for others.
_PATIENCE_MAX_S: Final = 1.0
_PATIENCE_SHARE: Final = 4


class Route:
    """The targets of one connection, in turn. `target` is the one that is being dialled or was reached."""

    __slots__ = (
        "_attempt", "_clock", "_gate", "_is_held", "_is_joined", "_place", "_pool", "_replaced", "_tried", "_until_s",
        "by_name", "dialled_ns", "dials", "target",
    )  # fmt: skip

    def __init__(self, gate: Gate, clock: Clock) -> None:
        self._gate = gate
        self._clock = clock
        self._pool = gate.pool
        self._attempt = 0
        self._tried = 0  # a bit for the place of each of the pool's targets that failed
        self._place: int | None = None  # of the pool's target that was chosen
        self._replaced: int | None = None  # the place of the one that failed before this one was dialled
        self._is_joined = False  # the target has one connection more
        self._is_held = False  # it has waited for a target
        self._until_s = 0.0
        self.target: TargetRow | None = None
        self.by_name = False  # its relay is talked to at its own port, and told for which endpoint this is
        self.dialled_ns = 0
        self.dials = 0  # begun so far; a worker that took the connection over has its own only

    def slot(self) -> int:
        """The pool's target in the ledger; -1: none."""
        return -1 if self._pool is None or self._place is None else self._pool.targets[self._place].slot

    def asks(self) -> bool:
        """Whether the target's relay says when its own target has taken the connection."""
        if self._pool is None or self._place is None:
            return False
        return self.by_name or self._pool.knows(self._place, Knows.TAKEN)

    def begin(self, client: BareSocket, peer: str) -> TargetRow | None:
        """Where to dial now, for the client at `peer` (`host:port`); None: there is no target, or none any more."""
        self.dialled_ns = self._clock.now_ns()
        if not self._until_s:
            self._until_s = self.dialled_ns / 1e9 + self._gate.connect_s
        self.target = self._own(client) if self._pool is None else self._of_pool(client, peer)
        self.dials += self.target is not None
        if self._pool is None:
            return self.target
        relay = self._relay()
        self.by_name = relay is not None
        return relay or self.target

    def _relay(self) -> TargetRow | None:
        """Where the target's relay is talked to, if it answers there."""
        if self._pool is None or self._place is None:
            return None
        relay = self._pool.relays[self._place]
        return relay if relay is not None and self._pool.knows(self._place, Knows.NAMES) else None

    def leave_relay_port(self) -> bool:
        """Nobody answers there: whether to begin anew for that, and dial the endpoint's own port."""
        if self._pool is None or self._place is None or not self.by_name:
            return False
        self._pool.unlearn(self._place, Knows.NAMES)
        self.dials -= 1
        return True

    def _own(self, client: BareSocket) -> TargetRow | None:
        if self._attempt == 0 and self._gate.own_target is not None:
            return self._gate.own_target
        declared = self._gate.declared
        row = declared.target(self._attempt)
        if row.port_count > 1:
            # Which port the client came to, its socket knows, however long ago and by whomever it was accepted.
            row = row.at(client.getsockname()[1] - declared.listen_port)
        # None: its ports were changed meanwhile, and the client's is none of them.
        return row if row.port_count == 1 else None

    def _of_pool(self, client: BareSocket, peer: str) -> TargetRow | None:
        assert self._pool is not None  # it was asked before
        declared = self._gate.declared
        port = declared.listen_port if declared.port_count == 1 else client.getsockname()[1]
        source = Address.parse(peer)
        self._place = self._pool.choose(
            source.packed, source.port, port, self._tried, self.dialled_ns, down_too=self._is_held
        )
        if self._place is None:
            return None
        if self._replaced is not None:
            self._pool.retried(self._replaced)
        return self._pool.targets[self._place]

    def again(self) -> None:
        """Begin anew with every target, after a wait: those too that are down, where the dial itself proves it."""
        self.part()
        self._pool, self._is_held = self._gate.pool, True
        self._attempt, self._tried, self._place, self._replaced, self._until_s = 0, 0, None, None, 0.0

    def patience_s(self) -> float:
        """How long to wait for the answer to this dial."""
        left_s = self._until_s - self._clock.now_ns() / 1e9
        if self._pool is None or self._pool.is_single:
            return left_s
        return min(left_s, _PATIENCE_MAX_S, self._gate.declared.connect_s / _PATIENCE_SHARE)

    def failed(self, why: int) -> bool:
        """The dial came to nothing; whether another target may be tried. `why`: targets/why.py."""
        self._gate.dial_failed()
        if self._pool is not None and self._place is not None:
            self._pool.failed(self._place, self._clock.now_ns(), why)
        if self.skip():
            return True
        if self._pool is None:
            port = self.target.port if self.target is not None else 0
            self._gate.target_failed(self.dialled_ns, failed_dial(why, port))
        return False

    def skip(self) -> bool:
        """This target cannot be dialled from here, and is not to blame; whether another one may be tried."""
        self._attempt += 1
        self.part()
        if self._pool is None:
            return self._attempt < min(_ATTEMPTS_MAX, len(self._gate.declared.targets))
        if self._place is not None:
            self._tried |= 1 << self._place
            self._replaced, self._place = self._place, None
        return self._clock.now_ns() / 1e9 < self._until_s

    def reached(self, took_s: float) -> None:
        """The target has taken the connection."""
        self.join()
        if self._pool is None:
            self._gate.target_answered(self.dialled_ns)
        elif self._place is not None:
            self._pool.answered(self._place, took_s, self._clock.now_ns())
            declared = self._gate.declared
            if declared.type != "door" or declared.direct or self.by_name:  # see `leave`
                self._pool.proved(self._place, self._clock.now_ns())

    def join(self) -> None:
        """The target has one connection more, until `part`."""
        if self._pool is not None and self._place is not None and not self._is_joined:
            self._is_joined = True
            self._pool.enter(self._place, 1)

    def part(self) -> None:
        """It has not."""
        if self._pool is not None and self._place is not None and self._is_joined:
            self._is_joined = False
            self._pool.enter(self._place, -1)

    @property
    def has_several(self) -> bool:
        """Whether it goes to one of several targets: as declared when it began, or began anew."""
        return self._pool is not None

    def fault(self) -> int:
        """Why none of several targets is up (targets/why.py); 0: one may be."""
        return reasons.NOTHING if self._pool is None else self._pool.fault()

    def leads_to(self, hosts: Collection[str]) -> bool:
        """Whether its target is an instance at one of these addresses."""
        return self._pool is not None and self.target is not None and self.target.host in hosts

    def is_down(self) -> bool:
        """Whether its target was found down since."""
        return self.target is not None and self._gate.is_down(self.target)

    def unlearn(self) -> None:
        """The target's relay does not say when its own target has taken a connection, after all."""
        if self._pool is not None and self._place is not None:
            self._pool.unlearn(self._place, Knows.TAKEN | Knows.NAMES)

    def resume(self, slot: int, client: BareSocket, joined: BareSocket) -> None:
        """A predecessor's connection is with the target that has this slot in the ledger, by the socket `joined`.

        As if it had been dialled now.
        """
        self.dialled_ns, self.dials = self._clock.now_ns(), 1
        self._until_s = self.dialled_ns / 1e9 + self._gate.declared.connect_s
        # With a slot it was one of several. Only where it is needed is a socket asked: thousands may be taken over at once.
        if self._pool is None and slot < 0 and not self._gate.cuts_down:
            self.target = self._own(client)
            return
        there = _at(joined)
        if self._pool is None:
            own = self._own(client) if slot < 0 else None
            self.target = own if there is None or (own is not None and own.may_be(there)) else there
            return
        place = self._pool.place_in(slot) if there is None else self._pool.place_of(there, slot)
        if place is None:  # it has left the set meanwhile
            self.target = there
        else:
            self._place, self.target = place, self._pool.targets[place]
            self.join()
            if not self.target.relay_port:
                return
        if there is not None and there.port:
            self.by_name = any(there.port == each.relay_port for each in self._pool.targets)

    def leave(self, cause: str, sent_bytes: int) -> None:
        """The connection that had reached its target has ended; so many bytes had come from there."""
        self.part()
        # A door's target is another machine's relay, which takes every connection, and resets it where the service behind it
        # is gone, unless it was asked. An edge is told so by its probes; and its clients could bring such a reset about.
        if self._pool is None or self._place is None or self.by_name:
            return
        if self._gate.declared.type == "door" and not self._gate.declared.direct:
            if cause == "target_reset" and not sent_bytes:
                self._pool.failed(self._place, self._clock.now_ns(), reasons.RESET)
            elif sent_bytes and cause != "peer_dead":  # what came before it died proves nothing
                self._pool.proved(self._place, self._clock.now_ns())


def _at(joined: BareSocket) -> TargetRow | None:
    """What this socket is connected to, as a target; None: the kernel does not say."""
    if (addresses := connected_addresses(joined.fileno())) is not None:
        _, peer = addresses
        return TargetRow(str(peer), host=peer.host, port=peer.port)
    path = peer_path(joined.fileno())
    return TargetRow(f"unix:{path}", path=path) if path else None
