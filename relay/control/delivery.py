"""Handing what is to be in force to the keeper, which outlives control, and to the workers, which forward by it."""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any, Final

from relay.config.snapshot import Snapshot
from relay.kernel import channel, memory, messages
from relay.kernel.listening import close_all
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger
from relay.log import Logger

# A worker answers within a millisecond. One that does not in this time is stuck or just being started again, and
# then it starts with the new snapshot.
_APPLY_S: Final = 2.0
_ROOM_S: Final = 0.02  # from one try to the next where a channel is full
_TRIES: Final = 100
_NAME: Final = "relay-snapshot"


@dataclass(frozen=True, slots=True)
class Parcel:
    """A snapshot in two memory files, whole and as workers need it, and the sockets that were opened for it."""

    generation: int
    opened: dict[str, socket.socket]
    whole: int
    short: int


class Delivery:
    """The channels to the keeper and the workers, and who works by what."""

    def __init__(self, keeper: socket.socket, workers: tuple[socket.socket, ...], ledger: Ledger, log: Logger) -> None:
        self._keeper = keeper
        self._workers = workers
        self._ledger = ledger
        self._log = log
        self._answer = asyncio.Event()
        self._awaiting: set[socket.socket] = set()  # channels of workers whose part of a parcel is not all sent yet

    async def pack(self, snapshot: Snapshot, opened: dict[str, socket.socket]) -> "Parcel":
        """Make all ready to be delivered. Raises OSError, and then the sockets that were `opened` are closed."""
        loop = asyncio.get_running_loop()
        fds: list[int] = []
        try:
            # In a thread: a large roster takes its time, and the loop has leases to renew.
            whole = await loop.run_in_executor(None, snapshot.to_json)
            short = await loop.run_in_executor(None, snapshot.for_workers().to_json)
            fds += [memory.create(_NAME, whole)]
            fds += [memory.create(_NAME, short)]
        except BaseException:
            for fd in fds:
                os.close(fd)
            close_all(opened)
            raise
        return Parcel(snapshot.generation, opened, *fds)

    async def deliver(self, parcel: "Parcel") -> list[int]:
        """Hand it over, and close its descriptors here; the workers that do not work by it yet.

        Afterwards nobody has a socket open that is not in the snapshot, but for those workers.
        """
        try:
            self._awaiting.update(self._workers)
            await self._hand_over(self._keeper, parcel, parcel.whole)
            # At once: who is denied now must not be let in by one because another one takes no messages.
            await asyncio.gather(*(self._hand_over(sock, parcel, parcel.short) for sock in self._workers))
        finally:
            self._awaiting.clear()
            os.close(parcel.whole)
            os.close(parcel.short)
            close_all(parcel.opened)
        return await self._wait_applied(parcel.generation)

    def keeper_holds(self) -> None:
        """The keeper has closed what it need not hold any more."""
        self._answer.set()

    def heard(self, sock: socket.socket, message: dict[str, Any], snapshot: Snapshot) -> None:
        """A worker has said something; the snapshot is the one in force."""
        self._answer.set()
        # A worker that died between taking a snapshot out of the channel and working by it has lost it. But a snapshot must
        # not overtake its sockets, and one that is still to be sent is not lost.
        is_lost = sock not in self._awaiting and message["generation"] < snapshot.generation
        if messages.kind_of(message) == messages.READY and is_lost:
            self._send_again([sock], snapshot)

    def catch_up(self, snapshot: Snapshot) -> None:
        """Have workers that are there work by what is in force: after an upgrade, or a control that died over a reload."""
        there = [n for n in self.behind(snapshot.generation) if self._ledger.worker(n)[Word.GENERATION]]
        if there:
            self._send_again([self._workers[n] for n in there], snapshot)

    def _send_again(self, socks: list[socket.socket], snapshot: Snapshot) -> None:
        fd = memory.create(_NAME, snapshot.for_workers().to_json())
        try:
            for sock in socks:
                channel.send(sock, messages.snapshot(snapshot.generation), (fd,))
        finally:
            os.close(fd)

    def behind(self, generation: int) -> list[int]:
        """The workers that work by an older snapshot. They say so in the ledger; their messages only wake us."""
        ledger = self._ledger
        return [n for n in range(ledger.workers) if ledger.worker(n)[Word.GENERATION] < generation]

    async def _hand_over(self, sock: socket.socket, parcel: "Parcel", snapshot_fd: int) -> None:
        addresses = list(parcel.opened)
        for start in range(0, len(addresses), channel.FDS_MAX):
            part = addresses[start : start + channel.FDS_MAX]
            fds = tuple(parcel.opened[address].fileno() for address in part)
            await self._send(sock, messages.listeners(part), fds)
        await self._send(sock, messages.snapshot(parcel.generation), (snapshot_fd,))
        self._awaiting.discard(sock)

    async def _send(self, sock: socket.socket, message: dict[str, Any], fds: tuple[int, ...]) -> None:
        """Send, waiting for room. A process that takes nothing for long is gone: its successor reads the queue."""
        for _ in range(_TRIES):
            if channel.send(sock, message, fds):
                return
            await asyncio.sleep(_ROOM_S)
        self._log.event("error", "stuck", message="a worker takes no messages; it works by an older configuration")

    async def _wait_applied(self, generation: int) -> list[int]:
        """Until every worker works by the snapshot, and the keeper holds by it; the workers that did not say so in time."""
        loop = asyncio.get_running_loop()
        deadline_s = loop.time() + _APPLY_S
        while (late := self.behind(generation)) or self._ledger.words[DaemonWord.GENERATION] < generation:
            self._answer.clear()
            try:
                await asyncio.wait_for(self._answer.wait(), deadline_s - loop.time())
            except TimeoutError:
                return late
        return []
