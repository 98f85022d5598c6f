"""Whether a target is up, since when, and why not: the same, wherever it is told.

Two find out how a target is. A worker does when it dials it for a connection, and writes down when, and what came of it.
Control does when it looks (control/looking.py), and writes down what it found. How it is, nobody
writes: whoever wants it computes it here, from what was found last.
"""

import time
from dataclasses import dataclass
from typing import Final

from relay.config.snapshot import EndpointRow, TargetRow
from relay.ledger.layout import Count, Health, TargetCount, health_at
from relay.ledger.ledger import Ledger, WorkerLedger
from relay.targets import why as reasons

_STATE_BITS: Final = 2
_STATE: Final = (1 << _STATE_BITS) - 1
_WHY: Final = (1 << reasons.BITS) - 1
_SINCE_AT: Final = _STATE_BITS + reasons.BITS  # 40 bits of milliseconds are left: 34 years
STEPS: Final = 10  # to a target's whole share: each works out anew who goes where
_PORT_AT: Final = 32  # in DIAL_WHY, of a range of ports: which one did not answer


@dataclass(frozen=True, slots=True)
class TargetHealth:
    """How a target is. `health` is one of `Health`; `why` (targets/why.py) is 0 unless it is down.

    `since_ns` is when it came to be so, `looked_ns` when it was looked at last (CLOCK_MONOTONIC; 0: not known); `dialled`:
    that look was a connection's.
    """

    health: int = Health.UNKNOWN
    why: int = reasons.NOTHING
    since_ns: int = 0
    looked_ns: int = 0
    dialled: bool = False


def packed(health: int, why: int, since_ns: int) -> int:
    """As one word of the ledger, which is stored whole."""
    return health | why << _STATE_BITS | since_ns // 1_000_000 << _SINCE_AT


def state_in(word: int) -> int:
    """The health in such a word."""
    return word & _STATE


def is_found_down(word: int) -> bool:
    """Whether one with such a word is down, and has not only asked for no new connections: then those it has go on."""
    health, number, _ = unpacked(word)
    return health == Health.DOWN and number not in (reasons.BUSY, reasons.HELD)


def knows_at(part: WorkerLedger, slot: int) -> int:
    """Index into `words` of what a target's relay knows (`Knows`): one word for all workers, which control writes."""
    return part.target_counts_at(slot)[0] + TargetCount.KNOWS


def may_be_back(word: int, knows: int, *, proves: bool) -> bool:
    """Whether one that is down by this word may be up again, and nobody knows: its relay was there, the application not.

    So that a connection finds it out and is not lost: `knows` is what its relay knows, `proves` as in `latest`.
    """
    return proves and bool(knows) and state_in(word) == Health.DOWN and reasons.is_of_application(unpacked(word)[1])


