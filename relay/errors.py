"""The exception tree.

RelayError
├── OperatorError          the file, the command or the machine must change; exit status 1
│   ├── ConfigError        one or more `Problem`s in a YAML file
│   ├── WrongValue         one value of a file or of the command line, and what to write instead; also a ValueError
│   ├── UnreadableError    a file is no ordinary one, is too large or cannot be read
│   │   └── HangingError   it, or its directory, gives no answer
│   ├── IdentityError      which instance this machine is cannot be told
│   ├── ListenError        a declared port cannot be listened on
│   ├── RegistryError      the registry does not answer, or refused the request
│   ├── SourceError        a name, service record or file of instances gives no answer
│   ├── UnknownError       no role, instance or endpoint of this name is in the service
│   ├── ClashError         two names of the file become one where they are needed apart
│   ├── ReplacedError      relay's control is just being replaced: the new one does it, when asked again
│   └── AdminError         the running daemon cannot be reached, or refused the request
│       ├── RefusedError   it refused what a file says, problem by problem
│       └── AgainError     its control was just being replaced: ask again
└── RelayBug               relay itself is wrong; exit status 70 and a traceback

An `OSError` becomes one of these where relay meets the operating system on an operator's behalf: `os_reason`
is that boundary's wording. On the way of a connection an `OSError` is a cause or a counter, never an exception.
"""

import errno
import os
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, order=True)
class Problem:
    """One thing wrong in a file: where it stands, what is wrong, what to write instead.

    `line` and `column` count from 1; 0 means the file as a whole. `path` is dotted (`roles.web.endpoints.http-in.port`).
    """

    file: str
    line: int
    column: int
    path: str
    what: str
    fix: str
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}:{self.column}: "
        kind = "warning: " if self.severity == "warning" else ""
        path = f"{self.path}: " if self.path else ""
        fix = f"; {self.fix}" if self.fix else ""
        return f"{where}{kind}{path}{self.what}{fix}"


class RelayError(Exception):
    """Root of everything relay raises on purpose. Raise one of its leaves."""


class OperatorError(RelayError):
    """Something outside relay must change. The message says what, and where."""


class ConfigError(OperatorError):
    """A file cannot be used. Carries every problem found, sorted by place."""

    def __init__(self, problems: list[Problem]) -> None:
        if not problems:
            raise RelayBug("a ConfigError needs at least one problem")
        self.problems = sorted(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


class WrongValue(OperatorError, ValueError):
    """One value cannot be used: `what` is wrong with it, and `remedy` says what to write.

    Also a ValueError: it is what pydantic takes from a validator, and gives back as it was.
    """

    def __init__(self, what: str, remedy: str) -> None:
        self.what = what
        self.remedy = remedy
        super().__init__(f"{what}; {remedy}")


class UnreadableError(OperatorError):
    """The file at `path` cannot be read: for what `reason`, and what to do (`fix`).

    `code` is the system's (errno(3)), 0 where relay itself refused it.
    """

    def __init__(self, path: str, reason: str, fix: str, code: int = 0) -> None:
        self.path = path
        self.reason = reason
        self.fix = fix
        self.code = code
        super().__init__(f"{path} cannot be read: {reason}; {fix}")


class HangingError(UnreadableError):
    """Its file system has not answered in time."""


class IdentityError(OperatorError):
    """No instance id: none was given and no roster address is local, or more than one is."""


class ListenError(OperatorError):
    """A declared address and port cannot be listened on."""


class RegistryError(OperatorError):
    """No endpoint of the registry answers, or it answered with a refusal."""


class SourceError(OperatorError):
    """A name, service record or file that says where instances are gives no answer. The message says why."""


class UnknownError(OperatorError):
    """No role, instance or endpoint of this name is in the service. The message says which there are."""


class ClashError(OperatorError):
    """Two names of the service file become one where they are needed apart. The message has both."""


class ReplacedError(OperatorError):
    """Nothing is done here any more: this control is about to be replaced, and the new one does it when asked again."""


class AdminError(OperatorError):
    """The daemon's admin socket does not answer, or answered with a refusal."""


class RefusedError(AdminError):
    """The daemon refused a configuration. The message is its problems, each on a line of its own."""


class AgainError(AdminError):
    """The daemon's control has ended before it did anything, or says that it is about to. Whoever takes its place does it."""


class RelayBug(RelayError):
    """relay contradicts itself. Never the operator's fault."""


_REASONS = {
    errno.EACCES: "no permission",
    errno.EPERM: "no permission",
    errno.ENOENT: "no such file",
    errno.EISDIR: "is a directory, not a file",
    errno.EADDRINUSE: "the address is in use by another program",
    errno.EADDRNOTAVAIL: "the address is not on any interface of this machine",
    errno.ECONNREFUSED: "nobody listens there",
}


def os_reason(error: OSError) -> str:
    """The operator's wording of an OS error (errno(3)); the system's own text where there is no better one."""
    if error.errno is None:
        return str(error)
    return _REASONS.get(error.errno) or os.strerror(error.errno).lower()
