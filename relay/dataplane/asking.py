"""A connection that an instance's relay is asked to take: its client's bytes are copied there, and given up once it has.

The bytes stay in the client's socket (MSG_PEEK) until the relay says that its target has taken the connection. Before that,
a refusal, a reset or a silence leads to another instance, and to the same bytes. After that nothing goes to another one.

How far a dead worker came, its successor asks the sockets: what was sent of the copy, and what was taken on either side.
"""

import errno
from socket import MSG_PEEK, MSG_TRUNC
from typing import Final, Protocol

from relay import calls
from relay.address import Address
from relay.dataplane.flow import Flow, Stage
from relay.dataplane.forwarding import Forwarding
from relay.envelope import asking, proxyproto
from relay.kernel.bare_socket import BareSocket
from relay.kernel.byte_counts import sent_bytes, taken_bytes
from relay.kernel.poller import UNWATCHED
from relay.kernel.sockets import hear_beyond, is_gone, no_delay
from relay.ledger.layout import State
from relay.ledger.record import FlowRecord
from relay.targets import why

# Of what the client sent: a new connection carries no more than ten segments before the first acknowledgement (RFC 6928), and
# the answer comes with it. Not less than is looked at (envelope/clienthello.py), which the instance looks at too.
COPIED_MAX_BYTES: Final = 18 * 1024
_TAKEN_TLV: Final = asking.tlv(asking.TAKEN)
_NOWHERE: Final = bytearray(COPIED_MAX_BYTES)


class Dial(Protocol):
    """The stage that came by the target (dialling.py): it closes that one, and goes on to the next."""

    def failed(self, cause: str, reason: int) -> bool:
        """Be done with the target. Whether to go on with the next: if there is none, the flow is over."""

    def start(self) -> None:
        """Dial the one whose turn it is."""

    def leave(self, cause: str) -> tuple[int, int]:
        """The flow is over: close the target."""


