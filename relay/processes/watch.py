"""Which process hangs, and what is to be done about it. Pure: times and states in, a remedy out.

Workers and control store when they last gave a sign of life, once a second. Who is silent for too long is taken for hung,
but only while the keeper itself ran on time: a machine that was stopped or starved has stopped them all, and then everybody
has his time anew.
"""

from enum import Enum
from typing import Final

EVERY_S: Final = 1.0  # how often to look: as often as they beat
LATE_S: Final = 0.5  # a look that comes so late says that the machine had no time for anybody
HUNG_S: Final = 5.0  # a worker beats from all work that takes longer (dataplane/context.py, `beat`)
# Control compiles what users write, in single calls that let nothing else run: with 100,000 rules and 1,000 endpoints it was
# silent for 2.4 s at the most, on two CPUs that two busy loops and others wanted as well (a reload took 14 s). Nobody's bytes
# wait for it, so there is room to be sure.
CONTROL_HUNG_S: Final = 15.0
# Until its first sign of life: it begins by parsing the service file. The same took 6.4 s there.
STARTING_S: Final = 60.0
_ENDED: Final = ("", "Z")
_STOPPED: Final = ("T", "t")


class Remedy(Enum):
    """What is to be done about a worker and its holder."""

    NOTHING = "nothing"
    KILL_WORKER = "kill the worker: its holder starts the next one, which takes its connections over"
    WAKE_HOLDER = "wake the holder, which has not noticed that its worker has ended"
    KILL_HOLDER = "kill the holder, which is not to be woken: the keeper starts both anew"


def is_silent(silent_s: float) -> bool:
    """Whether a worker has been silent for too long, so that the states of the two matter."""
    return silent_s >= HUNG_S


def remedy(silent_s: float, worker: str, holder: str, *, woken: bool) -> Remedy:
    """About a worker that has been silent for so long. States as in proc(5), "" where there is no such process.

    `woken`: its holder was woken already since it was last heard.
    """
    if not is_silent(silent_s):
        return Remedy.NOTHING
    if worker not in _ENDED:
        return Remedy.KILL_WORKER
    if holder in _ENDED or (worker == "" and holder not in _STOPPED):
        return Remedy.NOTHING  # the holder has seen its worker's end: it waits for its time, or for room for a process
    return Remedy.KILL_HOLDER if woken else Remedy.WAKE_HOLDER


def control_hangs(silent_s: float, *, heard: bool) -> bool:
    """Whether control hangs. `heard`: it has given a sign of life since it was started."""
    return silent_s >= (CONTROL_HUNG_S if heard else STARTING_S)


class Watch:
    """From when on the silence of each of some processes counts. All times are CLOCK_MONOTONIC, in seconds."""

    def __init__(self, count: int, now_s: float) -> None:
        self.due_s = now_s + EVERY_S  # when the next look is due
        self._since_s = [now_s] * count

    def look(self, now_s: float) -> bool:
        """Whether a look is due. One that is late gives everybody his time anew."""
        if now_s < self.due_s:
            return False
        if now_s - self.due_s > LATE_S:
            self._since_s = [now_s] * len(self._since_s)
        self.due_s = now_s + EVERY_S
        return True

    def anew(self, index: int, now_s: float) -> None:
        """Something has happened to it: its silence counts from now on."""
        self._since_s[index] = now_s

    def silent_s(self, index: int, beat_ns: int, now_s: float) -> float:
        """For how long it has been silent, when it beat last at that time (CLOCK_MONOTONIC)."""
        return now_s - max(self._since_s[index], beat_ns / 1e9)
