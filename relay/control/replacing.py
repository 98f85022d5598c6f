"""Live upgrade, control's part: the installed code tries itself out, and the keeper is asked to go over to it."""

import asyncio
import os
from typing import Final

from relay import __version__
from relay.control import done, upgrade
from relay.control.in_force import InForce
from relay.control.inherits import ControlInherits
from relay.control.status import is_draining
from relay.control.upgrading import Upgrading
from relay.errors import OperatorError
from relay.kernel import channel, memory, messages
from relay.ledger.layout import DaemonWord, Word
from relay.log import Logger

_TRIALS: Final = 5  # what they were told may be old when they have come to their end


class Replacing:
    """Asks for the installed code to take this one's place."""

    def __init__(
        self,
        inherited: ControlInherits,
        in_force: InForce,
        upgrading: Upgrading,
        reloading: asyncio.Lock,
        log: Logger,
    ) -> None:
        """`reloading` is held by whoever changes what is in force."""
        self._inherited = inherited
        self._in_force = in_force
        self._upgrading = upgrading
        self._reloading = reloading
        self._log = log

    async def upgrade(self) -> done.Upgrading:
        """Try the installed code out and let the keeper replace its program. Raises OperatorError: nothing has changed."""
        ledger = self._inherited.ledger
        if is_draining(ledger):
            raise OperatorError("relay is stopping; nothing is upgraded")
        if any(ledger.worker(n)[Word.UNSHARED] for n in range(ledger.workers)):
            what = "a worker has no shared descriptor table (see the log), so its connections would be cut"
            raise OperatorError(f"{what}; restart relay instead: it lets open connections end first")
        try:
            with self._upgrading.beginning():
                for _ in range(_TRIALS):
                    if (version := await self._try_out()) is not None:
                        return {"from": __version__, "to": version, "program": ledger.words[DaemonWord.PROGRAM] + 1}
            what = "the configuration changed again and again while the installed code was tried out"
            raise OperatorError(f"{what}; nothing has changed: upgrade again")
        except OperatorError as error:
            self._log.event("error", "upgrade failed", message=str(error))
            raise

    async def _try_out(self) -> str | None:
        """The version that is installed: it starts, and the keeper is asked to go over to it. None: the trial is too old.

        No reload waits for it, so another snapshot may be in force when it has come to its end. Raises OperatorError.
        """
        inherited, snapshot, result = self._inherited, self._in_force.snapshot, memory.create("relay-trial")
        try:
            told = upgrade.facts(inherited.files, snapshot, inherited.settings, inherited.ledger.fd, result)
            version = await upgrade.try_out(told)
            async with self._reloading:
                if self._in_force.snapshot is not snapshot:
                    return None
                # From here on the keeper may be of the new program, which does not read what this one writes.
                self._upgrading.asked()
                channel.send(inherited.keeper, messages.plain(messages.UPGRADE), (result,))
                return version
        finally:
            os.close(result)