class Asking(Stage):
    """ASK: wait for the relay's answer. TAKEN: take it, and what was copied, out of the sockets."""

    __slots__ = ("_copied_bytes", "_deadline_s", "_dial", "_header", "_target", "_watched")

    def __init__(self, flow: Flow, dial: Dial, target: BareSocket, watched: int) -> None:
        """`watched`: what the poller watches the target for so far."""
        self.flow = flow
        self._dial = dial
        self._target = target
        self._watched = watched
        self._copied_bytes = 0
        self._deadline_s = 0.0
        self._header = b""  # whose length says how much of what was sent is the client's

    def start(self) -> bool:
        """The instance's relay has been reached: ask it. Whether to go on with the next target instead."""
        flow = self.flow
        # Before anything is sent: from here on a successor asks the socket how much was.
        flow.stand(self, State.ASK, self._target.fileno(), flow.route.slot())
        flow.route.join()
        self._header = _header(flow, self._target)
        self._deadline_s = flow.tick_until(flow.route.patience_s())
        return self._offer()

    def resume(self, record: FlowRecord) -> None:
        """Go on where a dead worker stood."""
        flow = self.flow
        flow.stand(self, record.state, record.target_fd, record.target_slot)
        flow.route.resume(record.target_slot, flow.client, self._target)
        self._header = _header(flow, self._target)
        sent = sent_bytes(self._target, dialled=True)
        self._copied_bytes = max(0, sent - len(self._header))
        if record.state == State.TAKEN:
            return self._take_out_the_rest()
        self._deadline_s = flow.tick_until(flow.route.patience_s())
        if sent:
            self._watch()
        elif self._offer():
            self._dial.start()
        return None

    def _offer(self) -> bool:
        """Send the header, and a copy of what came so far. Whether to go on with the next target."""
        flow = self.flow
        try:
            data = flow.client.recv(COPIED_MAX_BYTES, MSG_PEEK)
        except BlockingIOError:
            data = b""
        except OSError:
            flow.cut("client_reset")
            return False
        # Before the first byte: else what the client says would wait until the header is acknowledged, for a round trip.
        no_delay(self._target)
        try:
            sent = self._target.send(self._header + data)
        except OSError as error:
            return self._failed("connect_failed", why.of_relay(why.of_error(error.errno)))
        self._copied_bytes = max(0, sent - len(self._header))  # a header fits any new socket's buffer, and goes whole
        self._watch()
        return False

    def _watch(self) -> None:
        """Hear of the answer; and of what the client sends beyond the copy, as long as that may grow."""
        self.flow.context.poller.want(self._target.fileno(), self._watched, calls.READ, self)
        self._watched = calls.READ
        self._await_more()

    def _await_more(self) -> None:
        flow = self.flow
        if self._copied_bytes >= COPIED_MAX_BYTES:
            return flow.watch_client(UNWATCHED, self)
        if self._copied_bytes:
            hear_beyond(flow.client.fd, self._copied_bytes)
        return flow.watch_client(calls.READ, self)

    def ready(self, fd: int, events: int) -> None:
        """The relay has answered, or the client has sent more; or one of them is gone."""
        if fd == self._target.fileno():
            self._on_answer()
        else:
            self._on_client(events)

    def _on_client(self, events: int) -> None:
        """More has come: copy that as well."""
        flow = self.flow
        if events & calls.BROKEN:
            return flow.cut("client_reset")
        try:
            data = flow.client.recv(COPIED_MAX_BYTES, MSG_PEEK)
        except OSError:
            return flow.cut("client_reset")
        sent = self._send(data[self._copied_bytes :])
        self._copied_bytes += sent
        if sent:
            return self._await_more()
        return flow.watch_client(UNWATCHED, self)  # its end; or it comes later, with what is not copied

    def _send(self, data: bytes) -> int:
        """How much of it the target's socket took; that one is broken, its own event tells."""
        try:
            return self._target.send(data) if data else 0
        except OSError:
            return 0

    def _on_answer(self) -> None:
        """The relay has answered, or is gone."""
        try:
            answer = self._target.recv(asking.ANSWER_MAX_BYTES, MSG_PEEK)
        except BlockingIOError:
            return
        except OSError as error:
            go_on = self._failed("connect_failed", why.of_relay(why.of_error(error.errno)))
        else:
            go_on = self._judge(answer)
        if go_on:
            self._dial.start()

    def _judge(self, answer: bytes) -> bool:
        """What comes of it. Whether to go on with the next target."""
        flow = self.flow
        if answer and flow.route.by_name and not asking.may_be_relays(answer):
            flow.route.unlearn()  # another program has that port now
            return self._failed("connect_failed", why.of_relay(why.of_error(errno.EPROTO)))
        if answer and not asking.is_refusal(answer):
            # First where it stands: from here on no byte of it goes to another target.
            flow.stand(self, State.TAKEN, self._target.fileno())
            self._take_out(answer, self._copied_bytes)
            return False
        # It was sent in one go, as the first bytes of a connection: it comes whole.
        reason = why.read(asking.number_in(answer) or b"") if answer else why.of_relay(why.CLOSED)
        if reason == why.DENIED:
            flow.reason = why.text_of(reason)
            flow.cut("denied")
            return False
        return self._failed("connect_failed", reason)

    def _failed(self, cause: str, reason: int) -> bool:
        """No target of that instance took the connection. Whether to go on with the next one."""
        self._hear_all()
        return self._dial.failed(cause, reason)

    def _hear_all(self) -> None:
        """Any byte of the client's is news again."""
        if self._copied_bytes:
            hear_beyond(self.flow.client.fd, 0)

    def _take_out(self, answer: bytes, copied_bytes: int) -> None:
        """Take the relay's answer, and what was copied, out of the sockets; then bytes flow."""
        flow = self.flow
        try:
            if answer[:1] == asking.TOOK:
                self._target.recv(len(asking.TOOK))
            elif answer:  # the application's own: this relay is not the one any more that answered the probe
                flow.route.unlearn()
        except OSError:
            return flow.cut("target_reset")
        try:
            if copied_bytes:
                self._discard(copied_bytes)
        except OSError:
            return flow.cut("client_reset")
        self._hear_all()
        flow.reached()
        return Forwarding(flow, self._target, self._watched).start(self._copied_bytes)

    def _discard(self, count: int) -> None:
        # MSG_TRUNC on a TCP socket: counted and freed, not copied (tcp(7)).
        self.flow.client.recv_into(_NOWHERE, count, MSG_TRUNC)

    def _take_out_the_rest(self) -> None:
        """A dead worker had begun to."""
        flow, target = self.flow, self._target
        if is_gone(target):  # then nobody can tell what was taken out of it
            return flow.cut("target_reset")
        if is_gone(flow.client):
            return flow.cut("client_reset")
        # As long as nothing was taken, the first byte is the answer; unless that relay gives none.
        answer = b"" if taken_bytes(target) else target.recv(1, MSG_PEEK)
        return self._take_out(answer, self._copied_bytes - taken_bytes(flow.client))

    def tick(self, now_s: float) -> None:
        """The time for an answer is up."""
        if now_s < self._deadline_s:
            return
        self._on_answer()  # it may stand there already, and then nobody else may get a byte
        flow = self.flow
        if flow.stage is self and flow.state == State.ASK:
            waited_s = (flow.context.now_ns() - flow.route.dialled_ns) / 1e9
            if self._failed("connect_timeout", why.of_relay(why.no_answer(waited_s))):
                self._dial.start()

    def leave(self, cause: str) -> tuple[int, int]:
        """Nothing has moved that counts."""
        self.flow.route.part()
        return self._dial.leave(cause)


def _header(flow: Flow, target: BareSocket) -> bytes:
    """What goes before the client's bytes: who the client is, the question, and for which endpoint where that is not told.

    Who comes by a door is for the other machine this one: nobody but an edge may speak for others.
    """
    declared, route = flow.gate.declared, flow.route
    # The peer is known already: getpeername(2) fails for a client that has left.
    is_door = declared.type == "door"
    peer, local = (Address(*target.getsockname()[:2]),) * 2 if is_door else (flow.peer, flow.local())
    tlvs = _TAKEN_TLV + asking.endpoint_tlv(declared.endpoint_there) if route.by_name else _TAKEN_TLV
    return proxyproto.build_v2(peer.packed, peer.port, local.packed, local.port, tlvs)
