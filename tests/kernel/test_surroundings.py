"""What is looked for at the start: each thing that may be missing, and what is said then."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.errors import OperatorError
from relay.kernel import surroundings
from relay.kernel.sockets import open_descriptors
from tests.harness import HANG_S

CLOSED = """
import os, sys
for number in map(int, sys.argv[2:]):
    os.close(number)
os.execv(sys.executable, [sys.executable, "-W", "error", "-c", sys.argv[1]])
"""
SAYS = """
import os, sys
said = os.dup(3)
from relay.kernel import surroundings
surroundings.stand_in()
first = os.open("/dev/zero", os.O_RDONLY)
print("to nobody", file=sys.stdout, flush=True)
print("to nobody", file=sys.stderr, flush=True)
sys.stdin.read(0)
os.write(said, repr([first > 2, [os.get_inheritable(n) for n in range(3)]]).encode())
"""


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_what_is_closed_at_the_start_is_no_sockets_number(closed: tuple[int, ...]) -> None:
    """And stays open over execve(2): the program that takes this one's place needs it too."""
    read, write = os.pipe()
    os.dup2(write, write, inheritable=True)
    with os.fdopen(read, "rb") as answer:
        script = SAYS.replace("os.dup(3)", str(write))
        command = [sys.executable, "-c", CLOSED, script, *map(str, closed)]
        done = subprocess.run(command, pass_fds=(write,), timeout=HANG_S, capture_output=True)
        os.close(write)
        assert (done.returncode, answer.read()) == (0, b"[True, [True, True, True]]"), done.stderr


def test_what_is_open_is_let_be() -> None:
    before = [os.fstat(number) for number in range(3)]
    surroundings.stand_in()
    assert [os.fstat(number).st_ino for number in range(3)] == [each.st_ino for each in before]


def test_nothing_stays_open() -> None:
    before = open_descriptors()
    surroundings.refuse_without()
    assert open_descriptors() == before


@contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, *words: str) -> Iterator[None]:
    before = open_descriptors()
    with pytest.raises(OperatorError) as caught:
        yield
    monkeypatch.undo()
    assert [word for word in words if word not in str(caught.value)] == []
    assert open_descriptors() == before


def raises(error: OSError) -> object:
    def call(*_: object, **__: object) -> object:
        raise error

    return call


def test_without_dev_null(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with refused(monkeypatch, "/dev/null", "no such file", "mknod"):
        monkeypatch.setattr(os, "devnull", str(tmp_path / "dev/null"))
        surroundings.refuse_without()


@pytest.mark.parametrize("found", [raises(FileNotFoundError(2, "")), lambda _: []], ids=["none", "another's"])
def test_without_proc(monkeypatch: pytest.MonkeyPatch, found: object) -> None:
    with refused(monkeypatch, "/proc is not there", "mount -t proc proc /proc"):
        monkeypatch.setattr(os, "listdir", found)
        surroundings.refuse_without()


@pytest.mark.parametrize("call", ["memfd_create", "pidfd_open"])
def test_without_a_system_call(monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    with refused(monkeypatch, call, "Linux 5.15"):
        monkeypatch.setattr(os, call, raises(PermissionError(1, "")))
        surroundings.refuse_without()
