"""What the keeper knows of a process that it keeps running, and how far the daemon is."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

CRASHES_SAID: Final = 3
"""So many ends in a row, each of a process that had just been started, are a state and no accident."""


@dataclass(slots=True)
class Child:
    """One process that the keeper keeps running."""

    name: str
    main: Callable[[], None]
    pid: int = 0
    successor: int = 0  # the pid of what is about to take its place, at a live upgrade
    before: int = 0  # the wait status of the one whose place it took
    started_s: float = 0.0
    restart_at_s: float | None = None
    crashes: int = 0
    replaced: bool = False  # its end is wanted: it runs a program that was replaced


class Phase(Enum):
    """The life of the daemon."""

    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
