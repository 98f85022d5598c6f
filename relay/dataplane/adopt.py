"""Adoption: a new worker takes over what a dead one left, from the ledger and from the kernel.

The descriptor table was the dead worker's too, so everything that it had opened is still open: the flows' sockets, the
pipes with bytes in flight, and what nobody needs any more. The ledger says which is which, and was always written before the
fact (`ending` before a close, the scratch pipe's owner before the bytes); what it cannot know, because the kill came between
accept(2) and the record, is told by the socket's own address.
"""

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import itemgetter
from socket import AF_INET6, SOCK_STREAM, SocketType
from typing import Final

from relay import calls
from relay.address import Address, join_host_port
from relay.dataplane.context import Context
from relay.dataplane.dialling import Dialling
from relay.dataplane.flow import Flow
from relay.dataplane.forwarding import Forwarding
from relay.dataplane.gate import Gate
from relay.dataplane.greeting import Greeting
from relay.dataplane.line import Line
from relay.dataplane.listener import Listener
from relay.dataplane.pipes import Pipe, PipePool
from relay.envelope import asking
from relay.kernel.bare_socket import BareSocket
from relay.kernel.sockets import connected_addresses, is_gone, not_blocking, readable_now, reset_on_close
from relay.ledger.layout import CAUSES, CLEAN_CAUSES, Count, Flag, State, Word
from relay.ledger.ledger import NO_PIPE, owner_of
from relay.ledger.record import FlowRecord

_MOVING: Final = (State.SPLICE, State.CLOSE)  # it has a target, which has answered
_JOINED: Final = (*_MOVING, State.ASK, State.TAKEN)  # or has been asked
_ASKED: Final = {Flag.ASKS_WHY: asking.THROUGH, Flag.ASKS_RELAY: asking.RELAY, Flag.ASKS_TAKEN: asking.TAKEN}
_SLICE_FLOWS: Final = 256  # taken over in one go, some 10 ms; then those that are taken over are served


