"""How a worker ends: it accepts no more, lets its connections end, and cuts those that are left at a deadline.

Because the keeper says so (SIGTERM, and when in the ledger), or because there is no keeper any more: then nobody would tell
this worker of new rules, and the next relay wants its ports.
"""

import asyncio
import os
import time
from collections.abc import Callable
from typing import Final

from relay.dataplane.context import Context
from relay.dataplane.flow import Flow
from relay.dataplane.line import tell_all
from relay.dataplane.open_ports import OpenPorts
from relay.kernel import process
from relay.ledger.layout import DaemonWord

_SLICE: Final = 256  # connections that are cut from one sign of life to the next, some 10 ms


class Ending:
    """One worker's end. `deadline_s` (CLOCK_MONOTONIC) is None until it has begun."""

    def __init__(
        self,
        context: Context,
        ports: OpenPorts,
        drain_s: Callable[[], float],
        cut: Callable[[Flow, str], None],
        changed: Callable[[], None],
    ) -> None:
        """`drain_s` is how long connections may go on by the snapshot in force; `changed` is called after each step."""
        self.deadline_s: float | None = None
        self._context = context
        self._ports = ports
        self._drain_s = drain_s
        self._cut = cut
        self._changed = changed
        self._words = context.ledger.words
        self._keeper_fd = -1
        self._alone = False

    def until_s(self) -> float:
        """Until when the daemon drains, by the ledger (CLOCK_MONOTONIC); 0: it does not, or the keeper has not said so."""
        return float(self._words[DaemonWord.DRAIN_UNTIL_NS] / 1e9)

    def follow_keeper(self, pid: int) -> None:
        """Watch the keeper, and end when it does; at once if it has. The descriptor is nobody's but this worker's."""
        try:
            self._keeper_fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return self._on_keeper_end()
        if not process.descends_from(pid):  # the number is another process' by now
            return self._on_keeper_end()
        asyncio.get_running_loop().add_reader(self._keeper_fd, self._on_keeper_end)
        return None

    def unfollow(self) -> None:
        """Watch nobody any more."""
        if self._keeper_fd >= 0:
            asyncio.get_running_loop().remove_reader(self._keeper_fd)
            os.close(self._keeper_fd)
            self._keeper_fd = -1

    def _on_keeper_end(self) -> None:
        """Drain by the deadline of whoever noticed it first: a worker that comes after this one goes by it, too."""
        self.unfollow()
        self._alone = True
        if not self._words[DaemonWord.DRAIN_UNTIL_NS]:
            until_s = self.deadline_s or time.monotonic() + self._drain_s()
            self._words[DaemonWord.DRAIN_UNTIL_NS] = int(until_s * 1e9)
        if self.deadline_s is None:
            self.begin(self.until_s())
        else:
            self._ports.close(self._ports.listeners, at_once=True)
            self._changed()

    def on_term(self) -> None:
        """SIGTERM: begin; once more and it is over.

        The ledger says how long, and a second stop moves that into the past: signals may merge, a word does not. And a
        worker that is just started may find the word before the signal comes, which then is still the first stop's.
        """
        until_s, now_s = self.until_s(), time.monotonic()
        if self.deadline_s is None:
            self.begin(until_s or now_s + self._drain_s())
        elif until_s <= now_s:
            self.cut_all()

    def begin(self, until_s: float) -> None:
        """Accept no more, and end when the last connection has; cut those that are open at `until_s`.

        Doors out close when the last connection from outside has ended: who serves it may have to ask its database. But
        without a keeper all close at once, for the one that takes its place needs their ports.
        """
        self.deadline_s = until_s
        tell_all(self._context)
        self._context.share.leave()
        stay = bool(self.until_s()) and not self._alone
        open_now = self._ports.listeners.items()
        leaving = [at for at, each in open_now if not (stay and each.gate.declared.leads_to)]
        self._ports.close(leaving, at_once=not stay)
        asyncio.get_running_loop().call_later(max(0.0, until_s - time.monotonic()), self.cut_all)
        self._changed()

    def over(self, inbound: int) -> bool:
        """Whether the last connection has ended. `inbound`: how many are open that did not come by a door out."""
        context, ports = self._context, self._ports
        if self.deadline_s is None:
            return False
        # Who is still about to be let in may have to ask its database.
        if ports.listeners and not ports.closing and not inbound:
            ports.close(ports.listeners)
        if len(context.flows) != len(context.lines) or ports.closing:
            return False
        for line in list(context.lines):
            self._cut(line, "drain")
        return True

    def look(self, now_s: float) -> None:
        """About once a second: who came after the deadline."""
        if self.deadline_s is not None and now_s >= self.deadline_s:
            self.cut_all()

    def cut_all(self) -> None:
        """The time is over."""
        for number, flow in enumerate(list(self._context.flows)):
            if number % _SLICE == 0:
                self._context.beat()
            self._cut(flow, "drain")
        self._changed()
