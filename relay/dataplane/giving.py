"""A worker whose holder is dead has the only table of its descriptors: it gives that to a new holder by itself.

The keeper starts the new holder, which sends SIGUSR2 when it is ready. The worker serves until then; and nothing moves until
the next worker has adopted, as after any death.
"""

import asyncio
import socket
from collections.abc import Callable

from relay.errors import os_reason
from relay.log import Logger

Give = Callable[[socket.socket], None]
"""Gives this process's table to who holds the other end, and ends it. Raises OSError, and then all is here as before."""


class Giving:
    """What a worker does when it is called to give its table away."""

    def __init__(self, called: Callable[[], socket.socket | None], give: Give, log: Logger) -> None:
        """`called`: this process's end of the channel to the new holder, if one was left for it."""
        self._called = called
        self._give = give
        self._log = log
        self._end: socket.socket | None = None

    def on_call(self) -> None:
        """A new holder was started: wait for what it says first, and meanwhile serve."""
        end = self._called()
        if end is None:
            return
        self._let_go()  # of one that never said anything
        self._end = end
        asyncio.get_running_loop().add_reader(end.fileno(), self._on_ready, end)

    def _on_ready(self, end: socket.socket) -> None:
        """It is ready, or has ended. This process ends, unless that fails: then it serves on."""
        asyncio.get_running_loop().remove_reader(end.fileno())
        self._log.flush()
        try:
            self._give(end)
        except OSError as error:
            message = f"it works on without a net: {os_reason(error)}; that is tried again"
            self._log.event("error", "not guarded", message=message)
            self._let_go()

    def _let_go(self) -> None:
        if self._end is not None:
            asyncio.get_running_loop().remove_reader(self._end.fileno())
            self._end.close()
            self._end = None
