"""A connection that was let in: its facts, where it stands, and `cut`, the only way out.

What is done with it is told by its stages, one file each, in this order:

    Greeting     HEADER, LOOK    who the client is, if an edge brings it; whether it speaks what is declared
    Dialling     DIAL            the target; at its failure the next one
    Asking       ASK, TAKEN      has the target of another machine's relay taken the connection; if not, the next one
    Holding      HOLD            no target is to be had now: until one is
    Forwarding   SPLICE, CLOSE   both directions, each until its end
    Line         LINE            no connection: an edge is told whether it may send any

The poller holds the stage itself, so nobody asks where a flow stands. The envelope was asked before there is a Flow
(listener.py). stages.py has the table of all ways; docs/why/a-connection.md explains each.
"""

import json
from collections.abc import Callable, Collection
from functools import lru_cache
from typing import Final

from relay import calls
from relay.address import Address
from relay.dataplane.context import Context
from relay.dataplane.gate import Gate
from relay.dataplane.route import Route
from relay.envelope import asking
from relay.kernel.bare_socket import BareSocket
from relay.kernel.poller import UNWATCHED, Handler
from relay.ledger import layout
from relay.ledger.layout import CLEAN_CAUSES

MOVES: Final[list[Callable[[int, int, str], None]]] = []
"""Who is told of every move before it is made: from where, to where, and why it ends. Of tests alone."""


class Stage(Handler):
    """Where a flow stands: greeting.py, dialling.py, forwarding.py. A stage overrides what it has to do with.

    The poller holds the stage that waits for something. It gives the descriptor too, for a stage may watch both sockets.
    """

    __slots__ = ("flow",)

    flow: "Flow"

    def tick(self, now_s: float) -> None:
        """While the flow is in `waiting`: look at the deadline, and at what epoll cannot tell."""

    def sweep(self, now_s: float) -> None:
        """About once a second: look at idleness."""

    def watch(self) -> None:
        """Pipes may be had again: watch for what can come now."""

    def leave(self, cause: str) -> tuple[int, int]:
        """The flow is over: close what only this stage has; the bytes that went (to the target, to the client)."""
        return 0, 0


_quoted: Final = lru_cache(maxsize=1024)(json.dumps)  # of targets' texts, which are few

_NOWHERE: Final = Stage()  # before the first stage, and after the end: nothing is waited for, nothing is held


