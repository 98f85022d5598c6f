"""How newcomers are shared out among the workers, so that connections that stay do not pile up on one of them.

All workers wait at the same listening sockets, and the one that is awake already is the quickest, again and again. So a
worker that has its share leaves newcomers to the others. Each one's word in the ledger says how many connections it has;
nobody is asked, and nothing is agreed upon.
"""

from math import isqrt
from typing import Final

from relay.ledger.layout import Word
from relay.ledger.ledger import WorkerLedger

NOBODY: Final = 1 << 62  # more connections than there can be: nobody is there to leave newcomers to
HUNG_NS: Final = 3_000_000_000  # without a heartbeat, which comes every second: nothing is left to that worker


def most(fewest: int) -> int:
    """With how many connections a worker has its share, while that of the others which has the fewest has so many.

    It may be ahead of that one by twice the root of the number: by chance alone short connections make such a difference,
    and whoever stood back for it would spend more than is won. Of eight that stay, two workers have at least three each.
    """
    return fewest + 1 + 2 * isqrt(fewest + 1)


class Share:
    """One worker's part in it. It takes none until `join`."""

    def __init__(self, ledger: WorkerLedger) -> None:
        self._words = ledger.numbers
        self._mine = ledger.word_index(Word.OPEN)
        others = [n for n in range(len(ledger.all_counts_at(0))) if n != ledger.index]
        self._beats = {ledger.word_index(Word.OPEN, n): ledger.word_index(Word.HEARTBEAT_NS, n) for n in others}
        self._others = list(self._beats)  # less those that hang

    def join(self, connections: int) -> None:
        """Be one of those to whom newcomers are left, with so many connections now."""
        self._words[self._mine] = connections + 1

    def leave(self) -> None:
        """Take none: the others need not wait for this worker to."""
        self._words[self._mine] = 0

    def tell(self, connections: int) -> None:
        """This worker has so many now: after some came, or went."""
        if self._words[self._mine]:
            self._words[self._mine] = connections + 1

    def most(self) -> int:
        """With how many connections this worker has its share. One that has left has never enough."""
        words, fewest = self._words, NOBODY
        if not self._others or not words[self._mine]:
            return NOBODY
        for at in self._others:  # a loop, for this is asked at every accept: min() takes three times as long
            if 0 < (there := words[at]) < fewest:
                fewest = there
        return NOBODY if fewest == NOBODY else most(fewest - 1)

    def look(self, now_ns: int) -> None:
        """See who hangs. About once a second; `now_ns` is CLOCK_MONOTONIC."""
        self._others = [at for at, beat in self._beats.items() if now_ns - self._words[beat] < HUNG_NS]
