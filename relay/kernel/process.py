"""What the kernel can do for a process and Python has no name for: prctl(2) and clone3(2), by ctypes."""

import contextlib
import ctypes
import errno
import os
import select
import signal
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15  # what ps(1) and top(1) show; 15 bytes at most
_PR_SET_CHILD_SUBREAPER: Final = 36
_SYS_CLONE3: Final = 435  # the same number on every architecture since it came (Linux 5.3)
# clone(2), by what uname(2) calls the machine. With no stack and no thread ids its arguments' order does not matter.
_SYS_CLONE: Final = {"x86_64": 56, "aarch64": 220}
_CLONE_FILES: Final = 0x400

STOP: Final = signal.SIGTERM
"""What a process gets when its parent is gone: nobody starts anything again, so it lets its connections end and goes."""

_OOM_SCORE_MAX: Final = 1000

_HANDLED: Final = frozenset(
    {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
)

_libc: Final = ctypes.CDLL(None, use_errno=True)
# Like os.fork, the call below must keep the interpreter's lock: the child has only the thread that made it.
_libc_with_lock: Final = ctypes.PyDLL(None, use_errno=True)


class _CloneArguments(ctypes.Structure):
    """struct clone_args, first version (clone3(2))."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("pidfd", ctypes.c_uint64),
        ("child_tid", ctypes.c_uint64),
        ("parent_tid", ctypes.c_uint64),
        ("exit_signal", ctypes.c_uint64),
        ("stack", ctypes.c_uint64),
        ("stack_size", ctypes.c_uint64),
        ("tls", ctypes.c_uint64),
    )


def name(text: str) -> None:
    """Name this process for ps(1) and top(1)."""
    _libc.prctl(_PR_SET_NAME, ctypes.c_char_p(text.encode()[:15]), 0, 0, 0)


def spare_less(by: int, least: int) -> None:
    """Where memory is short, have the kernel kill this process before the one that it was forked from.

    Its score (proc_pid_oom_score_adj(5): a thousandth of the memory is a point) is raised `by` points, to `least` or more;
    every process may do that. Without /proc it stays.
    """
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+b", buffering=0) as file:
        score = min(max(int(file.read()) + by, least), _OOM_SCORE_MAX)
        file.write(b"%d" % score)


def die_with_parent(parent_pid: int, sig: signal.Signals) -> None:
    """Get `sig` when the parent ends, however it ends; at once when it is gone already."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(int(sig)), 0, 0, 0)
    if os.getppid() != parent_pid:
        os.kill(os.getpid(), sig)


def state_of(pid: int) -> tuple[str, int]:
    """A process' state (`Z`: it has ended, `T`: stopped) and its parent's pid, by /proc/PID/stat; ("", 0): there is none."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            state, parent = file.read().rpartition(b")")[2].split()[:2]
    except OSError:
        return "", 0
    return state.decode(), int(parent)


def descends_from(pid: int) -> bool:
    """Whether that process is this one's parent, or its parent's parent."""
    while (parent := os.getppid()) != pid:
        if state_of(parent)[1] == pid:
            return True
        if os.getppid() == parent:  # else it has ended meanwhile, and there is another one
            return False
    return True


def block() -> None:
    """Hold signals back over an execve(2), which forgets their handlers: they wait until `unblock`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)


def unblock(*, all_but: signal.Signals | None = None) -> None:
    """Let them come: the handlers are there. But for one, perhaps, whose handler is not."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED - {all_but})


def has_ended(pid: int) -> bool:
    """Whether a process has ended, also where nobody has waited for it yet: pidfd_open(2). No pid is 0."""
    try:
        fd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):
        return True
    except OSError:  # EINVAL: 0. EMFILE, ENOMEM: nobody knows
        return pid == 0
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        return bool(poll.poll(0))
    finally:
        os.close(fd)


def adopt_orphans() -> None:
    """Become the parent of descendants whose parent dies (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1), 0, 0, 0)


def fork_sharing_descriptors() -> int:
    """Like os.fork, but parent and child have one descriptor table: what either opens or closes, both have.

    So a descriptor outlives the process that opened it. Returns 0 in the child and its pid in the parent. Raises
    OSError where the kernel refuses (EPERM under a filter of system calls).
    """
    api = ctypes.pythonapi
    api.PyOS_BeforeFork()
    pid, code = _clone3()
    if pid < 0 and code == errno.ENOSYS and os.uname().machine in _SYS_CLONE:
        # systemd's RestrictNamespaces= answers so for clone3, whose flags no filter can see; it sees clone's.
        number = ctypes.c_long(_SYS_CLONE[os.uname().machine])
        flags = ctypes.c_ulong(_CLONE_FILES | int(signal.SIGCHLD))
        nothing = [ctypes.c_ulong(0)] * 4
        pid = int(_libc_with_lock.syscall(number, flags, *nothing))
        code = ctypes.get_errno()
    if pid == 0:
        api.PyOS_AfterFork_Child()
        return 0
    api.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(code, os.strerror(code))
    return pid


def _clone3() -> tuple[int, int]:
    arguments = _CloneArguments(flags=_CLONE_FILES, exit_signal=int(signal.SIGCHLD))
    size = ctypes.c_size_t(ctypes.sizeof(arguments))
    pid = int(_libc_with_lock.syscall(ctypes.c_long(_SYS_CLONE3), ctypes.byref(arguments), size))
    return pid, ctypes.get_errno()
