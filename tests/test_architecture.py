"""The shape of the program: what imports what, how large a file may be, and that every module has its tests."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[1]

# The rooms, in the order of the flow: foundations; who may connect; what outlives a process; from a file to a snapshot; the
# operating system; a connection's way from accept to close; the processes; then who is there, and what watches over it.
# A module imports what is in its own room, or in one above it.
ROOMS: Final = (
    "engine", "address", "errors", "log", "calls", "systemd",
    "envelope", "ledger", "config", "csdef", "kernel", "targets", "dataplane", "processes", "fleet", "names", "control",
    "daemon", "cli", "__main__",
)  # fmt: skip

# Bytes or plain data in, a verdict or plain data out. Not even by way of another module do they reach the network, an
# event loop or the clock.
PURE: Final = (
    "relay.address",
    "relay.envelope.asking",
    "relay.envelope.bpf",
    "relay.envelope.cidr",
    "relay.envelope.clienthello",
    "relay.envelope.rules",
    "relay.envelope.httphead",
    "relay.envelope.proxyproto",
    "relay.envelope.verdict",
    "relay.config.values",
    "relay.config.references",
    "relay.config.fields",
    "relay.config.endpoint",
    "relay.config.probe",
    "relay.config.target",
    "relay.config.instances",
    "relay.config.bare",
    "relay.config.admission",
    "relay.config.weights",
    "relay.config.model",
    "relay.config.settings",
    "relay.config.schema",
    "relay.config.check",
    "relay.config.lint",
    "relay.config.roster",
    "relay.config.snapshot",
    "relay.config.compile",
    "relay.config.named",
    "relay.config.plan",
    "relay.csdef.read",
    "relay.csdef.definition",
    "relay.csdef.configuration",
    "relay.csdef.check",
    "relay.csdef.substitutes",
    "relay.csdef.ports",
    "relay.csdef.traffic",
    "relay.csdef.yamltext",
    "relay.csdef.mapping",
    "relay.fleet.entries",
    "relay.fleet.believed",
    "relay.fleet.gateway",
    "relay.fleet.places",
    "relay.fleet.standing_answer",
    "relay.fleet.numbering",
    "relay.fleet.listed_file",
    "relay.names.wire",
    "relay.names.zone",
    "relay.cli.columns",
    "relay.cli.tables",
    "relay.cli.target_tables",
    "relay.control.discovery",
    "relay.control.environment",
    "relay.control.answers",
    "relay.control.done",
    "relay.control.described",
    "relay.control.openapi",
    "relay.control.senders",
    "relay.control.source_status",
)
IMPURE: Final = frozenset({"asyncio", "select", "selectors", "signal", "socket", "subprocess", "threading", "time"})

LINES_MAX: Final = 400
COLUMNS_MAX: Final = 120
CELL_WORDS_MAX: Final = 20

# Modules without a test file of their own, and why.
TESTED_ELSEWHERE: Final = {
    "relay.csdef.homes": "two tables; the corpus of the importer has what stands in a wrong place",
    "relay.config.endpoint": "tests/config/test_model.py has the whole file's keys, as one file has them",
    "relay.config.admission": "tests/config/test_compile.py and test_check.py have who is let in, and whom the kernel drops",
    "relay.cli.weight": "tests/e2e/test_weight.py has it before a daemon, with all that is said",
    "relay.control.replacing": "every live upgrade of the end-to-end tests goes this way, and those that are refused",
    "relay.control.in_force": "one value; everybody who reads it has tests",
    "relay.control.inherits": "what control begins with; every end-to-end test has one",
    "relay.control.answers": "types alone; every answer of the end-to-end tests is held against their schemas",
    "relay.control.source_status": "a type alone; the tests of following sources and of the document go by it",
    "relay.control.done": "types alone; every answer of the end-to-end tests is held against their schemas",
    "relay.control.described": "the tests of the document go through it",
    "relay.dataplane.open_ports": "the tests of the worker open, take over and close ports",
    "relay.kernel.messages": "texts; the tests of worker and keeper say and hear them",
    "relay.processes.child": "two types of the keeper's",
    "relay.__main__": "every end-to-end test starts it",
    "relay.cli.main": "the end-to-end tests type its commands",
    "relay.daemon": "it puts processes together, which the end-to-end tests do",
    "relay.cli.demo": "the end-to-end tests of `relay emulate` ask each demo service",
    "relay.cli.emulate": "it starts daemons, which the end-to-end tests do",
    "relay.config.fields": "the tests of the model and of the schemas read every kind of key",
    "relay.config.schema": "the tests of the model and of the samples hold it against both",
    "relay.control.control": "a process; the end-to-end tests reload it, kill it and read its status",
    "relay.control.upgrade": "two versions of relay; the end-to-end tests upgrade one to the other",
    "relay.processes.handover": "it replaces the program; the end-to-end tests upgrade it",
    "relay.dataplane.turns": "numbers; tests/ledger/test_layout.py has both their places, test_splice.py what they tell",
    "relay.dataplane.route": "the tests of dialling and of the edge go through it",
    "relay.dataplane.adopt": "it takes a dead process' descriptors over; the end-to-end tests kill workers at every step",
    "relay.dataplane.faults": "it is the end-to-end tests' own tool",
    "relay.processes.holder": "a process that forks; the end-to-end tests kill it and what it holds",
    "relay.dataplane.context": "what flows share; the tests of listener, stages and log go through it",
    "relay.processes.inherited": "what processes begin with; the end-to-end tests start, kill and upgrade them",
    "relay.envelope.verdict": "two types; tests/envelope/promises.py states what parsers promise with them",
}


def name_of(file: Path) -> str:
    parts = file.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES: Final = {name_of(file): file for file in sorted((ROOT / "relay").rglob("*.py"))}


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text())


@cache
def imports(module: str) -> frozenset[str]:
    """What a module imports anywhere in it: relay's own modules by their full name, others by their first part."""
    return frozenset(_imports(module))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            # `from relay.dataplane import channel` is the module; `from relay import __version__` is its package.
            inside = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else str(node.module) for name in inside]
        else:
            continue
        yield from (name if name in FILES else name.partition(".")[0] for name in names)


