"""The admin socket's place in the file system: whoever tidies /run up takes it away, and nobody reaches the daemon any more.

Everything else that control serves is a port, which nobody can remove. So this one is looked at every few seconds and at
each reload, and made again where it is gone. What another has put there meanwhile is left alone.
"""

import asyncio
import contextlib
import errno
import os
import socket
import stat
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from relay.control.admin import BACKLOG, SOCKET_FIX, SOCKET_MODE, Serving
from relay.errors import OperatorError, os_reason
from relay.kernel.aside import aside
from relay.kernel.pace import to_next
from relay.log import Logger

_LOOK_S: Final = 3.0  # stat(2) of one path; an operator tries a second time after about as long
_CREDENTIALS: Final = struct.Struct("3i")  # unix(7), struct ucred: pid, uid, gid

Place = tuple[int, int]
"""Device and inode. It is nobody else's as long as a socket is bound to it."""


@dataclass(frozen=True, slots=True)
class Found:
    """What is at the path: our socket, at `place`; nothing of use, without a `place`; or `another`'s, and then whose."""

    place: Place | None = None
    another: str = ""


class AdminSocket:
    """Keeps the socket at `path`. `run` works until it is cancelled."""

    def __init__(self, path: str, serving: Serving, hand: Callable[[socket.socket], bool], log: Logger) -> None:
        """`serving` answers at the one that is there. `hand` gives a new one to the keeper; False: it has no room now."""
        self._path = path
        self._serving = serving
        self._hand = hand
        self._log = log
        self._place: Place | None = None
        self._unhanded: socket.socket | None = None  # the keeper has an older one
        self._said = ""
        self._soon = asyncio.Event()

    async def run(self) -> None:
        """Look, again and again."""
        while True:
            await self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(to_next(_LOOK_S)):
                    await self._soon.wait()
            self._soon.clear()

    def look_soon(self) -> None:
        """Look now, and not only in a few seconds."""
        self._soon.set()

    async def _look(self) -> None:
        trouble = ""
        try:
            # In a thread: a path may lead anywhere, and one that hangs must hold up nothing but this.
            found = await aside(partial(find, self._path, self._place))
            if found.another:
                trouble = (
                    f"{self._path} is not this relay's any more: {found.another}; it is left alone, and `relay status`"
                )
                trouble += " does not come here: remove it or move it away, and it is made again within seconds"
            elif found.place is None:
                listener, self._place = await aside(partial(make, self._path))
                self._serving.move(listener)
                self._unhanded = listener
                self._log.event("warning", "admin socket", message=f"{self._path} was gone; it is there again")
            else:
                self._place = found.place
        except OSError as error:
            trouble = f"cannot serve {self._path}: {os_reason(error)}; {SOCKET_FIX}"
        except OperatorError as error:
            trouble = f"cannot serve {self._path}: {error}"
        if self._unhanded is not None and self._hand(self._unhanded):
            self._unhanded = None
        if trouble not in ("", self._said):
            self._log.event("error", "admin socket", message=trouble)
        self._said = trouble


def find(path: str, place: Place | None) -> Found:
    """What is at `path`, where this process' socket was at `place`; None: that is not known. Raises OSError.

    Whose socket it is, who called listen(2) for it last tells (unix(7), SO_PEERCRED): each control does when it begins.
    """
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return Found()
    here = there.st_dev, there.st_ino
    if here == place:
        return Found(here)
    if not stat.S_ISSOCK(there.st_mode):
        return Found(another="it is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
        code = probe.connect_ex(path)
        if code in (errno.ECONNREFUSED, errno.ENOENT):  # nobody serves it, or it has gone
            return Found()
        if code:
            return Found(another=f"nobody can connect to it ({os.strerror(code).lower()})")
        pid, _, _ = _CREDENTIALS.unpack(probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return Found(here) if pid == os.getpid() else Found(another=f"process {pid} serves it")


def make(path: str) -> tuple[socket.socket, Place]:
    """A socket that listens at `path`, with the mode of the first one, and its place. What nobody serves is replaced.

    It gets its name when it is ready, so nobody meets one that does not listen, or that others may use. What somebody
    else has put there meanwhile stays. Raises OSError.
    """
    temporary = os.path.join(os.path.dirname(path), f".{os.getpid()}")  # short: a socket's path has 107 bytes
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        _unlink_socket(temporary)  # of a process that had this pid
        os.fchmod(listener.fileno(), 0)  # bind(2) takes it from there: until the next line but one nobody may connect
        listener.bind(temporary)
        try:
            os.chmod(temporary, SOCKET_MODE)
            listener.listen(BACKLOG)
            _unlink_socket(path)
            os.link(temporary, path)
            made = os.stat(temporary)
        finally:
            os.unlink(temporary)
    except BaseException:
        listener.close()
        raise
    return listener, (made.st_dev, made.st_ino)


def _unlink_socket(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
