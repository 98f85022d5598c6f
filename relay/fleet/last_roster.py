"""The last roster that a registry gave, on disk: for a start while the registry is down."""

import asyncio
import contextlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from relay.config import reading, values
from relay.config.roster import Member, Roster, split_instance
from relay.config.wording import printable
from relay.errors import OperatorError, UnreadableError, os_reason
from relay.kernel import state_file
from relay.kernel.aside import aside
from relay.ledger.clocks import of_wall_ns

_FORMAT: Final = 1
_PAUSE_S: Final = 1.0  # between two writes: a fleet that starts changes the roster a thousand times in a few seconds
_LOOK_S: Final = 30.0  # one that was not written, or that somebody has removed, is written again within this
_END_S: Final = 2.0  # a disk that is busy takes as long; for one that hangs nobody waits
_SIZE_MAX_BYTES: Final = 16 * 1024 * 1024  # several times a roster of values.INSTANCES_MAX


Stamp = tuple[int, int, int] | None
"""What tells a file from another one at its place: inode, when it was written, and its size. None: there is none."""


@dataclass(frozen=True, slots=True)
class Remembered:
    """A roster as it was at `saved_ns` (time.time_ns), and which of its instances this machine was."""

    instance: str
    members: tuple[Member, ...]
    saved_ns: int

    @property
    def confirmed_ns(self) -> int:
        """The same by CLOCK_MONOTONIC, as far as nobody has set the clock since; below 0: before this boot. Never 0."""
        return of_wall_ns(self.saved_ns)


def path_of(state: str, service: str) -> Path:
    """The file in the directory `state` that has a service's roster."""
    return Path(state) / f"{service}.roster.json"


def recall(state: str, service: str, machine: str) -> Remembered | None:
    """What was remembered of the service on the machine with this hash. None: nothing, or nothing that can be used.

    A disk that was copied to another machine carries that one's memory: it is not this machine's.
    """
    try:
        path = str(path_of(state, service))
        plain = json.loads(reading.read_bytes(path, deadline_s=reading.DEADLINE_S, most_bytes=_SIZE_MAX_BYTES))
        if (plain["format"], plain["service"], plain["machine"]) != (_FORMAT, service, machine):
            return None
        members = Roster.from_plain(plain["members"]).members
        split_instance(plain["instance"])
        if not all(_makes_sense(member) for member in members) or not isinstance(plain["saved_ns"], int):
            return None
        return Remembered(plain["instance"], members, plain["saved_ns"])
    except (UnreadableError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def save(state: str, service: str, machine: str, remembered: Remembered) -> None:
    """Write it down, whole or not at all, for no one else to read. Raises OSError."""
    plain: dict[str, Any] = {
        "format": _FORMAT,
        "service": service,
        "instance": remembered.instance,
        "machine": machine,
        "saved_ns": remembered.saved_ns,
        "members": Roster(remembered.members).to_plain(),
    }
    state_file.write(path_of(state, service), json.dumps(plain).encode())


class Memory:
    """Writes rosters down as they change, one a second at the most, and never holds up its caller.

    `complain` is told when it cannot, once until it can again.
    """

    def __init__(self, state: str, service: str, machine: str, instance: str, complain: Callable[[str], None]) -> None:
        self._where = state, service, machine
        self._instance = instance
        self._complain = complain
        self._noted: tuple[Member, ...] | None = None
        self._look_at_s = 0.0
        self._members: tuple[Member, ...] | None = None  # to be written
        self._written: tuple[tuple[Member, ...], Stamp] | None = None
        self._task: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._failed = False

    def note(self, members: tuple[Member, ...]) -> None:
        """This is who is there now. Called in the event loop, again and again: the file may be gone meanwhile."""
        now_s = time.monotonic()
        if members == self._noted and now_s < self._look_at_s:
            return
        self._noted, self._look_at_s = members, now_s + _LOOK_S
        self._members = members
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._write(), name="remember")

    async def close(self) -> None:
        """Write what is waiting, and end. Returns after 2 s at most."""
        self._closing.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_END_S):
                    await asyncio.shield(self._task)

    async def _write(self) -> None:
        while self._members is not None:
            members, self._members = self._members, None
            try:
                # In a thread: fsync(2) may take seconds.
                writing = aside(partial(self._kept, members))
                try:
                    async with asyncio.timeout(reading.DEADLINE_S):
                        await asyncio.shield(writing)
                except TimeoutError:
                    why = f"its file system has not answered within {reading.DEADLINE_S:g} s"
                    self._say(f"{why}; mend its mount (`findmnt -T` names it)")
                self._written = await writing  # one that hangs is waited for: two would write at the same time
                self._failed = False
            except OSError as error:
                self._say(f"{os_reason(error)}; create the directory for relay's user")
            except OperatorError as error:
                self._say(str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PAUSE_S):
                    await self._closing.wait()

    def _kept(self, members: tuple[Member, ...]) -> "tuple[tuple[Member, ...], Stamp]":
        """Write them, unless they stand there as they were written last. Raises OSError."""
        if self._written is None or self._written != (members, _stamp(*self._where[:2])):
            save(*self._where, Remembered(self._instance, members, time.time_ns()))
        return members, _stamp(*self._where[:2])

    def _say(self, why: str) -> None:
        if not self._failed:
            what = f"the roster is not kept for a restart: {printable(self._where[0])}: {why}"
            self._complain(f"{what}, or write `state` under `registry`")
        self._failed = True


def _stamp(state: str, service: str) -> Stamp:
    try:
        found = os.stat(path_of(state, service))
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _makes_sense(member: Member) -> bool:
    try:
        split_instance(member.id)
        values.role_name(member.role)
        values.address(member.address)
        if member.metrics:
            values.host_port(member.metrics)
    except ValueError:
        return False
    return isinstance(member.busy, bool) and all(isinstance(text, str) for text in (*member.down, *member.reasons))