def reached(module: str) -> set[str]:
    """Everything that is imported with a module, over relay's own modules."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        for name in imports(waiting.pop()):
            if name not in found:
                found.add(name)
                if name in FILES:
                    waiting.append(name)
    return found


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_every_module_has_its_place() -> None:
    assert {room_of(module) for module in FILES} == {"", *ROOMS}, (
        "write the room into ROOMS where it stands in the flow"
    )


@pytest.mark.parametrize("module", FILES)
def test_imports_point_one_way(module: str) -> None:
    above = {"", *ROOMS[: ROOMS.index(room_of(module)) + 1]} if room_of(module) else {"engine"}
    assert {room_of(name) for name in imports(module) if name in FILES} <= above


@pytest.mark.parametrize("module", FILES)
def test_no_circles(module: str) -> None:
    assert module not in reached(module)


def test_each_knows_only_its_side() -> None:
    """Control works by what is in the ledger, and the data plane by the snapshot that it is given."""
    for module in FILES:
        others = {room_of(name) for name in reached(module) if name in FILES}
        if room_of(module) == "control":
            assert "dataplane" not in others, module
        if room_of(module) in ("envelope", "ledger", "config", "kernel", "targets", "dataplane", "processes"):
            assert not others & {"fleet", "names", "control", "daemon", "cli"}, module


def test_nothing_imports_the_top() -> None:
    users = {top: {module for module in FILES if top in imports(module)} for top in ("relay.cli.main", "relay.daemon")}
    assert users == {"relay.cli.main": {"relay.__main__"}, "relay.daemon": {"relay.cli.main"}}


@pytest.mark.parametrize("module", PURE)
def test_pure_modules(module: str) -> None:
    assert imports(module), "an import that is not found here would be missed below"
    assert reached(module) & IMPURE == set()


def test_the_envelope_is_pure_as_a_whole() -> None:
    assert {module for module in FILES if module.startswith("relay.envelope.")} <= set(PURE)


def test_a_class_name_has_one_meaning() -> None:
    names = Counter(node.name for module in FILES for node in tree(module).body if isinstance(node, ast.ClassDef))
    assert [name for name, count in names.items() if count > 1] == []


def test_files_can_be_read_in_one_go() -> None:
    files = [*FILES.values(), *(ROOT / "tests").rglob("*.py")]
    lengths = {file: len(file.read_text().splitlines()) for file in files}
    assert {str(file): lines for file, lines in lengths.items() if lines >= LINES_MAX} == {}


def test_documents_can_be_read_on_a_screen() -> None:
    documents = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "systemd" / "README.md",
        ROOT / "bench" / "README.md",
    ]
    for document in documents:
        for number, line in enumerate(document.read_text().splitlines(), 1):
            cells = line.replace(r"\|", "").split("|") if line.startswith("|") else []
            assert len(line) <= COLUMNS_MAX or cells, f"{document}:{number} is too long"
            assert not [cell for cell in cells if len(cell.split()) > CELL_WORDS_MAX], (
                f"{document}:{number} has a long cell"
            )


# The project that PyPI has under the name is somebody else's.
BY_ITS_BARE_NAME: Final = re.compile(
    r"\b(?:pip|pip3|pipx|uv|poetry|pdm)\b[^`\n]*?\b(?:install|add|download|run|wheel)\b[^`\n]*?"
    r"""[\s"'`=]relay(?:\[[^]]*\])?(?:\s*[=<>~!]=?\s*[\w.*]+)?(?=[\s"'`;,)&|]|$)"""
)


