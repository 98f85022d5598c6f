"""Out of descriptors: clients wait, nothing spins, nobody is let in and then dropped, and it passes by itself."""

import contextlib
import resource
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.conformance.paths import assert_accounts
from tests.conformance.peers import (
    Site,
    Target,
    connect,
    fin,
    reset,
    together,
    want_descriptors,
)
from tests.conformance.proc import cpu_s_over, descriptors
from tests.conformance.streams import MIB, receive, receive_exactly, stream, whole
from tests.conftest import Daemons
from tests.harness import HANG_S, Daemon, eventually, one_endpoint
from tests.ports import free_port

CLIENTS: Final = 200
NOFILE: Final = 200
Start = Callable[..., tuple[Daemon, tuple[str, int]]]
SPIN_CPU_S: Final = 0.3  # of a second: trying again ten times a second takes a hundredth of this


@pytest.fixture
def target(tmp_path: Path) -> Iterator[Target]:
    """A listening target on TCP."""
    with want_descriptors(3 * CLIENTS), Target(Site.within(tmp_path), "tcp") as made:
        yield made


@pytest.fixture
def start(daemons: Daemons, target: Target) -> Start:
    """Start a daemon in front of `target`, with a limit of descriptors: (daemon, where it listens)."""

    def start(nofile: int | None = None) -> tuple[Daemon, tuple[str, int]]:
        def limit() -> None:
            if nofile is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        port = free_port()
        service = one_endpoint(port, f"127.0.0.1:{target.address[1]}")
        return daemons(service, {"workers": 1}, before_exec=limit), ("127.0.0.1", port)

    return start


def test_200_clients_and_200_descriptors(start: Start, target: Target) -> None:
    daemon, address = start(NOFILE)
    worker = daemon.worker_pid()
    leave = threading.Semaphore(0)
    served = threading.Semaphore(0)

    def echo() -> None:
        connection = target.accept()
        with connection:
            connection.sendall(receive_exactly(connection, 8))
            assert connection.recv(1) == b""

    def ask(number: int, sock: socket.socket) -> None:
        with sock:
            sock.settimeout(2 * HANG_S)
            sock.sendall(number.to_bytes(8))
            assert receive_exactly(sock, 8) == number.to_bytes(8)
            served.release()
            assert leave.acquire(timeout=HANG_S)

    with together(2 * CLIENTS) as pool:
        echoes = [pool.submit(echo) for _ in range(CLIENTS)]
        asks = [pool.submit(ask, number, connect(address)) for number in range(CLIENTS)]
        flows = eventually(lambda: saturated(daemon), "no descriptor is left for another flow")
        for _ in range(flows):
            assert served.acquire(timeout=HANG_S)
        assert cpu_s_over(1.0, worker) < SPIN_CPU_S
        account = daemon.endpoint("web/in")
        assert (account["active"], account["closed"], account["denied"]) == (flows, {}, {})
        assert not served.acquire(blocking=False)  # the others wait in the backlog, and they do wait:
        assert not any(task.done() for task in asks)
        leave.release(CLIENTS)
        for task in [*asks, *echoes]:
            task.result(2 * HANG_S)
    assert_accounts(daemon, {"client_fin": CLIENTS})
    (status,) = daemon.status()["workers"]
    assert status["pid"] == worker
    assert status["accept_pauses"] > 0
    lines = list(daemon.events("accept paused"))
    assert 1 <= len(lines) <= 5, f"a shortage of seconds wrote {len(lines)} lines; one says it"


def test_no_descriptor_at_all(start: Start, target: Target) -> None:
    """The limit is lowered under the running worker: accept(2) itself fails with EMFILE."""
    daemon, address = start()
    worker = daemon.worker_pid()
    with connect(address) as first, target.accept() as first_served:
        first.sendall(b"x")
        assert receive_exactly(first_served, 1) == b"x"
        with nofile_of(worker, 1), contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(address)) for _ in range(20)]
            for client in clients:
                client.sendall(b"hello")
                fin(client)
            eventually(lambda: daemon.status()["workers"][0]["accept_pauses"], "accepting is paused")
            assert cpu_s_over(1.0, worker) < SPIN_CPU_S
            first.sendall(b"still here")
            assert receive_exactly(first_served, 10) == b"still here"
            stack.pop_all()
        for _ in clients:
            with target.accept() as served:
                assert receive_exactly(served, 5) == b"hello"
                assert served.recv(1) == b""
        for client in clients:
            with client:
                assert client.recv(1) == b""
        fin(first)
        assert first_served.recv(1) == b""
    assert_accounts(daemon, {"client_fin": 21})
    assert len(list(daemon.events("accept paused"))) <= 5


