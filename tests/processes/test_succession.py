"""One process gives its descriptors to another: all of them, under the same numbers, or none of them is lost."""

import errno
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any, cast

import pytest

from relay.kernel import channel
from relay.kernel.sockets import open_descriptors
from relay.processes import succession
from relay.processes.holder import Holder
from tests.harness import HANG_S

# Two processes as a keeper would fork them, without a test runner's own descriptors in the way.
TWO = """
import os, random, resource, select, socket, sys
from relay.kernel import channel
from relay.processes import succession
from relay.kernel.sockets import descriptors, open_descriptors

chance = random.Random(int(sys.argv[1]))
hand = channel.pair()
known = {0, 1, 2, *(sock.fileno() for sock in hand)}
said_r, said_w = socket.socketpair()  # how the two tell the test what they have
known |= {said_r.fileno(), said_w.fileno()}
ours, theirs = succession.pair()

def open_some():
    "Sockets and pipes, some of which are closed again, and what belongs to a loop: they are at numbers of all kinds."
    fds = []
    for _ in range(chance.randrange(1, 900)):
        kind = chance.randrange(4)
        if kind == 0:
            fds += os.pipe()
        elif kind == 1:
            fds += [end.detach() for end in socket.socketpair()]
        elif kind == 2:
            fds.append(os.eventfd(0))
        else:
            fds.append(os.dup(0))
    top = max(fds)
    for fd in chance.sample(fds, len(fds) // chance.randrange(2, 9)):
        os.close(fd)
    if chance.random() < 0.5:
        r, w = os.pipe()
        os.dup2(r, top + chance.randrange(1, 60))
        os.close(w)

def table():
    return {fd: what for fd, what in descriptors().items() if what.startswith(("socket", "pipe")) and fd not in known}
"""

GIVES_ALL = """
open_some()  # the keeper's own, which neither has to do with
if os.fork() == 0:
    theirs.close()
    with succession.take(ours, known, lambda: None) as end:
        succession.say_mine(end)
        succession.see_end(end)
    ours.detach()
    assert open_descriptors() <= known | set(table()), open_descriptors()
    said_w.sendall(repr(table()).encode())
    os._exit(0)
ours.close()
for fd in open_descriptors() - known - {theirs.fileno()}:
    os.close(fd)
succession.call(hand, theirs)
theirs.close()
end = succession.fetched(hand[1])
open_some()
had = table()
had.pop(end.fileno(), None)
succession.give(end, known)
end.close()
os.wait()
said_w.close()
got = b""
while part := said_r.recv(1 << 20):
    got += part
assert eval(got) == had, (eval(got), had)
print(len(had))
"""

HAS_NO_ROOM = """
pid = os.fork()
if pid == 0:
    theirs.close()
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    try:
        succession.take(ours, known, lambda: None)
    except OSError as error:
        os._exit(error.errno)
ours.close()
pipes = [os.pipe() for _ in range(100)]
try:
    succession.give(theirs, known)
except OSError:
    assert all(fd in open_descriptors() for pair in pipes for fd in pair)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""

LETS_GO_LATE = """
peer, connection = socket.socketpair()
peer.setblocking(False)
closed, looked = os.pipe(), os.pipe()
known |= {peer.fileno(), *closed, *looked}
if os.fork() == 0:
    theirs.close()
    number = connection.detach()
    end = succession.take(ours, known, lambda: None)
    succession.say_mine(end)
    succession.see_end(end)
    os.close(number)
    os.write(closed[1], b"x")
    os._exit(0)
ours.close()
if (holder := os.fork()) == 0:
    succession.give(theirs, known)
    select.select([looked[0]], [], [], 0.2)  # nobody has looked by then, unless the successor did not wait
    succession.leave(theirs)
theirs.close()
connection.close()
os.read(closed[0], 1)
try:
    print(peer.recv(1))
finally:
    os.write(looked[1], b"x")
assert os.waitpid(holder, 0)[1] == 0
"""


def two(script: str, seed: int = 0) -> str:
    """What the parent of the two processes prints."""
    command = [sys.executable, "-W", "error::Warning", "-c", TWO + script, str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("seed", range(12))
def test_every_socket_and_pipe_has_its_number_there(seed: int) -> None:
    assert int(two(GIVES_ALL, seed)) > 0


def test_a_successor_without_room_takes_nothing_away() -> None:
    assert two(HAS_NO_ROOM) == "24"  # EMFILE


def test_what_the_successor_closes_is_open_nowhere_else() -> None:
    """Or its peer would not be told, and epoll would report it under a number that is another connection's by then."""
    assert two(LETS_GO_LATE) == "b''"


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """(the holder's, the successor's)."""
    successors, holders = succession.pair()
    with holders, successors:
        yield holders, successors


Successor = Callable[[socket.socket], None]


