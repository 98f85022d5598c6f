"""The live upgrade's hinge: what a process leaves to the code that takes its place by execve(2).

The keeper replaces its own program. A process that executes another program keeps its pid, its children, its parent and
every descriptor that is not close-on-exec, and nothing else. So all that the new code must know stands in one memory
file: numbers of descriptors and a few plain facts. Nothing in it depends on how either version lays out its objects.

The holders do not: what they have goes over to those of the new program (succession.py). So a descriptor that every holder
has from its start is also part of what two versions must have in common.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final, NoReturn

from relay.kernel import memory

FORMAT: Final = 3
"""Of the JSON below, of what a holder has open from its start, and of what succession.py says. New code refuses to try
with another one."""

VARIABLE: Final = "RELAY_HANDOVER"
"""In the environment of a keeper that was replaced: the number of the memory file's descriptor."""


@dataclass(frozen=True, slots=True)
class Handover:
    """What stands when a keeper is replaced. Every int is a descriptor, unless it is named a pid."""

    keeper_pid: int
    control_pid: int  # 0: there is none at the moment
    holder_pids: tuple[int, ...]  # by worker; 0: none at the moment
    memory: int  # this file
    ledger: int
    log_sink: int
    log_source: int
    keeper_end: int  # of the channel to control
    control_end: int
    hand: tuple[int, int]  # of the channel over which holders are called: succession.py
    worker_ends: tuple[tuple[int, int], ...]
    control_only: dict[str, int]  # by what is served there
    listeners: dict[str, int]  # by listening address
    prepared: int  # what the trial left to the new keeper, see control/upgrade.py
    version: str  # of the code that is replaced

    def of_keeper(self) -> tuple[int, ...]:
        """The descriptors that a keeper has, and needs again."""
        channels = (fd for pair in (self.hand, (self.keeper_end, self.control_end), *self.worker_ends) for fd in pair)
        sockets = (*self.control_only.values(), *self.listeners.values())
        return (self.memory, self.ledger, self.log_sink, self.log_source, *channels, *sockets, self.prepared)

    def write(self) -> None:
        """Put it into the memory file, in place of what is there."""
        text = json.dumps({"format": FORMAT, **asdict(self)}).encode()
        os.ftruncate(self.memory, 0)
        os.pwrite(self.memory, text, 0)


def read(fd: int) -> Handover:
    """What was written. Raises ValueError where that was in another format."""
    raw: dict[str, Any] = json.loads(memory.read(fd))
    if raw.pop("format", None) != FORMAT:
        raise ValueError(f"the running version hands over in another format than {FORMAT}")
    raw["holder_pids"] = tuple(raw["holder_pids"])
    raw["hand"] = tuple(raw["hand"])
    raw["worker_ends"] = tuple(map(tuple, raw["worker_ends"]))
    return Handover(**raw)


def module(name: str) -> list[str]:
    """The interpreter's arguments that run the module `name` from where this program was installed."""
    # `-m` looks in the working directory first. A daemon that was not started so must not begin to look there.
    return ["-m", name] if sys.orig_argv[1:2] == ["-m"] else ["-P", "-m", name]


def execute(arguments: list[str], keep: Iterable[int], environment: dict[str, str] | None = None) -> NoReturn:
    """Become `python ARGUMENTS`, with the descriptors `keep` still open. Raises OSError, and then nothing has happened."""
    kept = []
    for fd in keep:
        with contextlib.suppress(OSError):  # listing the descriptors took one itself
            os.set_inheritable(fd, True)
            kept.append(fd)
    try:
        os.execve(sys.executable, [sys.executable, *arguments], os.environ | (environment or {}))
    except OSError:
        for fd in kept:
            os.set_inheritable(fd, False)
        raise
