"""Memory files (memfd_create(2)): how a value that is too large for a message goes from process to process.

And what a process gives back of its memory, or shares.
"""

import asyncio
import contextlib
import ctypes
import gc
import os
import sys
from collections import Counter
from typing import Final

_MADV_DONTNEED: Final = 4  # the same on every architecture but alpha
_READ_ONLY: Final = ("r-xp", "r--p")

_libc: Final = ctypes.CDLL(None)


def create(name: str, content: bytes = b"") -> int:
    """A new memory file's descriptor, closed at execve(2); `name` is for /proc/PID/fd. Raises OSError."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC)
    try:
        with os.fdopen(os.dup(fd), "wb") as file:
            file.write(content)
    except OSError:
        os.close(fd)
        raise
    return fd


def read(fd: int) -> bytes:
    """The whole of a memory file. Read by position: the offset is shared with every process that has the file."""
    return os.pread(fd, os.fstat(fd).st_size, 0)


def release_text() -> None:
    """Give back what of programs and libraries is mapped: what is still needed is mapped again, as it is used.

    A start goes through much more of them than what comes after it. Only read-only parts of files of which this process has
    no page of its own (proc_pid_smaps(5), Anonymous), so nothing can be lost.
    """
    place = rights = inode = ""
    with contextlib.suppress(OSError), open("/proc/self/smaps") as file:
        for line in file:
            first, *rest = line.split()
            if not first.endswith(":"):
                place, rights, inode = first, rest[0], rest[3]
            elif first == "Anonymous:" and rest[0] == "0" and rights in _READ_ONLY and inode != "0":
                begin, end = (int(each, 16) for each in place.split("-"))
                _libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _MADV_DONTNEED)


def share_with_children() -> None:
    """Have those that are forked from here on share what is in memory. A page is copied as soon as anything is written there.

    A collector writes to all that it looks at. A type's cache of its attributes counts references to their names, of which
    each that is found anew puts another one out: it is left empty, so that they find no more than their own. A class that
    asks its subclasses whether they know some type notes in each what it said, and so is asked before.
    """
    asyncio.iscoroutine(gc.collect)
    asyncio.iscoroutine(Counter[int]().update)  # of a signal's handler: add_signal_handler
    Counter(_ for _ in ())  # Counter asks whether that is a mapping
    gc.collect()
    (getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache)()  # its name from Python 3.13 on
    gc.freeze()
