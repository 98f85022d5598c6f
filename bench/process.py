"""Processes of the bench: started on given CPUs, their CPU time read over the whole tree, stopped by pid."""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO

PR_SET_PDEATHSIG = 1  # prctl(2)
READY_S = 15.0  # an interpreter with its imports on a busy machine; the others need a tenth of a second
STOP_S = 3.0  # per signal: SIGTERM, SIGTERM again (some drain on the first and leave on the second), SIGKILL
TOOL_S = 60.0  # a bound for hanging: `ip` and the like are done at once
POLL_S = 0.02  # another program's listening port can only be polled

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CPUCLOCK_SCHED = 2  # linux/posix-timers.h: all that ran for the process
_libc = ctypes.CDLL(None, use_errno=True)


Cpus = frozenset[int] | None
"""Where a process may run; None: wherever the kernel likes."""


class BenchError(Exception):
    """The bench, or one of its forwarders, cannot go on. The message says why and what to change."""


@dataclass(frozen=True, slots=True)
class ProcessStat:
    """What the bench needs of /proc/PID/stat (proc(5)).

    `ended_ticks` is user and system time of the children that have ended and been waited for.
    """

    pid: int
    parent: int
    started_ticks: int
    ended_ticks: int

    def cpu_s(self) -> float:
        """User and system time so far, with that of the children that have ended; 0 when it has just ended itself."""
        try:
            # What clock_getcpuclockid(3) makes of a pid. In nanoseconds, where proc(5) has ticks of 10 ms.
            return time.clock_gettime(~self.pid << 3 | _CPUCLOCK_SCHED) + self.ended_ticks / _TICKS_PER_S
        except OSError:
            return 0.0


def read_stat(pid: int) -> ProcessStat | None:
    """The process as it is now; None when it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the program's name in brackets and may hold spaces and brackets itself.
    fields = text[text.rindex(")") + 2 :].split()
    return ProcessStat(pid, int(fields[1]), int(fields[19]), sum(map(int, fields[13:15])))


def rss_mib(pid: int) -> float:
    """A process's resident memory; 0 when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def tree(root: int) -> list[ProcessStat]:
    """The process `root` and all its descendants; empty when it is gone."""
    stats = {stat.pid: stat for name in os.listdir("/proc") if name.isdigit() and (stat := read_stat(int(name)))}
    children: dict[int, list[ProcessStat]] = {}
    for stat in stats.values():
        children.setdefault(stat.parent, []).append(stat)
    found = [stats[root]] if root in stats else []
    for stat in found:
        found.extend(children.get(stat.pid, []))
    return found


def pinned(cpus: Cpus) -> Callable[[], None]:
    """What a child does before exec: move to `cpus` (None: stay), and ask for SIGTERM should the bench die."""

    def prepare() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM))
        if cpus is not None:
            os.sched_setaffinity(0, cpus)

    return prepare


class Process:
    """A started program, in a session of its own so that Ctrl-C reaches it through `stop` alone.

    Its output goes to the file `log`. Raises BenchError when it cannot be started.
    """

    def __init__(self, name: str, command: list[str], *, cpus: Cpus, log: Path, cwd: Path) -> None:
        self.name = name
        self._log = log
        with log.open("wb") as output:
            self._popen = self._start(command, cpus, output, cwd)

    def _start(self, command: list[str], cpus: Cpus, output: IO[bytes], cwd: Path) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # As an installed package, which has its compiled files: an upgrade is mostly reading them.
                env={name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"},
                # As under systemd, where a service ignores SIGPIPE (IgnoreSIGPIPE= in systemd.exec(5)), like Python
                # itself: systemd-socket-proxyd relies on it, and dies of the first client that goes away without.
                restore_signals=False,
                preexec_fn=pinned(cpus),
            )
        except OSError as error:
            raise BenchError(f"{self.name}: {command[0]} cannot be started: {error.strerror}") from error

    def output(self) -> str:
        """What it has printed so far."""
        return self._log.read_text(errors="replace")

    @property
    def pid(self) -> int:
        """The root of its tree."""
        return self._popen.pid

    def pids(self) -> list[int]:
        """Its process tree, the root first."""
        return [stat.pid for stat in tree(self._popen.pid)]

    def cpu_s(self) -> float:
        """CPU seconds, user and system, of the whole tree since it started."""
        return sum(stat.cpu_s() for stat in tree(self._popen.pid))

    def wait_until(self, ready: Callable[[], bool], what: str, patience_s: float = READY_S) -> None:
        """Returns once `ready()` is true. BenchError, with the program's last words, if it ends or takes too long."""
        deadline = time.monotonic() + patience_s
        while not ready():
            self.check_alive()
            if time.monotonic() > deadline:
                raise BenchError(f"{self.name}: not {what} after {patience_s:.0f} s: {self._last_words()}")
            time.sleep(POLL_S)

    def check_alive(self) -> None:
        """Raises BenchError, with the program's last words, if it has ended."""
        if self._popen.poll() is not None:
            raise BenchError(f"{self.name} ended with status {self._popen.returncode}: {self._last_words()}")

    def has_ended(self) -> bool:
        """Whether the root of its tree is gone."""
        return self._popen.poll() is not None

    def _last_words(self) -> str:
        lines = [line for line in self.output().splitlines() if line.strip()]
        return " | ".join(lines[-3:]) or "it printed nothing"

    def stop(self) -> None:
        """Ends the tree and waits for it. A process that outlives two SIGTERMs of the root is killed."""
        members = tree(self._popen.pid)
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                self._popen.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(STOP_S)
                break
        for member in members:
            now = read_stat(member.pid)
            # The start time tells the process from a later one with the same pid.
            if now is not None and now.started_ticks == member.started_ticks:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(member.pid, signal.SIGKILL)


def accepts(address: tuple[str, int]) -> bool:
    """Whether somebody listens there."""
    try:
        with socket.create_connection(address, timeout=1):
            return True
    except OSError:
        return False


def throws_out(address: tuple[str, int]) -> bool:
    """Whether somebody accepts there and ends the connection at once."""
    try:
        with socket.create_connection(address, timeout=1) as client:
            return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except OSError:
        return False


def run_tool(command: list[str], package: str, lines: list[str] | None = None) -> str:
    """What a program printed, given these lines to read. Raises BenchError where it fails or is missing."""
    try:
        done = subprocess.run(
            command, input="\n".join(lines or []), capture_output=True, text=True, check=False, timeout=TOOL_S
        )
    except FileNotFoundError:
        raise BenchError(f"no `{command[0]}` (apt-get install {package})") from None
    if done.returncode:
        raise BenchError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def leave(number: int, _frame: FrameType | None) -> None:
    """The first signal ends the bench by way of its cleanup, which a second one must not cut short."""
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    raise SystemExit(128 + number)


def run_to_the_end(bench: Callable[[], int]) -> int:
    """Runs a bench; its exit status. Whatever ends it, what it started is stopped."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, leave)
    try:
        return bench()
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
