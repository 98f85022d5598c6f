"""A line: a machine that sends connections here holds one, and hears on it whether they are wanted, at once.

One byte is said at each change (asking.OPEN, asking.BUSY), and the other side says it after us when it has acted on it. So
whoever has heard as many as were said knows that this machine has stopped sending, or has begun again.

The first byte is OPEN, and the two take turns: what was said last is told by how many were. That the sockets know, and a
successor asks them. What is heard stays in the socket, for it is counted there.

As a connection a line is over when it begins: an edge asked, and is told. It is in no count of those that are open, and in
no limit.
"""

from typing import Final

from relay import calls
from relay.dataplane.context import Context
from relay.dataplane.flow import Flow, Stage
from relay.envelope import asking
from relay.kernel.byte_counts import sent_bytes
from relay.kernel.sockets import ask_often, hear_beyond
from relay.ledger.layout import DaemonWord, State, Word

# Its bytes stay in the socket: after so many the line is ended, and the other side opens another.
_SAID_MAX: Final = 256


def is_busy(words: memoryview, now_ns: int) -> bool:
    """Whether new connections are not wanted: `relay drain`, or the daemon's own end. `now_ns`: CLOCK_MONOTONIC."""
    return bool(words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] > now_ns or words[DaemonWord.DRAIN_UNTIL_NS])


def tell_all(context: Context) -> None:
    """Whether they are wanted may have changed: say so on every line."""
    for flow in list(context.lines):
        flow.stage.sweep(context.now_s())


class Line(Stage):
    """LINE: says at every change whether new connections are wanted, and hears what was acted on."""

    __slots__ = ("_said",)

    def __init__(self, flow: Flow) -> None:
        self.flow = flow
        self._said = 0  # bytes, ever

    def begin(self) -> None:
        """The header is taken, and asks for a line."""
        flow = self.flow
        # First: as a connection it is over with the next line, and not counted yet.
        flow.context.ledger[Word.ENDING] = flow.record + 1
        flow.stand(self, State.LINE)
        flow.account("told", (0, 0))
        self._hold()

    def resume(self) -> None:
        """Go on where a dead worker stood."""
        self._said = sent_bytes(self.flow.client, dialled=False)
        self.flow.stand(self, State.LINE)
        self._hold()

    def _hold(self) -> None:
        flow = self.flow
        flow.context.waiting.discard(flow)
        flow.context.lines.add(flow)
        ask_often(flow.client.fileno())
        self._say()

    def _say(self) -> None:
        """Say what has changed, and count what was heard."""
        flow = self.flow
        context = flow.context
        heard = calls.readable_bytes(flow.client.fileno())
        news = b"" if self._said else asking.OPEN
        said_busy = bool(self._said) and self._said % 2 == 0
        if is_busy(context.ledger.words, context.now_ns()) is not said_busy:
            news += asking.OPEN if said_busy else asking.BUSY
        # First what will have been said: until it was heard, nobody may believe that the other side knows.
        context.ledger.moved(flow.record, heard, self._said + len(news))
        try:
            self._said += flow.client.send(news) if news else 0
        except OSError:
            return flow.cut("told")  # it is not there any more
        if heard > self._said or self._said >= _SAID_MAX:
            return flow.cut("told")
        hear_beyond(flow.client.fd, heard)
        return flow.watch_client(calls.READ | calls.PEER_FIN, self)

    def ready(self, fd: int, events: int) -> None:
        """The machine has said something, or is gone."""
        if events & (calls.PEER_FIN | calls.BROKEN):
            return self.flow.cut("told")
        return self._say()

    def sweep(self, now_s: float) -> None:
        """See whether anything has changed: that the time of a drain is over, nobody says."""
        self._say()
