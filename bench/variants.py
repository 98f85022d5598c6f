"""relay with one thing altered, to measure what that thing costs. For the bench alone: what it runs is not relay.

    python bench/variants.py no-records|no-ledger|two-descriptors run ...

no-records       no flow records, and nothing about who is in the scratch pipe: a crash would lose every connection
no-ledger        the same, and the counters in an array of the worker's own: what is not shared survives nothing
two-descriptors  counts two descriptors for a flow and not four: idle flows need no more, and a limit holds twice as many
"""

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from array import array
from pathlib import Path
from types import CodeType

REPOSITORY = Path(__file__).resolve().parent.parent
RECORDS = frozenset({"begin", "advance", "hold", "moved", "flag", "ending", "end"})
"""Methods of `WorkerLedger` that write a flow's record. Nothing but statements that call one of them is left out."""
MODULES = frozenset(f"relay.dataplane.{name}" for name in ("flow", "forwarding", "splice", "context"))


class WithoutRecords(ast.NodeTransformer):
    """Leaves out the statements that write flow records and the scratch pipe's owner. `left_out` says which."""

    def __init__(self, left_out: set[str]) -> None:
        self._left_out = left_out

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return self._without(node, ast.Pass(), _written(node.value))

    def visit_Return(self, node: ast.Return) -> ast.stmt:
        return self._without(node, ast.Return(), _written(node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        return self._without(node, ast.Pass(), _scratch(ast.unparse(node.targets[0])))

    def _without(self, node: ast.stmt, instead: ast.stmt, what: str | None) -> ast.stmt:
        if what is None:
            return node
        self._left_out.add(what)
        return ast.copy_location(instead, node)


def _written(value: ast.expr | None) -> str | None:
    """Which part of the record a call of the ledger writes; None when it is another expression."""
    if not isinstance(value, ast.Call) or not isinstance(value.func, ast.Attribute):
        return None
    owner = ast.unparse(value.func.value).rpartition(".")[2]
    return value.func.attr if owner.strip("_") == "ledger" and value.func.attr in RECORDS else None


def _scratch(target: str) -> str | None:
    """Which word about the scratch pipe an assignment writes; None when it is another."""
    if target == "self._words[self._owner]":
        return "SCRATCH_OWNER"
    return "SCRATCH_R" if "ledger[Word.SCRATCH_R]" in target else None


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module without what WithoutRecords leaves out. Keeps no compiled file."""

    def __init__(self, name: str, file: Path, left_out: set[str]) -> None:
        super().__init__(name, str(file))
        self._left_out = left_out

    def get_code(self, fullname: str) -> CodeType:
        """The altered module's code."""
        path = self.get_filename(fullname)
        tree = WithoutRecords(self._left_out).visit(ast.parse(self.get_data(path)))
        return self.source_to_code(ast.fix_missing_locations(tree), path)


class Finder(importlib.abc.MetaPathFinder):
    """Finds MODULES before anything else does. `left_out` says what was left out of them."""

    def __init__(self) -> None:
        self.left_out: set[str] = set()

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        """Where the module is, if it is one to alter."""
        if fullname not in MODULES:
            return None
        file = REPOSITORY.joinpath(*fullname.split(".")).with_suffix(".py")
        return importlib.util.spec_from_file_location(fullname, file, loader=Loader(fullname, file, self.left_out))


def leave_out_records() -> None:
    """Import the data plane without its records. Exits where it has no such statements any more."""
    finder = Finder()
    sys.meta_path.insert(0, finder)
    import relay.dataplane.worker  # noqa: F401

    if missing := (RECORDS | {"SCRATCH_OWNER", "SCRATCH_R"}) - finder.left_out:
        sys.exit(f"variants.py: bring it up to date, for nothing writes {', '.join(missing)} now")


def keep_counters_private() -> None:
    """Give each worker an array of its own for its counters. Its few other words stay where its keeper and control look."""
    from relay.ledger.ledger import WorkerLedger

    attach = WorkerLedger.__init__

    def attach_to_an_array(self, memory, words, *rest) -> None:  # type: ignore[no-untyped-def]
        attach(self, memory, words, *rest)
        self.words = array("Q", words)
        self.numbers = self._words = array("q", self.numbers)

    def shared_word(self, word) -> int:  # type: ignore[no-untyped-def]
        with memoryview(self.memory) as memory, memory.cast("Q") as words:
            return int(words[self._base + word])

    def set_shared_word(self, word, value) -> None:  # type: ignore[no-untyped-def]
        with memoryview(self.memory) as memory, memory.cast("Q") as words:
            words[self._base + word] = value

    WorkerLedger.__init__ = attach_to_an_array  # type: ignore[method-assign,assignment]
    WorkerLedger.__getitem__ = shared_word  # type: ignore[method-assign]
    WorkerLedger.__setitem__ = set_shared_word  # type: ignore[method-assign]


def count_two_descriptors() -> None:
    """A flow that stalls would need a pipe's two as well."""
    from relay.dataplane import inherits

    inherits.NOFILE_PER_FLOW = 2  # type: ignore[misc]


def main() -> int:
    os.environ["RELAY_ENGINE"] = "interpreted"  # what is altered is the sources
    sys.path.insert(0, str(REPOSITORY))
    match sys.argv[1:2]:
        case ["no-records"]:
            leave_out_records()
        case ["no-ledger"]:
            leave_out_records()
            keep_counters_private()
        case ["two-descriptors"]:
            count_two_descriptors()
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    from relay.cli.main import main

    return main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
