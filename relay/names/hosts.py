"""A block of relay's in a hosts file (hosts(5)), for machines without its DNS server: everything around it stays as it is.

    # BEGIN relay shop
    10.0.0.4 web-0.web.shop.internal web-0.web
    10.0.0.4 web.shop.internal
    # END relay shop

The file is replaced as a whole (rename(2)), so that nobody reads half of it.
"""

import contextlib
import errno
import os
import re
import stat
import tempfile
import threading
from collections.abc import Callable
from typing import Final

from relay.config import reading
from relay.errors import HangingError, OperatorError, UnreadableError, os_reason
from relay.names.zone import Zone

_MARK: Final = re.compile(r"# (BEGIN|END) relay (\S+)[ \t\r]*")
_TRIES: Final = 5  # an editor that saves at this very moment does so once
_SIZE_MAX_BYTES: Final = 64 * 1024 * 1024  # lists of a million names that somebody blocks are about half of it

_ELSEWHERE: Final = "set another file in `names.hosts` of instance.yaml"
_FIXES: Final = {
    errno.ENOENT: f"create it, or {_ELSEWHERE}",
    errno.ENOTDIR: _ELSEWHERE,
    errno.ELOOP: f"its symbolic links lead in a circle; make it a file, or {_ELSEWHERE}",
    errno.EROFS: f"its directory is read-only for relay: see systemd/README.md, or {_ELSEWHERE}",
    errno.EACCES: f"relay must be able to make files in its directory: see systemd/README.md, or {_ELSEWHERE}",
    errno.EPERM: f"relay may not give the new file the owner of the old one: see systemd/README.md, or {_ELSEWHERE}",
    errno.EBUSY: "it is a mount of its own, as in a container, and cannot be replaced; "
    f"mount its directory, use `names.listen`, or {_ELSEWHERE}",
    errno.ENOSPC: "make room there",
}


def block(zone: Zone) -> str:
    """The zone's block: every instance's name, and each role's for its first healthy instance. Lines end in `\\n`."""
    lines = [
        f"# BEGIN relay {zone.service}",
        "# relay writes this block. A hosts file takes no turns: a role's name is its first healthy instance.",
    ]
    for nodes in zone.roles.values():
        named = [node for node in nodes if node.label]
        lines += [
            f"{node.member.address} {zone.full_name(node)} {node.label}.{node.member.role.lower()}" for node in named
        ]
    for role, nodes in zone.roles.items():
        if nodes:
            first = next((node for node in nodes if node.healthy), nodes[0])
            lines.append(f"{first.member.address} {role}.{zone.domain}")
    return "\n".join((*lines, f"# END relay {zone.service}", ""))


def put(path: str, text: str, block: str) -> str:
    """The file's text with the block in place of the one of the same service, or at its end.

    All other bytes stay, but for the line break that a last line may lack. The block gets the line breaks of the file's
    first line. Raises OperatorError when the marks in the file do not pair; it names `path` and the line.
    """
    service = block.partition("\n")[0].rpartition(" ")[2]
    crlf = text.partition("\n")[0].endswith("\r")
    new = block.replace("\n", "\r\n") if crlf else block
    place = _place(path, text, service)
    if place is not None:
        return text[: place[0]] + new + text[place[1] :]
    if text and not text.endswith("\n"):
        text += "\r\n" if crlf else "\n"
    return text + new


def without(path: str, text: str, service: str) -> str:
    """The file's text without the service's block. Raises OperatorError as `put` does."""
    place = _place(path, text, service)
    return text if place is None else text[: place[0]] + text[place[1] :]