@dataclass(slots=True)
class Adoption:
    """One take-over. `left` are the descriptors that the dead worker opened; what is taken over is removed from it."""

    context: Context
    pool: PipePool
    gates: dict[int, Gate]  # by the endpoint's slot
    listeners: dict[str, Listener]  # by address
    records: list[FlowRecord]  # what the ledger says of the dead worker's flows
    left: set[int]
    listening: Callable[[set[int]], set[int]]  # takes the listening sockets among these
    serve: Callable[[], None]  # let bytes of the flows move that are taken over so far
    failed: Callable[[Flow, Exception], None]
    lost: int = 0  # connections that were open and have nothing left here

    def run(self) -> int:
        """Take over every flow; how many. Nothing of the dead worker is left open that no flow needs.

        Those come first whose peers wait for something, and are served before the others are taken over.
        """
        ledger, records = self.context.ledger, self.records
        here = [record for record in records if self._goes_on(record)]
        over = [record for record in records if not self._goes_on(record)]
        ended = sorted([*over, *(record for record in here if record.state == State.LINE)], key=self._counted)
        ledger.copying.bring_home()
        scratch = self._scratch()
        for gate in self.gates.values():
            if gate.pool is not None:
                gate.pool.recount()
        for slot in {record.target_slot for record in records} - {-1}:
            ledger.recount_target(slot)  # one that has left the set is in no pool, and may come back
        live = Counter(record.slot for record in here if record.state != State.LINE)
        self.lost = sum(record.slot in self.gates and _is_open(record) for record in over)
        for slot in self.gates:
            ledger.reconcile(slot, live[slot], self._causes(slot, ended))
        # After they were counted: a record that is gone cannot be counted any more.
        for number, record in enumerate(over):
            if number % _SLICE_FLOWS == 0:
                self.context.beat()
            self._finish(record)
        here = self._in_order(here, scratch)
        for first in range(0, len(here), _SLICE_FLOWS):
            self.context.beat()
            for record in here[first : first + _SLICE_FLOWS]:
                self._resume(record, scratch)
            if not first:
                self.context.mover.prepare()  # the scratch pipe is the first one's now, if there were bytes in it
            self.serve()
        self._arrivals()
        self.context.beat()
        for fd in self.left - self.listening(self.left):
            with contextlib.suppress(OSError):
                os.close(fd)
        if not here:
            self.context.mover.prepare()
        ledger[Word.FLOWS_ADOPTED] += len(here)
        if self.lost:
            message = (
                "they had nothing left here: the worker that had them died with its holder; each counts as `error`"
            )
            self.context.log.event("error", "lost", message=message, connections=self.lost)
        return len(here)

    def _goes_on(self, record: FlowRecord) -> bool:
        """Whether the flow can be taken over: it has not ended, its sockets are open, and its endpoint exists."""
        if record.state == State.END or record.slot not in self.gates:
            return False
        return record.client_fd in self.left and (record.state not in _JOINED or record.target_fd in self.left)

    def _in_order(self, here: list[FlowRecord], scratch: tuple[int, Pipe] | None) -> list[FlowRecord]:
        """Whose bytes are in the scratch pipe; then who has something to say; then the others.

        Last those who have yet to be let in or sent somewhere: that goes by counts of all the others.
        """
        owner = -1 if scratch is None else (scratch[0] - 1) // 2
        readable = readable_now(
            [fd for record in here for fd in (record.client_fd, record.target_fd) if fd in self.left]
        )

        def rank(record: FlowRecord) -> int:
            if record.index == owner:
                return 0
            if record.state not in _MOVING:
                return 3
            return 1 if record.client_fd in readable or record.target_fd in readable else 2

        return sorted(here, key=rank)

    def _counted(self, record: FlowRecord) -> int:
        """How likely the end of a flow that is over is counted: never, perhaps, surely. As a connection a line is over."""
        if _is_open(record):
            return 0
        return 1 if record.index + 1 == self.context.ledger[Word.ENDING] else 2

    def _causes(self, slot: int, over: list[FlowRecord]) -> list[str]:
        """Why flows of this endpoint's are over, those first that are the least likely to be counted."""
        ended = [(self._counted(record), _cause(record)) for record in over if record.slot == slot]
        if self.gates[slot].declared.type == "relay":  # what is passed on is over here as well
            ended.append((1, "passed"))
        return [cause for _, cause in sorted(ended, key=itemgetter(0))]

    def _resume(self, record: FlowRecord, scratch: tuple[int, Pipe] | None) -> None:
        """Make the flow, and the stage in which it stood."""
        if not self._is_own(record):
            return self._disown(record)
        self.left.discard(record.client_fd)
        flow = flow_of(record, self.context, self.gates[record.slot])
        if record.state != State.LINE:
            flow.gate.readmit(flow.source)
        try:
            if record.state in _MOVING:
                self.left.discard(record.target_fd)
                up, down = self._pipe(record, 0, scratch), self._pipe(record, 1, scratch)
                Forwarding(flow, BareSocket(record.target_fd)).resume(record, up, down)
            elif record.state in _JOINED:
                self.left.discard(record.target_fd)
                Dialling(flow).resume(record, BareSocket(record.target_fd))
            elif record.state == State.LINE:
                Line(flow).resume()
            elif record.state == State.DIAL:  # nothing has been sent on: from the first target on
                Dialling(flow).start()
            elif record.state == State.HOLD:
                Dialling(flow).resume_hold()
            else:
                Greeting(flow).resume(record)
        except Exception as error:
            self.failed(flow, error)

    def _is_own(self, record: FlowRecord) -> bool:
        """Whether the client's socket is still the flow's, so that what else it names is too: its peer is the recorded one.

        Whom another machine's relay has brought is not the socket's peer; there it must do that it is a connection. Asked of
        each flow when it is its turn, for then its socket is looked at anyway.
        """
        gate = self.gates.get(record.slot)
        by_itself = gate is not None and not gate.is_brought
        if by_itself and _is_peer(record.client_fd, record.peer):
            return True
        found = connected_addresses(record.client_fd)
        if found is None:
            return is_gone(BareSocket(record.client_fd))  # reset: it has no peer any more
        # What came to no endpoint's port was brought to the relay's.
        return not by_itself or not any(found[0].port in each.declared.listens.values() for each in self._plain())

    def _plain(self) -> list[Gate]:
        return [gate for gate in self.gates.values() if not gate.is_brought]

    def _disown(self, record: FlowRecord) -> None:
        """Count a flow as over whose descriptors are not its own. What has their numbers is somebody else's."""
        ledger = self.context.ledger
        if _is_open(record):  # or it is counted
            self.lost += 1
            ledger.ending(record.index, "error")
            ledger.words[ledger.counts_at(record.slot) + Count.CLOSED + CAUSES.index("error")] += 1
        ledger.end((record.index,))

    def _pipe(self, record: FlowRecord, direction: int, scratch: tuple[int, Pipe] | None) -> Pipe | None:
        """The pipe that holds bytes of this direction: the flow's own, or the scratch pipe if its bytes are in it."""
        if scratch is not None and scratch[0] == owner_of(record.index, direction):
            pipe, ledger = scratch[1], self.context.ledger
            ledger.hold(record.index, direction, (pipe.r, pipe.w))  # before it stops being the scratch pipe
            ledger[Word.SCRATCH_OWNER] = 0
            return pipe
        held = r, w = record.up_pipe if direction == 0 else record.down_pipe
        if r in self.left and w in self.left and calls.readable_bytes(r):
            self.left -= {r, w}
            return self.pool.adopt(r, w)
        if held != NO_PIPE:
            # It was emptied, and is about to be closed. Soon its numbers are another pipe's, with another flow's bytes.
            self.context.ledger.hold(record.index, direction, NO_PIPE)
        return None

    def _scratch(self) -> tuple[int, Pipe] | None:
        """The dead worker's scratch pipe and whose bytes are in it; None when it is empty."""
        ledger = self.context.ledger
        owner, r, w = ledger[Word.SCRATCH_OWNER], ledger[Word.SCRATCH_R], ledger[Word.SCRATCH_W]
        if not owner or r not in self.left or w not in self.left or not calls.readable_bytes(r):
            ledger[Word.SCRATCH_OWNER] = 0  # or the numbers would soon mean something else
            return None
        self.left -= {r, w}
        return owner, self.pool.adopt(r, w)

    def _finish(self, record: FlowRecord) -> None:
        """Close what a flow that is over has still open, as its cause demands."""
        clean = _cause(record) in CLEAN_CAUSES
        own = record.client_fd not in self.left or self._is_own(record)
        for fd in (record.client_fd, record.target_fd):
            if own and fd in self.left:
                self.left.discard(fd)
                with contextlib.suppress(OSError):
                    sock = BareSocket(fd)
                    if clean:
                        calls.finish_on_close(fd)
                    else:
                        reset_on_close(sock)
                    sock.close()
        self.context.ledger.end((record.index,))

    def _arrivals(self) -> None:
        """Connections that were accepted and not yet recorded: they come from a listener's address, and nobody has them."""
        now_ns = time.monotonic_ns()
        for number, fd in enumerate(sorted(self.left)):
            if number % _SLICE_FLOWS == 0:
                self.context.beat()
            found = connected_addresses(fd)
            if found is None or not self.context.has_room():
                continue
            listener = self._listener_at(found[0])
            if listener is not None:
                self.left.discard(fd)
                not_blocking(fd)  # a program of before made it so after it had accepted it
                listener.take(fd, found[1].host, str(found[1]), now_ns)

    def _listener_at(self, address: Address) -> Listener | None:
        there = (str(address), join_host_port("0.0.0.0", address.port), join_host_port("::", address.port))
        return next((self.listeners[each] for each in there if each in self.listeners), None)


