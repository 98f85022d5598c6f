"""A worker is called to give its table to a new holder. The end-to-end tests kill holders of whole daemons."""

import asyncio
import errno
import socket
from collections.abc import AsyncIterator

import pytest

from relay import log as logging
from relay.dataplane.giving import Giving
from relay.log import Logger
from relay.processes import succession
from tests.harness import HANG_S
from tests.logs import waiting


class Called:
    """A worker that may be called, and the new holder's side."""

    def __init__(self, sink: socket.socket, source: socket.socket) -> None:
        self.log_source = source
        self.left: list[socket.socket] = []  # ends that were left for it
        self.given: list[socket.socket] = []
        self.fails: OSError | None = None
        self.tried = asyncio.Event()
        self.giving = Giving(
            lambda: self.left.pop() if self.left else None, self._give, Logger(sink, "worker-0", "info")
        )

    def _give(self, end: socket.socket) -> None:
        self.tried.set()
        self.given.append(end)
        if self.fails is not None:
            raise self.fails

    def call(self) -> socket.socket:
        """A new holder is started; its end."""
        successors, workers = succession.pair()
        self.left.append(workers)
        self.giving.on_call()
        return successors


@pytest.fixture
async def called() -> AsyncIterator[Called]:
    sink, source = logging.channel()
    with sink, source:
        made = Called(sink, source)
        yield made
        made.giving._let_go()


async def test_a_signal_that_nobody_meant_for_it_does_nothing(called: Called) -> None:
    called.giving.on_call()
    assert called.given == []


async def test_it_serves_until_the_new_holder_is_ready(called: Called) -> None:
    with called.call() as successor:
        for _ in range(5):
            await asyncio.sleep(0)
        assert called.given == []
        successor.send(b"ready")
        await asyncio.wait_for(called.tried.wait(), HANG_S)
        assert len(called.given) == 1


async def test_where_it_fails_it_serves_on_and_can_be_called_again(called: Called) -> None:
    called.fails = OSError(errno.ECONNABORTED, "it has ended")
    for turn in (1, 2):
        called.tried.clear()
        called.call().close()
        await asyncio.wait_for(called.tried.wait(), HANG_S)
        [line] = waiting(called.log_source)
        assert "works on without a net" in line
        assert len(called.given) == turn
        assert called.given[-1].fileno() == -1, "it is closed"


async def test_the_last_call_counts(called: Called) -> None:
    """The one before may never have said a word."""
    silent = called.call()
    with silent, called.call() as successor:
        assert silent.recv(1) == b"", "its other end is closed"
        successor.send(b"ready")
        await asyncio.wait_for(called.tried.wait(), HANG_S)
        assert len(called.given) == 1
