"""What all flows of a worker share."""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol

from relay.address import Address
from relay.dataplane.denials import Denials
from relay.dataplane.gate import Gate
from relay.dataplane.share import Share
from relay.dataplane.source_addresses import SourceAddresses
from relay.dataplane.splice import Mover
from relay.kernel.poller import Handler, Poller
from relay.ledger.layout import Word
from relay.ledger.ledger import WorkerLedger
from relay.log import Logger

_SOME: Final = 1024  # records at a time: all of a large limit's at once would take a new worker longer than the rest


class Stage(Handler):
    """Where a flow stands: greeting.py, dialling.py, forwarding.py. A stage overrides what it has to do with.

    The poller holds the stage that waits for something. It gives the descriptor too, for a stage may watch both sockets.
    """

    __slots__ = ("flow",)

    flow: "OpenFlow"

    def tick(self, now_s: float) -> None:
        """While the flow is in `waiting`: look at the deadline, and at what epoll cannot tell."""

    def sweep(self, now_s: float) -> None:
        """About once a second: look at idleness."""

    def watch(self) -> None:
        """Pipes may be had again: watch for what can come now."""

    def leave(self, cause: str) -> tuple[int, int]:
        """The flow is over: close what only this stage has; the bytes that went (to the target, to the client)."""
        return 0, 0


class OpenFlow(Protocol):
    """A flow (flow.py) as the worker's ticks and redecision see it."""

    gate: Gate
    source: str
    via: str
    stage: Stage

    @property
    def brings_nobody(self) -> bool:
        """Whether it is an edge's own, or has yet to say whose it is."""

    def is_with(self, hosts: Collection[str]) -> bool:
        """Whether bytes move between its client and an instance at one of these addresses."""

    def cut(self, cause: str) -> None:
        """End it."""


@dataclass(slots=True)
class Context:
    """A worker's data plane. `waiting` and `starved` are looked through by the worker's tick."""

    poller: Poller
    mover: Mover
    ledger: WorkerLedger
    log: Logger
    denials: Denials
    free_records: list[int]
    exhausted: Callable[[str], None]  # the machine has no more to give (a word why): accept nothing for a moment
    now_ns: Callable[[], int] = time.monotonic_ns  # CLOCK_MONOTONIC; tests have one that they move themselves
    unused_records: range = range(0)  # never used so far: `has_room` takes some of them into `free_records`
    flows: set[OpenFlow] = field(default_factory=set)
    waiting: set[OpenFlow] = field(default_factory=set)  # their stages have a deadline
    lines: set[OpenFlow] = field(default_factory=set)  # of the flows, those that are no connection: line.py
    sources: SourceAddresses = field(default_factory=SourceAddresses)
    starved: set[OpenFlow] = field(default_factory=set)  # no pipe was to be had
    ended: list[int] = field(default_factory=list)  # records of flows whose sockets are still to be closed
    # Somebody came and was left to the other workers; these take him in the next tick if he waits.
    left: set[Callable[[], None]] = field(default_factory=set)
    gates: Mapping[str, Gate] = field(default_factory=dict)  # by the endpoint's name: those in force
    relay_port: int = 0  # where connections name their endpoint; 0: nowhere
    share: Share = field(init=False)

    def __post_init__(self) -> None:
        self.share = Share(self.ledger)

    def now_s(self) -> float:
        """CLOCK_MONOTONIC, in seconds."""
        return self.now_ns() / 1e9

    def beat(self) -> None:
        """Give a sign of life, once a second and from work that may take longer: see processes/watch.py."""
        self.ledger[Word.HEARTBEAT_NS] = time.monotonic_ns()

    def deny(self, gate: Gate, peer: Address, reason: str, detail: str = "") -> None:
        """Count and say who is refused. `detail` is for the log alone."""
        gate.denied(reason)
        self.denials.note(gate.declared.name, peer, reason, detail)

    def audit(self, gate: Gate, source: str, peer: Address) -> None:
        """Count and say whom the envelope would refuse, if it were enforced."""
        if not gate.permits(source):
            gate.would_deny()
            self.denials.note(gate.declared.name, peer, gate.declared.denied_reason, event="would deny")

    def has_room(self) -> bool:
        """Whether there is a record for one more flow. To ask when `free_records` is empty."""
        if not self.free_records:
            some, self.unused_records = self.unused_records[:_SOME], self.unused_records[_SOME:]
            self.free_records += reversed(some)
        return bool(self.free_records)

    def closed(self) -> None:
        """The sockets of flows that ended are closed: now their records are free, and others may hear of it."""
        self.share.tell(len(self.flows))
        self.ledger.end(self.ended)
        self.free_records += self.ended
        self.ended.clear()
