"""Connections of one gate that wait for a target, the oldest first. One tries for all of them.

An application that has just started is not overrun: the others follow once a connection has reached a target, some at a
time. Where each port of a range leads to a target of its own, each port has a queue of its own.
"""

from bisect import bisect_left, insort
from typing import Final, Protocol

from relay.dataplane.context import Context
from relay.dataplane.flow import Flow
from relay.dataplane.gate import Gate
from relay.kernel.bare_socket import BareSocket
from relay.ledger.layout import Count, State

_PAUSE_S: Final = 0.1  # from one try to the next
_PAUSE_MAX_S: Final = 0.5
_GROWTH: Final = 1.5
_GO_AT_ONCE: Final = 64  # connections in a tick of the worker: about as many as one accept takes
_END_AT_ONCE: Final = 256  # whose time is over: some 10 ms


class Waits(Protocol):
    """A flow's stage while it waits: holding.py."""

    since_ns: int
    deadline_s: float
    cause: str

    @property
    def held_flow(self) -> Flow:
        """The flow."""

    def go(self) -> None:
        """Try to reach a target."""


class Held:
    """Who waits at `gate` for a target of `port` (0: of any port)."""

    def __init__(self, context: Context, gate: Gate, port: int) -> None:
        self._context = context
        self._gate = gate
        self._port = port
        self._queue: list[tuple[int, int, Waits]] = []  # since when, and its place in the ledger
        self._tries: Waits | None = None  # for all
        self._open = False  # a target was reached since: the others follow
        self._was_by_hand = False
        self._pause_s = _PAUSE_S
        self._try_at_s = context.now_s() + _PAUSE_S

    @staticmethod
    def of(context: Context, gate: Gate, client: BareSocket) -> "Held":
        """The gate's queue for connections such as this client's."""
        port = gate.held_at(client)
        found = gate.held.get(port)
        if not isinstance(found, Held):
            found = gate.held[port] = Held(context, gate, port)
        return found

    def add(self, waits: Waits, *, again: bool) -> None:
        """It waits from now on. `again`: it was let go, and has failed."""
        insort(self._queue, (waits.since_ns, waits.held_flow.record, waits))
        self._context.ledger.words[self._gate.counts_at + Count.HELD] += 1
        if again:
            self._open = False
            if waits is self._tries:
                self._tries, self._pause_s = None, min(self._pause_s * _GROWTH, _PAUSE_MAX_S)
            self._try_at_s = self._context.now_s() + self._pause_s
        self._tick_first()

    def remove(self, waits: Waits) -> None:
        """It does not wait any more."""
        place = bisect_left(self._queue, (waits.since_ns, waits.held_flow.record))
        if place < len(self._queue) and self._queue[place][2] is waits:
            del self._queue[place]
            words, at = self._context.ledger.words, self._gate.counts_at + Count.HELD
            if words[at]:  # a row that another endpoint was given begins at nought
                words[at] -= 1
            self._tick_first()

    def is_first(self, waits: Waits) -> bool:
        """Whether it is the one that is ticked, for all."""
        return bool(self._queue) and self._queue[0][2] is waits

    def _tick_first(self) -> None:
        if self._queue:
            self._context.waiting.add(self._queue[0][2].held_flow)

    def reached(self) -> None:
        """A connection has reached a target, one of these or another."""
        self._open, self._tries, self._pause_s = True, None, _PAUSE_S
        if not self._queue:
            self._gate.held.pop(self._port, None)

    def tick(self, now_s: float) -> None:
        """Let those go whose turn it is, and end those whose time is over."""
        if self._gate.is_held(self._context.now_ns()):
            self._was_by_hand = True
            return
        if self._was_by_hand:  # each has a dial of its own before it ends
            self._was_by_hand, self._open = False, True
            for *_, waits in self._queue:
                waits.cause = ""
        for waits in [waits for *_, waits in self._queue if now_s >= waits.deadline_s][:_END_AT_ONCE]:
            if waits.cause:
                waits.held_flow.cut(waits.cause)
            elif not self._open:
                self._let_go(waits)
        if not self._open and now_s >= self._try_at_s and not self._is_tried() and self._queue:
            self._tries = self._queue[0][2]
            self._let_go(self._tries)
        for _ in range(min(_GO_AT_ONCE, len(self._queue)) if self._open else 0):
            if self._open:  # until one of them fails at once
                self._let_go(self._queue[0][2])

    def _is_tried(self) -> bool:
        return self._tries is not None and self._tries.held_flow.state in (State.DIAL, State.ASK)

    def _let_go(self, waits: Waits) -> None:
        self.remove(waits)
        try:
            waits.go()
        except Exception:  # a bug, which is told of the first one; nothing would ever end this flow
            waits.held_flow.cut("error")
            raise
