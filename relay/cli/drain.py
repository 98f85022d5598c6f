"""`relay drain`: take this instance out, and wait until nobody sends any more and the last connection has ended."""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from relay.cli.spans import seconds, whole_seconds
from relay.cli.tables import counted_text, drain_text
from relay.errors import AdminError, OperatorError

if TYPE_CHECKING:
    from relay.control.senders import SenderStatus

EXIT_LATE: Final = 3
"""The time for waiting is over."""

_LOOK_S: Final = 0.1
# A connection that an edge brings is counted for the edge, and a moment later for its client: one look can miss it.
_LOOKS: Final = 2
_NAMES_SHOWN: Final = 8
_SAY_S: Final = 1.0  # connections come and go
# Control may be restarted, or hang until it is; the application must not be stopped only because nobody could be asked.
_AWAY_S: Final = 60.0


class Asked(Protocol):
    """Whom to ask: client.py."""

    def get(self, resource: str) -> Any:
        """The JSON value at `resource`. Raises AdminError."""

    def post(self, resource: str) -> Any:
        """Do what `resource` says; the JSON answer. Raises AdminError."""


class Waiting:
    """Who is waited for, by one status after the other. Pure: the time (s) is told."""

    def __init__(self) -> None:
        self._untold_from_s: dict[str, float] = {}  # who cannot be told, and from when on that was so
        self._quiet = 0  # looks in a row that found nobody
        self.untold: list[str] = []
        """Who could not be told: their time was waited for."""
        self.text = ""
        """Who is still there, for people."""

    def see(self, status: Any, now_s: float) -> bool:
        """Whether nobody sends any more, and no connection is open."""
        silent: list[SenderStatus] = [each for each in status["senders"] if not each["told"] and each["by"] is None]
        before, self._untold_from_s = self._untold_from_s, {}
        for each in silent:
            self._untold_from_s[each["who"]] = before.get(each["who"], now_s)
        self.untold = list(self._untold_from_s)
        waited = [who for who, from_s in self._untold_from_s.items() if now_s - from_s < status["untold_s"]]
        asked = [each["who"] for each in status["senders"] if not each["told"] and each["by"] is not None]
        # Connections by a door out are the application's own, and end when it stops: they would be waited for in vain.
        active = sum(endpoint["active"] for endpoint in status["endpoints"] if endpoint["type"] != "door")
        said = [
            *([f"{_names(asked)}: being told"] if asked else []),
            *([f"{_names(waited)}: not told, {status['untold_s']:.0f} s are waited"] if waited else []),
            *([f"{counted_text(active)} open"] if active else []),
        ]
        self.text = "; ".join(said)
        self._quiet = 0 if said else self._quiet + 1
        return self._quiet >= _LOOKS

    def end_text(self) -> str:
        """The last line, for people."""
        told = f"; not told: {_names(self.untold)}" if self.untold else ""
        return f"nobody is about to send, and no connection is open{told}"


def _names(who: Sequence[str]) -> str:
    more = len(who) - _NAMES_SHOWN
    return ", ".join(who[:_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def drain(
    daemon: Asked,
    args: argparse.Namespace,
    now_s: Callable[[], float] = time.monotonic,
    rest: Callable[[float], None] = time.sleep,
) -> int:
    """Run the command; its exit status. Raises OperatorError."""
    off = args.what == "off"
    for_s = 0 if off else whole_seconds("--for", args.for_text)
    timeout_s = seconds("--timeout", args.timeout) if args.timeout is not None else None
    if timeout_s is not None and (off or not args.wait):
        raise OperatorError("--timeout is how long `--wait` waits: write both")
    until_s = None if timeout_s is None else now_s() + timeout_s
    answer = daemon.post(f"/v1/drain?for={for_s}")
    print(drain_text(answer), flush=True)
    return _wait(daemon, until_s, args, now_s, rest) if args.wait and not off else 0


def _wait(
    daemon: Asked,
    until_s: float | None,
    args: argparse.Namespace,
    now_s: Callable[[], float],
    rest: Callable[[float], None],
) -> int:
    waiting, said, said_s, heard_s = Waiting(), "", 0.0, now_s()
    while True:
        late = until_s is not None and now_s() >= until_s  # before the look, so there is always one after it
        try:
            status = daemon.get("/v1/status")
        except AdminError:  # control may be started again at this moment
            if now_s() - heard_s >= _AWAY_S:
                raise
            if late:
                return _too_late(args.timeout, waiting.text or "control does not answer")
            rest(_LOOK_S)
            continue
        heard_s = now_s()
        if waiting.see(status, heard_s):
            print(waiting.end_text())
            return 0
        if waiting.text not in ("", said) and (heard_s - said_s >= _SAY_S or not said):
            said, said_s = waiting.text, heard_s
            print(said, flush=True)
        if late:
            return _too_late(args.timeout, waiting.text or "one look is too few")
        if not status["busy_for_s"]:
            raise OperatorError(f"{args.for_text} are over, and not all have stopped: {waiting.text}")
        rest(_LOOK_S)


def _too_late(timeout: str, why: str) -> int:
    print(f"relay: not within {timeout}: {why}", file=sys.stderr)
    return EXIT_LATE
