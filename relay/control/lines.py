"""Lines to the instances that this machine sends connections to: each tells at once when it wants no more of them.

The instance's side is in dataplane/line.py. What is heard is written down as if a look had found it (looking.py), before it
is said back: whoever has said it back sends no more. Where a line breaks, that instance is looked at at once.
"""

import asyncio
import contextlib
import socket
import traceback
from typing import Final, NamedTuple

from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.control.looking import Looker
from relay.envelope import asking
from relay.kernel.connecting import target_socket
from relay.kernel.pace import to_next
from relay.kernel.sockets import ask_often
from relay.ledger.layout import Knows
from relay.ledger.ledger import Ledger
from relay.log import Logger
from relay.targets.health import knows_at

_AGAIN_S: Final = 1.0  # from a line's end to the next one, at the most
_CONNECT_S: Final = 3.0
_DEAD_MS: Final = 3000  # also of what was said back and not acknowledged: tcp(7), TCP_USER_TIMEOUT
_WORDS_MAX_BYTES: Final = 64


class Way(NamedTuple):
    """Where to hold a line to an instance, and from which of this machine's addresses."""

    instance: str
    host: str
    port: int
    dial_from: str


def ways_to(row: EndpointRow, target: TargetRow) -> dict[int, Way]:
    """Where one of several targets' instance would hold a line, the best first, by what its relay must know for that."""
    found = {}
    if target.relay_port:
        found[Knows.NAMES] = Way(target.instance, target.host, target.relay_port, row.dial_from)
    if row.is_edge:
        found[Knows.TAKEN] = Way(target.instance, target.host, target.port, row.dial_from)
    return found


def ways(snapshot: Snapshot, ledger: Ledger) -> tuple[set[Way], dict[str, Way]]:
    """Every way by which a line may be held; and of each instance the first by which its relay has answered."""
    everywhere: set[Way] = set()
    known: dict[str, Way] = {}
    part = ledger.worker(0)
    for row in snapshot.endpoints:
        for target in row.targets if row.distribution is not None and not row.direct else ():
            knows = ledger.words[knows_at(part, target.slot)]
            for what, way in ways_to(row, target).items():
                everywhere.add(way)
                if knows & what:
                    known.setdefault(target.instance, way)
    return everywhere, known


class Lines:
    """This machine's lines."""

    def __init__(self, ledger: Ledger, log: Logger, looker: Looker) -> None:
        self._ledger = ledger
        self._log = log
        self._looker = looker
        self._snapshot: Snapshot | None = None
        self._held: dict[str, tuple[Way, asyncio.Task[None]]] = {}  # by instance

    def follow(self, snapshot: Snapshot) -> None:
        """Hold lines by this snapshot from now on. One that may stay is not touched."""
        self._snapshot = snapshot
        self._see_to_it()

    async def run(self) -> None:
        """Hold them, until cancelled."""
        try:
            while True:
                await asyncio.sleep(to_next(_AGAIN_S))
                self._see_to_it()
        finally:
            tasks = [task for _, task in self._held.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    def _see_to_it(self) -> None:
        """Open what is missing, end what is of no use any more."""
        if self._snapshot is None:
            return
        everywhere, known = ways(self._snapshot, self._ledger)
        for instance, (way, task) in list(self._held.items()):
            if task.done() or way not in everywhere:
                task.cancel()
                del self._held[instance]
        for instance, way in known.items():
            if instance not in self._held:
                self._held[instance] = way, asyncio.create_task(self._guarded(way), name=f"line to {instance}")

    async def _guarded(self, way: Way) -> None:
        try:
            with contextlib.suppress(OSError):  # it is not there, or not any more; TimeoutError is one too
                await self._hold(way)
        except Exception:  # a mistake of ours with one line
            message = f"relay cannot hold a line to {way.instance}"
            self._log.event("error", "bug", message=message, traceback=traceback.format_exc())

    async def _hold(self, way: Way) -> None:
        """Open a line, and act on what is said there until it breaks. Raises OSError."""
        loop = asyncio.get_running_loop()
        there = TargetRow("", host=way.host, port=way.port)
        # asyncio asks for more than a socket of the kernel's alone.
        with socket.socket(fileno=target_socket(there, way.dial_from).detach()) as line:
            async with asyncio.timeout(_CONNECT_S):
                await loop.sock_connect(line, (way.host, way.port))
                await loop.sock_sendall(line, asking.header(asking.LINE))
            ask_often(line.fileno())
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _DEAD_MS)
            try:
                while said := await loop.sock_recv(line, _WORDS_MAX_BYTES):
                    if said.strip(asking.BUSY + asking.OPEN):
                        break  # whoever that is, it holds no line
                    if said.endswith(asking.BUSY):
                        self._looker.busy(way.instance)
                    else:
                        self._looker.hurry(way.instance)
                    await loop.sock_sendall(line, said)
            finally:
                self._looker.hurry(way.instance)
