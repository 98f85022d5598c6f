"""Whatever dies or stands still: a request that an application has taken comes to no other one, and no answer is wrong."""

import contextlib
import itertools
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import children
from tests.e2e.test_edge import EDGE, Site
from tests.harness import HANG_S, Daemon, dial
from tests.ports import free_port

_SEED: Final = 20261130
_TURNS: Final = 12
_STANDS_S: Final = 1.6  # longer than an edge waits for an answer


class Register:
    """An application that writes down what it is asked, and answers with that. It can be away."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.seen: Counter[bytes] = Counter()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(64)
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._pool.submit(self._accept, self._listener)

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                self._pool.submit(self._serve, listener.accept()[0])

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.settimeout(HANG_S)
            said = b""
            while said.count(b"\n") < 2 and (part := peer.recv(4096)):
                said += part
            if request := said.partition(b"\n")[
                2
            ]:  # the first line says who asks, and relay's own questions have no other
                with self._lock:
                    self.seen[request] += 1
                peer.sendall(request)

    def leave(self) -> None:
        """Take nobody any more; who was taken is served."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def come(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port), backlog=128)
        self._pool.submit(self._accept, self._listener)

    def close(self) -> None:
        self.leave()
        self._pool.shutdown()


@dataclass
class Askers:
    """Clients that ask one thing after the other, each of it once."""

    port: int
    answered: list[bytes] = field(default_factory=list)
    lost: list[bytes] = field(default_factory=list)
    wrong: list[tuple[bytes, bytes]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=itertools.count)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def running(self, count: int) -> Iterator[None]:
        with ThreadPoolExecutor(count) as pool:
            loops: list[Future[None]] = [pool.submit(self._loop, n) for n in range(count)]
            try:
                yield
            finally:
                self._over.set()
            for loop in loops:
                loop.result()

    def _loop(self, n: int) -> None:
        chance = random.Random(_SEED + n)
        while not self._over.is_set():
            head = b"%d " % next(self._numbers)
            request = head + b"x" * chance.choice((1, 100, 5_000, 60_000)) + b"\n"
            self._ask(chance, request)

    def _ask(self, chance: random.Random, request: bytes) -> None:
        answer = b""
        with contextlib.suppress(OSError), dial(self.port, host=EDGE) as client:
            client.settimeout(HANG_S)
            first = chance.choice((len(request), 1, 3))
            client.sendall(request[:first])
            client.sendall(request[first:])
            while not answer.endswith(b"\n") and (part := client.recv(65536)):
                answer += part
        if answer == request:
            self.answered.append(request)
        elif answer and not request.startswith(answer):
            self.wrong.append((request[:20], answer[:20]))
        else:
            self.lost.append(request)


def worker_of(daemon: Daemon) -> int:
    """Its one worker, whatever state that is in."""
    [holder] = [worker["holder_pid"] for worker in daemon.status()["workers"]]
    return next(iter(children(holder)), 0)


def stand_still(pid: int) -> None:
    """As a machine that is overloaded, or a disk that hangs; and then it goes on."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGSTOP)
        time.sleep(_STANDS_S)
        os.kill(pid, signal.SIGCONT)


@pytest.mark.slow
def test_nothing_comes_to_two(daemons: Daemons) -> None:
    """Applications leave and come back, workers of edge and instances are killed and stand still, at any moment."""
    chance = random.Random(_SEED)
    with contextlib.ExitStack() as stack:
        applications = [stack.enter_context(contextlib.closing(Register(f"web_IN_{n}"))) for n in range(2)]
        site = Site(daemons, applications)  # type: ignore[arg-type]  # they are as much of a Backend
        site.wait_health("up", "up")
        askers = Askers(site.public)
        with askers.running(8):
            for turn in range(_TURNS):
                gone = applications[turn % 2]
                gone.leave()
                time.sleep(chance.uniform(0.0, 0.3))  # a random moment, which is the point
                if turn % 3 == 2:
                    stand_still(worker_of(site.instances[turn // 3 % 2]))
                else:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(worker_of(chance.choice([site.edge, *site.instances])), signal.SIGKILL)
                gone.come()
                time.sleep(chance.uniform(0.0, 0.3))
        taken = applications[0].seen + applications[1].seen
        assert [request[:20] for request, times in taken.items() if times > 1] == []
        assert askers.wrong == []
        assert set(askers.answered) <= set(taken)
        assert len(askers.answered) > 100
        for daemon in (site.edge, *site.instances):
            assert list(daemon.events("bug")) == []
