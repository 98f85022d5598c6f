"""A changed envelope and connections that are established: those that it no longer lets in are cut, and no other.

But for those whose instance is gone: its machine may be dead, and then nobody else would end them.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Iterable
from typing import Final

from relay.dataplane.flow import Flow

_SLICE_S: Final = 0.005  # of a reload's work on established connections; then bytes move


class Redecision:
    """Asks about every connection that was there before the snapshot in force. New ones are decided by it already."""

    def __init__(self, cut: Callable[[Flow, str], None], paused: Callable[[], None], done: Callable[[], None]) -> None:
        """`cut` ends a connection for a cause; `paused` is called after each slice, `done` after the last one before it."""
        self._cut = cut
        self._paused = paused
        self._done = done
        self._undecided: list[Flow] = []  # established before the snapshot in force, and not asked about since
        self._declared: Collection[str] = ()
        self._gone: Collection[str] = ()
        self._next: asyncio.Handle | None = None

    def begin(self, flows: Iterable[Flow], declared: Collection[str], gone: Collection[str]) -> None:
        """Ask about these; the names of the endpoints that there are, and the addresses of instances that are gone.

        What is still under way is begun anew.
        """
        self._undecided, self._declared, self._gone = list(flows), declared, gone
        if self._next is None:
            self._slice()

    def _slice(self) -> None:
        """Some of them at a time, so that no byte waits longer than that."""
        self._next = None
        until_s = time.monotonic() + _SLICE_S
        while self._undecided:
            flow = self._undecided.pop()
            if cause := self._cause(flow):
                self._cut(flow, cause)
            if time.monotonic() >= until_s:
                self._next = asyncio.get_running_loop().call_soon(self._slice)
                return self._paused()
        self._done()
        return self._paused()

    def _cause(self, flow: Flow) -> str:
        """Why it is to be cut; nothing: it goes on."""
        declared = flow.gate.declared
        if declared.name not in self._declared:
            return "revoked"
        if not flow.gate.keeps(flow.source, flow.via, brings_nobody=flow.brings_nobody):
            return "gone" if declared.type == "internal" and flow.source in self._gone else "revoked"
        return "gone" if self._gone and flow.is_with(self._gone) else ""
