"""Problems as lines, and the wording of the system's errors."""

import errno
import os

import pytest

from relay.errors import (
    AdminError,
    ConfigError,
    IdentityError,
    ListenError,
    OperatorError,
    Problem,
    RelayBug,
    RelayError,
    os_reason,
)


@pytest.mark.parametrize(
    ("problem", "line"),
    [
        (Problem("a.yaml", 3, 5, "roles.web", "is wrong", "write it"), "a.yaml:3:5: roles.web: is wrong; write it"),
        (Problem("a.yaml", 0, 0, "", "the file is empty", ""), "a.yaml:0:0: the file is empty"),
        (
            Problem("a.yaml", 1, 2, "x", "has host bits", "write y", severity="warning"),
            "a.yaml:1:2: warning: x: has host bits; write y",
        ),
    ],
)
def test_a_problem_is_one_line(problem: Problem, line: str) -> None:
    assert str(problem) == line


def test_a_config_error_holds_every_problem_by_place() -> None:
    late, early = Problem("a.yaml", 12, 1, "b", "second", "x"), Problem("a.yaml", 9, 1, "a", "first", "y")
    error = ConfigError([late, early])
    assert error.problems == [early, late]
    assert str(error) == f"{early}\n{late}"


def test_a_config_error_without_problems_is_relays_own_mistake() -> None:
    with pytest.raises(RelayBug, match="at least one problem"):
        ConfigError([])


def test_the_tree() -> None:
    for leaf in (ConfigError, IdentityError, ListenError, AdminError):
        assert issubclass(leaf, OperatorError)
    assert issubclass(OperatorError, RelayError)
    assert issubclass(RelayBug, RelayError)
    assert not issubclass(RelayBug, OperatorError)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.EADDRINUSE, "x"), "the address is in use by another program"),
        (OSError(errno.EACCES, "x"), "no permission"),
        (PermissionError(errno.EPERM, "x"), "no permission"),
        (FileNotFoundError(errno.ENOENT, "x", "/a"), "no such file"),
        (OSError(errno.EPIPE, "x"), os.strerror(errno.EPIPE).lower()),
        (OSError("AF_UNIX path too long"), "AF_UNIX path too long"),
    ],
)
def test_the_systems_errors_in_an_operators_words(error: OSError, words: str) -> None:
    assert os_reason(error) == words
