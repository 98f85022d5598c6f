"""The live upgrade's trial: does the installed code start, take the files, and know the running ledger?

Before anything is touched, `python -m relay trial` runs as a process of its own: whatever can go wrong in new code at its
start goes wrong there. What it worked out, the new code's own snapshot and settings, goes in a memory file to the keeper,
which then replaces its program (processes/keeper.py): after that nothing is read or parsed that could fail.
"""

import asyncio
import contextlib
import json
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

from relay import __version__
from relay.config.roster import Roster
from relay.config.settings import Settings
from relay.config.snapshot import Slots, Snapshot
from relay.config.weights import from_plain
from relay.control.reload import FIXED, ConfigFiles, Who, compile_files
from relay.errors import ConfigError, OperatorError, Problem
from relay.kernel import memory
from relay.kernel.loop import loop_factory
from relay.ledger import convert, layout
from relay.processes import handover

_TRIAL_S: Final = 30.0  # it takes half a second; a machine that is this slow should not be upgraded now
_KILL_S: Final = 1.0
_ARGUMENT_MAX_BYTES: Final = 100_000  # Linux takes 128 KiB of one argument: execve(2); a roster of 1,000 may be longer
# Keys that a section of settings came to have later, and their defaults. What has its default need not be told.
_LATER: Final[dict[tuple[str, str], Any]] = {("names", "resolvers"): []}
_TEXT_MAX: Final = 4000  # of a failed trial's output: the end of a traceback says what is wrong


@dataclass(frozen=True, slots=True)
class Facts:
    """What the running daemon tells the trial. Plain values, because the two may be of different versions."""

    handover_format: int
    ledger_fd: int
    result_fd: int
    service: str
    settings: str
    settings_required: bool
    instance: str
    generation: int
    slots: dict[str, int]  # as `Slots.to_plain`
    listens: dict[str, str]  # addresses by endpoint
    roster: list[dict[str, Any]]
    fixed: dict[str, Any]  # settings that a running daemon does not change
    weights: tuple[Any, ...] = ()  # as `weights.to_plain`; of a program that knew none: none


@dataclass(frozen=True, slots=True)
class Tried:
    """What the new code's trial leaves to the new code's keeper."""

    snapshot: Snapshot
    settings: Settings
    warnings: tuple[Problem, ...]


def facts(files: ConfigFiles, snapshot: Snapshot, settings: Settings, ledger_fd: int, result_fd: int) -> Facts:
    """Of the running daemon."""
    return Facts(
        handover_format=handover.FORMAT,
        ledger_fd=ledger_fd,
        result_fd=result_fd,
        service=files.service,
        settings=files.settings,
        settings_required=files.settings_required,
        instance=snapshot.instance,
        generation=snapshot.generation,
        slots=snapshot.slots.to_plain(),
        listens={row.name: row.listen for row in snapshot.endpoints},
        roster=snapshot.roster.to_plain(),
        fixed=_told(settings),
        weights=snapshot.weights,
    )


# --- in the running code ------------------------------------------------------------------------------------------------


async def try_out(told: Facts) -> str:
    """Let the installed code try itself out; its version. Raises OperatorError with what it says when it does not start."""
    with _argument(json.dumps(asdict(told))) as (argument, fds):
        trial = await asyncio.create_subprocess_exec(
            *(sys.executable, *handover.module("relay"), "trial", argument),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            pass_fds=(told.ledger_fd, told.result_fd, *fds),
        )
    try:
        async with asyncio.timeout(_TRIAL_S):
            out, err = await trial.communicate()
    except TimeoutError:
        trial.kill()
        with contextlib.suppress(TimeoutError):  # one that hangs in the kernel ends when it can: signal(7)
            async with asyncio.timeout(_KILL_S):
                await trial.wait()
        raise OperatorError(f"the installed relay did not come up within {_TRIAL_S:g} s; nothing has changed") from None
    if trial.returncode:
        text = err.decode(errors="replace").strip()[-_TEXT_MAX:]
        raise OperatorError(f"the installed relay cannot take over; nothing has changed. It says:\n{text}")
    return out.decode().strip()