class Flow:
    """One connection from accept to close. Its stages read the facts; `stand` and `cut` change where it stands."""

    __slots__ = (
        "asks", "came_to", "client", "client_interest", "connect_s", "context", "gate", "peer_text", "probe",
        "reason", "record", "route", "source", "stage", "started_ns", "state", "via",
    )  # fmt: skip

    def __init__(
        self,
        context: Context,
        gate: Gate,
        client: BareSocket,
        source: str,
        peer_text: str,
        started_ns: int,
        record: int,
        state: int = layout.State.FREE,
        via: str = "",
        probe: bool = False,
        asks: int = asking.NOTHING,
        came_to: Address | None = None,
    ) -> None:
        """`state`: where a dead worker left it, which has counted it as accepted. The flow is in `context` from here on."""
        self.context = context
        self.gate = gate  # the endpoint's
        self.client = client
        self.client_interest = UNWATCHED  # what the poller watches the client for
        self.source = source  # whose share of the limits it has: the edge's, until that has said who the client is
        self.peer_text = peer_text  # the client's address with its port
        self.via = via  # the edge's address, of a client that came by one
        self.probe = probe  # it is the edge's own: does the application take connections
        self.came_to = came_to  # where its client connected to, as the edge says; None: nobody said
        self.asks = asks  # what the edge wants to be told: envelope/asking.py
        self.route = Route(gate, self.context.clock)
        self.record = record  # its place in the ledger
        self.started_ns = started_ns
        self.connect_s = 0.0
        self.reason = ""  # why its last dial failed, in words
        self.state = state
        self.stage: Stage = _NOWHERE
        self.context.flows.add(self)

    def stand(self, stage: Stage, state: int, target_fd: int = -1, target_slot: int = -1, cause: str = "") -> None:
        """Stand there from now on: nothing else changes where a flow stands, and the ledger says so at once.

        The first time is when it counts as accepted. `target_slot` is the pool's target that it is joined to.
        """
        ledger, record, before = self.context.ledger, self.record, self.state
        for told in MOVES:
            told(before, state, cause)
        self.stage, self.state = stage, state
        if state == layout.State.END:
            ledger.ending(record, cause)
        elif before == layout.State.FREE:
            slot = self.gate.slot
            ledger.begin(record, state, slot, self.client.fd, target_fd, self.started_ns, self.peer_text, target_slot)
            self.gate.accepted()
        else:
            if target_slot >= 0:
                ledger.aim(record, target_slot)
            ledger.advance(record, state, target_fd)

    def pass_on(self, gate: Gate) -> None:
        """It is this endpoint's from here on, whose counts and limits it is under, and still its bringer's own."""
        context, before, self.gate = self.context, self.gate, gate
        self.route = Route(gate, context.clock)
        context.ledger.pass_on(self.record, gate.declared.slot)
        before.release(self.source, "passed")
        gate.readmit(self.source)
        gate.accepted()

    def local(self) -> Address:
        """Where the client has connected to: at its edge, where that has said so.

        The endpoint's port, where the connection came by its name. Raises OSError.
        """
        if self.came_to is not None:
            return self.came_to
        host, port = self.client.getsockname()[:2]
        return Address(host, self.gate.declared.listen_port if port == self.context.relay_port else port)

    def watch_client(self, interest: int, handler: Handler) -> None:
        """Call the stage's `handler` for these events of the client's socket; for none at all: UNWATCHED."""
        self.context.poller.want(self.client.fd, self.client_interest, interest, handler)
        self.client_interest = interest

    def tick_until(self, timeout_s: float) -> float:
        """Have the stage ticked from now on; when (CLOCK_MONOTONIC, s) its time is up."""
        self.context.waiting.add(self)
        return self.context.now_s() + timeout_s

    def reached(self) -> None:
        """The target has taken the connection."""
        context, route = self.context, self.route
        self.connect_s, self.reason = (context.now_ns() - route.dialled_ns) / 1e9, ""
        route.reached(self.connect_s)
        context.ledger.observe_connect(self.gate.counts_at, self.connect_s)
        if self.gate.held:
            self.gate.reached(self.client)

    @property
    def peer(self) -> Address:
        """The client's address."""
        return Address.parse(self.peer_text)

    @property
    def brings_nobody(self) -> bool:
        """Whether it is an edge's own question, or the edge has yet to say whose it is."""
        return self.probe or self.state == layout.State.HEADER

    def is_with(self, hosts: Collection[str]) -> bool:
        """Whether bytes move between its client and an instance at one of these addresses."""
        # A dial fails by itself and goes on to the next; in CLOSE one side has been reset, and the other has a time.
        return self.state == layout.State.SPLICE and self.route.leads_to(hosts)

    def cut(self, cause: str) -> None:
        """The only way out, taken once. But for an end by both FINs both sides get a reset: a FIN says that all was sent."""
        if self.state == layout.State.END:
            return
        context, stage, is_line = self.context, self.stage, self.state == layout.State.LINE
        if self.state == layout.State.FREE:  # it failed at once; whoever was let in is in the ledger before the end
            self.stand(stage, layout.State.DIAL)
        self.stand(_NOWHERE, layout.State.END, -1, -1, cause)  # first: from here on nobody takes the flow over
        context.ended.append(self.record)
        if cause in CLEAN_CAUSES:
            calls.finish_on_close(self.client.fd)
        moved_bytes = stage.leave(cause)
        context.poller.close(self.client)
        context.flows.discard(self)
        context.waiting.discard(self)
        context.starved.discard(self)
        context.lines.discard(self)
        if not is_line:
            self.account(cause, moved_bytes)

    def account(self, cause: str, moved_bytes: tuple[int, int]) -> None:
        """Count and say that the connection has ended. Once: that of a line when it becomes one."""
        context, gate = self.context, self.gate
        duration_s = (context.now_ns() - self.started_ns) / 1e9
        context.ledger.observe_duration(gate.counts_at, duration_s)
        gate.release(self.source, cause)
        if context.log.wants("debug" if self.probe else "info"):
            self._say_end(cause, duration_s, moved_bytes)

    def _say_end(self, cause: str, duration_s: float, moved_bytes: tuple[int, int]) -> None:
        """The one line of a connection.

        Written by hand: json.dumps of the same takes 19 µs, which is a fifth of a short connection. No other field
        than the target's text and the reason can hold a character that JSON escapes.
        """
        log, target = self.context.log, self.route.target
        name = _quoted(target.text) if target is not None else "null"
        reason = f',"reason":{json.dumps(self.reason)}' if self.reason else ""
        attempts = f',"attempts":{self.route.dials}' if self.route.dials > 1 else ""
        log.add(
            f'{{"time":"{log.now()}","level":"info","event":"connection","endpoint":"{self.gate.declared.name}",'
            f'"peer":"{self.peer_text}","target":{name},"received":{moved_bytes[0]},"sent":{moved_bytes[1]},'
            f'"duration_s":{_seconds(duration_s)},"connect_s":{_seconds(self.connect_s)},"cause":"{cause}"'
            f"{attempts}{reason}}}"
        )


def _seconds(duration_s: float) -> str:
    """It in JSON, to the microsecond."""
    us = int(duration_s * 1e6 + 0.5)
    return f"{us // 1_000_000}.{us % 1_000_000:06d}"
