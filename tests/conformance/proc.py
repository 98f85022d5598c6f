"""What the kernel says of a process: proc(5)."""

import os
import time
from pathlib import Path
from typing import Final

_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def cpu_s(pid: int) -> float:
    """CPU seconds that the process has used, user and system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()  # its name may hold anything
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


def cpu_s_over(pid: int, wall_s: float) -> float:
    """CPU seconds that the process uses in the next `wall_s` seconds. The one place that only waits: a rate needs time."""
    before_s = cpu_s(pid)
    time.sleep(wall_s)
    return cpu_s(pid) - before_s


def rss_bytes(pid: int) -> int:
    """Resident memory of the process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES


def descriptors(pid: int) -> int:
    """How many descriptors the process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
