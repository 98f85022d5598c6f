"""What all sessions of a worker share."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Protocol

from relay.address import Address
from relay.config.snapshot import TargetRow
from relay.dataplane.denials import Denials
from relay.dataplane.gate import Gate
from relay.dataplane.splice import Lane, Mover
from relay.kernel.poller import Poller
from relay.ledger.ledger import WorkerLedger
from relay.log import Logger

_SOME: Final = 1024  # records at a time: all of a large limit's at once would take a new worker longer than the rest


class Flow(Protocol):
    """A session as the worker's ticks see it; session.py says what each of these does."""

    gate: Gate
    source: str
    via: str

    def tick(self, now_s: float) -> None:
        """Look at its deadline."""

    def sweep(self, now_s: float) -> None:
        """Look at its idleness."""

    def read_on(self) -> None:
        """Pipes may be had again."""

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
    unused_records: range = range(0)  # never used so far: `has_room` takes some of them into `free_records`
    sessions: set[Flow] = field(default_factory=set)
    waiting: set[Flow] = field(default_factory=set)  # in LOOK, DIAL or CLOSE: they have a deadline
    starved: set[Flow] = field(default_factory=set)  # no pipe was to be had
    ended: list[int] = field(default_factory=list)  # records of sessions whose sockets are still to be closed

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
        """The sockets of sessions that ended are closed: now their records are free."""
        self.ledger.end(self.ended)
        self.free_records += self.ended
        self.ended.clear()

    def log_end(
        self, endpoint: str, peer: Address, target: TargetRow | None, lanes: tuple[Lane | None, Lane | None],
        times_s: tuple[float, float], cause: str,
    ) -> None:  # fmt: skip
        """The one line of a connection. `lanes` are (to the target, to the client), `times_s` (open, to connect).

        Written by hand: json.dumps of the same takes 19 µs, which is a fifth of a short connection. No field but the
        target's text can hold a character that JSON escapes.
        """
        up, down = lanes
        name = json.dumps(target.text) if target else "null"
        self.log.add(
            f'{{"time":"{self.log.now()}","level":"info","event":"connection","endpoint":"{endpoint}",'
            f'"peer":"{peer}","target":{name},'
            f'"received":{up.total_bytes if up else 0},"sent":{down.total_bytes if down else 0},'
            f'"duration_s":{times_s[0]:.6f},"connect_s":{times_s[1]:.6f},"cause":"{cause}"}}'
        )