def _place(path: str, text: str, service: str) -> tuple[int, int] | None:
    """Where the service's block is: from the start of its first line to the end of its last. None: nowhere."""
    found: tuple[int, int] | None = None
    begun: tuple[int, int] | None = None  # where, and in which line
    at = 0
    for number, line in enumerate(text.split("\n"), 1):
        start, at = at, min(at + len(line) + 1, len(text))
        mark = _MARK.fullmatch(line)
        if mark is None:
            continue
        kind, whose = mark.groups()
        if begun is not None and whose != service:
            what = f"{kind} of `{whose}` is inside the block of `{service}`, which begins in line {begun[1]}"
        elif begun is not None and kind == "BEGIN":
            what = f"the block of `{service}` begins again before its END"
        elif begun is not None:
            found, begun = (begun[0], at), None
            continue
        elif whose != service:
            continue
        elif kind == "END":
            what = f"an END of `{service}` without its BEGIN"
        elif found is not None:
            what = f"there is a second block of `{service}`"
        else:
            begun = start, number
            continue
        raise OperatorError(f"{path}:{number}: {what}; repair the lines or remove them, relay leaves the file alone")
    if begun is not None:
        raise OperatorError(
            f"{path}:{begun[1]}: a BEGIN of `{service}` without its END; "
            f"write `# END relay {service}` below what relay wrote, or remove both, relay leaves the file alone"
        )
    return found


def write(path: str, block: str) -> bool:
    """Put the block into the file; whether that changed it. A symbolic link is followed, and stays. Raises OperatorError."""
    return _change(path, lambda text: put(path, text, block))


def remove(path: str, service: str) -> bool:
    """Take the service's block out of the file; whether there was one. Raises OperatorError."""
    return _change(path, lambda text: without(path, text, service))


def _change(path: str, edit: Callable[[str], str]) -> bool:
    given_up = threading.Event()

    def change() -> bool:
        real = os.path.realpath(path, strict=True)
        for _ in range(_TRIES):
            before, text = _read(real)
            if (new := edit(text)) == text or given_up.is_set():
                return False
            if _replace(real, before, new):
                return True
        raise OperatorError(f"{cannot}: something else writes it all the time; stop one of the two")

    cannot = f"cannot write the names to {path}"
    try:
        return reading.within(reading.DEADLINE_S, path, change)
    except UnreadableError as error:
        given_up.set()  # names that are old by then must not be written over newer ones
        fix = error.fix if isinstance(error, HangingError) else _FIXES.get(error.code, _ELSEWHERE)
        raise OperatorError(f"{cannot}: {error.reason}; {fix}") from None
    except OSError as error:
        fix = _FIXES.get(error.errno or 0, _ELSEWHERE)
        raise OperatorError(f"{cannot}: {os_reason(error)}; {fix}") from error


def _read(real: str) -> tuple[os.stat_result, str]:
    before = os.stat(real)
    content = reading.read_bytes(real, deadline_s=reading.DEADLINE_S, most_bytes=_SIZE_MAX_BYTES)
    return before, content.decode("utf-8", "surrogateescape")  # bytes as they are


def _replace(real: str, before: os.stat_result, text: str) -> bool:
    """Put a file with this text in the place of another; False: that one is no longer as it was read."""
    directory, name = os.path.split(real)
    fd, temporary = tempfile.mkstemp(prefix=f".{name}.relay-", dir=directory)
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            made = os.fstat(fd)
            if (before.st_uid, before.st_gid) != (made.st_uid, made.st_gid):
                os.fchown(fd, before.st_uid, before.st_gid)
            _copy_attributes(real, temporary)  # before the mode, which an access list would change
            os.fchmod(fd, stat.S_IMODE(before.st_mode))
            file.write(text)
            file.flush()
            os.fsync(fd)
        now = os.stat(real)
        if (now.st_ino, now.st_mtime_ns, now.st_size) != (before.st_ino, before.st_mtime_ns, before.st_size):
            os.unlink(temporary)
            return False
        os.rename(temporary, real)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(OSError):  # it is replaced; whether that outlives a power cut is all that is left
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory_fd)
        finally:
            os.close(directory_fd)
    return True


def _copy_attributes(old: str, new: str) -> None:
    """Access lists, and what SELinux calls the file: as far as the file system and our rights go (xattr(7))."""
    with contextlib.suppress(OSError):
        for attribute in os.listxattr(old):
            with contextlib.suppress(OSError):
                os.setxattr(new, attribute, os.getxattr(old, attribute))
