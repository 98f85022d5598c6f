"""What etcd knows this machine by: a password, certificates and a key, in files that somebody may replace at any time.

Whoever rotates them tells nobody, so each is looked at again when it is needed. What cannot be read at that moment is said,
and what could be read last goes on. A read that does not end, such as that of a file server which is away, holds up one
request for a moment, and no other.
"""

import asyncio
import os
import ssl
import stat
import time
from collections.abc import Callable
from typing import Final, Generic, Self, TypeVar

from relay.config import reading
from relay.config.settings import Registry
from relay.config.wording import brief, printable
from relay.errors import OperatorError, UnreadableError, os_reason
from relay.fleet.gateway import Refused
from relay.kernel.aside import aside

_READ_S: Final = 1.0  # a local file takes microseconds; a request to etcd has 3 s for all of it
_PASSWORD_MAX_BYTES: Final = 4096

T = TypeVar("T")
Stamp = tuple[int, int, int, int, int]
"""What tells a file from what it was before: its device and inode, when it was written and changed, and its size."""


class Kept(Generic[T]):
    """What `load` makes of files, made again each time that it is asked for. Used in one event loop."""

    def __init__(self, what: str, load: Callable[[], T]) -> None:
        """`load` runs in a thread of its own, one at a time. It may take its time, and raises OperatorError."""
        self.trouble = ""
        """Why what is used now is not of now; empty: it is."""
        self._what, self._load = what, load
        self._good: T | None = None
        self._reading: asyncio.Future[T | OperatorError] | None = None
        self._began_s = 0.0

    async def get(self) -> T:
        """What the files say now, or what they said when they could be read last. Raises Refused when they never could."""
        if self._reading is None or self._reading.done():
            self._reading, self._began_s = aside(self._loaded), time.monotonic()
        under_way = self._reading
        await asyncio.wait([under_way], timeout=max(0.0, self._began_s + _READ_S - time.monotonic()))
        if not under_way.done():
            self.trouble = f"reading {self._what} does not come to an end; see to the file system, or name another file"
        elif isinstance(found := under_way.result(), OperatorError):
            self.trouble = str(found)
        else:
            self._good, self.trouble = found, ""
        if self._good is None:
            raise Refused(self.trouble, 0)
        return self._good

    @property
    def complaint(self) -> str:
        """The trouble, while something of before is used."""
        return f"{self.trouble}; what could be read last is used" if self.trouble and self._good is not None else ""

    def _loaded(self) -> T | OperatorError:
        try:
            return self._load()
        except OperatorError as error:
            return error


class Credentials:
    """A user's name, and what must be read for it; nothing of it where etcd asks nobody."""

    def __init__(
        self, username: str = "", password: Kept[str] | None = None, tls: Kept[ssl.SSLContext] | None = None
    ) -> None:
        self.username = username
        self._password, self._tls = password, tls

    @classmethod
    def of(cls, registry: Registry) -> Self:
        """As the settings say. Nothing is read yet."""
        password: Kept[str] | None = None
        if (path := registry.password_file) is not None:
            password = Kept(f"etcd's password ({printable(path)})", lambda: _password(path))
        tls: Kept[ssl.SSLContext] | None = None
        if any(url.startswith("https:") for url in registry.etcd):
            certificates = _Certificates(registry)
            tls = Kept(f"etcd's certificates ({certificates.named})", certificates.load)
        return cls(registry.username or "", password, tls)

    async def password(self) -> str:
        """The password as its file says now. Raises Refused when it could never be read."""
        return await self._password.get() if self._password is not None else ""

    async def tls(self) -> ssl.SSLContext | bool:
        """How to speak TLS, as its files say now; the same object as long as they do not change. Raises Refused as above."""
        return await self._tls.get() if self._tls is not None else True

    @property
    def complaint(self) -> str:
        """What could not be read lately, while what could be read last is used; empty: nothing."""
        each = [kept.complaint for kept in (self._password, self._tls) if kept is not None]
        return "; ".join(filter(None, each))


class _Certificates:
    """A TLS context by `ca`, or the system's certificates, with `cert` and `key`, if there are. It is dear, so it is kept."""

    def __init__(self, registry: Registry) -> None:
        keys = ("ca", registry.ca), ("cert", registry.cert), ("key", registry.key)
        self._registry = registry
        self._files = [(key, path) for key, path in keys if path is not None]
        self._made: tuple[list[Stamp], ssl.SSLContext | str] | None = None

    @property
    def named(self) -> str:
        """The files, for people."""
        return ", ".join(printable(path) for _, path in self._files) or "the system's"

    def load(self) -> ssl.SSLContext:
        """Made anew when a file has changed since. Raises OperatorError."""
        stamps = [_stamp(key, path) for key, path in self._files]
        if self._registry.ca is None and (system := ssl.get_default_verify_paths().cafile) is not None:
            stamps.append(_stamp("ca", system))
        if self._made is None or self._made[0] != stamps:
            self._made = stamps, self._make()
        made = self._made[1]
        if isinstance(made, str):
            raise OperatorError(made)
        return made

    def _make(self) -> ssl.SSLContext | str:
        """Or what is wrong with the files. Raises OperatorError for one that cannot be read."""
        for key, path in self._files:
            try:
                open(path, "rb").close()
            except OSError as error:
                raise _unreadable(key, path, os_reason(error)) from None
        registry = self._registry
        try:
            context = ssl.create_default_context(cafile=registry.ca)
            if registry.cert is not None:
                context.load_cert_chain(registry.cert, registry.key, password="")  # none asked for on a terminal
        except (ssl.SSLError, ValueError, OSError) as error:
            files = ", ".join(f"`{key}`" for key, _ in self._files)
            return f"etcd's certificates ({self.named}) cannot be used: {brief(str(error))}; check {files}"
        return context


def _stamp(key: str, path: str) -> Stamp:
    try:
        found = os.stat(path)
    except OSError as error:
        raise _unreadable(key, path, os_reason(error)) from None
    if not stat.S_ISREG(found.st_mode):
        raise _unreadable(key, path, "it is no ordinary file")
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_ctime_ns, found.st_size


def _unreadable(key: str, path: str, why: str) -> OperatorError:
    return OperatorError(f"cannot read {printable(path)}: {why}; check `{key}`")


def _password(path: str) -> str:
    """The first line of the file. Raises OperatorError."""
    try:
        text = reading.read_bytes(path, deadline_s=reading.DEADLINE_S, most_bytes=_PASSWORD_MAX_BYTES)
        line = text.partition(b"\n")[0].removesuffix(b"\r").decode()
    except UnreadableError as error:
        what = f"{error.path}: {error.reason}"
        raise OperatorError(f"cannot read etcd's password: {what}; check `password_file`") from None
    except UnicodeDecodeError:
        line = ""
    if not line:
        raise OperatorError(f"no password on the first line of {printable(path)}; write it there, in UTF-8")
    return line
