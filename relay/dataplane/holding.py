"""A connection for which no target is to be had now: it waits for one, as long as is declared or asked for by hand.

Nothing is read from the client meanwhile. What it sent stays in its socket, so every try begins with all of it.
"""

from relay import calls
from relay.dataplane.asking import Dial
from relay.dataplane.flow import Flow, Stage
from relay.dataplane.held import Held
from relay.envelope import asking
from relay.ledger.layout import State


class Holding(Stage):
    """HOLD: wait for a target. `cause` is how the flow ends when its time is over; "": first it dials once more."""

    __slots__ = ("_dial", "_has_gone", "_held", "cause", "deadline_s", "since_ns")

    def __init__(self, flow: Flow, dial: Dial, for_s: float) -> None:
        self.flow = flow
        self._dial = dial
        self._has_gone = False
        self._held = Held.of(flow.context, flow.gate, flow.client)
        self.cause = ""
        self.since_ns = flow.context.now_ns()
        self.deadline_s = self.since_ns / 1e9 + for_s

    @property
    def held_flow(self) -> Flow:
        """The flow."""
        return self.flow

    def wait(self, cause: str) -> bool:
        """Wait, and end with this cause if that is in vain; "": nothing was dialled. Whether there is time left for that."""
        flow = self.flow
        if cause and flow.context.now_s() >= self.deadline_s:
            return False
        self.cause = cause
        flow.stand(self, State.HOLD)
        flow.context.waiting.discard(flow)  # the first one's ticks are for all
        flow.watch_client(0, self)
        self._held = Held.of(flow.context, flow.gate, flow.client)  # the one before may have come to its end
        self._held.add(self, again=self._has_gone)
        return True

    def go(self) -> None:
        """Try again: every target, and for the whole time."""
        self._has_gone = True
        self.flow.route.again()
        self._dial.start()

    def ready(self, fd: int, events: int) -> None:
        """The client is gone."""
        if events & calls.BROKEN:
            self.flow.cut("client_reset")

    def tick(self, now_s: float) -> None:
        """The first one's turn to look after all."""
        if self._held.is_first(self):
            self._held.tick(now_s)
        else:
            self.flow.context.waiting.discard(self.flow)

    def leave(self, cause: str) -> tuple[int, int]:
        """Nothing has moved."""
        self._held.remove(self)
        return 0, 0


def patience_s(flow: Flow) -> float | None:
    """How long this flow may wait for a target; None: not at all.

    Who asks how it is, is told at once: then it waits at the edge or the door that asks, which may have another target.
    """
    if flow.probe or flow.asks != asking.NOTHING:
        return None
    return flow.gate.hold_s(flow.context.now_ns())
