"""A worker gives a sign of life before anything is its own: so one that cannot start costs nobody a connection.

The successor of a holder starts its first worker when all descriptors are in their places, and before it says "mine". The
worker does all of its start that touches nothing, says that it is there, and waits. Both have one descriptor table, so the
end of one closes nothing for the other, and they watch each other's process. A holder that dies meanwhile does not take
the connections with it: its worker does what was left to do, in its place, and works on alone. And the holder opens and
closes nothing while the worker looks what is open.
"""

import os
import select
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

BEAT_S: Final = 2.0
"""For so long a new worker may be on its way; it takes some milliseconds. The holder before waits longer than that."""

_BEAT: Final = b"beat"
_GO: Final = b"go"
_TEXT_BYTES: Final = 4096
_LOOK_MS: Final = 10  # whether the other process has ended without a word; its word wakes at once


class Beginning:
    """Between a holder and the first worker that it starts."""

    def __init__(self, end: socket.socket, conclude: Callable[[], None]) -> None:
        """`end`, of the channel to the holder before, is the worker's to close: it may have a use for it.

        `conclude` makes everything this table's own, or ends in an OSError; it may be done twice. Raises OSError.
        """
        self._end = end
        self._conclude = conclude
        self._holders, self._workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._holder_pid = os.getpid()
        self._deadline_s = time.monotonic() + BEAT_S

    # --- in the worker ------------------------------------------------------------------------------------------

    def wait(self) -> set[int]:
        """Give a sign of life, and wait until all is this worker's; the numbers of what is closed here again."""
        self._workers.send(_BEAT)
        poll = select.poll()
        poll.register(self._workers, select.POLLIN)
        while not poll.poll(_LOOK_MS):
            if os.getppid() != self._holder_pid:
                self._conclude_alone()
                break
        taken = (self._end, self._holders, self._workers)
        closed = {each.fileno() for each in taken}
        for each in taken:
            each.close()
        return closed

    def _conclude_alone(self) -> None:
        """The holder is dead: do what it was about to do, or perhaps has done."""
        try:
            self._conclude()
        except OSError:  # the one before it goes on with everything
            os._exit(0)

    def fails(self, why: str) -> None:
        """Say why this worker does not come up."""
        if self._workers.fileno() >= 0:
            self._workers.send(why.encode()[:_TEXT_BYTES], socket.MSG_DONTWAIT)

    # --- in the holder ------------------------------------------------------------------------------------------

    def expect(self, pid: int) -> bool:
        """Wait for the sign of life of the worker with this pid; False: somebody has killed it, and another one may do.

        Raises OSError with what is wrong where none comes.
        """
        poll = select.poll()
        poll.register(self._holders, select.POLLIN)
        while time.monotonic() < self._deadline_s:
            ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # before the look
            if poll.poll(_LOOK_MS):
                said = self._holders.recv(_TEXT_BYTES)
                if said == _BEAT:
                    return True
                raise ChildProcessError(f"the new worker does not start: {said.decode(errors='replace')}")
            if ended is not None:
                if ended.si_status == signal.SIGKILL:
                    return False
                raise ChildProcessError("the new worker ends at its start")
        raise TimeoutError(f"the new worker gives no sign of life within {BEAT_S:g} s")

    def go(self) -> None:
        """Everything is the worker's now. It closes what this took."""
        self._holders.send(_GO)
        for each in (self._end, self._holders, self._workers):
            each.detach()
