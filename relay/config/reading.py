"""Reading files that others write, without waiting for them for ever.

A path may lead to a pipe that nobody writes, to a device without an end, or into a file system that hangs: a network
file system whose server is away, a FUSE program that stands still. There stat(2), open(2) and read(2) do not return, and a
thread in the kernel's uninterruptible sleep cannot be ended. So a pipe is refused before it is opened, and each read has
a thread of its own, which is left alone when its time is over: whoever asked goes on, and a daemon that ends does not
wait for it.
"""

import os
import re
import stat
import threading
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from relay.config.document import SIZE_MAX_BYTES, Document, parse
from relay.config.wording import printable
from relay.errors import ConfigError, HangingError, Problem, UnreadableError, os_reason

__all__ = ["DEADLINE_S", "is_there", "read", "read_bytes", "read_content", "unreadable", "within"]

T = TypeVar("T")

DEADLINE_S: Final = 10.0
"""A disk that wakes up, or a file server that is started again, takes some seconds. Nobody waits longer for a reload."""
# In one directory: each is a thread that may never end, and a reload that is asked for again and again makes one each time.
_HANGING_MAX: Final = 4
_CHUNK_BYTES: Final = 1024 * 1024

_KINDS: Final = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFCHR: "device", stat.S_IFBLK: "device"}
# What a shell's `<(…)` and `/dev/stdin` are: somebody at the command line has opened it, and waits for it himself.
_OPENED_BY_THE_CALLER: Final = re.compile(r"/dev/stdin|/dev/fd/[0-9]+|/proc/self/fd/[0-9]+")
_CHECK_PATH: Final = "check the path and the permissions"

_lock: Final = threading.Lock()
# By directory: threads that were left alone.
_hanging: Final[defaultdict[str, set[threading.Thread]]] = defaultdict(set)


def within(deadline_s: float, path: str, do: Callable[[], T]) -> T:
    """What `do` gives, which asks the file system about `path`, in a thread of its own and for `deadline_s` seconds at most.

    What `do` began goes on after that, so it must change nothing that others look at. Raises what `do` raises, and
    HangingError when the time is over, or when 4 threads hang in the path's directory already;
    UnreadableError when there can be no thread.
    """
    directory = os.path.dirname(path)
    found: list[T] = []
    failed: list[BaseException] = []
    ended = threading.Event()

    def work() -> None:
        try:
            found.append(do())
        except BaseException as error:
            failed.append(error)
        with _lock:
            ended.set()
            _hanging[directory].discard(threading.current_thread())

    with _lock:
        hanging = len(_hanging[directory])
    if hanging >= _HANGING_MAX:
        raise _hangs(path, f"{hanging} reads from its directory hang already, and no more are begun")
    thread = threading.Thread(target=work, name="read", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the limit of processes is reached, or memory is short
        fix = "see TasksMax= of the unit, RLIMIT_NPROC of the user, and free memory"
        raise UnreadableError(printable(path), "no thread is to be had for it", fix) from None
    if not ended.wait(deadline_s):
        with _lock:
            if not ended.is_set():
                _hanging[directory].add(thread)
                raise _hangs(path, f"its file system has not answered within {deadline_s:g} s")
    thread.join()  # a process that forks next has no thread
    if failed:
        raise failed[0]
    return found[0]


def _hangs(path: str, reason: str) -> HangingError:
    fix = "mend or unmount what is mounted there (`findmnt -T` names it), or keep the file on a local disk"
    return HangingError(printable(path), reason, f"{fix}; if it does not go by itself then, restart relay")


def is_there(path: str) -> bool:
    """Whether something may be at `path`, if only a link to nowhere. Raises HangingError."""

    def look() -> bool:
        try:
            os.lstat(path)
        except FileNotFoundError:
            return False
        except (OSError, ValueError):
            return True  # let reading it say what is wrong
        return True

    return within(DEADLINE_S, path, look)


def read_bytes(path: str, *, deadline_s: float, most_bytes: int, piped: bool = False) -> bytes:
    """All bytes of the ordinary file at `path`, which are `most_bytes` at most, within `deadline_s` seconds.

    With `piped` also what the command line's caller has opened (`/dev/stdin`, a shell's `<(…)`), and that without a
    deadline. Raises UnreadableError for what is no ordinary file, is larger or cannot be read, and HangingError.
    """
    try:
        if piped and _OPENED_BY_THE_CALLER.fullmatch(path):
            with open(path, "rb") as file:
                content = file.read(most_bytes + 1)
        else:
            content = within(deadline_s, path, partial(_read, path, most_bytes + 1))
    except OSError as error:
        raise UnreadableError(printable(path), os_reason(error), _CHECK_PATH, error.errno or 0) from None
    except ValueError:
        raise UnreadableError(printable(path), "the path holds a NUL", "write another path") from None
    if len(content) > most_bytes:
        raise UnreadableError(
            printable(path), f"is larger than {_size_text(most_bytes)}", "check that this is the right file"
        )
    return content


def _read(path: str, most_bytes: int) -> bytes:
    _refuse_other_kinds(path, os.stat(path).st_mode)  # to open a device may be to do something with it
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)  # a pipe since then does not block it
    try:
        _refuse_other_kinds(path, os.fstat(fd).st_mode)
        parts: list[bytes] = []
        left_bytes = most_bytes
        while left_bytes and (part := os.read(fd, min(left_bytes, _CHUNK_BYTES))):
            parts.append(part)
            left_bytes -= len(part)
    finally:
        os.close(fd)
    return b"".join(parts)


def _refuse_other_kinds(path: str, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = _KINDS.get(stat.S_IFMT(mode), "directory")
    fix = _CHECK_PATH if kind == "directory" else "write the path of an ordinary file, or put one there"
    raise UnreadableError(printable(path), f"is a {kind}, not a file", fix)


def _size_text(size_bytes: int) -> str:
    return f"{size_bytes // 1024**2} MiB" if size_bytes >= 1024**2 else f"{size_bytes // 1024} KiB"


def read(path: str, *, piped: bool = False) -> Document:
    """The file at `path`, at most 4 MiB of UTF-8. `piped` as in `read_bytes`.

    Raises ConfigError with every problem that can be told apart.
    """
    return parse(read_content(path, piped=piped), path)


def read_content(path: str, *, piped: bool = False) -> bytes:
    """The bytes of the file at `path`, at most 4 MiB. `piped` as in `read_bytes`. Raises ConfigError."""
    try:
        return read_bytes(path, deadline_s=DEADLINE_S, most_bytes=SIZE_MAX_BYTES, piped=piped)
    except UnreadableError as error:
        raise unreadable(error) from None


def unreadable(error: UnreadableError) -> ConfigError:
    """The same as the one problem of a file of the configuration."""
    return ConfigError([Problem(error.path, 0, 0, "", f"cannot be read: {error.reason}", error.fix)])