def test_no_descriptor_for_a_flow_that_has_not_moved_yet(start: Start, target: Target) -> None:
    """A worker has the pipe that it reads into from its start on: an established flow waits for nobody's descriptor."""
    daemon, address = start()
    with (
        connect(address) as client,
        target.accept() as served,
        nofile_of(daemon.worker_pid(), 1),
    ):
        client.sendall(b"first")
        assert receive_exactly(served, 5) == b"first"
        fin(client)
        assert served.recv(1) == b""


def test_one_descriptor_where_a_flow_needs_two(start: Start, target: Target) -> None:
    """The client is accepted with the last descriptor, so there is none to dial with. It must wait and not be dropped."""
    daemon, address = start()
    worker = daemon.worker_pid()
    with connect(address) as first, target.accept() as first_served:
        first.sendall(b"x")
        assert receive_exactly(first_served, 1) == b"x"
        with nofile_of(worker, highest_descriptor(worker) + 2), contextlib.ExitStack() as stack:
            clients = [stack.enter_context(connect(address)) for _ in range(5)]
            eventually(lambda: daemon.status()["workers"][0]["accept_pauses"], "accepting is paused")
            assert cpu_s_over(1.0, worker) < SPIN_CPU_S
            assert daemon.endpoint("web/in")["closed"] == {}, "a client was accepted and then dropped"
            stack.pop_all()
        for client in clients:
            with client:
                fin(client)
                with target.accept() as served:
                    assert served.recv(1) == b""
                assert client.recv(1) == b""
        fin(first)
        assert first_served.recv(1) == b""
    assert_accounts(daemon, {"client_fin": 6})


def test_no_pipe_to_be_had(start: Start, target: Target) -> None:
    """One stalled flow holds the last pipe. The others wait for one, the one whose client breaks too, without spinning."""
    daemon, address = start()
    worker = daemon.worker_pid()
    with (
        connect(address) as stalled,
        target.accept() as reader,
        connect(address) as waiting,
        target.accept() as waiting_served,
        connect(address) as broken,
        target.accept() as broken_served,
    ):
        for client, served in ((waiting, waiting_served), (broken, broken_served)):
            client.sendall(b"x")
            assert receive_exactly(served, 1) == b"x"
        with nofile_of(worker, 1):
            taken = stream(80).fill(stalled, 256 * MIB, [worker])
            waiting.sendall(b"later")
            broken.sendall(b"last words")
            eventually(lambda: daemon.status()["workers"][0]["pipes_refused"], "no pipe is to be had")
            assert cpu_s_over(1.0, worker) < SPIN_CPU_S
            reset(broken)
            assert cpu_s_over(1.0, worker) < SPIN_CPU_S
        assert receive_exactly(waiting_served, 5) == b"later"
        assert receive_exactly(broken_served, 10) == b"last words"
        with pytest.raises(ConnectionResetError):
            broken_served.recv(1)
        fin(stalled)
        assert receive(reader) == whole(80, taken)
        fin(waiting)
        assert waiting_served.recv(1) == b""
    assert_accounts(daemon, {"client_fin": 2, "client_reset": 1})


def saturated(daemon: Daemon) -> int:
    """How many flows there are, once accepting has been paused for want of room for another."""
    status = daemon.status()
    active = int(status["endpoints"][0]["active"])
    return active if status["workers"][0]["accept_pauses"] and active else 0


def highest_descriptor(pid: int) -> int:
    """The highest descriptor that the process has open, where none below it is free."""
    count = descriptors(pid)
    assert Path(f"/proc/{pid}/fd/{count - 1}").exists(), "there are free descriptors in between"
    return count - 1


@contextlib.contextmanager
def nofile_of(pid: int, soft: int) -> Iterator[None]:
    """Let a running process have no more descriptors than this, whatever it has now: getrlimit(2)."""
    before, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (before, hard))
