"""What the kernel says of a process: proc(5)."""

import contextlib
import os
import time
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """CPU seconds that the process has used, user and system."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def cpu_s_over(wall_s: float, *pids: int) -> float:
    """CPU seconds that the busiest of these processes would use in the next `wall_s` seconds if it had a CPU at once.

    The time for which it waits for one does not count, as if it had not passed: a process that never sleeps uses all of
    the rest, however little the others leave it. The one place that only waits: a rate needs time. Of nobody: 0, at once.
    """
    if not pids:
        return 0.0
    before, began_s = [(cpu_s(pid), _waited_s(pid)) for pid in pids], time.monotonic()
    time.sleep(wall_s)
    passed_s = time.monotonic() - began_s
    shares = []
    for pid, (cpu_before_s, waited_before_s) in zip(pids, before, strict=True):
        used_s, waited_s = cpu_s(pid) - cpu_before_s, _waited_s(pid) - waited_before_s
        shares.append(used_s / max(passed_s - waited_s, used_s, 1 / _TICKS_PER_S))
    return max(shares) * wall_s


def _waited_s(pid: int) -> float:
    """How long it has waited for a CPU: sched-stats.rst, /proc/<pid>/schedstat. A worker has one thread."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def is_asleep(pid: int) -> bool:
    """Whether it waits for an event: it neither has a CPU nor wants one."""
    return _stat(pid)[0] == "S"


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP has reached it."""
    return _stat(pid)[0] == "T"


def _stat(pid: int) -> list[str]:
    """The fields after the name, which may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def rss_bytes(pid: int) -> int:
    """Resident memory of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def descriptors(pid: int) -> int:
    """How many descriptors the process has open."""
    return len(opened(pid))


def opened(pid: int) -> dict[Path, str]:
    """What each descriptor of the process leads to. One that it closes meanwhile is not among them."""
    found = {}
    for each in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found[each] = os.readlink(each)
    return found
