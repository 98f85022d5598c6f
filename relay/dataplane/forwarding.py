"""Bytes flow: both directions, each until its end, with what a reset, a slow reader, or no pipe does to them.

What the two sockets are watched for is computed from what their lanes hold, in `splice.interest`, and never toggled.
"""

from socket import AF_UNIX
from typing import Final

from relay import calls
from relay.dataplane import splice, turns
from relay.dataplane.flow import Flow, Stage
from relay.dataplane.peers import Peers
from relay.dataplane.pipes import Pipe
from relay.dataplane.splice import Lane
from relay.dataplane.telling import tell_taken
from relay.envelope import asking
from relay.kernel.bare_socket import BareSocket
from relay.kernel.byte_counts import sent_bytes
from relay.kernel.poller import UNWATCHED
from relay.kernel.sockets import UNREACHED, hear_no_more, is_gone, keep_urgent, reset_on_close
from relay.ledger import layout
from relay.ledger.layout import CLEAN_CAUSES
from relay.ledger.record import FlowRecord

_TAKEN: Final = asking.TAKEN
LIFETIME_SPREAD: Final = 0.1  # of it, either way
_MIX: Final = 0x9E3779B97F4A7C15  # 2^64 divided by the golden ratio, whose multiples are spread evenly (Knuth, 6.4)
_WORD: Final = (1 << 64) - 1
_DELIVER_MAX_S: Final = 60.0  # a reset waits so long for a slow reader of what came before it, unless `idle` says so


