"""`python confine.py UNIT COMMAND…`: run a command under the system call filter of a systemd unit.

systemd itself is not needed: its own lists are asked of systemd-analyze, and what it puts in force for `SystemCallFilter=`,
`RestrictNamespaces=yes` and `MemoryDenyWriteExecute=yes` (systemd.exec(5), src/shared/seccomp-util.c) is put in force here.
"""

import errno
import functools
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pyseccomp

_CLONE_NEW: Final = (0x00020000, 0x02000000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000, 0x00000080)
_PROT_WRITE: Final = 2
_PROT_EXEC: Final = 4


@functools.cache
def calls_of(group: str) -> frozenset[str]:
    """The names of the system calls in a group such as `@system-service`, or of the one call that it is."""
    if not group.startswith("@"):
        return frozenset({group})
    listed = subprocess.run(["systemd-analyze", "syscall-filter", group], capture_output=True, text=True, check=True)
    names = [line.strip() for line in listed.stdout.splitlines()[1:]]
    return frozenset(call for name in names if name and not name.startswith("#") for call in calls_of(name))


def allowed(unit: Path) -> set[str]:
    """What the unit's SystemCallFilter= lines leave, in their order."""
    left: set[str] = set()
    for line in unit.read_text().splitlines():
        key, _, value = line.partition("=")
        if key == "SystemCallFilter":
            named = {call for group in value.removeprefix("~").split() for call in calls_of(group)}
            left = left - named if value.startswith("~") else left | named
    # systemd always leaves what a program needs to be started at all.
    return left | calls_of("@default") | {"execve", "brk"}


def confine(unit: Path) -> None:
    """Put the filter in force for this process and all that it becomes."""
    wall = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for call in sorted(allowed(unit)):
        try:
            number = pyseccomp.resolve_syscall(pyseccomp.system_arch(), call)
        except ValueError:
            continue
        if number < 0 or call in ("clone", "clone3", "mmap", "mprotect", "unshare", "setns", "pkey_mprotect"):
            continue
        wall.add_rule(pyseccomp.ALLOW, call)
    # RestrictNamespaces=yes: clone3's flags cannot be seen by a filter, so it is not there at all.
    wall.add_rule(pyseccomp.ERRNO(errno.ENOSYS), "clone3")
    wall.add_rule(pyseccomp.ALLOW, "clone", pyseccomp.Arg(0, pyseccomp.MASKED_EQ, sum(_CLONE_NEW), 0))
    # MemoryDenyWriteExecute=yes
    wall.add_rule(pyseccomp.ALLOW, "mprotect", pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC, 0))
    wall.add_rule(pyseccomp.ALLOW, "mmap", pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC, 0))
    wall.add_rule(pyseccomp.ALLOW, "mmap", pyseccomp.Arg(2, pyseccomp.MASKED_EQ, _PROT_EXEC | _PROT_WRITE, _PROT_EXEC))
    wall.load()


if __name__ == "__main__":
    confine(Path(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])