def risen_share(word: int, weight: int, now_ns: int, slow_ns: int, *, probed: bool) -> int:
    """A target's share by this word, if it is to have all of its weight only when it has been up for so long.

    In `STEPS` parts of its weight; never none of one that has a weight. `probed`: who was not looked at yet is about to be.
    """
    health, _, since_ns = unpacked(word)
    if health == Health.UNKNOWN:
        step = 1 if probed else STEPS
    else:
        step = min(STEPS, max(1, STEPS * (now_ns - since_ns) // slow_ns))
    return weight * step


def failed_dial(why: int, port: int = 0) -> int:
    """The word DIAL_WHY: the reason, and of a range of ports which one it was."""
    return why | port << _PORT_AT


def unpacked(word: int) -> tuple[int, int, int]:
    """Health, reason and since when (CLOCK_MONOTONIC, ns) of such a word."""
    return word & _STATE, word >> _STATE_BITS & _WHY, (word >> _SINCE_AT) * 1_000_000


def latest(found: int, looked_ns: int, dial: int, dial_why: int, *, proves: bool) -> TargetHealth:
    """What holds after control's last look (`found`, packed) and the last dial (when << 1 | whether it was answered).

    `proves`: a dial that was answered says that the target is up. One that failed always says that it is not.
    """
    health, why, since_ns = unpacked(found)
    dialled_ns, answered = dial >> 1, bool(dial & 1)
    if dialled_ns <= looked_ns or (answered and not proves):
        # Control takes the dials into its own words, with their time.
        return TargetHealth(health, why, since_ns, looked_ns if health else 0, 0 < dialled_ns == looked_ns)
    now = Health.UP if answered else Health.DOWN
    since_ns = since_ns if now == health and since_ns else dialled_ns
    return TargetHealth(now, reasons.NOTHING if answered else dial_why & _WHY, since_ns, dialled_ns, True)


def of_endpoint(ledger: Ledger, row: EndpointRow, *, by_dials: bool = False) -> TargetHealth:
    """How the services are behind an endpoint of this machine's own: as one, since any of them will do that has a weight.

    `by_dials`: by the last dial as well, also where probes alone decide.
    """
    if row.distribution is not None:
        return _of_all([of_target(ledger, row, target) for target in row.targets if target.weight])
    words, rows = ledger.words, ledger.worker(0).all_counts_at(row.slot)
    return own_health(words, rows, proves=row.dial_proves, decided=row.is_decided and not by_dials)


def _of_all(found: list[TargetHealth]) -> TargetHealth:
    """Up if one of them is, down if all are: as it came to be so last."""
    for health in (Health.UP, Health.UNKNOWN):
        if some := [each for each in found if each.health == health]:
            return min(some, key=lambda each: each.since_ns)
    return max(found, key=lambda each: each.since_ns, default=TargetHealth())


def own_health(words: memoryview, rows: tuple[int, ...], *, proves: bool, decided: bool = False) -> TargetHealth:
    """The same, from where the endpoint's counters begin in every worker. `decided`: by probes alone, and no dial counts."""
    dial, dial_why = (0, 0) if decided else _last_dial(words, rows, Count.TARGET_UP, Count.DIAL_WHY)
    return latest(words[rows[0] + Count.HEALTH], words[rows[0] + Count.LOOKED_NS], dial, dial_why, proves=proves)


def _last_dial(words: memoryview, rows: tuple[int, ...], when: int, why: int) -> tuple[int, int]:
    """The two words of the last dial, whichever worker made it; `when` and `why` are their places in a worker's row."""
    dial, at = max((words[at + when], at) for at in rows)
    return dial, words[at + why]


def of_target(ledger: Ledger, row: EndpointRow, target: TargetRow) -> TargetHealth:
    """How one of several targets is.

    On an edge its relay takes every connection, so an answered dial proves nothing; nor does it where probes decide.
    """
    words, rows = ledger.words, ledger.worker(0).target_counts_at(target.slot)
    dial, dial_why = _last_dial(words, rows, TargetCount.DIALLED, TargetCount.DIAL_WHY)
    found, looked_ns = words[health_at(target.slot)], words[rows[0] + TargetCount.LOOKED_NS]
    return latest(found, looked_ns, dial, dial_why, proves=not row.is_judged)


def share_of(ledger: Ledger, row: EndpointRow, target: TargetRow) -> int:
    """What part of its weight one of several targets has now, in `STEPS` parts."""
    if row.slow_start_s is None:
        return STEPS
    word, now_ns = ledger.words[health_at(target.slot)], time.monotonic_ns()
    return risen_share(word, 1, now_ns, int(row.slow_start_s * 1e9), probed=row.is_judged)


def failed_port(ledger: Ledger, row: EndpointRow) -> int:
    """Of a range of ports, the one whose dial failed last; 0: none did."""
    rows = ledger.worker(0).all_counts_at(row.slot)
    return _last_dial(ledger.words, rows, Count.TARGET_UP, Count.DIAL_WHY)[1] >> _PORT_AT
