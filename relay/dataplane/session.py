"""One connection, from accept to close: look, dial, splice, close, record. Read it from the top.

    HEADER  only behind an edge: it says who the client is, and the gate is asked again (arrival.py)
    LOOK    only http and https: look at the first bytes without taking them (arrival.py)
    DIAL    the target; at its failure the next one (dial.py)
    SPLICE  both directions, each until its end; then close
    CLOSE   only after a reset: the other side has not taken all of what it was sent before

The envelope was asked before there is a Session (listener.py). Every session ends in `cut`, with exactly one
cause. What it waits for is computed from its state in `splice.interest`, never toggled.
"""

import socket
import time
from typing import Final

from relay.address import Address
from relay.dataplane import first_bytes
from relay.dataplane.context import Context
from relay.dataplane.dial import Dial, introduce
from relay.dataplane.gate import Gate
from relay.dataplane.pipes import Pipe
from relay.dataplane.route import Route
from relay.dataplane.splice import Lane, Turn, interest, lanes
from relay.kernel.poller import BROKEN, PEER_FIN, READ, WRITE
from relay.kernel.sockets import AnySocket, finish_on_close, is_gone, readable_bytes, reset_on_close, unsent_bytes
from relay.ledger.layout import CLEAN_CAUSES, Flag, State
from relay.ledger.ledger import FlowRecord
from relay.steps import step

_DELIVER_MAX_S: Final = 60.0  # a reset waits so long for a slow reader of what came before it, unless `idle` says so