def test_nobody_is_told_to_install_somebody_elses_program() -> None:
    texts = [ROOT / "Makefile", ROOT / "pyproject.toml", ROOT / ".ci" / "run", *ROOT.glob("*.md")]
    for folder in ("bench", "config", "docs", "relay", "scripts", "systemd"):
        texts += [file for file in (ROOT / folder).rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    # The load generator may have been built beside its source.
    told = [(file, BY_ITS_BARE_NAME.findall(file.read_text(errors="replace").replace("\\\n", " "))) for file in texts]
    assert len(told) > 200
    assert [(str(file), found) for file, found in told if found] == []


@pytest.mark.parametrize(
    ("text", "bare"),
    [
        ("pip install relay", True),
        ("`/opt/relay/bin/pip install --upgrade relay`), then", True),
        ('python3 -m pip install -U "relay[dev]>=0.1"', True),
        ("pip3 install relay==0.1.0 && relay run", True),
        ("pipx install relay", True),
        ("uv pip install relay;", True),
        ("`/opt/relay/bin/pip install --upgrade .`, then `relay upgrade`", False),
        ("pip install ./relay-0.2.0-py3-none-any.whl", False),
        ("/opt/relay/bin/pip install /usr/src/relay", False),
        ("pip install --editable . $groups", False),
    ],
)
def test_a_bare_name_is_found(text: str, bare: bool) -> None:
    assert bool(BY_ITS_BARE_NAME.search(text)) is bare


@pytest.mark.parametrize("module", FILES)
def test_what_is_public_says_what_it_is(module: str) -> None:
    assert ast.get_docstring(tree(module)), "the module has no docstring"
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [node for node in tree(module).body if isinstance(node, kinds) and not node.name.startswith("_")]
    methods = [
        node
        for owner in public
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not node.name.startswith("_")
    ]
    assert [node.name for node in (*public, *methods) if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("module", [name for name, file in FILES.items() if file.name != "__init__.py"])
def test_every_module_has_its_tests(module: str) -> None:
    *folders, name = module.split(".")[1:]
    there = ROOT.joinpath("tests", *folders, f"test_{name}.py").exists()
    assert there != (module in TESTED_ELSEWHERE), "write the tests, or the reason why there are none"


def test_every_reason_is_needed() -> None:
    assert set(TESTED_ELSEWHERE) <= set(FILES)
