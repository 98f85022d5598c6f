"""A message in the ledger, and what is pending of it. That it survives any kill: tests/dataplane/test_copying_killed.py."""

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Final

import pytest

from relay import calls
from relay.ledger.copying import is_pipe
from relay.ledger.layout import COPY_BYTES, WORKER_WORDS, Word
from relay.ledger.ledger import WorkerLedger
from tests.ledger.rig import new_ledger

OWNER: Final = 9


class Bench:
    """A worker's part, a connection to read from and one to write to, and the worker's scratch pipe."""

    def __init__(self, part: WorkerLedger, stack: contextlib.ExitStack) -> None:
        self.part = part
        self.buffer = part.copying
        self.source, self.come = (stack.enter_context(each) for each in socket.socketpair())
        self.sink, self.go = (stack.enter_context(each) for each in socket.socketpair())
        for sock in (self.come, self.go, self.sink):
            sock.setblocking(False)
        self.r, self.w = os.pipe2(os.O_NONBLOCK)
        stack.callback(os.close, self.r)
        stack.callback(os.close, self.w)
        part[Word.SCRATCH_R], part[Word.SCRATCH_W] = self.r, self.w
        assert self.buffer.prepare()

    def take_in(self) -> int:
        return self.buffer.take_in(self.come.fileno(), OWNER)

    def held(self) -> bytes:
        """What stands in the scratch pipe, taken out."""
        return os.read(self.r, 1 << 20) if calls.readable_bytes(self.r) else b""


@pytest.fixture
def bench() -> Iterator[Bench]:
    with new_ledger(workers=2) as ledger, contextlib.ExitStack() as stack:
        yield Bench(ledger.worker(1), stack)


def test_a_message_goes_through(bench: Bench) -> None:
    assert bench.take_in() == calls.AGAIN
    bench.source.send(b"hello")
    assert bench.take_in() == 5
    assert bench.buffer.pass_on(bench.go.fileno()) == 5
    assert bench.sink.recv(99) == b"hello"
    bench.buffer.bring_home()
    assert bench.held() == b"", "nothing is pending"
    bench.source.close()
    assert bench.take_in() == 0


def test_no_more_is_taken_in_than_the_limit(bench: Bench) -> None:
    bench.source.send(b"x" * (COPY_BYTES + 1))
    assert bench.buffer.limit(1 << 20) == COPY_BYTES
    assert bench.take_in() == COPY_BYTES
    bench.source.send(b"x" * 100)
    assert bench.buffer.limit(7) == 7
    assert bench.take_in() == 7


def test_what_was_not_sent_comes_home_once(bench: Bench) -> None:
    bench.source.send(b"of a dead worker")
    bench.take_in()
    for _ in range(2):
        bench.buffer.bring_home()
        assert bench.part[Word.SCRATCH_OWNER] == OWNER
    assert bench.held() == b"of a dead worker"


def test_only_the_rest_comes_home(bench: Bench) -> None:
    """The sink took some, and some stands in the pipe already: the one before died while it did this."""
    bench.source.send(b"sent, there, left")
    bench.take_in()
    bench.part.words[bench.part.word_index(Word.COPY_SEND) + 7] = 6  # as the kernel stores it
    os.write(bench.w, b"there, ")
    bench.buffer.bring_home()
    assert bench.held() == b"there, left"


def test_what_is_nobodys_any_more_does_not_come_home(bench: Bench) -> None:
    bench.source.send(b"for a sink that broke")
    bench.take_in()
    bench.sink.close()
    assert bench.buffer.pass_on(bench.go.fileno()) < 0
    bench.buffer.forget()
    bench.buffer.bring_home()
    assert bench.held() == b""


def test_a_number_that_is_no_pipe_gets_nothing(bench: Bench) -> None:
    """The table died with its holder: what has the number now is somebody else's."""
    bench.source.send(b"lost")
    bench.take_in()
    bench.part[Word.SCRATCH_R], bench.part[Word.SCRATCH_W] = bench.go.fileno(), bench.go.fileno()
    bench.buffer.bring_home()
    with pytest.raises(BlockingIOError):
        bench.sink.recv(1)
    assert is_pipe(bench.r, bench.w)
    assert not is_pipe(bench.w, 1 << 20)


def test_a_pipe_that_takes_too_little_is_an_error(bench: Bench) -> None:
    bench.source.send(b"x")
    bench.take_in()
    while os.write(bench.w, b"y" * 4096) == 4096 and calls.readable_bytes(bench.r) < 65536:
        pass
    with pytest.raises(OSError, match="a pipe took too little"):
        bench.buffer.set_aside(bench.w)


def test_nothing_else_of_the_ledger_is_touched(bench: Bench) -> None:
    before = bytes(bench.part.memory)
    bench.source.send(b"z" * COPY_BYTES)
    bench.take_in()
    bench.buffer.pass_on(bench.go.fileno())
    bench.sink.recv(1 << 20)
    changed = {n for n, (a, b) in enumerate(zip(before, bytes(bench.part.memory), strict=True)) if a != b}
    base = bench.part.word_index(Word.PID) * 8
    words = {n - base for n in changed if n - base < WORKER_WORDS * 8}
    assert words <= set(range(Word.COPY_OWNER * 8, Word.END * 8)), "its own words, and no other"
    first = bench.part.counts_at(1024) * 8
    assert all(first <= n < first + COPY_BYTES for n in changed if n - base >= WORKER_WORDS * 8)
