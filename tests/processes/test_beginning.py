"""A holder's first worker: it shows that it lives before anything is its own, or it is known why not."""

import subprocess
import sys

import pytest

from tests.harness import HANG_S

# Two processes with one descriptor table, without a test runner's threads about.
TWO = """
import os, signal, socket, sys, time
from relay.kernel import process
from relay.kernel.sockets import open_descriptors
from relay.processes import beginning
from relay.processes.beginning import Beginning

beginning.BEAT_S = 0.2
told_r, told_w = os.pipe()
before = open_descriptors()
end = socket.socket(socket.AF_UNIX)
it = Beginning(end, lambda: None)
holder = os.getpid()

def worker(does):
    pid = process.fork_sharing_descriptors()
    if pid:
        return pid
    try:
        does()
    except BaseException as error:
        it.fails(f"{type(error).__name__}: {error}")
    os._exit(0)

def tells():
    closed = it.wait()
    os.write(told_w, repr(sorted(closed)).encode())
"""

COMES_UP = """
pid = worker(tells)
assert it.expect(pid)
numbers = sorted(open_descriptors() - before)
it.go()
assert eval(os.read(told_r, 1000)) == numbers, numbers
os.waitpid(pid, 0)
assert open_descriptors() == before
print("well")
"""

DOES_NOT = """
pid = worker({does})
try:
    print("it gave a sign of life" if it.expect(pid) else "it was killed")
except OSError as error:
    print(error.strerror or error)
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
"""

TELLS_ALL = """
os.wait()
os.close(told_w)
told = os.read(told_r, 1000).decode()
print(told.partition("[")[0] + ("went on" if "[" in told else "ended"))
"""

LOSES_ITS_HOLDER = """
def conclude():
    os.write(told_w, b"concluded ")
    if {fails}:
        raise OSError

process.adopt_orphans()
if (holder := os.fork()) == 0:
    it = Beginning(end, conclude)
    pid = worker(tells)
    it.expect(pid)
    {then}
    os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(holder, 0)
"""


def said(script: str) -> str:
    command = [sys.executable, "-W", "error::Warning", "-c", TWO + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_worker_that_comes_up_knows_what_is_closed_again() -> None:
    """These numbers are soon another connection's, and it must not take them for what a predecessor left."""
    assert said(COMES_UP) == "well"


@pytest.mark.parametrize(
    ("does", "why"),
    [
        ("lambda: 1 / 0", "the new worker does not start: ZeroDivisionError: division by zero"),
        ("lambda: os._exit(0)", "the new worker ends at its start"),
        ("lambda: os.kill(os.getpid(), 9)", "it was killed"),
        ("lambda: time.sleep(100)", "the new worker gives no sign of life within 0.2 s"),
    ],
)
def test_why_one_does_not_come_up(does: str, why: str) -> None:
    assert said(DOES_NOT.format(does=does)) == why


def test_without_its_holder_it_does_what_was_left_to_do() -> None:
    """Once it lives there is somebody to go on, and nothing need be lost. Where another process goes on, it ends."""
    assert said(LOSES_ITS_HOLDER.format(then="pass", fails=False) + TELLS_ALL) == "concluded went on"
    assert said(LOSES_ITS_HOLDER.format(then="pass", fails=True) + TELLS_ALL) == "concluded ended"
    assert said(LOSES_ITS_HOLDER.format(then="it.go()", fails=False) + TELLS_ALL) == "went on"
