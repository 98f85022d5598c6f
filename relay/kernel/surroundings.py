"""What relay needs of the machine it runs on, asked for before anything is opened: what is missing would fail late."""

import os
import sys
from typing import Final

from relay.errors import OperatorError, os_reason

_STANDARD: Final = (("stdin", os.O_RDONLY, "r"), ("stdout", os.O_WRONLY, "w"), ("stderr", os.O_WRONLY, "w"))
_NO_NULL: Final = "bind the host's there, or make it: `mknod -m 666 /dev/null c 1 3`"
_NO_PROC: Final = (
    "mount it: `mount -t proc proc /proc` (in a container: do not mask /proc; in a chroot: mount it inside)"
)
_OLD: Final = "relay needs Linux 5.15 or later, and in a container a filter of system calls that lets it through"


def stand_in() -> None:
    """Open /dev/null as each of standard input, output and error that is closed. To be called before anything is opened.

    A socket would take the number, and relay's processes, like all programs, take 0, 1 and 2 for what they are elsewhere.
    Raises OperatorError where /dev/null cannot be opened.
    """
    for number, (name, mode, how) in enumerate(_STANDARD):
        try:
            os.fstat(number)
        except OSError:
            fd = _null(mode)
            if fd != number:
                os.dup2(fd, number)
                os.close(fd)
            os.set_inheritable(number, True)  # the program that takes this one's place at an upgrade needs it too
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, how, closefd=False))  # noqa: SIM115 - it stays open


def refuse_without() -> None:
    """Try all that the daemon asks of the kernel beyond the usual. Raises OperatorError with what is missing and a remedy."""
    os.close(_null(os.O_RDWR))
    try:
        fd = os.memfd_create("relay-probe", os.MFD_CLOEXEC)
    except OSError as error:
        raise OperatorError(f"there are no memory files (memfd_create: {os_reason(error)}); {_OLD}") from None
    try:
        if str(fd) not in os.listdir("/proc/self/fd"):
            raise FileNotFoundError
        with open("/proc/self/status", "rb"):
            pass
    except OSError:
        what = "/proc is not there, and relay finds in it what a dead worker has left open"
        raise OperatorError(f"{what}; {_NO_PROC}") from None
    finally:
        os.close(fd)
    try:
        os.close(os.pidfd_open(os.getpid()))
    except OSError as error:
        raise OperatorError(f"a process cannot be watched (pidfd_open: {os_reason(error)}); {_OLD}") from None


def _null(mode: int) -> int:
    try:
        return os.open(os.devnull, mode | os.O_CLOEXEC)
    except OSError as error:
        what = f"{os.devnull} cannot be opened ({os_reason(error)}), and stands in for what is closed or not wanted"
        raise OperatorError(f"{what}; {_NO_NULL}") from None
