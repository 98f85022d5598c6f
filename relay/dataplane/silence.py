"""When a peer is dead: pure, from what the kernel says of its connection (kernel/sockets.py, `Transmission`).

An idle peer is the kernel's business: keepalive asks it, and the socket breaks. While bytes of ours wait for it, keepalive
rests: the kernel sends them again for a quarter of an hour, or asks an hour-long reader for its window for ever. Such a peer
is judged here. TCP_USER_TIMEOUT would not do: it counts the time for which a reader takes nothing, and that one is alive.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import Final

from relay.kernel.sockets import Transmission

# Unanswered at least: one answer may be lost. And an idle peer is asked so often between `keepalive` and `dead`, so that a
# link which comes back just before is not too late.
_ASKED_MIN: Final = 2
_PROBES: Final = range(5, 11)
_OPTION_MAX_S: Final = 32_767  # tcp(7): of TCP_KEEPIDLE and TCP_KEEPINTVL
_PROBE_EVERY_S: Final = 75  # tcp(7): the kernel's own, for a peer that nothing makes dead
_PROBES_OF_KERNEL: Final = 9
_RESEND_MAX_S: Final = 120  # the kernel's longest pause between two attempts, linux/tcp.h TCP_RTO_MAX_SEC
# An eighth of `dead`: often enough to find the link that is back; and with its 15 attempts (net.ipv4.tcp_retries2) the kernel
# itself gives up after `dead`, not before.
_RESEND_SHARE: Final = 8
_LOOKS: Final = 15  # within `dead`
_LOOK_MIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Terms:
    """What `keepalive` and `dead` come to. `idle_s` is 0 where idle peers are not asked, `dead_s` None where none is dead."""

    idle_s: int
    probe_every_s: int
    probes: int
    resend_max_s: int
    dead_s: float | None
    patience_s: float  # bytes in flight wait so long at least, for before them the peer may have had nothing to answer
    look_every_s: float


@cache
def terms(keepalive_s: float | None, dead_s: float | None) -> Terms:
    """Terms of an endpoint's two timeouts in seconds, each None for `off`. A socket's options are whole seconds."""
    idle_s = 0 if keepalive_s is None else min(_OPTION_MAX_S, math.ceil(keepalive_s))
    if dead_s is None:
        return Terms(idle_s, _PROBE_EVERY_S, _PROBES_OF_KERNEL, _RESEND_MAX_S, None, 0.0, math.inf)
    left_s = max(1, math.ceil(dead_s - idle_s))
    # The number by which the last probe has gone unanswered the least after `dead`.
    probes = min((n for n in _PROBES if n <= left_s), key=lambda n: -left_s % n, default=left_s)
    return Terms(
        idle_s,
        min(_OPTION_MAX_S, -(-left_s // probes)),
        probes,
        min(_RESEND_MAX_S, math.ceil(dead_s / _RESEND_SHARE)),
        dead_s,
        dead_s - (keepalive_s or 0.0),
        max(_LOOK_MIN_S, dead_s / _LOOKS),
    )


class Silence:
    """How long a peer has been silent that something of ours waits for, from one look at its connection to the next."""

    __slots__ = ("_heard_s", "_in_flight_s", "_looked_s", "_resent", "_segments", "_timeouts")

    def __init__(self) -> None:
        self._looked_s = -math.inf
        self._heard_s = -math.inf
        self._in_flight_s: float | None = None  # since when bytes of ours have been in flight at every look
        self._segments = -1
        self._resent = self._timeouts = 0  # as they were when the peer was last heard

    def is_dead(self, told: Transmission, now_s: float, terms: Terms) -> bool:
        """Whether the peer is dead, by what is `told` at `now_s` (CLOCK_MONOTONIC).

        It is for as long as `dead` that nothing came, and it was asked twice since. Anything counts as heard: what came while
        our receive buffer was full was no acknowledgement to the kernel, but a dead machine had not sent it.
        """
        if told.segments_in != self._segments:
            first = self._segments < 0
            self._segments = told.segments_in
            self._heard_s = max(now_s - told.silent_s, self._looked_s)
            # At the first look too it is certain of what was sent again in a row that it was in vain.
            self._resent, self._timeouts = told.resent, 0 if first else told.timeouts
        self._looked_s = now_s
        if not told.in_flight:
            self._in_flight_s = None
        elif self._in_flight_s is None:
            self._in_flight_s = now_s
        if terms.dead_s is None or now_s - self._heard_s < terms.dead_s:
            return False
        if told.probes >= _ASKED_MIN:
            return True
        asked = max(told.resent - self._resent, told.timeouts - self._timeouts)
        waiting_s = 0.0 if self._in_flight_s is None else now_s - self._in_flight_s
        return asked >= _ASKED_MIN and waiting_s >= terms.patience_s
