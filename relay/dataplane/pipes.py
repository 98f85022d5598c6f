"""Pipes: where bytes in flight stand. Pooled, sized, and allowed to run short.

A pipe's capacity is counted in slots, not bytes, and an unprivileged user has only so many (pipe(7),
pipe-user-pages-soft: 16,384 pages, about 1,000 pipes of 64 KiB; then the kernel gives 8 KiB ones and F_SETPIPE_SZ fails with
EPERM). So a pipe of any size will do, getting a small one is counted and never an error, and getting none means: wait.
"""

import fcntl
import os
from typing import Final

from relay.ledger.layout import Word
from relay.ledger.ledger import WorkerLedger

DEFAULT_BYTES: Final = 64 * 1024  # what pipe2(2) gives: 16 slots of a page
# One read of a bulk flow moves this much, and the system calls' share falls with it. Few pipes are this
# large: 16 of them are a quarter of what an unprivileged user may have in all.
LARGE_BYTES: Final = 1024 * 1024
LARGE_PIPES: Final = 16
SPARE_MAX: Final = 64  # empty pipes kept open; more would only hold descriptors


class Pipe:
    """One pipe: its reading and its writing end, and the capacity that the kernel gave it."""

    __slots__ = ("r", "size_bytes", "w")

    def __init__(self, r: int, w: int, size_bytes: int) -> None:
        self.r = r
        self.w = w
        self.size_bytes = size_bytes


class PipePool:
    """Hands out empty pipes and takes them back."""

    def __init__(self, ledger: WorkerLedger) -> None:
        self._ledger = ledger
        self._spare: list[Pipe] = []
        self._large = 0

    def take(self) -> Pipe | None:
        """An empty pipe, or None when the machine has none to give now (EMFILE, ENFILE, ENOMEM)."""
        if self._spare:
            return self._spare.pop()
        try:
            r, w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            self._ledger[Word.PIPES_REFUSED] += 1
            return None
        self._ledger[Word.PIPES] += 1
        return Pipe(r, w, self._fit(w))

    def adopt(self, r: int, w: int) -> Pipe:
        """A pipe that a predecessor opened, whatever is in it."""
        size_bytes = int(fcntl.fcntl(w, fcntl.F_GETPIPE_SZ))
        self._ledger[Word.PIPES] += 1
        self._large += size_bytes >= LARGE_BYTES
        return Pipe(r, w, size_bytes)

    def give_back(self, pipe: Pipe) -> None:
        """Return a pipe that is empty."""
        if len(self._spare) < SPARE_MAX:
            self._spare.append(pipe)
        else:
            self.discard(pipe)

    def discard(self, pipe: Pipe) -> None:
        """Close a pipe, with whatever is in it: nobody else may read that."""
        os.close(pipe.r)
        os.close(pipe.w)
        self._ledger[Word.PIPES] -= 1
        if pipe.size_bytes >= LARGE_BYTES:
            self._large -= 1

    def _fit(self, fd: int) -> int:
        if self._large < LARGE_PIPES:
            try:
                size = fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, LARGE_BYTES)
            except OSError:
                size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
                self._ledger[Word.PIPES_DEGRADED] += 1
            else:
                self._large += 1
        else:
            size = fcntl.fcntl(fd, fcntl.F_GETPIPE_SZ)
            if size < DEFAULT_BYTES:
                self._ledger[Word.PIPES_DEGRADED] += 1
        return int(size)
