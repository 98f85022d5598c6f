"""Steps: the calls between which a crash would find something half done. The tests have a worker die at each of them.

A step is marked where it is defined, and costs nothing unless RELAY_FAULT is in the environment (dataplane/faults.py).
"""

import functools
import os
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

WALK: Final = os.environ.get("RELAY_FAULT", "")

NAMES: Final[set[str]] = set()
"""Every step that there is, as `Class.method` or `module.function`."""

_Function = TypeVar("_Function", bound=Callable[..., Any])
_at: Callable[[str], None] = lambda _what: None  # noqa: E731


def watch(at: Callable[[str], None]) -> None:
    """Call `at` with `before NAME`, `after NAME` or `failed NAME` at each step."""
    global _at
    _at = at


def step(function: _Function) -> _Function:
    """Mark a function or method as a step."""
    return named(function, _name(function))


def named(function: _Function, name: str) -> _Function:
    """The same for a function of somebody else's."""
    NAMES.add(name)
    if not WALK:
        return function

    @functools.wraps(function)
    def stepping(*args: Any, **keys: Any) -> Any:
        _at(f"before {name}")
        try:
            result = function(*args, **keys)
        except BlockingIOError:  # there was nothing to do
            raise
        except OSError:
            _at(f"failed {name}")
            raise
        _at(f"after {name}")
        return result

    return cast(_Function, stepping)


def _name(function: Callable[..., Any]) -> str:
    name = function.__qualname__
    return name if "." in name else f"{function.__module__.rpartition('.')[2]}.{name}"
