"""A process that moves bytes is killed at every line of it, and no byte is lost, doubled or moved.

The descriptors and the ledger outlive it, as a worker's do, and the next process takes over what it left (adopt.py does the
same for whole flows). What arrives is checked by its position in the stream.
"""

import contextlib
import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NoReturn

import pytest

from relay import calls
from relay.dataplane.pipes import PipePool
from relay.dataplane.splice import Lane, Mover, lanes
from relay.dataplane.tracing import CALL, LINE, Traced, places, trace
from relay.kernel.process import fork_sharing_descriptors
from relay.kernel.sockets import open_descriptors
from relay.ledger.copying import is_pipe
from relay.ledger.layout import State, Word
from relay.ledger.ledger import NO_PIPE, WorkerLedger
from tests.dataplane.lanes import Kind, connected
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger

pytestmark = pytest.mark.told

_BLOCK: Final = random.Random(7).randbytes(1 << 20)
_LARGE_BYTES: Final = 1 << 17  # more than is copied at a time
_SMALL_BYTES: Final = 9000
_MOVING: Final = (
    "Mover._copy",
    "Mover._splice",
    "Mover._keep",
    "Mover._new_scratch",
    "Mover._deliver_held",
    "CopyBuffer.take_in",
    "CopyBuffer.pass_on",
    "CopyBuffer.set_aside",
    "CopyBuffer.forget",
    "WorkerLedger.hold",
)
_COMING_HOME: Final = ("CopyBuffer.bring_home", "CopyBuffer.set_aside")
# In Mover._copy, where a message is in hand: nothing of it was sent, or some.
_PENDING: Final = ("went = buffer.pass_on", "self._keep(", "buffer.set_aside(")
# Sockets that break or end, urgent data, and a machine that has no pipe to give.
_ELSEWHERE: Final = (
    "_sink_broken(",
    "_past_urgent(",
    ".SINK_BROKEN",
    "_nothing_came(",
    "lane.error = ",
    "_hurry(",
    "._splice(",
    "SCRATCH_W] = 0",
)


def kinds(functions: tuple[str, ...]) -> list[str]:
    """Where to die: at the beginning and the end of each function, and at each of its lines."""
    found = [f"{when} {name}" for name in functions for when in ("before", "after")]
    found += [text for name in functions for text in places()[name].lines.values()]
    return [kind for kind in found if not any(each in kind for each in _ELSEWHERE)]


@dataclass
class Stream:
    """A lane of the process under test between two sockets of the test's."""

    number: int
    lane: Lane
    source: socket.socket
    sink: socket.socket
    sent: int = 0
    heard: int = 0
    unread: int = 0  # times in a row that what was sent last still waited to be read

    def is_small(self) -> bool:
        """Whether it sends little by little, so that it is copied; and hears nothing until nothing more goes through."""
        return self.number % 2 == 0

    def send(self, chance: random.Random) -> None:
        """Some more."""
        if self.is_small() and calls.readable_bytes(self.lane.source_fd):
            self.unread += 1
            return
        self.unread = 0
        start = self.sent % len(_BLOCK)
        part = _BLOCK[start : start + (chance.randrange(1, _SMALL_BYTES) if self.is_small() else _LARGE_BYTES)]
        with contextlib.suppress(BlockingIOError):
            self.sent += self.source.send(part)

    def hear(self, most_bytes: int) -> None:
        """What has arrived is what stands there in the stream."""
        with contextlib.suppress(BlockingIOError):
            part = self.sink.recv(most_bytes)
            assert part, "it has ended"
            for n in range(0, len(part), len(_BLOCK)):
                start = (self.heard + n) % len(_BLOCK)
                twice = _BLOCK[start:] + _BLOCK[:start]
                assert part[n : n + len(_BLOCK)] == twice[: len(part) - n], f"stream {self.number}, after {self.heard}"
            self.heard += len(part)


