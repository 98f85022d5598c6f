"""The change stream: server-sent events (WHATWG HTML, section 9.2), rendered once for all who watch, and resumable."""

import asyncio
import json
import re
import secrets
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import Final

from relay.control import answers
from relay.control.discovery import Fleet, changes, instances
from relay.kernel.pace import to_next

# That are kept, for who comes back and who reads slowly: 500 KiB of instances with two endpoints each.
EVENTS_MAX: Final = 1024
WATCHERS_MAX: Final = 100  # each holds a connection, and up to a whole roster that it has not read yet
HEARTBEAT_S: Final = 15.0  # the standard's advice (9.2.7): proxies and firewalls forget connections that are quiet
# What workers and probes write into the ledger has to be looked for. The shortest of it lasts a second (targets/pool.py).
_LOOK_S: Final = 0.5
_RETRY_MS: Final = 2000  # when to come back after control was started anew: not all in the same millisecond as that
_ID: Final = re.compile(r"([0-9a-f]{16})-([0-9]{1,15})")

HEARTBEAT: Final = b": still here\n\n"


class Feed:
    """What has changed, as frames. `look` tells how things are; nobody looks while nobody watches."""

    def __init__(self, look: Callable[[], Fleet]) -> None:
        self._look = look
        # Numbers start again with every control process, and an id of an earlier one must not be taken for ours.
        self._epoch = secrets.token_hex(8)
        self._number = 0  # of the last event
        self._frames: deque[bytes] = deque(maxlen=EVENTS_MAX)  # the last events; the very last has the number above
        self._whole: tuple[int, bytes] | None = None  # the roster as of an event
        self._fleet: Fleet | None = None
        self._news = asyncio.Event()
        self._connections: set[asyncio.BaseTransport] = set()
        self._looking: asyncio.Task[None] | None = None
        self._ended = False

    @property
    def watchers(self) -> int:
        """How many watch. One that hung up does not count, though its end may not have been noticed yet."""
        return sum(not each.is_closing() for each in self._connections)

    def watches(self, transport: asyncio.BaseTransport) -> bool:
        """Whether somebody watches by way of this connection."""
        return transport in self._connections

    @contextmanager
    def watcher(self, transport: asyncio.BaseTransport) -> Iterator[None]:
        """Somebody watches by way of this connection."""
        self._connections.add(transport)
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_again(), name="look for changes")
        try:
            yield
        finally:
            self._connections.discard(transport)
            if not self._connections and self._looking is not None:
                self._looking.cancel()
                self._looking = None

    def changed(self) -> None:
        """Something may have changed: whoever watches is told."""
        if self._connections:
            self._catch_up()

    def end(self) -> None:
        """Nobody is told anything any more: every watcher's stream ends."""
        self._ended = True
        self._wake()

    async def frames(self, last_event_id: str) -> AsyncGenerator[bytes]:
        """All that one watcher is sent: what it has missed, or everything; then what comes, and heartbeats.

        Raises TimeoutError for one so slow that the event it needs next is not kept any more: it may come back, and gets
        everything.
        """
        self._catch_up()
        sent = self._known(last_event_id)
        yield b"retry: %d\n\n" % _RETRY_MS
        if sent is None:
            sent = self._number
            yield self._roster()
        while not self._ended:
            missed = self._number - sent
            if missed > len(self._frames):
                raise TimeoutError(f"{missed} events behind")
            if missed:
                sent += 1
                yield self._frames[-missed]
                continue
            try:
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._news.wait()
            except TimeoutError:
                yield HEARTBEAT

    def _known(self, last_event_id: str) -> int | None:
        """The number of the event that a watcher saw last; None when what came after it is not all kept."""
        found = _ID.fullmatch(last_event_id)
        if found is None or found[1] != self._epoch:
            return None
        number = int(found[2])
        return number if 0 <= self._number - number <= len(self._frames) else None

    def _catch_up(self) -> None:
        before, self._fleet, number = self._fleet, self._look(), self._number
        for kind, view in changes(before, self._fleet) if before is not None else ():
            self._number += 1
            self._frames.append(self._frame(kind, view))
        if self._number != number:
            self._wake()

    def _wake(self) -> None:
        before, self._news = self._news, asyncio.Event()
        before.set()

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(to_next(_LOOK_S))
            self.changed()

    def _roster(self) -> bytes:
        assert self._fleet is not None, "`frames` has looked"
        if self._whole is None or self._whole[0] != self._number:
            everything: answers.Everything = {
                "service": self._fleet.service.service,
                "instances": instances(self._fleet),
            }
            self._whole = self._number, self._frame("roster", everything)
        return self._whole[1]

    def _frame(self, kind: str, data: answers.Everything | answers.InstanceAnswer) -> bytes:
        text = json.dumps(data, separators=(",", ":"))  # has no newline, which would end the data
        return f"id: {self._epoch}-{self._number}\nevent: {kind}\ndata: {text}\n\n".encode()
