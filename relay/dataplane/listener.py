"""The accept loop: take connections off the backlog, ask the gate, begin a flow or refuse.

A refused connection is closed with a reset, and nothing was dialled for it. Running out of descriptors or memory
pauses accepting for a moment: clients wait in the backlog, nobody is accepted and then dropped, nothing spins, and the
listening socket stays. Where the kernel refuses one socket's connections, that one alone rests, until the next tick.

A worker that has its share of all connections (share.py) stands back: it still hears of every client, once, but leaves
him to the others, and takes him when after a tick he still waits. Nobody can be left to a worker that does not know of
him, for whoever stops accepting wakes all who watch.
"""

import contextlib
import errno
import os
import socket
from typing import Final

from relay import calls
from relay.dataplane import greeting
from relay.dataplane.context import Context
from relay.dataplane.flow import Flow
from relay.dataplane.gate import Gate
from relay.dataplane.share import NOBODY
from relay.envelope.bpf import newcomers_filter
from relay.errors import os_reason
from relay.kernel.accepting import SAID_S, is_over, refusal
from relay.kernel.bare_socket import BareSocket
from relay.kernel.listening import BACKLOG
from relay.kernel.poller import EDGE, EXCLUSIVE, Handler
from relay.kernel.sockets import CAPACITY, attach_filter, detach_filter, dropped_packets, keep_urgent, wake_watchers
from relay.ledger import layout
from relay.ledger.layout import Word

_NO_NEWCOMERS: Final = newcomers_filter()
_BURST: Final = 64  # accepted in one go; established flows wait no longer than that takes
# What the socket is watched for. Of several workers that accept, the kernel wakes one that waits in its poller and not all
# (epoll_ctl(2), EPOLLEXCLUSIVE); who stands back takes nobody's wake-up away.
_ACCEPT: Final = calls.READ | EXCLUSIVE
_STAND_BACK: Final = calls.READ | EDGE
_FAR_AHEAD: Final = 64  # connections: nobody makes up for so many within a tick, so until then there is nothing to hear


