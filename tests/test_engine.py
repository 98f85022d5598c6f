"""Which form of the engine runs, and that it is never another one than its sources; and what setup.py builds."""

import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Final

import pytest

from relay import __version__, engine

ROOT: Final = Path(__file__).parents[1]
TRACED: Final = "build/traced"
BUILD_S: Final = 1200  # a bound for hanging: a wheel is compiled as a whole

# The form, and what modules were loaded from.
LOADED: Final = """
import importlib, relay, sys
print(relay.ENGINE)
for name in sys.argv[1:]:
    print(importlib.import_module(name).__file__)
"""

# A module of the tests' own, so that little is built. What it says depends on each of its files, and on its form.
TINY: Final = {
    "tiny.py": "from relay import tinycalls\n\nclass Tiny:\n    def says(self):\n        return tinycalls.number() + 100\n",
    "tiny.pxd": "from relay cimport tinycalls\n\ncdef class Tiny:\n    cpdef says(self)\n",
    "tinycalls.py": "def number():\n    return 7\n",
    "tinycalls.pxd": '# Declarations only.\ncdef extern from "tiny.h":\n    int number "number_of_header"()\n',
    "tiny.h": "static int number_of_header(void) { return 1; }\nstatic int number_of_another(void) { return 2; }\n",
}
SAYS: Final = "from relay.tiny import Tiny; print(Tiny().says())"

# A callback of PyEval_SetTrace (frameobject.h); on Python 3.11 sys.settrace() hears nothing of code that Cython compiled.
TRACE: Final = """
import ctypes
from relay.dataplane.share import most

EVENTS = ("call", "exception", "line", "return")
seen = []

@ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.py_object, ctypes.c_int, ctypes.c_void_p)
def trace(_, frame, event, __):
    if frame.f_code.co_name == "most":
        seen.append(f"{EVENTS[event]} {frame.f_lineno}")
    return 0

ctypes.pythonapi.PyEval_SetTrace(trace, None)
most(4)
ctypes.pythonapi.PyEval_SetTrace(None, None)
for line in seen:
    print(line)
"""


def run(tree: Path, *command: str, wanted: str = "", path: str = "") -> subprocess.CompletedProcess[str]:
    """Run a command in that tree, with RELAY_ENGINE, and with PATH where it is another one."""
    changes = {engine.VARIABLE: wanted, "PATH": path or os.environ["PATH"]}
    environment = {name: value for name, value in os.environ.items() if name != "CC"} | changes
    return subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=BUILD_S)


def python(tree: Path, program: str, *arguments: str, wanted: str = "") -> list[str]:
    """The lines that a program prints, with the relay of that tree."""
    done = run(tree, sys.executable, "-c", program, *arguments, wanted=wanted)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def form(tree: Path, wanted: str = "") -> str:
    """What runs there."""
    (line,) = python(tree, LOADED, wanted=wanted)
    return line


def compiled_in(tree: Path) -> dict[str, str]:
    """The modules that are compiled there: name and path without its ending."""
    listed = [file.removesuffix(".py") for file in engine.read_record(str(tree)) if file.endswith(".py")]
    pxds = {path: next(at / f"{path}.pxd" for at in (tree, ROOT) if (at / f"{path}.pxd").exists()) for path in listed}
    found = [path for path, pxd in pxds.items() if not pxd.read_text().startswith(engine.DECLARATIONS_ONLY)]
    return {file.replace("/", "."): file for file in found}


def copied(tree: Path, *, built: bool) -> Path:
    """This working tree as far as it is built from, and with what was built of it; with its times."""
    ignored = shutil.ignore_patterns("__pycache__", *(() if built else ("*.so", "*.sources")))
    for folder in ("relay", "scripts", *(("build",) if built else ())):
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    for file in ("setup.py", "pyproject.toml", "README.md"):
        shutil.copy2(ROOT / file, tree)
    return tree


def build(tree: Path) -> subprocess.CompletedProcess[str]:
    return run(tree, sys.executable, "setup.py", "build_ext", "--inplace", "build_traced")


