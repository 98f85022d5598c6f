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

    __slots__ = ("_client", "_declared", "_look_at_s", "_mark", "_target", "_terms", "_waits")

    def __init__(self, up: Lane, down: Lane) -> None:
        """The flow's two lanes."""
        self._target, self._client = _Side(up), _Side(down)
        self._declared: EndpointRow | None = None
        self._terms: Terms | None = None
        self._mark = -1  # what had been sent to both, when they were last looked at
        self._waits = False  # some of it may not have been acknowledged then
        self._look_at_s = -math.inf

    def dead(self, began_s: float, declared: EndpointRow, now_s: Callable[[], float]) -> Lane | None:
        """The lane into a peer that is dead, if one is.

        `began_s` is when this sweep began, by the clock `now_s`; `declared` is the row in force.
        """
        if declared is not self._declared:
            if now_s() - began_s > _SLICE_S:
                return None  # at the next sweep
            self._declare(declared)
        target, client = self._target, self._client
        mark = target.went() + client.went()
        if (mark == self._mark and not self._waits) or began_s < self._look_at_s:
            return None
        assert self._terms is not None  # since `_declare`
        self._mark, self._look_at_s = mark, began_s + self._terms.look_every_s - _EARLY_S
        target_is_dead = target.is_dead(client.into, began_s, self._terms)
        client_is_dead = client.is_dead(target.into, began_s, self._terms)
        self._waits = target.waits or client.waits
        return target.into if target_is_dead else client.into if client_is_dead else None

    def _declare(self, declared: EndpointRow) -> None:
        """What is set on the sockets is what is declared, also after a reload."""
        self._declared = declared
        wanted = terms(declared.keepalive_s, declared.dead_s)
        if wanted is self._terms:
            return
        self._terms, self._look_at_s, self._waits = wanted, -math.inf if declared.dead_s else math.inf, True
        for side in (self._target, self._client):
            side.waits = True  # until it was looked at
            ask_peer(side.into.sink_fd, wanted.idle_s, wanted.probe_every_s, wanted.probes, wanted.resend_max_s)


class _Side:
    """One of the two sockets: the lane `into` it."""

    __slots__ = ("_came_bytes", "_silence", "_went", "into", "waits")

    def __init__(self, into: Lane) -> None:
        self.into = into
        self.waits = True  # something was sent that may not have been acknowledged yet
        self._silence: Silence | None = None  # while something waits for it
        self._went = self._came_bytes = 0

    def went(self) -> int:
        """Where the lane into it stands: its bytes, and its end as one more."""
        return self.into.total_bytes + self.into.fin

    def is_dead(self, out: Lane, now_s: float, by: Terms) -> bool:
        """Whether the peer is. One from whom bytes came `out` since the last time is not, without asking the kernel."""
        went = self.went()
        if self.into.abandoned or (went == self._went and not self.waits):
            self.waits = False  # abandoned: that it is dead, or gone, is known
            return False
        self._went, self.waits = went, True
        if (came_bytes := out.total_bytes) != self._came_bytes:
            self._came_bytes = came_bytes
            return False
        told = transmission(self.into.sink_fd)
        if told is None or not (told.in_flight or told.unsent):  # None: a Unix socket
            self.waits, self._silence = False, None
            return False
        self._silence = self._silence or Silence()
        return self._silence.is_dead(told, now_s, by)
