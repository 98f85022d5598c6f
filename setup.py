"""Compile the engine: the modules that have a .pxd beside them. All else about the package is in pyproject.toml.

    python setup.py build_ext --inplace                 beside their sources, for a working tree
    python setup.py build_ext --inplace build_traced    also build/traced, whose lines can be traced: for tests

What is generated and compiled stays in build/, so the next time only what has changed is made again. Without a compiler a
package is built all the same, and relay runs interpreted.
"""

import filecmp
import os
import re
import shlex
import shutil
import sys
import sysconfig
from functools import cache
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from relay import engine  # where a build is isolated, this directory is not in the path

FLAGS = ("-O2", "-g0")
# What is checked costs a few ns. A mistake is then an exception, which ends one connection, and not the process.
DIRECTIVES = {
    "boundscheck": True,
    "nonecheck": True,
    "initializedcheck": True,
    "wraparound": False,  # no index is negative
    "cdivision": False,
    "annotation_typing": False,
    "c_string_type": "str",  # what a system call tells or takes as text
    "c_string_encoding": "ascii",
    "linetrace": True,  # the same C can be built with hooks for tracing (CYTHON_TRACE) and without
}
# What a .pxd says of a module's classes by a decorator, of all of them. Cython takes these from the .py alone, and passes
# over them in silence; so they are given to the whole module.
OF_CLASSES = {"no_gc": ("@cython.no_gc", True, False), "freelist": ("@cython.freelist(64)", 64, 0)}


def compiled_modules() -> list[Path]:
    """The .py files that are compiled."""
    declared = [
        pxd for pxd in sorted(Path("relay").rglob("*.pxd")) if not pxd.read_text().startswith(engine.DECLARATIONS_ONLY)
    ]
    return [pxd.with_suffix(".py") for pxd in declared if pxd.with_suffix(".py").exists()]


def sources() -> dict[str, str]:
    """Every file that the compiled modules are made from, and its hash.

    Also the .py whose numbers a .pxd has for others: of another layout nothing compiled knows.
    """
    declared = [*Path("relay").rglob("*.pxd")]
    values = [file for pxd in declared if (file := pxd.with_suffix(".py")).exists()]
    files = {*declared, *values, *Path("relay").rglob("*.h")}
    return {file.as_posix(): engine.hash_of(str(file)) for file in sorted(files)}


def made_by() -> str:
    """The first line of a record: what else a build depends on."""
    from Cython import __version__ as cython

    return f"# Cython {cython}, setup.py {engine.hash_of('setup.py')}"


def unchanged(root: str) -> dict[str, str]:
    """Of the sources: those from which the modules in the tree `root` were built in the same way."""
    record = Path(root, engine.RECORD)
    if not record.exists() or record.read_text().partition("\n")[0] != made_by():
        return {}
    before = engine.read_record(root)
    return {path: digest for path, digest in sources().items() if before.get(path) == digest}


def write_record(root: str, files: dict[str, str]) -> None:
    """Say what the modules in the tree `root` were built from."""
    lines = [made_by(), *(f"{digest} {path}" for path, digest in files.items())]
    file = Path(root, engine.RECORD)
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_name(f"{file.name}.new")
    new.write_text("".join(f"{line}\n" for line in lines))
    new.replace(file)


def begin_record(root: str) -> None:
    """What has changed is not built yet. If this build does not come to its end, the next one knows by that."""
    write_record(root, dict.fromkeys(sources(), engine.UNBUILT) | unchanged(root))


def made_from(module: Path) -> set[str]:
    """The files that one module is made from: its own, and the declarations and headers that these name.

    Rather too many than too few: whatever has the name of one counts. Cython misses `from package cimport module`.
    """
    declared = [*Path("relay").rglob("*.pxd"), *Path("relay").rglob("*.h")]
    files = {module, module.with_suffix(".pxd")}
    waiting = [*files]
    while waiting:
        text = (file := waiting.pop()).read_text()
        words = set(re.findall(r"\w+", text)) if file.suffix != ".py" or "cimport" in text else set()
        named = {other for other in declared if other.stem in words} - files
        files |= named
        waiting += named
    return {file.as_posix() for file in files}


@cache
def generate() -> dict[str, Extension]:
    """Make C of the modules in build/c, where that is not there from the same files; what to compile for each."""
    from Cython.Build import cythonize
    from Cython.Compiler.Options import get_directive_defaults

    for name, (_, _, default) in OF_CLASSES.items():
        get_directive_defaults().setdefault(name, default)  # as one for a whole module Cython does not know it
    generated = Path("build/c")
    changed = sources().keys() - unchanged(".").keys()
    for module in compiled_modules():
        if changed & made_from(module):
            generated.joinpath(module).with_suffix(".c").unlink(missing_ok=True)
    if Path(engine.RECORD).exists():
        begin_record(".")
    made = []
    found = [(each, of_classes(each)) for each in extensions()]
    for asked in sorted({tuple(said.items()) for _, said in found}):
        plain = not any(value for _, value in asked)
        made += cythonize(
            [each for each, said in found if tuple(said.items()) == asked],
            build_dir=str(generated),
            language_level=3,
            compiler_directives=DIRECTIVES | dict(asked),
            nthreads=(os.cpu_count() or 1) if plain else 0,  # another process has its own list of what Cython knows
        )
    return {each.name: each for each in made}