class Listener(Handler):
    """One listening socket and the gate behind it."""

    def __init__(self, context: Context, gate: Gate, sock: socket.socket) -> None:
        self.gate = gate
        self.sock = sock
        keep_urgent(sock)
        self._context = context
        self._watched = 0  # for what the poller watches the socket; 0: not at all
        self._filter: str | None = None  # on the socket; None: whatever a predecessor left
        self._dropped_seen = 0
        self._turned_away = False
        self._refused_said_s = -SAID_S

    def serve(self, gate: Gate) -> None:
        """Ask this gate from now on; and have the kernel drop whom its envelope denies, where it is so declared.

        Every worker puts the same filter on the socket that all of them have. Whoever comes through because a filter is
        late, or the kernel refused it, is decided on as ever.
        """
        self.gate = gate
        wanted = gate.declared.drop_filter
        if wanted == self._filter:
            return
        try:
            if wanted:
                self._replace_filter(bytes.fromhex(wanted))
            else:
                detach_filter(self.sock.fileno())
            self._filter = wanted
        except OSError as error:  # which a socket like this one had not: see kernel/listening.py, `filter_refusal`
            self._filter = ""
            message = "the kernel refuses the filter: who is denied gets a reset"
            name = gate.declared.name
            self._context.log.event("error", "no filter", endpoint=name, message=message, reason=os_reason(error))

    def _replace_filter(self, program: bytes) -> None:
        if not self._filter:
            self._dropped_seen = dropped_packets(self.sock)
        try:
            attach_filter(self.sock, program)
        except OSError:
            # Old and new one may be too much memory together; and an old one that stayed would drop who is now permitted.
            detach_filter(self.sock.fileno())
            attach_filter(self.sock, program)

    def count_dropped(self) -> None:
        """Count what the kernel has dropped here since the last time. One worker does: the socket is everybody's."""
        if self._filter:
            dropped = dropped_packets(self.sock)
            growth, self._dropped_seen = (dropped - self._dropped_seen) % 2**32, dropped
            if growth:
                reason = self.gate.declared.denied_reason
                self.gate.denied(reason, growth)
                self._context.denials.note_unseen(self.gate.declared.name, reason, growth)

    def resume(self) -> None:
        """Accept from now on, until this worker has its share."""
        self._context.left.discard(self.resume)
        if not self._watched:
            self._watch(_ACCEPT)

    def pause(self) -> None:
        """Accept no more for now; clients wait in the backlog, or for another worker."""
        self._context.left.discard(self.resume)
        self._watch(0)

    def _watch(self, interest: int) -> None:
        if interest != _STAND_BACK:
            self._context.left.discard(self.take_left)
        before, self._watched = self._watched, interest
        if before == interest:
            return
        poller, fd = self._context.poller, self.sock.fileno()
        poller.forget(fd)
        if interest:  # anew, for what is exclusive cannot be modified (epoll_ctl(2))
            poller.watch(fd, interest, self)
        if before == _ACCEPT:  # last: of who came before that, the others may know nothing
            wake_watchers(self.sock)

    def turn_away(self) -> None:
        """Let nobody new come into the backlog: closing resets those who are there, and who think that they are connected.

        A newcomer's SYN is not answered, so he sends it again after a second (tcp(7)): to a port that is closed by then, or
        is another one's. Those whom the kernel has answered already are on their way: accept them until `finish`.
        """
        self._turned_away = True
        with contextlib.suppress(OSError):  # a kernel that refuses filters: then who comes between two calls is reset
            attach_filter(self.sock, _NO_NEWCOMERS)

    def finish(self) -> None:
        """Accept those who wait, and nobody else."""
        self.pause()
        self._accept_all()

    def take_left(self) -> None:
        """Accept those who were left to the others a tick ago and still wait: the others hang, or are busy."""
        self._watch(_STAND_BACK)
        self._accept_all()
        self._context.left.discard(self.take_left)

    def ready(self, fd: int, events: int) -> None:
        """Somebody has come."""
        if self._watched == _ACCEPT:
            self._accept_some()
        else:
            self._hear()

    def _accept_some(self) -> None:
        context = self._context
        most = context.share.most()
        if len(context.flows) < most:
            self._accept(most)
            context.share.tell(len(context.flows))
        else:
            self._watch(_STAND_BACK)

    def _hear(self) -> None:
        """Somebody came while this worker stood back."""
        ahead = len(self._context.flows) - self._context.share.most()
        if ahead < 0:
            self._watch(_ACCEPT)
            self._accept_some()
            return
        if ahead >= _FAR_AHEAD:
            self._watch(0)
        self._context.left.add(self.take_left)

    def _accept_all(self) -> None:
        for _ in range(0, BACKLOG, _BURST):
            if not self._accept(NOBODY):
                break
        self._context.share.tell(len(self._context.flows))

    def _accept(self, most: int) -> bool:
        """Accept a burst, until there are `most` flows; whether there may be more to accept."""
        context, flows = self._context, self._context.flows
        now_ns = context.now_ns()
        over, listener_fd = 0, self.sock.fileno()  # `over`: in a row
        for _ in range(_BURST):
            if len(flows) >= most:
                return True
            if not context.free_records and not context.has_room():
                context.exhausted("room for connections")
                return False
            fd = calls.accept(listener_fd)
            if fd >= 0:
                over = 0
                self.take(fd, calls.accepted_host(), calls.accepted_peer(), now_ns)
            elif fd == calls.AGAIN:
                return False
            else:
                over += 1
                if not self._goes_on(OSError(-fd, os.strerror(-fd)), over):
                    return False
        return True

    def _goes_on(self, error: OSError, over: int) -> bool:
        """accept(2) has failed, so often in a row. Whether to take the next one: that client's connection broke."""
        if error.errno in CAPACITY:
            self._context.exhausted(errno.errorcode[error.errno])
            return False
        if not is_over(error, over):
            self._rest(error)
            return False
        return True

    def _rest(self, error: OSError) -> None:
        """The kernel refuses, and would again at once: ask it again at the next tick. Other ports are not to blame."""
        context = self._context
        context.ledger[Word.ACCEPT_PAUSES] += 1
        now_s = context.now_s()
        if now_s - self._refused_said_s >= SAID_S:
            self._refused_said_s = now_s
            name, active = self.gate.declared.name, len(context.flows)
            context.log.event("warning", "accept paused", endpoint=name, message=refusal(error), active=active)
        if self._watched:
            self._watch(0)
            context.left.add(self.resume)

    def take(self, fd: int, source: str, peer: str, now_ns: int) -> None:
        """A connection came off the backlog, from this host (`peer`: with its port), and does not block.

        Ask the gate, and begin a flow or refuse. Raises what is a bug.
        """
        context, gate = self._context, self.gate
        if gate.audits and not gate.has_edges:
            context.audit(gate, source, peer)
        reason = gate.admit(source, now_ns / 1e9)
        if reason is not None:
            calls.close(fd)
            context.deny(gate, peer, reason)
            return
        if gate.drops or self._turned_away:
            # The socket has inherited the listener's filter. It would be asked about every packet of a connection that was
            # let in, and hold the memory of a program that is long replaced.
            detach_filter(fd)
        record, via = context.free_records.pop(), source if gate.is_brought else ""
        flow = Flow(context, gate, BareSocket(fd), source, peer, now_ns, record, layout.State.FREE, via)
        try:
            greeting.begin(flow)
        except Exception:  # a bug, which the poller tells; nothing would ever end this flow
            flow.cut("error")
            raise