def write_tiny(tree: Path, changed: str = "", before: str = "", after: str = "") -> None:
    """The tests' own module, with one of its files changed."""
    for name, text in TINY.items():
        file = tree / "relay" / name
        new = text.replace(before, after) if name == changed else text
        if not file.exists() or file.read_text() != new:
            file.write_text(new)


@pytest.fixture(scope="module")
def compiled() -> Path:
    """This working tree, which is compiled."""
    if (found := form(ROOT)) != "compiled":
        message = f"the engine is {found}: run scripts/bootstrap dev"
        pytest.fail(message) if os.environ.get("RELAY_REQUIRE_REAL") == "1" else pytest.skip(message)
    return ROOT


@pytest.fixture
def copy(compiled: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(tmp_path, built=True)


@pytest.fixture(scope="module")
def tiny(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with one module more, compiled. Each test that builds leaves it so, with other sources."""
    tree = copied(tmp_path_factory.mktemp("tiny"), built=True)
    write_tiny(tree)
    done = build(tree)
    assert done.returncode == 0, done.stderr
    return tree


@pytest.fixture
def no_compiler(tmp_path: Path) -> str:
    """A PATH with all that scripts/bootstrap and pip need, and neither a compiler nor what installs one."""
    directory = tmp_path / "bin"
    directory.mkdir()
    for name in (
        "sh",
        "cat",
        "cut",
        "dirname",
        "env",
        "find",
        "id",
        "ls",
        "mktemp",
        "rm",
        "sha256sum",
        "sort",
        "xargs",
    ):
        found = shutil.which(name)
        assert found, name
        (directory / name).symlink_to(found)
    return str(directory)


# --- which form runs ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        ("", f"{ROOT}/{{}}{engine.SUFFIX}"),
        ("compiled", f"{ROOT}/{{}}{engine.SUFFIX}"),
        ("interpreted", f"{ROOT}/{{}}.py"),
        (f"{ROOT}/{TRACED}", f"{ROOT}/{TRACED}/{{}}{engine.SUFFIX}"),
        (f"{ROOT}/docs", f"{ROOT}/{{}}.py"),
        (TRACED, f"{ROOT}/{{}}.py"),
    ],
)
def test_the_form_that_is_wanted_runs(wanted: str, where: str, compiled: Path) -> None:
    modules = compiled_in(compiled)
    assert "relay.dataplane.share" in modules
    found, *files, of_uvloop, of_errors = python(
        compiled, LOADED, *modules, "uvloop.loop", "relay.errors", wanted=wanted
    )
    assert files == [where.format(path) for path in modules.values()]
    assert found.partition(" ")[0] == ("compiled" if where.endswith(engine.SUFFIX) else "interpreted")
    assert of_uvloop.endswith(engine.SUFFIX), "other packages are not touched"
    assert of_errors == f"{ROOT}/relay/errors.py"


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("interpreted", "RELAY_ENGINE says so"),
        ("/nowhere", "nothing is compiled in /nowhere"),
        (TRACED, f"RELAY_ENGINE is '{TRACED}', and may be compiled, interpreted or an absolute path"),
    ],
)
def test_it_says_why_it_is_interpreted(wanted: str, why: str) -> None:
    assert form(ROOT, wanted) == f"interpreted ({why})"


@pytest.mark.parametrize("file", ["relay/dataplane/share.py", "relay/dataplane/share.pxd"])
def test_modules_of_other_sources_do_not_run(file: str, copy: Path) -> None:
    source = copy / file
    text = source.read_text()
    # As large as before and of the same time: only what is in it tells.
    source.write_text(text.replace("share", "shore", 1))
    shutil.copystat(ROOT / file, source)
    for tree in ("", str(copy / TRACED)):
        found, *loaded = python(copy, LOADED, "relay.dataplane.share", wanted=tree)
        assert found == f"interpreted ({file} has changed since it was compiled)"
        assert loaded == [f"{copy}/relay/dataplane/share.py"]
    source.write_text(text)
    assert form(copy) == "compiled", "a time that is another one is nothing"
    source.unlink()
    assert "has changed" in form(copy)


def test_all_modules_run_or_none(copy: Path) -> None:
    modules = compiled_in(copy)
    built = f"relay/dataplane/share{engine.SUFFIX}"
    (copy / built).unlink()
    found, *files = python(copy, LOADED, *modules)
    assert found == f"interpreted ({built} is missing)"
    assert files == [f"{copy}/{path}.py" for path in modules.values()]


def test_the_version_is_one_line(copy: Path) -> None:
    (copy / f"relay/dataplane/share{engine.SUFFIX}").unlink()
    done = run(copy, sys.executable, "-m", "relay", "--version")
    assert done.stdout == f"relay {__version__}, {form(copy)}\n"


def test_what_nobody_knows_the_sources_of_does_not_run(copy: Path) -> None:
    (copy / engine.RECORD).unlink()
    assert python(copy, LOADED, "relay.dataplane.share") == [
        "interpreted (not compiled)",
        f"{copy}/relay/dataplane/share.py",
    ]


def test_lines_of_the_traced_tree_can_be_traced(compiled: Path) -> None:
    interpreted = python(compiled, TRACE, wanted="interpreted")
    assert [line.partition(" ")[0] for line in interpreted] == ["call", "line", "return"]
    assert python(compiled, TRACE, wanted=f"{compiled}/{TRACED}") == interpreted
    assert python(compiled, TRACE) == [], "what is shipped has no hooks"


# --- what is built --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(BUILD_S)
@pytest.mark.parametrize(
    ("file", "before", "after", "says"),
    [
        ("tiny.py", "100", "200", "201"),
        ("tiny.h", "return 1", "return 3", "103"),
        ("tinycalls.pxd", "number_of_header", "number_of_another", "102"),
    ],
)
def test_what_changed_is_built_again(file: str, before: str, after: str, says: str, tiny: Path) -> None:
    with (tiny / f"relay/tiny{engine.SUFFIX}").open("rb") as mapped:
        others = [tiny / f"{path}{engine.SUFFIX}" for name, path in compiled_in(tiny).items() if name != "relay.tiny"]
        stood = [other.stat().st_ino for other in others]
        write_tiny(tiny, file, before, after)
        os.utime(tiny / "relay" / file, (0, 0))  # as from an archive
        assert (form(tiny).partition(" ")[0], python(tiny, SAYS)[0][-1]) == ("interpreted", "7")

        done = build(tiny)
        assert done.returncode == 0, done.stderr
        assert os.fstat(mapped.fileno()).st_nlink == 0, "it was written over under a program that runs"
    assert [other.stat().st_ino for other in others] == stood
    for wanted in ("", f"{tiny}/{TRACED}"):
        assert (form(tiny, wanted), python(tiny, SAYS, wanted=wanted)) == ("compiled", [says])
    again = build(tiny)
    assert (again.returncode, "Cythonizing" in again.stdout, "building" in again.stdout) == (0, False, False)


@pytest.mark.slow
@pytest.mark.timeout(BUILD_S)
def test_a_build_that_fails_leaves_the_interpreted_form_until_one_succeeds(tiny: Path) -> None:
    write_tiny(tiny, "tiny.h", "return 1", "return ?")
    done = build(tiny)
    assert done.returncode != 0
    assert "tiny.h" in done.stderr
    assert form(tiny) == "interpreted (its build has not come to its end)"
    write_tiny(tiny)
    assert form(tiny) == "interpreted (its build has not come to its end)", "what is there may be of either"
    assert build(tiny).returncode == 0
    assert (form(tiny), python(tiny, SAYS)) == ("compiled", ["101"])


@pytest.mark.slow
@pytest.mark.timeout(BUILD_S)
def test_what_is_compiled_no_more_is_taken_away(tiny: Path) -> None:
    assert (tiny / f"relay/tiny{engine.SUFFIX}").exists()
    (tiny / "relay/tiny.pxd").unlink()
    assert form(tiny).startswith("interpreted")
    assert build(tiny).returncode == 0
    assert (form(tiny), python(tiny, SAYS)) == ("compiled", ["107"])
    for tree in (tiny, tiny / TRACED):
        assert not (tree / f"relay/tiny{engine.SUFFIX}").exists()


# --- packages -------------------------------------------------------------------------------------------------------------


def wheel(tree: Path, path: str = "") -> Path:
    """Build one, with the setuptools and Cython that are here."""
    options = ("--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", "dist")
    done = run(tree, sys.executable, "-m", "pip", "wheel", *options, ".", path=path)
    assert done.returncode == 0, done.stderr
    (made,) = (tree / "dist").iterdir()
    return made


def packed(made: Path) -> set[str]:
    return {name for name in zipfile.ZipFile(made).namelist() if ".dist-info/" not in name}


def source_files(tree: Path) -> set[str]:
    return {str(file.relative_to(tree)) for kind in ("py", "pxd", "h") for file in (tree / "relay").rglob(f"*.{kind}")}


@pytest.mark.slow
@pytest.mark.timeout(BUILD_S)
def test_a_wheel_has_the_sources_and_what_is_compiled(copy: Path, tmp_path: Path) -> None:
    left = copy / "build/lib" / f"lib.{sys.platform}"
    for directory in {left, *(copy / "build").glob("lib*")}:
        (directory / "relay").mkdir(parents=True, exist_ok=True)
        (directory / "relay/former.py").write_text("")
    made = wheel(copy)
    assert made.name.startswith(f"relay-{__version__}-cp{sys.version_info[0]}{sys.version_info[1]}-")
    modules = {f"{path}{engine.SUFFIX}" for path in compiled_in(copy).values()}
    assert packed(made) == source_files(copy) | modules | {engine.RECORD}
    installed = tmp_path / "installed"
    with zipfile.ZipFile(made) as archive:
        archive.extractall(installed)
        (entry,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        assert archive.read(entry).decode().split() == ["[console_scripts]", "relay", "=", "relay.cli.main:main"]
    found, loaded = python(installed, LOADED, "relay.dataplane.share")
    assert (found, loaded) == ("compiled", f"{installed}/relay/dataplane/share{engine.SUFFIX}")


def test_without_a_compiler_there_is_a_wheel_all_the_same(no_compiler: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    assert packed(wheel(copied(tree, built=False), no_compiler)) == source_files(tree)


def test_without_a_compiler_bootstrap_says_so_and_goes_on(no_compiler: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    copied(tree, built=False)
    # Its .venv is this one, so nothing is to be installed.
    (tree / ".venv").mkdir()
    for name in ("bin", "lib", "pyvenv.cfg"):
        (tree / ".venv" / name).symlink_to(Path(sys.prefix, name))
    stamp = Path(sys.prefix, "relay-stamp").read_text().replace(str(ROOT), str(tree))
    (tree / ".venv/relay-stamp").write_text(stamp)
    done = run(tree, "scripts/bootstrap", path=no_compiler)
    assert (done.returncode, done.stdout) == (0, "")
    assert done.stderr.startswith("bootstrap: relay will run interpreted: no C compiler")
    assert done.stderr.count("\n") == 1
    assert run(tree, ".venv/bin/python", "-m", "relay", "--version").stdout == (
        f"relay {__version__}, interpreted (not compiled)\n"
    )


def test_bootstrap_builds_with_what_pip_builds_with() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert project["dependency-groups"]["build"] == project["build-system"]["requires"]


def test_the_collector_does_not_know_of_what_is_in_no_cycle(compiled: Path) -> None:
    declared = [pxd for pxd in compiled.joinpath("relay").rglob("*.pxd") if "@cython.no_gc" in pxd.read_text()]
    names = [".".join(pxd.relative_to(compiled).with_suffix("").parts) for pxd in declared]
    assert "relay.kernel.bare_socket" in names
    known = "\n".join(f"import {name}; found += [*vars({name}).values()]" for name in names)
    ours = "[each for each in found if isinstance(each, type) and each.__module__ in sys.argv[1:]]"
    code = f"import sys; found = []\n{known}\nprint({{bool(each.__flags__ & 1 << 14) for each in {ours}}})"
    done = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=compiled, check=True
    )
    assert done.stdout == "{False}\n", "Py_TPFLAGS_HAVE_GC (object.h)"
