"""Where a process is: every call, line and return of some of relay's functions, as the interpreter tells it.

Compiled code tells it too, where it was built for that (setup.py): at the same lines, for they are the same sources. For
tests alone (faults.py).
"""

import ast
import ctypes
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

CALL, LINE, RETURN = 0, 2, 3
"""What is told: Include/cpython/pystate.h, PyTrace_CALL and its like."""

_SIMPLE: Final = (ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Return, ast.Expr)


class Traced(NamedTuple):
    """A function of relay's: where it begins, and what stands on its lines."""

    name: str  # `Class.method` or `module.function`
    file: str  # from `relay/` on
    first_lines: tuple[int, ...]  # with its decorators, and without
    lines: dict[int, str]  # simple statements, by line


@functools.cache
def places() -> dict[str, Traced]:
    """Every function of the data plane and of what is under it, by name."""
    root = Path(__file__).parent.parent
    files = [file for folder in ("dataplane", "kernel", "ledger", "targets") for file in (root / folder).glob("*.py")]
    return {place.name: place for file in files for place in _places_in(file, str(file.relative_to(root.parent)))}


def _places_in(file: Path, called: str) -> Iterator[Traced]:
    source = file.read_text()
    module, text = ast.parse(source), source.splitlines()
    owners: list[ast.Module | ast.ClassDef] = [
        module,
        *(each for each in module.body if isinstance(each, ast.ClassDef)),
    ]
    for owner in owners:
        prefix = owner.name if isinstance(owner, ast.ClassDef) else file.stem
        for each in owner.body:
            if isinstance(each, ast.FunctionDef):
                name, decorated = f"{prefix}.{each.name}", min([each.lineno, *(d.lineno for d in each.decorator_list)])
                lines = {n: f"{name} +{n - each.lineno} {text[n - 1].strip()}" for n in _simple_lines(each)}
                yield Traced(name, called, (decorated, each.lineno), lines)


def _simple_lines(function: ast.FunctionDef) -> list[int]:
    """The lines of its statements that have no others in them. None that raises: no stream of the tests comes there."""
    found = [each for each in ast.walk(function) if isinstance(each, _SIMPLE)]
    return sorted({each.lineno for each in found if each is not function.body[0]})  # which is its docstring


def trace(there: Iterable[Traced], follow: Callable[[Traced, int, int], None], *, lines: bool) -> None:
    """Have `follow` told of every call and return there, and of every line if wanted, from now on: in this thread.

    Python/sysmodule.c, PyEval_SetTrace, and PyEval_SetProfile where no lines are wanted, which is quicker.
    """
    begins = {(place.file, line): place for place in there for line in place.first_lines}
    # By the code's address; with the code, so that it has that for good.
    seen: dict[int, tuple[Any, Traced | None]] = {}

    def traced(_: object, frame: Any, what: int, _value: object) -> int:
        if what in _TOLD:
            code = frame.f_code
            found = seen.get(id(code))
            if found is None:
                file = code.co_filename
                found = seen[id(code)] = code, begins.get((file[file.rfind("relay/") :], code.co_firstlineno))
            if (place := found[1]) is not None:
                follow(place, what, frame.f_lineno)
        return 0

    global _traced
    _traced = _Trace(traced)
    (ctypes.pythonapi.PyEval_SetTrace if lines else ctypes.pythonapi.PyEval_SetProfile)(_traced, None)


_TOLD: Final = (CALL, LINE, RETURN)
_Trace: Final = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.py_object, ctypes.c_int, ctypes.c_void_p)
_traced: Any = None  # the interpreter does not keep it
