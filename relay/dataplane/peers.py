"""Whether both peers of a flow are alive: what is set on their sockets for that, and when the kernel is asked.

A connection of less than a second pays nothing for it, and one that is idle next to nothing.
"""

import math
from collections.abc import Callable
from typing import Final

from relay.config.snapshot import EndpointRow
from relay.dataplane.silence import Silence, Terms, terms
from relay.dataplane.splice import Lane
from relay.kernel.sockets import ask_peer, transmission

_EARLY_S: Final = 0.25  # sweeps are a second apart, more or less
# Of a sweep: setting the options of two sockets takes 20 µs, and a reload or a predecessor's death may want it of thousands.
_SLICE_S: Final = 0.01


class Peers:
    """Those of one flow, from the first sweep on that it lives to see."""

    __slots__ = ("_declared", "_down", "_look_at_s", "_mark", "_now_s", "_sides", "_terms", "_up", "_waits")

    def __init__(self, up: Lane, down: Lane, now_s: Callable[[], float]) -> None:
        """The flow's two lanes, and the clock that sweeps go by."""
        self._up, self._down = up, down
        self._sides = (_Side(up, down), _Side(down, up))
        self._now_s = now_s
        self._declared: EndpointRow | None = None
        self._terms: Terms | None = None
        self._mark = -1  # what had been sent to both, when they were last looked at
        self._waits = False  # some of it may not have been acknowledged then
        self._look_at_s = -math.inf

    def dead(self, began_s: float, declared: EndpointRow) -> Lane | None:
        """The lane into a peer that is dead, if one is. `began_s` is when this sweep began, `declared` the row in force."""
        if declared is not self._declared:
            if self._now_s() - began_s > _SLICE_S:
                return None  # at the next sweep
            self._declare(declared)
        up, down = self._up, self._down
        mark = up.total_bytes + down.total_bytes + up.fin + down.fin
        if (mark == self._mark and not self._waits) or began_s < self._look_at_s:
            return None
        assert self._terms is not None  # since `_declare`
        self._mark, self._look_at_s = mark, began_s + self._terms.look_every_s - _EARLY_S
        dead = [side.into for side in self._sides if side.is_dead(began_s, self._terms)]
        self._waits = any(side.waits for side in self._sides)
        return dead[0] if dead else None

    def _declare(self, declared: EndpointRow) -> None:
        """What is set on the sockets is what is declared, also after a reload."""
        self._declared = declared
        wanted = terms(declared.keepalive_s, declared.dead_s)
        if wanted is self._terms:
            return
        self._terms, self._look_at_s, self._waits = wanted, -math.inf if declared.dead_s else math.inf, True
        for side in self._sides:
            side.waits = True  # until it was looked at
            ask_peer(side.into.sink_fd, wanted.idle_s, wanted.probe_every_s, wanted.probes, wanted.resend_max_s)


class _Side:
    """One of the two sockets: the lane `into` it, and the one that comes `out` of it."""

    __slots__ = ("_came_bytes", "_out", "_silence", "_went", "into", "waits")

    def __init__(self, into: Lane, out: Lane) -> None:
        self.into = into
        self.waits = True  # something was sent that may not have been acknowledged yet
        self._out = out
        self._silence: Silence | None = None  # while something waits for it
        self._went = self._came_bytes = 0

    def is_dead(self, now_s: float, by: Terms) -> bool:
        """Whether the peer is. One from whom bytes came since the last time is not, without asking the kernel."""
        went = self.into.total_bytes + self.into.fin
        if self.into.abandoned or (went == self._went and not self.waits):
            self.waits = False  # abandoned: that it is dead, or gone, is known
            return False
        self._went, self.waits = went, True
        if (came_bytes := self._out.total_bytes) != self._came_bytes:
            self._came_bytes = came_bytes
            return False
        told = transmission(self.into.sink_fd)
        if told is None or not (told.in_flight or told.unsent):  # None: a Unix socket
            self.waits, self._silence = False, None
            return False
        self._silence = self._silence or Silence()
        return self._silence.is_dead(told, now_s, by)