class Forwarding(Stage):
    """SPLICE: bytes move. CLOSE: one side was reset, and the other has not yet taken all that it was sent before."""

    __slots__ = (
        "_broken_by", "_cause", "_deadline_s", "_down", "_idle_mark", "_idle_since_s", "_mover", "_peers", "_target",
        "_target_interest", "_unsent_mark", "_up",
    )  # fmt: skip

    def __init__(self, flow: Flow, target: BareSocket, watched: int = UNWATCHED) -> None:
        """`watched`: what the poller watches the target for so far."""
        self.flow = flow
        self._mover = self.flow.context.mover
        self._target = target
        self._target_interest = watched
        self._up, self._down = splice.lanes(self.flow.client, target, self.flow.gate.counts_at, self.flow.record)
        self._broken_by = ""  # client or target, once one of them is known to be broken
        self._cause = ""  # of the end that this comes to
        self._deadline_s = 0.0  # of CLOSE; 0: bytes still move
        self._idle_mark = -1
        self._unsent_mark = -1  # bytes in the send buffers, when they were last looked at
        self._idle_since_s = 0.0
        self._peers: Peers | None = None  # most connections are over before anybody asks whether these are alive

    def start(self, copied_bytes: int = 0) -> None:
        """The target has answered. So many bytes of the client's went to it already."""
        flow = self.flow
        flow.context.waiting.discard(flow)
        flow.stand(self, layout.State.SPLICE, self._target.fd, flow.route.slot())
        if flow.asks == _TAKEN and not tell_taken(flow):
            return flow.cut("client_reset")
        if copied_bytes:
            self._up.total_bytes = copied_bytes
            flow.context.ledger.words[self._up.bytes_at] += copied_bytes
        flow.watch_client(calls.READ, self)
        self._watch_target(calls.READ)
        return flow.context.poller.soon(flow.client.fd, self)  # the client spoke first, as a rule

    def resume(self, record: FlowRecord, up: Pipe | None, down: Pipe | None) -> None:
        """Go on where a dead worker stood, with pipes that have bytes in them.

        What can be asked of the sockets again is not in the record: that a stream has ended is read again.
        """
        flow = self.flow
        flow.stand(self, record.state, record.target_fd, record.target_slot)
        flow.route.resume(record.target_slot, flow.client, self._target)
        if flow.asks == _TAKEN and not sent_bytes(flow.client, dialled=False) and not tell_taken(flow):
            return flow.cut("client_reset")
        self._up.total_bytes, self._down.total_bytes = record.received_bytes, record.sent_bytes
        for lane, pipe in ((self._up, up), (self._down, down)):
            keep_urgent(lane.source)  # a program of before did not
            lane.eof = record.state == layout.State.CLOSE  # before that all was read, and handed to the sockets
            if pipe is not None:
                lane.adopt(pipe, calls.readable_bytes(pipe.r))
        # An error is told once, and the dead worker may have been the one that was told. A connection that is over
        # without having been sent its end was reset.
        for into, reset, fin in (
            (self._down, layout.Flag.CLIENT_RESET, layout.Flag.DOWN_FIN),
            (self._up, layout.Flag.TARGET_RESET, layout.Flag.UP_FIN),
        ):
            if record.flags & reset:
                self._broken(into, dead=bool(record.flags & layout.Flag.PEER_DEAD))
            elif is_gone(into.sink) and not record.flags & fin:
                self._broken(into, dead=calls.pending_error(into.sink_fd) in UNREACHED)
        return self._settle()

    def ready(self, fd: int, events: int) -> None:
        """A socket is ready. Every message passes here: bytes came, and usually all of them went on."""
        up, down = self._up, self._down
        out, back = up, down
        if fd != up.source_fd:
            out, back = down, up
        if events != calls.READ:
            self._more(out, back, events)
        elif turn := self._mover.turn(out):
            if turn != turns.CHANGED:
                self._note(out, turn)
            self._settle()

    def _more(self, out: Lane, back: Lane, events: int) -> None:
        """A socket has more to say than "bytes came". `out` reads from it, `back` writes to it."""
        if events & calls.WRITE and back.held_bytes:
            self._note(back, self._mover.turn(back))
        if events & ~calls.WRITE:
            if not out.eof and not out.held_bytes and self.flow not in self.flow.context.starved:
                self._note(out, self._mover.turn(out))
            elif events & calls.BROKEN:
                # Nothing to be read now, so remember it: epoll would report it again and again.
                out.hup = True
        self._settle()

    def _note(self, lane: Lane, turn: int) -> None:
        """Take in what a lane's turn came to."""
        if turn == turns.SOURCE_BROKEN:
            self._broken(self._down if lane is self._up else self._up, dead=lane.error in UNREACHED)
        elif turn == turns.SINK_BROKEN:
            self._broken(lane, dead=lane.error in UNREACHED)
        elif turn == turns.STARVED:
            self.flow.context.starved.add(self.flow)

    def _broken(self, into: Lane, *, dead: bool) -> None:
        """The sink of this lane was reset, or its peer is dead.

        Nothing reaches it any more; what it had sent before is still delivered.
        """
        by, flags = ("client", layout.Flag.CLIENT_RESET) if into is self._down else ("target", layout.Flag.TARGET_RESET)
        if not self._broken_by:
            self._broken_by, self._cause = by, "peer_dead" if dead else f"{by}_reset"
            flags |= layout.Flag.PEER_DEAD if dead else 0
        self.flow.context.ledger.flag(self.flow.record, flags)
        self._abandon(into)
        if dead:
            hear_no_more(into.sink)  # the kernel may not have given it up, and then no end of what it sent would come

    def _gone(self, into: Lane) -> None:
        """The sink finished sending and now takes nothing either, before it was told that all was sent."""
        if into is self._up and self._target.family == AF_UNIX:
            # close(2) on a Unix socket shows like this where TCP shows nothing until the next write. It is an
            # orderly end: a reset would take from the client what the target sent last.
            self._abandon(into)
        else:
            self._broken(into, dead=calls.pending_error(into.sink_fd) in UNREACHED)

    def _abandon(self, lane: Lane) -> None:
        self.flow.context.mover.abandon(lane)
        self.flow.context.waiting.add(self.flow)  # for its ticks, which read away what still comes

    def _settle(self) -> None:
        """Pass ends of streams on; close when both directions are through; else wait for what is needed now."""
        flow, up, down = self.flow, self._up, self._down
        if up.hup and up.eof and not down.fin:
            self._gone(down)
        if down.hup and down.eof and not up.fin:
            self._gone(up)
        up_done, down_done = up.eof and not up.held_bytes, down.eof and not down.held_bytes
        if up_done and down_done:
            if self._broken_by:
                return self._deliver_then_reset()
            # Closing sends the FIN that is still owed. Abandoned without a reset: the target was gone first, see `_gone`.
            return flow.cut("target_fin" if down.fin or up.abandoned else "client_fin")
        if up_done and not up.fin:
            flow.context.ledger.flag(flow.record, layout.Flag.UP_FIN)  # before it is sent: see `resume`
            up.finish()
        if down_done and not down.fin:
            flow.context.ledger.flag(flow.record, layout.Flag.DOWN_FIN)
            down.finish()
        return self.watch()

    def watch(self) -> None:
        """Watch both sockets for what is needed now."""
        flow, up, down = self.flow, self._up, self._down
        starved = flow in flow.context.starved
        if (wanted := splice.interest(up, down, starved)) != flow.client_interest:
            flow.watch_client(wanted, self)
        if (wanted := splice.interest(down, up, starved)) != self._target_interest:
            self._watch_target(wanted)

    def _watch_target(self, interest: int) -> None:
        self.flow.context.poller.want(self._target.fd, self._target_interest, interest, self)
        self._target_interest = interest

    def _deliver_then_reset(self) -> None:
        """One end is broken. Reset the other, but not before its peer has taken what stands in its send buffer."""
        flow = self.flow
        other = self._target if self._broken_by == "client" else flow.client
        unsent = calls.unsent_bytes(other.fileno())
        if not unsent or is_gone(other):
            return flow.cut(self._cause)
        if not self._deadline_s:
            self._tell_moved()  # from here on nothing moves
            flow.stand(self, layout.State.CLOSE, self._target.fd)
            flow.context.starved.discard(flow)
            flow.watch_client(UNWATCHED, self)
            self._watch_target(UNWATCHED)
        elif unsent == self._unsent_mark:
            return None
        self._unsent_mark = unsent
        self._deadline_s = flow.tick_until(flow.gate.declared.idle_s or _DELIVER_MAX_S)
        return None

    def tick(self, now_s: float) -> None:
        """Once an end is broken: read away what is sent to it; in CLOSE, see whether all is delivered."""
        for lane in (self._up, self._down):
            if lane.abandoned:
                self.flow.context.mover.discard(lane)
        if not self._deadline_s:
            return
        if now_s >= self._deadline_s or self._dead(now_s) is not None:
            self.flow.cut(self._cause)
        else:
            self._deliver_then_reset()

    def sweep(self, now_s: float) -> None:
        """Bytes so far into the ledger; look whether both peers are alive; end a flow that has moved none for too long."""
        if self._deadline_s:
            return
        if (into := self._dead(now_s)) is not None:
            self._broken(into, dead=True)
            return self._settle()
        flow, up, down = self.flow, self._up, self._down
        if flow.gate.cuts_down and flow.route.is_down():
            return flow.cut("target_down")
        moved, declared = up.total_bytes + down.total_bytes, flow.gate.declared
        if declared.lifetime_s is not None and self._is_over(now_s, declared.lifetime_s, moved):
            return flow.cut("lifetime")
        idle_s = declared.idle_s
        if moved != self._idle_mark:
            self._idle_mark, self._idle_since_s, self._unsent_mark = moved, now_s, -1
            self._tell_moved()
        elif idle_s is not None and now_s - self._idle_since_s >= idle_s / 2:
            self._consider_idle(now_s, idle_s)
        return None

    def _dead(self, now_s: float) -> Lane | None:
        """The lane into a peer that is dead."""
        if self._peers is None:
            self._peers = Peers(self._up, self._down)
        return self._peers.dead(now_s, self.flow.gate.declared, self.flow.context.now_s)

    def _tell_moved(self) -> None:
        self.flow.context.ledger.moved(self.flow.record, self._up.total_bytes, self._down.total_bytes)

    def _is_over(self, now_s: float, lifetime_s: float, moved: int) -> bool:
        """Whether it has lasted long enough: from its own moment on as soon as nothing moves, else at the latest.

        That moment depends on its beginning alone: a new worker has the same. Those that began together do not end together.
        """
        lasted_s = now_s - self.flow.started_ns / 1e9
        if lasted_s < lifetime_s * (1 - LIFETIME_SPREAD):
            return False
        drawn = (self.flow.started_ns * _MIX & _WORD) / _WORD
        own_s = lifetime_s * (
            1 - LIFETIME_SPREAD + 1.5 * LIFETIME_SPREAD * drawn
        )  # the last quarter is for a quiet moment
        return lasted_s >= lifetime_s * (1 + LIFETIME_SPREAD) or (lasted_s >= own_s and moved == self._idle_mark)

    def _consider_idle(self, now_s: float, idle_s: float) -> None:
        """Nothing was moved for a while. Bytes that leave a send buffer are no idleness: a slow reader takes them."""
        unsent = calls.unsent_bytes(self.flow.client.fd) + calls.unsent_bytes(self._target.fd)
        if unsent != self._unsent_mark and self._unsent_mark >= 0:
            self._idle_since_s = now_s
        elif now_s - self._idle_since_s >= idle_s:
            self.flow.cut("idle")
        self._unsent_mark = unsent

    def leave(self, cause: str) -> tuple[int, int]:
        """Give the pipes back, close the target, and tell its pool."""
        flow, up, down = self.flow, self._up, self._down
        if cause not in CLEAN_CAUSES:
            flow.context.mover.drop(up)
            flow.context.mover.drop(down)
            reset_on_close(self._target)
        flow.context.poller.close(self._target)
        flow.route.leave(cause, down.total_bytes)
        return up.total_bytes, down.total_bytes