def of_classes(module: Extension) -> dict[str, object]:
    """What its .pxd says of its classes: `no_gc`, the collector need not know of them; `freelist`, their room is kept."""
    text = Path(*module.name.split(".")).with_suffix(".pxd").read_text()
    return {name: value if mark in text else default for name, (mark, value, default) in OF_CLASSES.items()}


def extensions() -> list[Extension]:
    """The compiled modules, as setuptools wants them."""
    headers = sorted({header.parent.as_posix() for header in Path("relay").rglob("*.h")})
    return [
        Extension(
            ".".join(file.with_suffix("").parts), [file.as_posix()], include_dirs=headers, extra_compile_args=[*FLAGS]
        )
        for file in compiled_modules()
    ]


def missing() -> str:
    """What this machine has not, and compiling needs; empty: all is there."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if not shutil.which(compiler):
        return f"no C compiler ({compiler})"
    header = Path(sysconfig.get_path("include"), "Python.h")
    return "" if header.exists() else f"no {header}"


class BuildEngine(build_ext):
    """The modules as they are shipped: for a wheel, or beside their sources."""

    command_name = "build_ext"
    place = "."  # the tree where they go, if it is not a wheel's
    stage = "build/compiled"  # where they are compiled for it
    trace = 0

    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()
        if self.inplace:
            self.build_lib, self.build_temp = self.stage, f"{self.stage}-objects"
        self.root = self.place if self.inplace else self.build_lib
        self.built: list[str] = []

    def run(self) -> None:
        asked_for = self.get_command_name() in self.distribution.commands  # and not only by pip
        if lacks := missing():
            if asked_for:
                raise SystemExit(f"relay cannot be compiled: {lacks}")
            self.warn(f"relay is not compiled, and will run interpreted: {lacks}")
            return
        for ext in self.extensions:
            ext.optional = not asked_for
        now = sources()  # as it was when it was read: what is edited meanwhile is found changed
        changed = now.keys() - unchanged(self.root).keys()
        generate()
        begin_record(self.root)
        for ext in self.extensions:
            if changed & made_from(Path(*ext.name.split(".")).with_suffix(".py")):
                Path(self.build_lib, self.get_ext_filename(ext.name)).unlink(missing_ok=True)
        super().run()
        if len(self.built) == len(self.extensions):
            write_record(self.root, now)

    def build_extension(self, ext: Extension) -> None:
        made = generate()[ext.name]
        ext.sources, ext.depends, ext.include_dirs = made.sources, made.depends, made.include_dirs
        # From Python 3.13 on the hooks would be sys.monitoring's, of which PyEval_SetTrace hears nothing.
        hooks = {"CYTHON_TRACE": self.trace, "CYTHON_PROFILE": self.trace, "CYTHON_USE_SYS_MONITORING": 0}
        ext.define_macros = [(name, str(value)) for name, value in hooks.items()]
        super().build_extension(ext)
        self.built.append(ext.name)

    def copy_extensions_to_source(self) -> None:
        """Put whole files in their places: a daemon that runs maps those that were there."""
        if len(self.built) < len(self.extensions):
            return
        files = [Path(self.get_ext_filename(ext.name)) for ext in self.extensions]
        for file in files:
            compiled, target = Path(self.build_lib, file), Path(self.root, file)
            if target.exists() and filecmp.cmp(compiled, target):
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            new = target.with_name(f"{target.name}.new")
            shutil.copy2(compiled, new)
            new.replace(target)
        for left in {*Path(self.root, "relay").rglob(f"*{engine.SUFFIX}")} - {Path(self.root, file) for file in files}:
            left.unlink()


class BuildTraced(BuildEngine):
    """The same C with hooks, in a tree of its own for RELAY_ENGINE: the tests trace its lines (PyEval_SetTrace)."""

    command_name = "build_traced"
    place = "build/traced"
    stage = "build/traced-stage"
    trace = 1

    def initialize_options(self) -> None:
        super().initialize_options()
        self.inplace = True


class Build(build):
    """What was left in build/lib by another build, and is no part of relay any more, gets into no wheel."""

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


if __name__ == "__main__":
    setup(ext_modules=extensions(), cmdclass={"build": Build, "build_ext": BuildEngine, "build_traced": BuildTraced})
