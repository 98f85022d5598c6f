"""A directory of files as the registry: `web_IN_0.yaml` with the instance's `address`, and `metrics` if others may ask."""

import asyncio
import os
import time
from collections.abc import Coroutine, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from relay.config import reading, values
from relay.config.document import SIZE_MAX_BYTES, Document, parse
from relay.config.roster import Member, split_instance
from relay.config.wording import nearest, printable
from relay.errors import ConfigError, HangingError, Problem, UnreadableError, WrongValue, os_reason
from relay.fleet.registry import RegistryClient, Seen
from relay.kernel.aside import aside

_POLL_S: Final = 1.0  # as soon as an instance by etcd is admitted; stat(2) of a thousand files takes a few milliseconds
_GONE_LOOKS: Final = 3  # in a row: a file that is replaced may be away for a moment
_SUFFIX: Final = ".yaml"
_EXAMPLE: Final = "address: 10.0.0.4"

Stamp = tuple[int, int, int]
"""What tells a file from what it was before: when it was written, its size, and its inode."""


class Directory(RegistryClient):
    """The instances by the files of a directory. It is read when this is made, and then looked at each second.

    A file that cannot be used is named in `trouble`, and what it said before stands; so does everything when the directory
    itself cannot be read.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._stamps: dict[str, Stamp] = {}
        self._members: dict[str, Member] = {}
        self._problems: dict[str, str] = {}
        self._missing: dict[str, int] = {}  # looks in a row that did not find a file
        super().__init__(Seen())
        self._publish(self._look())

    def announce(self, metrics: str, busy: bool, down: Mapping[str, str]) -> None:
        """Nothing: the files are written by somebody else."""

    @property
    def rejected(self) -> int:
        """How many files cannot be used."""
        return len(self._problems)

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        return [self._poll()]

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            # In a thread: a directory on a network file system may take its time.
            self._publish(await aside(self._look))

    def _look(self) -> Seen:
        """Read what has changed since the last look."""
        try:
            path = os.path.join(self._path, "")  # whatever hangs in it is counted together
            return self._compared(reading.within(reading.DEADLINE_S, path, partial(_stamps, self._path)))
        except UnreadableError as error:
            trouble = f"{error.path} cannot be read: {error.reason}; {error.fix}"
        except OSError as error:
            trouble = f"{printable(str(self._path))} cannot be read: {os_reason(error)}; check `directory`"
        return Seen(self._seen.members, self._seen.confirmed_ns, trouble)

    def _compared(self, stamps: dict[str, Stamp]) -> Seen:
        """As `_look`, by what is there now. Raises HangingError at the first file that hangs: the others would, too."""
        if not stamps and self._members:
            # Such as a mount point whose file system is away, or a copy that has just begun.
            trouble = f"{printable(str(self._path))} is empty, which is not believed; write the files again"
            return Seen(self._seen.members, self._seen.confirmed_ns, trouble)
        for name in self._stamps.keys() - stamps.keys():
            self._missing[name] = self._missing.get(name, 0) + 1
            if self._missing[name] < _GONE_LOOKS:
                stamps[name] = self._stamps[name]
            else:
                for known in (self._members, self._problems, self._missing):
                    known.pop(name, None)
        for name, stamp in stamps.items():
            if self._stamps.get(name) != stamp:
                self._read(name)
                self._missing.pop(name, None)
        self._stamps = stamps
        trouble = "; ".join(line for _, line in sorted(self._problems.items()))
        return Seen(tuple(sorted(self._members.values())), time.monotonic_ns(), trouble)

    def _read(self, name: str) -> None:
        path = str(self._path / name)
        try:
            content = reading.read_bytes(path, deadline_s=reading.DEADLINE_S, most_bytes=SIZE_MAX_BYTES)
            self._members[name] = _member(name, parse(content, path))
            self._problems.pop(name, None)
        except HangingError:
            raise
        except UnreadableError as error:
            self._problems[name] = str(reading.unreadable(error))
        except ConfigError as error:
            self._problems[name] = "; ".join(str(error).splitlines())


def _stamps(path: Path) -> dict[str, Stamp]:
    """The directory's YAML files. Raises OSError when it cannot be read."""
    found: dict[str, Stamp] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                try:
                    stat = os.stat(entry.path)
                except OSError:  # a link to nowhere, or just removed: reading it tells
                    found[entry.name] = (0, 0, 0)
                else:
                    found[entry.name] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def _member(name: str, document: Document) -> Member:
    """The instance that a file describes. Raises ConfigError with every problem."""
    problems: list[Problem] = []
    try:
        role, ordinal = split_instance(name.removesuffix(_SUFFIX))
        values.role_name(role)
    except ValueError:
        fix = "call it ROLE_IN_NUMBER.yaml, such as web_IN_0.yaml"
        raise ConfigError([Problem(document.path, 0, 0, "", "the name is no instance's", fix)]) from None
    misspelt = set()
    for key in document.data:
        if key not in ("address", "metrics"):
            near = nearest(key, ("address", "metrics"))
            misspelt.add(near)
            fix = f"did you mean `{near}`?" if near else "write `address` and `metrics`"
            problems.append(document.problem((key,), "is not known here", fix, key=True))
    address = metrics = ""
    try:
        address = str(values.address(document.data["address"]))
    except KeyError:
        if "address" not in misspelt:
            problems.append(document.problem((), "`address` is missing", f"write `{_EXAMPLE}`"))
    except WrongValue as error:
        problems.append(document.problem(("address",), error.what, error.remedy))
    try:
        metrics = str(values.host_port(document.data["metrics"])) if "metrics" in document.data else ""
    except WrongValue as error:
        problems.append(document.problem(("metrics",), error.what, error.remedy))
    if problems:
        raise ConfigError(problems)
    return Member(role, ordinal, address, metrics)
