"""Processes that share a descriptor table, by either system call."""

import os
import signal
import subprocess
import sys

import pytest

from relay.kernel import process
from tests.harness import HANG_S, eventually

NO_SUCH_CALL = 9999  # answers ENOSYS, as systemd's RestrictNamespaces= makes clone3 answer


def in_a_child_of_its_own(script: str) -> str:
    """What a Python program prints that forks without a test runner's threads about."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("clone3", [process._SYS_CLONE3, NO_SUCH_CALL])
def test_what_the_child_opens_outlives_it(clone3: int) -> None:
    said = in_a_child_of_its_own(f"""
import os, signal
from relay.kernel import process
process._SYS_CLONE3 = {clone3}
r, w = os.pipe()
pid = process.fork_sharing_descriptors()
if pid == 0:
    os.write(w, str(os.open("/dev/zero", os.O_RDONLY)).encode())
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(pid, 0)
print(os.readlink("/proc/self/fd/" + os.read(r, 10).decode()))
""")
    assert said == "/dev/zero"


def test_a_refusal_is_an_error_in_the_parent() -> None:
    said = in_a_child_of_its_own(f"""
from relay.kernel import process
process._SYS_CLONE3, process._SYS_CLONE = {NO_SUCH_CALL}, {{}}
try:
    process.fork_sharing_descriptors()
except OSError as error:
    print(error.errno)
""")
    assert said == "38"


def test_a_process_dies_with_its_parent() -> None:
    said = in_a_child_of_its_own("""
import os, signal, time
from relay.kernel import process
process.adopt_orphans()
middle = os.fork()
if middle == 0:
    me = os.getpid()
    if os.fork() == 0:
        process.die_with_parent(me, signal.SIGTERM)
        signal.pause()
    os._exit(0)
os.waitpid(middle, 0)
_, status = os.waitpid(-1, 0)
print(os.WTERMSIG(status))
""")
    assert said == str(int(signal.SIGTERM))


def test_a_process_has_ended_before_anybody_has_waited_for_it() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as child:
        assert not process.has_ended(child.pid)
        child.kill()
        eventually(lambda: process.has_ended(child.pid), "it has ended")
        assert child.returncode is None
    assert process.has_ended(child.pid)
    assert process.has_ended(0)


def test_a_name_is_what_ps_shows() -> None:
    said = in_a_child_of_its_own("""
from relay.kernel import process
process.name("relay-worker-0 and more")
print(open("/proc/self/comm").read())
""")
    assert said == "relay-worker-0"
    assert os.path.exists("/proc/self/comm")


@pytest.mark.parametrize(
    ("by", "least", "score"), [(200, 100, 350), (100, 0, 250), (200, 400, 400), (900, 0, 1000), (0, 2000, 1000)]
)
def test_one_that_is_spared_less(by: int, least: int, score: int) -> None:
    """From 150 on: to raise it needs no privilege."""
    said = in_a_child_of_its_own(f"""
import os
from pathlib import Path
from relay.kernel import process
score = Path("/proc/self/oom_score_adj")
score.write_text("150")
if os.fork() == 0:
    process.spare_less({by}, {least})
    print(score.read_text(), flush=True)
    os._exit(0)
os.wait()
print(score.read_text())
""")
    assert said.split() == [str(score), "150"]


def test_where_the_kernel_does_not_let_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without /proc, or with one that is not ours to write."""
    for error in (FileNotFoundError, PermissionError):

        def refuse(*_: object, error: type[OSError] = error, **__: object) -> None:
            raise error

        monkeypatch.setattr("builtins.open", refuse)
        process.spare_less(200, 100)