class Mill:
    """Streams, and one process after the other that moves them."""

    def __init__(self, part: WorkerLedger, stack: contextlib.ExitStack) -> None:
        self.part = part
        self.chance = random.Random(11)
        self.streams = []
        for number in range(6):
            kind: Kind = "tcp" if number == 4 else "unix"  # which is quicker: it has no windows that open late
            source, inner_source = connected(kind, stack)
            if number % 2:  # room for more than is copied at a time
                source.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * _LARGE_BYTES)
                inner_source.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2 * _LARGE_BYTES)
            sink, inner_sink = connected(kind, stack)
            if number == 1:
                sink.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 * _LARGE_BYTES)
                inner_sink.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8 * _LARGE_BYTES)
            lane, _ = lanes(inner_source, inner_sink, part.counts_at(0), record=number)
            part.begin(number, State.SPLICE, 0, lane.source_fd, lane.sink_fd, 1, "peer")
            self.streams.append(Stream(number, lane, source, sink))
        self._inner = open_descriptors()

    def run(self, die_at: str = "", after: int = 1, *, within_s: float = 0.0) -> None:
        """One process, until it has died there for the so manieth time that it came there; or at a moment of no choice."""
        pid = fork_sharing_descriptors()
        if pid == 0:
            self._be_worker(die_at, after)
        deadline_s = time.monotonic() + (within_s or HANG_S)
        while (ended := os.waitpid(pid, os.WNOHANG))[0] == 0:
            if time.monotonic() > deadline_s:
                os.kill(pid, signal.SIGKILL)
                ended = os.waitpid(pid, 0)
                assert within_s, f"nothing came to {die_at}"
                break
            self.pump()
        assert os.waitstatus_to_exitcode(ended[1]) == -signal.SIGKILL
        self._close_others()

    def pump(self) -> None:
        """Send and hear some more."""
        for stream in self.streams:
            stream.send(self.chance)
            if not stream.is_small() or stream.unread > 2:
                stream.hear(3000 if stream.number in (0, 2, 3) else 1 << 18)

    def finish(self) -> None:
        """All that was sent is heard, and no more."""
        pid = fork_sharing_descriptors()
        if pid == 0:
            self._be_worker("", 0)
        deadline_s = time.monotonic() + HANG_S
        while any(stream.heard < stream.sent for stream in self.streams):
            assert time.monotonic() < deadline_s, [(stream.heard, stream.sent) for stream in self.streams]
            for stream in self.streams:
                stream.hear(1 << 18)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        for stream in self.streams:
            stream.hear(1 << 18)
            assert stream.heard == stream.sent
        self._close_others()

    def _pipes(self) -> Iterator[int]:
        yield from (self.part[Word.SCRATCH_R], self.part[Word.SCRATCH_W])
        for record in self.part.flows():
            yield from record.up_pipe

    def _close_others(self) -> None:
        """What the dead one had opened and nobody needs, as at the end of an adoption."""
        for fd in open_descriptors() - self._inner - set(self._pipes()):
            with contextlib.suppress(OSError):  # the one that looked
                os.close(fd)

    def _be_worker(self, die_at: str, after: int) -> NoReturn:
        left = after

        def follow(place: Traced, what: int, line: int) -> None:
            nonlocal left
            step = (
                place.lines.get(line, "") if what == LINE else f"{'before' if what == CALL else 'after'} {place.name}"
            )
            if step == die_at:
                left -= 1
                if left <= 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            if die_at:
                trace([places()[name] for name in {*_MOVING, *_COMING_HOME}], follow, lines=True)
            mover = self._successor()
            while True:
                for stream in self.streams:
                    mover.turn(stream.lane)
        finally:
            os._exit(3)

    def _successor(self) -> Mover:
        part = self.part
        part.copying.bring_home()
        pool, (owner, r, w) = PipePool(part), (part[Word.SCRATCH_OWNER], part[Word.SCRATCH_R], part[Word.SCRATCH_W])
        records = {record.index: record for record in part.flows()}
        for stream in self.streams:
            lane, held = stream.lane, records[stream.number].up_pipe
            if owner == lane.owner and is_pipe(r, w) and calls.readable_bytes(r):
                part.hold(stream.number, 0, (r, w))
                part[Word.SCRATCH_OWNER] = 0
                lane.adopt(pool.adopt(r, w), calls.readable_bytes(r))
            elif is_pipe(*held) and calls.readable_bytes(held[0]):
                lane.adopt(pool.adopt(*held), calls.readable_bytes(held[0]))
            else:
                part.hold(stream.number, 0, NO_PIPE)
        mover = Mover(pool, part)
        mover.prepare()
        return mover


@pytest.fixture
def mill() -> Iterator[Mill]:
    with new_ledger() as ledger, contextlib.ExitStack() as stack:
        made = Mill(ledger.worker(0), stack)
        yield made
        made.finish()
        for fd in made._pipes():
            with contextlib.suppress(OSError):
                os.close(fd)


@pytest.mark.slow
def test_killed_at_every_line(mill: Mill) -> None:
    for kind in kinds(_MOVING):
        for after in (1, 2):
            mill.run(kind, after)


@pytest.mark.slow
@pytest.mark.parametrize("pending", _PENDING)
def test_killed_at_every_line_of_the_recovery(mill: Mill, pending: str) -> None:
    """And the next one there as well, if it comes there: what one has brought home is not brought home again."""
    [begun] = [text for text in places()["Mover._copy"].lines.values() if pending in text]
    for kind in kinds(_COMING_HOME):
        mill.run(begun, mill.chance.randrange(1, 20))
        mill.run(kind)
        mill.run(kind, within_s=0.02)


@pytest.mark.slow
def test_killed_at_any_moment(mill: Mill, long: bool) -> None:
    for _ in range(10_000 if long else 200):
        mill.run(within_s=mill.chance.uniform(0.001, 0.03))
