"""A copy of the package that daemons run from: a test changes it under them, as a package manager would."""

import compileall
import contextlib
import os
import re
import shutil
from pathlib import Path
from typing import Any, Final

import relay
from tests.harness import HANG_S, Daemon, eventually

NEW: Final = "9.9.9"


class Installed:
    """The copy. It comes with its bytecode, or each start, trial and new program would compile it."""

    def __init__(self, directory: Path) -> None:
        self.package = directory / "relay"
        self.restore()

    @property
    def wrapper(self) -> tuple[str, ...]:
        """Before `python -m relay`: which looks for the package in the working directory."""
        return ("env", "-C", str(self.package.parent))

    def restore(self) -> None:
        """Put the copy there as it was at first."""
        if self.package.exists():
            shutil.rmtree(self.package)
        # What others write there at the moment has a name such as x.pyc.140.
        shutil.copytree(Path(relay.__file__).parent, self.package, ignore=shutil.ignore_patterns("*.pyc.*"))
        compileall.compile_dir(self.package, quiet=1)

    def change(self, file: str, before: str, after: str) -> None:
        """Replace a piece of a file."""
        text = (self.package / file).read_text()
        assert before in text, f"{file} does not hold {before!r}"
        self._write(file, text.replace(before, after, 1))

    def release(self, version: str = NEW) -> None:
        """Another version."""
        text = (self.package / "__init__.py").read_text()
        self._write("__init__.py", re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', text))

    def patient(self) -> None:
        """Holders wait for each other for as long as a busy machine may take."""
        self.change("processes/succession.py", "_PATIENCE_S: Final = 5.0", f"_PATIENCE_S: Final = {HANG_S}")
        self.change("processes/beginning.py", "BEAT_S: Final = 2.0", f"BEAT_S: Final = {HANG_S}")
        self.change("processes/renewal.py", "_PATIENCE_S: Final = 10.0", f"_PATIENCE_S: Final = {HANG_S}")

    def _write(self, file: str, text: str) -> None:
        path = self.package / file
        # Python knows the source of bytecode by its size, and by its time in whole seconds.
        later_s = int(path.stat().st_mtime) + 1
        path.write_text(text)
        os.utime(path, (later_s, later_s))


def asked(daemon: Daemon) -> dict[str, Any] | None:
    """The status; None while control is replaced."""
    with contextlib.suppress(OSError, AssertionError):
        return daemon.status()
    return None


def upgraded(daemon: Daemon, program: int = 1, version: str = relay.__version__) -> dict[str, Any]:
    """The status, once every part runs in that program, of that version."""

    def arrived() -> dict[str, Any] | None:
        status = asked(daemon)
        there = status and (status["program"], status["upgrading"], status["version"]) == (program, False, version)
        return status if there else None

    return dict(eventually(arrived, "every part runs in the new program"))
