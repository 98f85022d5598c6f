"""Several workers: connections that stay do not pile up on one of them, and nobody waits for that."""

import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.conformance.proc import descriptors, is_stopped
from tests.conftest import Daemons
from tests.e2e.peers import counted
from tests.harness import Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint, patched, unwatched
from tests.ports import free_port

# Where nobody may have to wait for a tick it is longer than a worker needs on the busiest machine; and yet shorter than what
# makes a worker look as if it hung.
NO_TICK: Final = patched("relay.dataplane.worker.FAST_TICK_S", value=2.0)
NEVER_HUNG: Final = patched("relay.dataplane.share.HUNG_NS", value=1 << 62)


@pytest.fixture
def clients() -> Iterator[list[socket.socket]]:
    """Those that stay; closed in the end."""
    made: list[socket.socket] = []
    yield made
    for client in made:
        client.close()


def shares(daemon: Daemon) -> list[int]:
    """How many connections each worker has."""
    return [worker["connections"] for worker in daemon.status()["workers"]]


def worker_pids(daemon: Daemon) -> list[int]:
    return [worker["pid"] for worker in daemon.status()["workers"]]


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that hangs."""
    os.kill(pid, signal.SIGSTOP)
    try:
        eventually(lambda: is_stopped(pid), "it stands still")
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def come(clients: list[socket.socket], port: int, count: int) -> None:
    """So many more, each when the one before has got its answer."""
    for _ in range(count):
        clients.append(dial(port))
        assert echoed(clients[-1]) == b"ping"


def come_at_once(clients: list[socket.socket], port: int, count: int) -> None:
    """The same where there is NO_TICK: one in each tick would take twice as long as this may."""
    began_s = time.monotonic()
    come(clients, port, count)
    assert time.monotonic() - began_s < count


def test_400_that_stay_over_4_workers(daemons: Daemons, echo: Echo, clients: list[socket.socket]) -> None:
    port, metrics = free_port(), free_port()
    settings = {"workers": 4, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
    daemon = daemons(one_endpoint(port, echo.target), settings, program=NO_TICK)
    come(clients, port, 400)
    found = shares(daemon)
    assert sum(found) == 400
    assert max(found) <= 130, found
    scrape = Scrape(metrics)
    assert [scrape.value("relay_worker_connections", worker=str(n)) for n in range(4)] == found
    told = ", ".join(f"{pid} ({n} open)" for pid, n in zip(worker_pids(daemon), found, strict=True))
    assert told in daemon.relay("status").stdout


def test_8_over_2_workers_at_once_and_one_after_another(
    daemons: Daemons, echo: Echo, clients: list[socket.socket]
) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, program=NO_TICK)
    for _ in range(5):
        clients += [dial(port) for _ in range(8)]
        assert [echoed(client) for client in clients] == [b"ping"] * 8
        assert max(shares(daemon)) <= 5
        while clients:
            clients.pop().close()
        counted(daemon, active=0)
    come(clients, port, 8)
    assert max(shares(daemon)) <= 5


def test_a_burst_is_taken_by_all(daemons: Daemons, echo: Echo, clients: list[socket.socket]) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 4}, program=NO_TICK)
    for _ in range(400):
        clients.append(socket.socket())
        clients[-1].setblocking(False)
        clients[-1].connect_ex(("127.0.0.1", port))
    for client in clients:
        client.settimeout(60)
        assert echoed(client) == b"ping"
    found = shares(daemon)
    assert sum(found) == 400
    assert max(found) <= 130, found


def test_who_is_left_to_a_worker_that_hangs_is_taken_in_the_next_tick(
    daemons: Daemons, echo: Echo, clients: list[socket.socket]
) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, program=unwatched(NEVER_HUNG))
    with stopped(worker_pids(daemon)[1]):
        come(clients, port, 20)
        assert shares(daemon) == [20, 0]
    come(clients, port, 10)
    eventually(lambda: sum(shares(daemon)) == 30, "all are counted")
    assert shares(daemon)[1] >= 9, "it goes on, and has fewer"


def test_nothing_is_left_to_a_worker_that_has_hung_for_a_while(
    daemons: Daemons, echo: Echo, clients: list[socket.socket]
) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, program=unwatched(NO_TICK))
    with stopped(worker_pids(daemon)[1]):
        eventually(lambda: daemon.status()["workers"][1]["heartbeat_age_s"] > 6, "the other one has seen it hang")
        come_at_once(clients, port, 50)


def test_workers_die_while_others_stand_back(daemons: Daemons, echo: Echo, clients: list[socket.socket]) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2})
    come(clients, port, 20)
    for n in (0, 1, 0, 1):
        pid = worker_pids(daemon)[n]
        os.kill(pid, signal.SIGKILL)
        come(clients, port, 10)
        eventually(lambda n=n, pid=pid: worker_pids(daemon)[n] != pid, "the next one is there")  # type: ignore[misc]
    assert [echoed(client) for client in clients] == [b"ping"] * 60
    come(clients, port, 60)
    assert max(shares(daemon)) <= 75
    assert sum(shares(daemon)) == 120


def test_a_worker_without_descriptors_leaves_all_to_the_others_at_once(
    daemons: Daemons, echo: Echo, clients: list[socket.socket]
) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, program=NO_TICK)
    come(clients, port, 8)
    pid = worker_pids(daemon)[0]
    before, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (descriptors(pid), hard))
    come_at_once(clients, port, 50)
    assert shares(daemon)[1] >= 50
    assert daemon.status()["workers"][0]["accept_pauses"]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (before, hard))


def test_reloads_upgrades_and_the_end_while_one_stands_back(
    daemons: Daemons, echo: Echo, clients: list[socket.socket]
) -> None:
    port, other = free_port(), free_port()
    declared = one_endpoint(port, echo.target)
    daemon = daemons(declared, {"workers": 2})
    endpoints = declared["roles"]["web"]["endpoints"]
    come(clients, port, 10)
    endpoints["more"] = {"type": "input", "public_port": other, "target": echo.target}
    daemon.write_service(declared)
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    come(clients, other, 10)
    del endpoints["in"]
    daemon.write_service(declared)
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    gone, clients[:] = clients[:10], clients[10:]
    for client in gone:
        client.close()
    come(clients, other, 30)
    assert max(shares(daemon)) <= 28
    assert daemon.ask("POST", "/v1/upgrade")[0] == 202
    come(clients, other, 20)
    eventually(lambda: not daemon.status()["upgrading"], "all workers are new")
    come(clients, other, 20)
    assert [echoed(client) for client in clients] == [b"ping"] * 80
    assert max(shares(daemon)) <= 50
    last = [dial(other) for _ in range(20)]
    os.kill(daemon.pid, signal.SIGTERM)
    assert [echoed(client) for client in last] == [b"ping"] * 20
    for client in (*last, *clients):
        client.close()
    assert daemon.process is not None
    assert daemon.process.wait(60) == 0
