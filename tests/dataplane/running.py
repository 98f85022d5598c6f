"""A whole worker in this process."""

import asyncio
import contextlib
import json
import os
import signal
import socket
from collections.abc import Callable
from typing import Any, Final

from relay import log as logging
from relay.config.snapshot import EndpointRow, Snapshot, TargetRow
from relay.dataplane.inherits import WorkerInherits
from relay.dataplane.worker import Worker
from relay.kernel import channel
from relay.kernel.listening import open_listener
from relay.kernel.sockets import descriptors, listening_address
from relay.ledger.layout import CAUSES, Count, DaemonWord, Word
from tests.config.rig import endpoint_row, snapshot_of
from tests.dataplane.lanes import close
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger
from tests.logs import waiting
from tests.ports import free_port

FLOWS: Final = 8


class Running:
    """A worker at work, the control process's side of its channel, and a target that echoes."""

    def __init__(self, stack: contextlib.ExitStack, target: TargetRow) -> None:
        self.ledger = stack.enter_context(new_ledger(flows=FLOWS))
        self.part = self.ledger.worker(0)
        self.mine, self.theirs = (stack.enter_context(sock) for sock in channel.pair())
        self.log_sink, self.log_source = (stack.enter_context(sock) for sock in logging.channel())
        self.row = endpoint_row(listen_port=free_port(), targets=(target,))
        self.keeper_pid = os.getppid()
        self.worker: Worker | None = None
        self._stack = stack
        self._task: asyncio.Task[None] | None = None

    @property
    def drain_until_ns(self) -> int:
        """Until when the daemon drains; 0: it does not."""
        return int(self.ledger.words[DaemonWord.DRAIN_UNTIL_NS])

    @drain_until_ns.setter
    def drain_until_ns(self, until_ns: int) -> None:
        self.ledger.words[DaemonWord.DRAIN_UNTIL_NS] = until_ns

    async def start(self, *rows: EndpointRow, **keys: Any) -> Snapshot:
        """Start it with these endpoints (default: `row`), and wait until it is ready."""
        snapshot = snapshot_of(*(rows or (self.row,)), **keys)
        for row in snapshot.endpoints:
            for port in row.listens.values():
                open_listener(row, port).detach()
        self.launch(snapshot)
        assert await self.answer() == {"worker": 0, "op": "ready", "generation": snapshot.generation}
        return snapshot

    def launch(self, snapshot: Snapshot, left: frozenset[int] = frozenset()) -> None:
        """Start it with the sockets that listen here; `left` are those of a predecessor's connections."""
        listening = {fd for fd in descriptors() if listening_address(fd) is not None}
        inherited = WorkerInherits(
            index=0,
            ledger=self.part,
            keeper_pid=self.keeper_pid,
            program=0,
            drain_until=lambda: self.drain_until_ns,
            control=self.theirs,
            log_sink=self.log_sink,
            snapshot=snapshot,
            baseline={},
        )
        self.worker = Worker(inherited, FLOWS, listening | left)
        self._task = asyncio.create_task(self.worker.run())

    async def answer(self) -> dict[str, Any]:
        """What it says to control."""
        received = await self.until(lambda: channel.receive(self.mine), "the worker answers")
        assert received[1] == []
        message: dict[str, Any] = received[0]
        return message

    async def until(self, done: Callable[[], Any], what: str) -> Any:
        """The first true value of `done`, while the worker works."""
        async with asyncio.timeout(HANG_S):
            while not (value := done()):
                assert self._task is None or not self._task.done(), f"the worker ended before {what}"
                await asyncio.sleep(0.002)
        return value

    def tell(self, snapshot: Snapshot, opened: dict[str, socket.socket] | None = None) -> None:
        """As control does it: first the sockets, then the snapshot."""
        if opened is not None:
            fds = tuple(sock.fileno() for sock in opened.values())
            channel.send(self.mine, {"op": "listeners", "addresses": list(opened)}, fds)
            for sock in opened.values():
                sock.close()
        fd = os.memfd_create("snapshot")
        os.write(fd, snapshot.to_json())
        channel.send(self.mine, {"op": "snapshot", "generation": snapshot.generation}, (fd,))
        os.close(fd)

    async def put_in_force(self, snapshot: Snapshot, opened: dict[str, socket.socket] | None = None) -> None:
        """Tell it, and wait until it works by it."""
        self.tell(snapshot, opened)
        assert await self.answer() == {"worker": 0, "op": "applied", "generation": snapshot.generation}

    async def connect(self, port: int | None = None) -> socket.socket:
        """A client."""
        client = self._stack.enter_context(socket.socket())
        client.setblocking(False)
        address = ("127.0.0.1", port or self.row.listen_port)
        await asyncio.get_running_loop().sock_connect(client, address)
        return client

    async def echo(self, client: socket.socket, data: bytes = b"ping") -> None:
        """There and back."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(HANG_S):
            await loop.sock_sendall(client, data)
            assert await loop.sock_recv(client, len(data)) == data

    async def is_cut(self, client: socket.socket) -> bool:
        """Whether it ends with a reset."""
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(HANG_S):
                await asyncio.get_running_loop().sock_recv(client, 1)
            return False
        return True

    async def is_refused(self) -> bool:
        """Whether a new client is let in only to be reset, which it may notice while it still connects."""
        with contextlib.suppress(ConnectionResetError):
            return await self.is_cut(await self.connect())
        return True

    def closed(self, slot: int = 0) -> dict[str, int]:
        """How many connections ended for each cause."""
        counts = {cause: self.ledger.total(slot, Count.CLOSED + n) for n, cause in enumerate(CAUSES)}
        return {cause: count for cause, count in counts.items() if count}

    def events(self, event: str) -> list[dict[str, Any]]:
        """The log's new records of one kind."""
        return [line for line in map(json.loads, waiting(self.log_source)) if line["event"] == event]

    async def stop(self) -> None:
        """Stop it twice, as the keeper does: at once."""
        if self._task is None:
            return
        task, self._task = self._task, None
        try:
            if not task.done():
                signal.raise_signal(signal.SIGTERM)
                self.drain_until_ns = 1
                signal.raise_signal(signal.SIGTERM)
                async with asyncio.timeout(HANG_S):
                    await task
        finally:
            self._close()

    def _close(self) -> None:
        """What a worker leaves to the end of its process."""
        for flow in list(self.working._context.flows):  # none, unless a test failed
            flow.cut("drain")
        self.working._poller.bury()
        mover = self.working._context.mover
        for pipe in (*mover._pool._spare, *([mover._scratch] if mover._scratch else [])):
            close(pipe)
        if fd := self.part[Word.SNAPSHOT_FD]:
            os.close(fd)

    @property
    def working(self) -> Worker:
        """The worker, once started."""
        assert self.worker is not None
        return self.worker

    @property
    def task(self) -> asyncio.Task[None]:
        """The worker's own."""
        assert self._task is not None
        return self._task