@contextlib.contextmanager
def _argument(text: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The trial's argument, and descriptors that it needs: one with the text, where the kernel takes no argument so long."""
    if len(text) <= _ARGUMENT_MAX_BYTES:  # and JSON is ASCII; also a version takes it that knows no other way
        yield text, ()
        return
    fd = memory.create("relay-facts", text.encode())
    try:
        yield json.dumps({"facts_fd": fd}), (fd,)
    finally:
        os.close(fd)


# --- in the installed code ----------------------------------------------------------------------------------------------


def trial(text: str, rehearse: Callable[[Snapshot], None]) -> None:
    """Do all that can fail at a start in this code, and leave the result. Raises OperatorError.

    `rehearse` has a worker come up, and raises that where none does.
    """
    raw: dict[str, Any] = json.loads(text)
    if "facts_fd" in raw:
        raw = json.loads(memory.read(raw["facts_fd"]))
    advice = "stop and start relay instead: it lets open connections end first, for up to `drain`"
    if raw["handover_format"] != handover.FORMAT:
        raise OperatorError(f"relay {__version__} cannot take over from the running version; {advice}")
    told = Facts(**{name: raw[name] for name in Facts.__dataclass_fields__ if name in raw})
    if not convert.is_known(told.ledger_fd):
        running = layout.layout_version(told.ledger_fd)
        raise OperatorError(
            f"relay {__version__} keeps its ledger in layout {layout.VERSION}, the running one in {running}, so it could not "
            f"take the connections over; {advice}"
        )
    loop_factory()
    files = ConfigFiles(told.service, told.settings, told.settings_required, told.instance)
    prepared = _compiled(files, told)
    rehearse(prepared.snapshot)
    with os.fdopen(os.dup(told.result_fd), "wb") as file:
        pickle.dump(prepared, file)


def _compiled(files: ConfigFiles, told: Facts) -> Tried:
    try:
        known = Who(told.instance, Roster.from_plain(told.roster))
        slots, weights = Slots.from_plain(told.slots), from_plain(told.weights)
        snapshot, settings, warnings = compile_files(files, known, told.generation + 1, slots, weights)
    except ConfigError as error:
        raise OperatorError(f"it does not take the files:\n{error}") from None
    fixed = _fixed(settings)
    if changed := [key for key, value in told.fixed.items() if key in fixed and not _agrees(value, fixed[key])]:
        what = f"{', '.join(f'`{key}`' for key in changed)} in the settings changed, and that takes a restart"
        raise OperatorError(f"{what}; put it back, or stop and start relay instead")
    listens = {row.name: row.listen for row in snapshot.endpoints}
    if listens != told.listens:
        names = sorted(name for name in listens | told.listens if listens.get(name) != told.listens.get(name))
        fix = "reload first (or restart, for `address` and `id`), then upgrade"
        raise OperatorError(f"the files do not say what is open now ({', '.join(names)}); {fix}")
    return Tried(snapshot, settings, warnings)


def _fixed(settings: Settings) -> dict[str, Any]:
    plain: dict[str, Any] = settings.model_dump(mode="json", include=set(FIXED))
    return plain


def _told(settings: Settings) -> dict[str, Any]:
    """The same for a trial, which may be of a program that knew fewer keys, and compares whole sections."""
    plain = _fixed(settings)
    for (section, key), default in _LATER.items():
        if plain[section][key] == default:
            del plain[section][key]
    return plain


def _agrees(told: Any, now: Any) -> bool:
    """Whether a setting is as the running program told it. One that it has not told of, it does not know."""
    if isinstance(told, dict) and isinstance(now, dict):
        return all(key in now and _agrees(value, now[key]) for key, value in told.items())
    return bool(told == now)


def take(fd: int) -> Tried:
    """What the trial left in the memory file."""
    prepared = pickle.loads(memory.read(fd))
    assert isinstance(prepared, Tried)
    return prepared