def flow_of(record: FlowRecord, context: Context, gate: Gate) -> Flow:
    """The flow that a dead worker left, with its facts; it has no stage yet."""
    by_another = gate.declared.edges or record.state == State.HEADER
    via = connected_addresses(record.client_fd) if by_another else None
    edge = via[1].host if via is not None else ""
    asks_line = record.state != State.END and record.flags & Flag.ASKS_LINE
    return Flow(
        context,
        gate,
        BareSocket(record.client_fd),
        # Before the edge's header was taken the connection was the edge's own, for the limits.
        edge if edge and record.state == State.HEADER else Address.parse(record.peer).host,
        record.peer,
        started_ns=record.started_ns,
        record=record.index,
        state=record.state,
        via=edge,
        probe=bool(record.flags & Flag.PROBE),
        asks=asking.LINE if asks_line else _ASKED.get(record.flags & Flag.ASKS_TAKEN, asking.NOTHING),
        came_to=record.came_to,
    )


def _is_open(record: FlowRecord) -> bool:
    """Whether it is a connection that has not ended; a line is none."""
    return record.state not in (State.END, State.LINE)


def _cause(record: FlowRecord) -> str:
    """Why a flow that does not go on is over; a line, as a connection."""
    if record.state == State.LINE:
        return "told"
    number = record.flags >> Flag.CAUSE_SHIFT
    # A program to come may have written it, and knows causes that this one does not.
    return CAUSES[number] if record.state == State.END and number < len(CAUSES) else "error"


def _is_peer(fd: int, text: str) -> bool:
    """Whether it is a socket that is connected to the address of this text."""
    with contextlib.suppress(OSError, ValueError):  # no socket, no peer; a Unix socket's has no port
        sock = SocketType(AF_INET6, SOCK_STREAM, 0, fd)  # of IPv4 just as well; told, Python need not ask
        try:
            host, port = sock.getpeername()[:2]
        finally:
            sock.detach()
        return join_host_port(host, port) == text
    return False


def held_by(records: Iterable[FlowRecord]) -> set[int]:
    """Descriptors that are surely sockets of these flows. What may be stale in a record is left out."""
    held = set()
    for record in records:
        if record.state != State.END:
            held.add(record.client_fd)
        if record.state in _JOINED:
            held.add(record.target_fd)
    return held


def free_records(records: Iterable[FlowRecord], high: int, capacity: int) -> tuple[list[int], range]:
    """The indexes of records that no flow has: those below `high` (FLOWS_HIGH), the lowest last, and those never used."""
    taken = {record.index for record in records}
    return [index for index in range(min(high, capacity) - 1, -1, -1) if index not in taken], range(high, capacity)
