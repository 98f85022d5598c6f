"""How a live upgrade stands, as this control sees it: it has asked for one, or follows one that has begun."""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from relay.errors import OperatorError, ReplacedError
from relay.ledger.layout import DaemonWord
from relay.ledger.ledger import Ledger
from relay.processes.standing import behind

_UPGRADE_S: Final = 10.0  # the keeper replaces its program, and then control, within a second, or not at all
_REPLACED: Final = (
    "an upgrade is just replacing relay's control; nothing is done yet: ask again, and the new one does it"
)


class Upgrading:
    """Whether an upgrade is under way, and whether what another one asks for is still this control's to do."""

    def __init__(self, ledger: Ledger, now_s: Callable[[], float], stopped: asyncio.Event) -> None:
        """`now_s`: the loop's time; `stopped`: this control is to end."""
        self._ledger = ledger
        self._now_s = now_s
        self._stopped = stopped
        self._began_s = now_s()
        self._asked_until_s = 0.0
        self._changed = asyncio.Event()
        self._is_beginning = False
        self.program = ledger.words[DaemonWord.PROGRAM]  # this control's own
        self.failed = ""  # why the last one has not come to its end

    def asked(self) -> None:
        """The keeper has been asked: it replaces its program, and then this control; or says why not."""
        self._asked_until_s = self._now_s() + _UPGRADE_S
        self.failed = ""

    def heard(self, why: str) -> None:
        """The keeper has said why it does not go on; nothing: it has, after all."""
        self.failed = why
        self._asked_until_s = 0.0
        self._changed.set()

    @contextlib.contextmanager
    def beginning(self) -> Iterator[None]:
        """While another version is tried out. Raises OperatorError where one is already, or an upgrade is under way."""
        if self._is_beginning or (self.is_under_way and not self.is_stuck):
            raise OperatorError("an upgrade is under way; nothing is upgraded: try again in a moment")
        self._is_beginning = True
        try:
            yield
        finally:
            self._is_beginning = False

    @property
    def is_being_replaced(self) -> bool:
        """Whether what this control would put in force nobody might hear: the keeper goes by the new one's word."""
        return self._ledger.words[DaemonWord.PROGRAM] != self.program or self._now_s() < self._asked_until_s

    @property
    def is_under_way(self) -> bool:
        """Whether a part of the daemon is of the program before, or is about to be."""
        return bool(behind(self._ledger)) or self.is_being_replaced

    @property
    def is_stuck(self) -> bool:
        """Whether a worker is still of the program before, and another upgrade may do better."""
        return bool(behind(self._ledger)) and not self.is_being_replaced and (bool(self.failed) or self._is_late)

    @property
    def _is_late(self) -> bool:
        return self._now_s() >= self._began_s + _UPGRADE_S

    @property
    def is_awaited(self) -> bool:
        """Whether workers are of the program before, and are about to be of this one."""
        return bool(behind(self._ledger)) and not self.is_stuck

    def text(self) -> str:
        """What systemd is told of an upgrade that has not come to its end; empty: there is none."""
        return "; the last upgrade has not come to its end: see `relay status`" if self.is_stuck else ""

    def notes(self, late: Iterable[int]) -> list[str]:
        """What a reload says of workers that do not work by it yet."""
        before = behind(self._ledger)
        old = "is still of the program before, and works by the former configuration until it is replaced"
        return [f"worker {n} {old if n in before else 'has not answered yet'}" for n in late]

    async def settle(self) -> None:
        """Wait until this control may put something in force. Raises ReplacedError: the next one may."""
        while self.is_being_replaced:
            self._changed.clear()
            waits = [asyncio.ensure_future(each.wait()) for each in (self._changed, self._stopped)]
            try:
                left_s = max(0.0, self._asked_until_s - self._now_s()) or None
                await asyncio.wait(waits, timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waits:
                    each.cancel()
            if self._stopped.is_set():
                raise ReplacedError(_REPLACED)