class Session(Dial):
    """A connection that was let in. `start` it, or let it `resume` a predecessor's; `cut` ends it from outside."""

    __slots__ = (
        "_client",
        "_client_interest",
        "_connect_s",
        "_context",
        "_deadline_s",
        "_down",
        "_hup",
        "_idle_mark",
        "_idle_since_s",
        "_mover_turn",
        "_record",
        "_recorded",
        "_reset_by",
        "_started_ns",
        "_target_interest",
        "_unsent_mark",
        "_up",
        "gate",
        "via",
    )

    def __init__(
        self, context: Context, gate: Gate, client: AnySocket, source: str, peer: Address, started_ns: int, record: int
    ) -> None:
        self._context = context
        self._mover_turn = context.mover.turn
        self.gate = gate
        self.source = source
        self.via = source if gate.declared.edges else ""  # the edge's address, of a client that came by one
        self.peer = peer
        self._client = client
        self._target: AnySocket | None = None
        self._up: Lane | None = None
        self._down: Lane | None = None
        self._client_interest: int | None = None
        self._target_interest: int | None = None
        self._hup = 0  # 1: the client's socket reported its end, 2: the target's, 3: both
        self._reset_by = ""  # client or target, once one of them is known to be broken
        self._route = Route(gate)
        self._probe = False  # it is the edge's own: does the application take connections
        self._deadline_s = 0.0
        self._looked_bytes = 0
        self._connect_s = 0.0
        self._started_ns = started_ns
        self._record = record
        self._idle_mark = -1
        self._unsent_mark = -1  # bytes in the send buffers, when they were last looked at
        self._idle_since_s = 0.0
        self._state = State.FREE
        self._recorded = False
        context.sessions.add(self)

    def start(self) -> None:
        """Begin: read the edge's header, look at the client's first bytes, or dial at once."""
        if self.via:
            self._stand(State.HEADER, -1)
            self._await_first_bytes(State.HEADER)
        else:
            self._go_on()

    def _go_on(self) -> None:
        """The client is known."""
        if self.gate.declared.protocol == "tcp" or self._probe:
            self._dial()
        else:
            self._looked_bytes = 0
            self._stand(State.LOOK, -1)
            self._await_first_bytes(State.LOOK)

    def _stand(self, state: int, target_fd: int) -> None:
        """Put into the ledger where the flow stands: with its first target at once, if that answers at once."""
        ledger = self._context.ledger
        if self._recorded:
            if state == State.SPLICE:
                ledger.aim(self._record, self._route.slot)
            return ledger.advance(self._record, state, target_fd)
        self._recorded = True
        slot, client_fd = self.gate.declared.slot, self._client.fileno()
        target_slot = self._route.slot if state == State.SPLICE else -1
        ledger.begin(self._record, state, slot, client_fd, target_fd, self._started_ns, str(self.peer), target_slot)
        self.gate.accepted()
        return None

    @step
    def resume(self, record: FlowRecord, target: AnySocket | None, up: Pipe | None, down: Pipe | None) -> None:
        """Go on where a dead worker stood: its record, the flow's target, and pipes with bytes in them.

        What can be asked of the sockets again is not in the record: that a stream has ended is read again.
        """
        self._state, self._recorded = record.state, True
        self._probe = bool(record.flags & Flag.PROBE)
        if target is None:
            # LOOK took nothing from the socket, and in DIAL nothing has been sent on: both begin anew.
            first_bytes.forget(self._client)
            # Its FIN may count as one; a header has more, and is taken at once.
            if record.state == State.HEADER and first_bytes.taken_bytes(self._client) > 1:
                self._identified(Address.parse(record.peer))
            elif record.state in (State.HEADER, State.LOOK):
                self._await_first_bytes(record.state)
            else:
                self._dial()
            return
        self._state, self._target = State.SPLICE, target
        self._route.resume(record.target_slot, self._client)
        self._up, self._down = lanes(self._client, target, self.gate.counts_at, self._record)
        self._up.total_bytes, self._down.total_bytes = record.received_bytes, record.sent_bytes
        for lane, pipe in ((self._up, up), (self._down, down)):
            if pipe is not None:
                lane.adopt(pipe, readable_bytes(pipe.r))
        # An error is told once, and the dead worker may have been the one that was told. A connection that is over
        # without having been sent its end was reset.
        if record.flags & Flag.CLIENT_RESET or (is_gone(self._client) and not record.flags & Flag.DOWN_FIN):
            self._broken(self._down, 1)
        if record.flags & Flag.TARGET_RESET or (is_gone(target) and not record.flags & Flag.UP_FIN):
            self._broken(self._up, 2)
        self._settle()

    def _await_first_bytes(self, state: int) -> None:
        self._state = state
        self._await(self.gate.declared.first_byte_s)
        self._watch_client(READ | PEER_FIN)

    # --- DIAL ---------------------------------------------------------------------------------------------------

    def _connected(self) -> None:
        """The target answered: tell it who the client is, if it wants to know, and let bytes flow."""
        context, gate, target = self._context, self.gate, self._target
        assert target is not None  # DIAL has one
        self._connect_s = (time.monotonic_ns() - self._route.dialled_ns) / 1e9
        if gate.declared.send_proxy and not introduce(target, self._client, gate.declared.send_proxy, self.peer):
            return self._dial_failed("connect_failed")
        self._route.reached(self._connect_s)
        context.ledger.observe_connect(gate.counts_at, self._connect_s)
        context.waiting.discard(self)
        self._state = State.SPLICE
        self._stand(State.SPLICE, target.fileno())
        self._up, self._down = lanes(self._client, target, gate.counts_at, self._record)
        poller = context.poller
        poller.want(self._client.fileno(), self._client_interest, READ, self._on_client)
        poller.want(target.fileno(), self._target_interest, READ, self._on_target)
        self._client_interest = self._target_interest = READ
        return None

    # --- SPLICE -------------------------------------------------------------------------------------------------

    def _on_client(self, events: int) -> None:
        if self._state != State.SPLICE:
            self._read_header(events) if self._state == State.HEADER else self._look(events)
        elif events != READ:
            self._ready(self._up, self._down, events, 1)  # type: ignore[arg-type]
        # Every message passes here: bytes came, and usually all of them went on.
        elif turn := self._mover_turn(self._up):  # type: ignore[arg-type]
            if turn is not Turn.CHANGED:
                self._note(self._up, turn)  # type: ignore[arg-type]
            self._settle()

    def _on_target(self, events: int) -> None:
        if self._state != State.SPLICE:
            failed = self._target.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # type: ignore[union-attr]
            self._dial_failed("connect_failed") if failed else self._connected()
        elif events != READ:
            self._ready(self._down, self._up, events, 2)  # type: ignore[arg-type]
        elif turn := self._mover_turn(self._down):  # type: ignore[arg-type]
            if turn is not Turn.CHANGED:
                self._note(self._down, turn)  # type: ignore[arg-type]
            self._settle()

    def _ready(self, out: Lane, back: Lane, events: int, end: int) -> None:
        """One socket has more to say than "bytes came". `out` reads from it, `back` writes to it; `end` is its bit."""
        if events & WRITE and back.held_bytes:
            self._note(back, self._mover_turn(back))
        if events & ~WRITE:
            if not out.eof and not out.held_bytes and self not in self._context.starved:
                self._note(out, self._mover_turn(out))
            elif events & BROKEN:
                # Nothing to be read now, so remember it: epoll would report it again and again.
                self._hup |= end
        self._settle()

    def _note(self, lane: Lane, turn: Turn) -> None:
        """Take in what a lane's turn came to."""
        if turn is Turn.SOURCE_BROKEN:
            self._broken(*((self._down, 1) if lane is self._up else (self._up, 2)))  # type: ignore[arg-type]
        elif turn is Turn.SINK_BROKEN:
            self._broken(lane, 2 if lane is self._up else 1)
        elif turn is Turn.STARVED:
            self._context.starved.add(self)

    def _broken(self, into: Lane, end: int) -> None:
        """One end was reset. Nothing reaches it any more; what it had sent before is still delivered."""
        self._reset_by = self._reset_by or ("client" if end == 1 else "target")
        self._context.ledger.flag(self._record, Flag.CLIENT_RESET if end == 1 else Flag.TARGET_RESET)
        self._abandon(into)

    def _gone(self, into: Lane, end: int) -> None:
        """One end finished sending and now takes nothing either, before it was told that all was sent."""
        if end == 2 and self._route.target is not None and self._route.target.path:
            # close(2) on a Unix socket shows like this where TCP shows nothing until the next write. It is an
            # orderly end: a reset would take from the client what the target sent last.
            self._abandon(into)
        else:
            self._broken(into, end)

    def _abandon(self, lane: Lane) -> None:
        self._context.mover.abandon(lane)
        self._context.waiting.add(self)  # for its ticks, which read away what still comes

    def _settle(self) -> None:
        """Pass ends of streams on; close when both directions are through; else wait for what is needed now."""
        up, down = self._up, self._down
        assert up is not None and down is not None  # SPLICE has both
        if self._hup & 1 and up.eof and not down.fin:
            self._gone(down, 1)
        if self._hup & 2 and down.eof and not up.fin:
            self._gone(up, 2)
        up_done, down_done = up.eof and not up.held_bytes, down.eof and not down.held_bytes
        if up_done and down_done:
            if self._reset_by:
                return self._deliver_then_reset()
            # Closing sends the FIN that is still owed. Abandoned without a reset: the target was gone first, see `_gone`.
            return self.cut("target_fin" if down.fin or up.abandoned else "client_fin")
        if up_done and not up.fin:
            self._context.ledger.flag(self._record, Flag.UP_FIN)  # before it is sent: see `resume`
            up.finish()
        if down_done and not down.fin:
            self._context.ledger.flag(self._record, Flag.DOWN_FIN)
            down.finish()
        return self._watch()

    def _watch(self) -> None:
        up, down = self._up, self._down
        assert up is not None and down is not None  # SPLICE has both
        starved = self in self._context.starved
        if (wanted := interest(up, down, self._hup & 1, starved)) != self._client_interest:
            self._watch_client(wanted)
        if (wanted := interest(down, up, self._hup & 2, starved)) != self._target_interest:
            self._watch_target(wanted)

    def _deliver_then_reset(self) -> None:
        """One end is broken. Reset the other, but not before its peer has taken what stands in its send buffer."""
        other = self._target if self._reset_by == "client" else self._client
        assert other is not None  # SPLICE has both
        unsent = unsent_bytes(other)
        if not unsent or is_gone(other):
            return self.cut(f"{self._reset_by}_reset")
        if self._state != State.CLOSE or unsent != self._unsent_mark:
            self._state, self._unsent_mark = State.CLOSE, unsent
            self._stand(State.CLOSE, self._target.fileno() if self._target else -1)
            self._watch_client(None)
            self._watch_target(None)
            self._await(self.gate.declared.idle_s or _DELIVER_MAX_S)
        return None

    def read_on(self) -> None:
        """Pipes may be had again."""
        if self._state == State.SPLICE:
            self._watch()

    # --- the end ------------------------------------------------------------------------------------------------

    def tick(self, now_s: float) -> None:
        """In HEADER, LOOK, DIAL and CLOSE: is the deadline past; is what we wait for, and epoll cannot tell, there."""
        for lane in (self._up, self._down):
            if lane is not None and lane.abandoned:
                self._context.mover.discard(lane)
        if self._state == State.SPLICE:  # its deadline is `idle`, see `sweep`
            return
        if self._state == State.CLOSE and now_s < self._deadline_s:
            self._deliver_then_reset()
        elif now_s >= self._deadline_s:
            if self._state in (State.HEADER, State.LOOK):
                self.cut("first_byte_timeout")
            elif self._state == State.CLOSE:
                self.cut(f"{self._reset_by}_reset")
            elif self._target is None:
                self.cut("error")  # the target was never asked
            else:
                self._dial_failed("connect_timeout")
        elif self._state == State.DIAL and self._target_interest is None:
            self._drop_target()
            self._connect(self._route.target, again=True)  # type: ignore[arg-type]  # DIAL has begun with one

    def sweep(self, now_s: float) -> None:
        """About once a second: bytes so far into the ledger; end a flow that has moved none for too long."""
        up, down = self._up, self._down
        if up is None or down is None or self._state != State.SPLICE:
            return
        moved = up.total_bytes + down.total_bytes
        idle_s = self.gate.declared.idle_s
        if moved != self._idle_mark:
            self._idle_mark, self._idle_since_s, self._unsent_mark = moved, now_s, -1
            self._context.ledger.moved(self._record, up.total_bytes, down.total_bytes)
        elif idle_s is not None and now_s - self._idle_since_s >= idle_s / 2:
            self._consider_idle(now_s, idle_s)

    def _consider_idle(self, now_s: float, idle_s: float) -> None:
        """Nothing was moved for a while. Bytes that leave a send buffer are no idleness: a slow reader takes them."""
        assert self._target is not None  # SPLICE has one
        unsent = unsent_bytes(self._client) + unsent_bytes(self._target)
        if unsent != self._unsent_mark and self._unsent_mark >= 0:
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s >= idle_s:
            self.cut("idle")
        self._unsent_mark = unsent

    def cut(self, cause: str) -> None:
        """The only way out, taken once. But for an end by both FINs both sides get a reset: a FIN says that all was sent."""
        if self._state == State.END:
            return
        self._state = State.END
        context, gate, up, down = self._context, self.gate, self._up, self._down
        clean = cause in CLEAN_CAUSES
        if not self._recorded:
            self._stand(State.DIAL, -1)
        context.ledger.ending(self._record, cause)  # first: from here on nobody takes the flow over
        context.ended.append(self._record)
        if clean:
            finish_on_close(self._client.fileno())
        elif up is not None and down is not None:
            context.mover.drop(up)
            context.mover.drop(down)
        self._drop_target(clean=clean)
        context.poller.close(self._client)
        context.sessions.discard(self)
        context.waiting.discard(self)
        context.starved.discard(self)
        duration_s = (time.monotonic_ns() - self._started_ns) / 1e9
        context.ledger.observe_duration(gate.counts_at, duration_s)
        gate.release(self.source, cause)
        if down is not None:
            self._route.leave(cause, down.total_bytes)
        if context.log.wants("debug" if self._probe else "info"):
            times_s = duration_s, self._connect_s
            context.log_end(gate.declared.name, self.peer, self._route.target, (up, down), times_s, cause)

    # --- small parts --------------------------------------------------------------------------------------------

    def _await(self, timeout_s: float) -> None:
        self._deadline_s = time.monotonic() + timeout_s
        self._context.waiting.add(self)

    def _drop_target(self, *, clean: bool = False) -> None:
        target, self._target, self._target_interest = self._target, None, None
        if target is not None:
            if not clean:
                reset_on_close(target)
            self._context.poller.close(target)

    def _watch_client(self, interest: int | None) -> None:
        if interest != self._client_interest:
            self._context.poller.want(self._client.fileno(), self._client_interest, interest, self._on_client)
            self._client_interest = interest

    def _watch_target(self, interest: int | None) -> None:
        if interest != self._target_interest and self._target is not None:
            self._context.poller.want(self._target.fileno(), self._target_interest, interest, self._on_target)
            self._target_interest = interest
