"""What all flows of a worker share."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from relay.dataplane.denials import Denials
from relay.dataplane.gate import Gate
from relay.dataplane.share import Share
from relay.dataplane.source_addresses import SourceAddresses
from relay.dataplane.splice import Mover
from relay.kernel.clock import Clock
from relay.kernel.poller import Poller
from relay.ledger.layout import Word
from relay.ledger.ledger import WorkerLedger
from relay.log import Logger

_SOME: Final = 1024  # records at a time: all of a large limit's at once would take a new worker longer than the rest


class Context:
    """A worker's data plane. `waiting` and `starved` are looked through by the worker's tick."""

    __slots__ = (
        "clock", "denials", "ended", "exhausted", "flows", "free_records", "gates", "ledger", "left", "lines", "log", "mover",
        "poller", "relay_port", "share", "sources", "starved", "unused_records", "waiting",
    )  # fmt: skip

    def __init__(
        self,
        *,
        poller: Poller,
        mover: Mover,
        ledger: WorkerLedger,
        log: Logger,
        denials: Denials,
        free_records: list[int],
        exhausted: Callable[[str], None],
        clock: Clock | None = None,
    ) -> None:
        """`exhausted`: the machine has no more to give (a word why), so that nothing is accepted for a moment."""
        self.poller = poller
        self.mover = mover
        self.ledger = ledger
        self.log = log
        self.denials = denials
        self.free_records = free_records
        self.unused_records = range(0)  # never used so far: `has_room` takes some of them into `free_records`
        self.exhausted = exhausted
        self.clock = clock or Clock()
        # Of Flow, which is made with a context (flow.py).
        self.flows: set[Any] = set()
        self.waiting: set[Any] = set()  # their stages have a deadline
        self.lines: set[Any] = set()  # those that are no connection: line.py
        self.starved: set[Any] = set()  # no pipe was to be had
        self.ended: list[int] = []  # records of flows whose sockets are still to be closed
        # Somebody came and was left to the other workers; these take him in the next tick if he waits.
        self.left: set[Callable[[], None]] = set()
        self.sources = SourceAddresses()
        self.gates: Mapping[str, Gate] = {}  # by the endpoint's name: those in force
        self.relay_port = 0  # where connections name their endpoint; 0: nowhere
        self.share = Share(ledger)

    def now_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return self.clock.now_ns()

    def now_s(self) -> float:
        """CLOCK_MONOTONIC, in seconds."""
        return self.now_ns() / 1e9

    def beat(self) -> None:
        """Give a sign of life, once a second and from work that may take longer: see processes/watch.py."""
        self.ledger[Word.HEARTBEAT_NS] = time.monotonic_ns()

    def deny(self, gate: Gate, peer: str, reason: str, detail: str = "") -> None:
        """Count and say who is refused, as `host:port`. `detail` is for the log alone."""
        gate.denied(reason)
        self.denials.note(gate.declared.name, peer, reason, detail)

    def audit(self, gate: Gate, source: str, peer: str) -> None:
        """Count and say whom the envelope would refuse, if it were enforced."""
        if not gate.permits(source):
            gate.would_deny()
            self.denials.note(gate.declared.name, peer, gate.declared.denied_reason, "", "would deny")

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
