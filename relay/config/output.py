"""Writing a file that an operator asked for: whole or not at all, and nothing of theirs is lost by it."""

import contextlib
import errno
import os
import tempfile

from relay.config.wording import printable
from relay.errors import ConfigError, Problem, os_reason

__all__ = ["write_file"]


def write_file(path: str, text: str, *, replace: bool) -> None:
    """Write `text` (UTF-8) to `path`, atomically. Raises ConfigError; also where there is a file and `replace` is false."""
    try:
        # Beside its place, because a file cannot be moved to another file system in one step (rename(2)).
        handle, beside = tempfile.mkstemp(dir=os.path.dirname(path) or ".", prefix=".relay-", suffix=".yaml")
        try:
            with os.fdopen(handle, "wb") as file:
                os.fchmod(handle, 0o666 & ~_umask())  # mkstemp's own mode is for secrets
                file.write(text.encode())
                file.flush()
                os.fsync(handle)
            if replace:
                os.replace(beside, path)
            else:
                os.link(beside, path)  # unlike a rename it never takes another file's place (link(2), EEXIST)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(beside)
    except FileExistsError:
        what, fix = "exists already", "write `--force` to replace it, or another name"
        raise ConfigError([Problem(printable(path), 0, 0, "", what, fix)]) from None
    except OSError as error:
        fix = "check the path and the permissions"
        if error.errno == errno.EPERM:  # link(2): the file system has no hard links
            fix += "; `--force` writes where there are no hard links"
        raise ConfigError([Problem(printable(path), 0, 0, "", f"cannot be written: {os_reason(error)}", fix)]) from None
    except ValueError:
        raise ConfigError([Problem(printable(path), 0, 0, "", "the path holds a NUL", "write another path")]) from None


def _umask() -> int:
    """What open(2) would leave out of a mode. It can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
