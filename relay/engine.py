"""Which form of the engine runs: compiled, or its .py files as they are.

The modules with a .pxd beside them are compiled (setup.py). What was built comes with a record: of which files it was made,
with the hash of each. Compiled modules know each other's layout, so all of them run or none: none where one of those files
is another one now. This module is imported before every other one of relay's, and by setup.py.
"""

import os
import sys
from collections.abc import Callable
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
    SourcelessFileLoader,
)
from importlib.util import source_hash
from types import ModuleType
from typing import Final, NamedTuple

VARIABLE: Final = "RELAY_ENGINE"
SUFFIX: Final = EXTENSION_SUFFIXES[0]  # it names the version of Python and the platform, and so does the record
RECORD: Final = f"relay/engine{SUFFIX.removesuffix('.so')}.sources"
DECLARATIONS_ONLY: Final = (
    "# Declarations only"  # so a .pxd begins that is for other modules, and its .py is not compiled
)
UNBUILT: Final = "-"  # in a record, in place of a hash: what is built of it is not whole
_PACKAGE: Final = os.path.dirname(__file__)
_ROOT: Final = os.path.dirname(_PACKAGE)


class Engine(NamedTuple):
    """The form that runs in this process, and in all that it starts."""

    reason: str
    """Why it is not the compiled one; empty: it is."""

    @property
    def compiled(self) -> bool:
        """Whether it is the compiled one."""
        return not self.reason

    def __str__(self) -> str:
        return "compiled" if self.compiled else f"interpreted ({self.reason})"


def hash_of(file: str) -> str:
    """The hash of what is in a file, as Python itself has it for bytecode; empty where it cannot be read."""
    try:
        with open(file, "rb", buffering=0) as source:
            return source_hash(source.read()).hex()
    except OSError:
        return ""


def read_record(root: str) -> dict[str, str]:
    """What the modules in the tree `root` were built from: each file's path in relay's own tree, and its hash.

    Empty where nothing was built for this version of Python.
    """
    try:
        with open(os.path.join(root, RECORD), encoding="utf-8") as record:
            lines = [line.split() for line in record if not line.startswith("#")]
    except OSError:
        return {}
    return {path: digest for digest, path in lines}


def choose(wanted: str) -> Engine:
    """Have Python find relay's modules in the form that is `wanted` (RELAY_ENGINE); says which one it is.

    `interpreted`; `compiled` or nothing: compiled, where that can be; a directory: the same, with the modules in its tree.
    """
    elsewhere = os.path.isabs(wanted)
    if wanted == "interpreted":
        engine = Engine(f"{VARIABLE} says so")
    elif wanted in ("", "compiled") or elsewhere:
        engine = Engine(_hindrance(wanted if elsewhere else _ROOT))
    else:
        engine = Engine(f"{VARIABLE} is {wanted!r}, and may be compiled, interpreted or an absolute path")
    if elsewhere or not engine.compiled:
        sys.path_hooks.insert(0, _hook(wanted if engine.compiled else None))
        sys.path_importer_cache.pop(_PACKAGE, None)  # by which this module was found
    return engine


def _hindrance(root: str) -> str:
    """Why the modules that were built in the tree `root` cannot run; empty: they can."""
    record = read_record(root)
    if not record:
        return "not compiled" if root == _ROOT else f"nothing is compiled in {root}"
    if UNBUILT in record.values():
        return "its build has not come to its end"
    for path, digest in record.items():
        if hash_of(os.path.join(_ROOT, path)) != digest:
            return f"{path} has changed since it was compiled"
        built = path.removesuffix(".py") + SUFFIX
        if path.endswith(".py") and not os.path.exists(os.path.join(root, built)) and not _only_declares(path):
            return f"{built} is missing"
    return ""


def _only_declares(path: str) -> bool:
    """Whether this module is not compiled, though it has a .pxd: others have its numbers from there."""
    with open(os.path.join(_ROOT, path.removesuffix(".py") + ".pxd"), encoding="utf-8") as declared:
        return declared.readline().startswith(DECLARATIONS_ONLY)


class _Finder(FileFinder):
    """Finds the modules of one of relay's directories: compiled ones in another directory, all others in their place."""

    def __init__(self, path: str, compiled: str | None) -> None:
        super().__init__(path, (SourceFileLoader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES))
        self._compiled = compiled and FileFinder(compiled, (ExtensionFileLoader, [SUFFIX]))

    def find_spec(self, fullname: str, target: ModuleType | None = None) -> ModuleSpec | None:
        found = self._compiled.find_spec(fullname, target) if self._compiled else None
        if found is None or found.loader is None:  # a mere directory
            return super().find_spec(fullname, target)
        return found


def _hook(root: str | None) -> Callable[[str], FileFinder]:
    """For `sys.path_hooks`. `root`: the tree where compiled modules are; None: there are none."""

    def finder(path: str) -> FileFinder:
        if path != _PACKAGE and not path.startswith(_PACKAGE + os.sep):
            raise ImportError(path=path)  # not relay's: the next hook has it
        return _Finder(path, root and os.path.join(root, os.path.relpath(path, _ROOT)))

    return finder