def is_gone(successor: socket.socket) -> None:
    successor.close()


def dies_when_ready(successor: socket.socket) -> None:
    successor.send(b"ready")
    successor.recv(64)
    successor.close()


def dies_with_all_of_it(successor: socket.socket) -> None:
    successor.send(b"ready")
    successor.recv(64)
    while successor.recv(64 * 1024) != b"all":
        successor.send(b"have")
    successor.close()


@pytest.mark.parametrize("does", [is_gone, dies_when_ready, dies_with_all_of_it])
def test_a_successor_that_dies_leaves_all_with_the_holder(
    ends: tuple[socket.socket, socket.socket], does: Successor
) -> None:
    holder, successor = ends
    known = open_descriptors()
    pipe = os.pipe()
    thread = threading.Thread(target=does, args=(successor,))
    thread.start()
    with suppress(OSError):
        succession.give(holder, known)
        pytest.fail("nobody has taken anything")
    thread.join()
    for fd in pipe:
        os.close(fd)


def test_no_worker_finds_the_end_of_the_channel_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has just begun closes what it does not know, and the next connection gets that number."""
    did: list[str] = []
    hand, end = channel.pair(), socket.socketpair()
    fetched = succession.fetched

    def fetch(of: socket.socket) -> socket.socket | None:
        did.append("fetched")
        return fetched(of)

    def give(*_: object) -> None:
        did.append("gave")
        raise OSError(errno.EPIPE, "it goes on")

    log = SimpleNamespace(event=lambda *_, **__: None)
    holder = Holder("worker-0", *cast(Any, (None, hand[1], set(), log, None, None)))
    monkeypatch.setattr(succession, "fetched", fetch)
    monkeypatch.setattr(succession, "give", give)
    monkeypatch.setattr(holder, "_stop_worker", lambda: did.append("stopped"))
    with hand[0], hand[1], end[0], end[1]:
        holder._renew(0, None)
        assert did == [], "nobody has called: its worker works on"
        channel.send(hand[0], {}, (end[0].fileno(),))
        holder._renew(0, None)
    assert did == ["stopped", "fetched", "gave"]


def test_too_late_is_too_late_for_both(ends: tuple[socket.socket, socket.socket]) -> None:
    """The holder goes on, so the successor must be told that it may not."""
    holder, successor = ends
    holder.settimeout(0.05)
    successor.send(b"ready")
    with pytest.raises(TimeoutError):
        succession.give(holder, open_descriptors())
    with pytest.raises(BrokenPipeError):
        successor.send(b"mine")
    said = [successor.recv(64) for _ in range(3)]
    assert (said[1:], len(said[0])) == ([b"all", b"no"], 4)


@pytest.mark.parametrize("answers", [True, False])
def test_a_holder_goes_on_when_the_successor_has_ended(
    ends: tuple[socket.socket, socket.socket], answers: bool
) -> None:
    """Until then that has everything open as well."""
    holder, successor = ends
    known, pipe = open_descriptors(), os.pipe()
    holder.settimeout(0.5)
    goes_on = threading.Event()
    went_on_early: list[bool] = []

    def hangs() -> None:
        successor.send(b"ready")
        successor.recv(64)
        while (said := successor.recv(64 * 1024)) != b"no":
            if answers and said != b"all":
                successor.send(b"have")
        went_on_early.append(goes_on.wait(0.1))
        successor.close()

    thread = threading.Thread(target=hangs)
    thread.start()
    with pytest.raises(TimeoutError):
        succession.give(holder, known)
    goes_on.set()
    thread.join()
    for fd in pipe:
        os.close(fd)
    assert went_on_early == [False]


def test_what_was_said_at_the_last_moment_holds(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the holder's last look and its shutting of the channel: both must hold the same to be true."""
    holder, successor = ends
    usual = succession._expect

    def misses_it(end: socket.socket, word: bytes) -> None:
        if word == b"mine":
            successor.send(b"mine")
            raise TimeoutError
        usual(end, word)

    monkeypatch.setattr(succession, "_expect", misses_it)
    successor.send(b"ready")
    succession.give(holder, open_descriptors())


def test_what_nobody_fetched_is_taken_back() -> None:
    hand = channel.pair()
    before = open_descriptors()
    with hand[0], hand[1]:
        assert succession.fetched(hand[1]) is None
        first, last = socket.socketpair(), socket.socketpair()
        with first[0], last[0]:
            for sock in (first[1], last[1]):
                succession.call(hand, sock)
                sock.close()
            assert first[0].recv(1) == b"", "its other end is closed"
            end = succession.fetched(hand[1])
            assert end is not None
            with end:
                end.send(b"x")
                assert last[0].recv(1) == b"x"
            succession.call(hand, hand[0])
            succession.recall(hand)
        assert open_descriptors() == before
