"""What several tasks do again and again is done in the same moments: each wake-up of a process costs more than the work."""

import asyncio
from typing import Final

_EARLY_S: Final = 0.01  # timers count milliseconds, and may end a little before their time


def to_next(every_s: float) -> float:
    """How long to wait, in the running event loop, for the next moment of those that come every so many seconds.

    They are the same for all who ask for as much, and the others' are among them where theirs is a multiple.
    """
    left_s = every_s - asyncio.get_running_loop().time() % every_s
    return left_s if left_s > _EARLY_S else left_s + every_s
