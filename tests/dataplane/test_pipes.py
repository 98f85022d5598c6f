"""Pipes: handed out empty, kept within bounds, and wanting is not failing."""

import fcntl
import os
from collections.abc import Iterator

import pytest

from relay.dataplane.pipes import DEFAULT_BYTES, LARGE_BYTES, LARGE_PIPES, SPARE_MAX, Pipe, PipePool
from relay.ledger.layout import Word
from relay.ledger.ledger import Ledger
from tests.dataplane.lanes import close, pool_of
from tests.dataplane.rig import no_descriptors
from tests.ledger.rig import new_ledger


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger of one worker."""
    with new_ledger() as made:
        yield made


@pytest.fixture
def pool(ledger: Ledger) -> Iterator[PipePool]:
    """A pool of that worker."""
    with pool_of(ledger) as made:
        yield made


def take(pool: PipePool, count: int = 1) -> list[Pipe]:
    pipes = [pipe for _ in range(count) if (pipe := pool.take()) is not None]
    assert len(pipes) == count
    return pipes


def is_open(fd: int) -> bool:
    return os.path.exists(f"/proc/self/fd/{fd}")


def test_a_pipe_is_empty_and_blocks_nobody(pool: PipePool) -> None:
    [pipe] = take(pool)
    with pytest.raises(BlockingIOError):
        os.read(pipe.r, 1)
    assert os.write(pipe.w, bytes(2 * pipe.size_bytes)) == pipe.size_bytes
    assert not os.get_inheritable(pipe.r)
    assert not os.get_inheritable(pipe.w)
    close(pipe)


def test_an_empty_pipe_is_used_again(pool: PipePool, ledger: Ledger) -> None:
    [pipe] = take(pool)
    pool.give_back(pipe)
    assert take(pool) == [pipe]
    assert ledger.worker(0)[Word.PIPES] == 1
    close(pipe)


def test_a_pipe_with_bytes_in_it_is_closed(pool: PipePool, ledger: Ledger) -> None:
    [pipe] = take(pool)
    os.write(pipe.w, b"somebody's")
    pool.discard(pipe)
    assert not is_open(pipe.r)
    assert not is_open(pipe.w)
    assert ledger.worker(0)[Word.PIPES] == 0


def test_few_are_large_and_the_size_is_what_the_kernel_gave(pool: PipePool) -> None:
    pipes = take(pool, LARGE_PIPES + 4)
    for pipe in pipes:
        assert pipe.size_bytes == fcntl.fcntl(pipe.w, fcntl.F_GETPIPE_SZ)
    sizes = [pipe.size_bytes for pipe in pipes]
    if sizes[0] == LARGE_BYTES:  # an unprivileged user near the limit gets none: pipe(7)
        assert sizes == [LARGE_BYTES] * LARGE_PIPES + [DEFAULT_BYTES] * 4
        pool.discard(pipes.pop(0))
        pipes += take(pool, 2)
        assert [pipe.size_bytes for pipe in pipes[-2:]] == [LARGE_BYTES, DEFAULT_BYTES]
    for pipe in pipes:
        close(pipe)


def test_spare_pipes_are_bounded(pool: PipePool, ledger: Ledger) -> None:
    pipes = take(pool, SPARE_MAX + 10)
    for pipe in pipes:
        pool.give_back(pipe)
    assert sum(is_open(pipe.r) for pipe in pipes) == SPARE_MAX
    assert ledger.worker(0)[Word.PIPES] == SPARE_MAX


def test_a_predecessors_pipe_is_taken_over_with_what_is_in_it(pool: PipePool, ledger: Ledger) -> None:
    [old] = take(pool)
    os.write(old.w, b"in flight")
    ledger.worker(0)[Word.PIPES] = 0  # a new worker counts anew
    adopted = pool.adopt(old.r, old.w)
    assert (adopted.r, adopted.w, adopted.size_bytes) == (old.r, old.w, old.size_bytes)
    assert ledger.worker(0)[Word.PIPES] == 1
    assert os.read(adopted.r, 99) == b"in flight"
    pool.give_back(adopted)
    assert pool.take() is adopted
    close(adopted)


def test_none_to_be_had(pool: PipePool, ledger: Ledger) -> None:
    part = ledger.worker(0)
    [pipe] = take(pool)
    with no_descriptors():
        assert pool.take() is None
        assert pool.take() is None
        pool.give_back(pipe)
        assert pool.take() is pipe
    assert (part[Word.PIPES_REFUSED], part[Word.PIPES]) == (2, 1)
    take(pool)
    close(pipe)


def test_a_smaller_pipe_is_counted_and_works(pool: PipePool, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an unprivileged user gets beyond pipe-user-pages-soft: EPERM for more, and two pages."""
    real = fcntl.fcntl

    def refusing(fd: int, command: int, argument: int = 0) -> int:
        if command == fcntl.F_SETPIPE_SZ:
            raise PermissionError
        real(fd, fcntl.F_SETPIPE_SZ, 8192)
        return int(real(fd, command, argument))

    monkeypatch.setattr(fcntl, "fcntl", refusing)
    pipes = take(pool, 3)
    assert [pipe.size_bytes for pipe in pipes] == [8192] * 3
    assert ledger.worker(0)[Word.PIPES_DEGRADED] == 3
    for pipe in pipes:
        pool.discard(pipe)
    assert ledger.worker(0)[Word.PIPES] == 0
