"""Instants of the ledger's header by two clocks: CLOCK_MONOTONIC for durations, CLOCK_REALTIME for people.

Whoever sets the machine's clock steps CLOCK_REALTIME: a drain of an hour would be over at once, or last for days. So each
duration goes by CLOCK_MONOTONIC. The words with CLOCK_REALTIME are written all the same: a worker of the program before goes
by them during a live upgrade, and answers tell of instants.

Instants by CLOCK_MONOTONIC stand modulo 2^64: a roster that was kept on disk may be from before this boot. 0: there is none.
"""

import time
from typing import Final

from relay.ledger.layout import DaemonWord

_MODULUS: Final = 1 << 64

# Each instant by CLOCK_MONOTONIC, and where the same stands by CLOCK_REALTIME.
_BY_WALL: Final = {
    DaemonWord.STARTED_MONOTONIC_NS: DaemonWord.STARTED_NS,
    DaemonWord.ROSTER_AT_MONOTONIC_NS: DaemonWord.ROSTER_AT_NS,
    DaemonWord.RELOAD_OK_AT_MONOTONIC_NS: DaemonWord.RELOAD_OK_AT_NS,
}


def put_now(words: memoryview, word: int) -> None:
    """It is now, by both clocks: into `word`, one of *_MONOTONIC_NS, and its counterpart."""
    put_instant(words, word, time.monotonic_ns())


def put_instant(words: memoryview, word: int, at_ns: int) -> None:
    """It was at `at_ns` (CLOCK_MONOTONIC; below 0: before this boot): into `word`, as `put_now` does."""
    words[_BY_WALL[word]] = max(1, time.time_ns() - (time.monotonic_ns() - at_ns))
    words[word] = at_ns % _MODULUS


def age_ns(words: memoryview, word: int) -> int | None:
    """How long ago (ns) the instant in `word`, one of *_MONOTONIC_NS, was; None: there is none. Never below 0."""
    at_ns = words[word]
    if not at_ns:
        return None
    found_ns = (time.monotonic_ns() - at_ns) % _MODULUS
    return int(found_ns) if found_ns < _MODULUS // 2 else 0


def instant_ns(words: memoryview, word: int) -> int:
    """The instant in `word` by CLOCK_MONOTONIC, in ns: below 0 when it is from before this boot. 0: there is none."""
    at_ns = words[word]
    return int(at_ns - _MODULUS if at_ns >= _MODULUS // 2 else at_ns)


def of_wall_ns(then_ns: int) -> int:
    """CLOCK_MONOTONIC (ns) of what was at `then_ns` by CLOCK_REALTIME; of what that clock has yet to reach: now.

    Right as long as nobody has set the clock since. Below 0 for what was before this boot; never 0, which is no instant.
    """
    return time.monotonic_ns() - max(0, time.time_ns() - then_ns) or 1


def put_busy(words: memoryview, for_ns: int) -> None:
    """New connections are not wanted for so long from now on; 0: they are."""
    wall_until_ns = time.time_ns() + for_ns if for_ns else 0
    # In this order: cut off in between, `take_over` makes it whole.
    words[DaemonWord.BUSY_UNTIL_NS] = wall_until_ns
    words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = time.monotonic_ns() + for_ns if for_ns else 0
    words[DaemonWord.BUSY_TAKEN_NS] = wall_until_ns


def busy_left_ns(words: memoryview, now_ns: int) -> int:
    """For how long (ns) new connections are not wanted, by `relay drain`. `now_ns`: CLOCK_MONOTONIC."""
    return int(max(0, words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] - now_ns))


def take_over(words: memoryview) -> None:
    """What a program wrote that knew only CLOCK_REALTIME stands by both clocks from now on: instants, and a drain that is on.

    It is right as long as nobody has set the clock since. What stands by both is not touched.
    """
    for word, wall_word in _BY_WALL.items():
        if words[wall_word] and not words[word]:
            words[word] = of_wall_ns(words[wall_word]) % _MODULUS
    until_ns = words[DaemonWord.BUSY_UNTIL_NS]
    if until_ns != words[DaemonWord.BUSY_TAKEN_NS]:
        left_ns = until_ns - time.time_ns()
        words[DaemonWord.BUSY_UNTIL_MONOTONIC_NS] = time.monotonic_ns() + left_ns if left_ns > 0 else 0
        words[DaemonWord.BUSY_TAKEN_NS] = until_ns
