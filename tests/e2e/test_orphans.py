"""The keeper is killed, and others with it, in every order: what is left drains, and the ports are free."""

import os
import signal
from functools import partial
from typing import Final

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import gone, pids, refused
from tests.harness import HANG_S, Daemon, Echo, dial, echoed, eventually, one_endpoint, patched
from tests.ports import free_port

KILLED: Final = ("keeper", "holder keeper", "keeper holder", "keeper worker", "worker keeper", "keeper worker worker")


def kill(daemon: Daemon, who: str) -> None:
    """Kill these, one after the other has ended. A worker is the one that is there by then."""
    worker = dict(daemon.status()["workers"][0])
    known = {"keeper": daemon.pid, "holder": worker["holder_pid"]}
    for name in who.split():
        pid = known.get(name) or int(eventually(lambda: workers(worker["holder_pid"]), "there is one")[0])
        os.kill(pid, signal.SIGKILL)
        if name == "keeper":
            assert daemon.process is not None
            daemon.process.wait(HANG_S)
        eventually(partial(gone, pid), f"the {name} has ended")


def workers(holder: int) -> list[int]:
    """The pids of a holder's children that have not ended."""
    try:
        with open(f"/proc/{holder}/task/{holder}/children") as file:
            return [pid for pid in map(int, file.read().split()) if not gone(pid)]
    except OSError:
        return []


@pytest.mark.parametrize("who", KILLED)
def test_what_is_left_drains(daemons: Daemons, echo: Echo, who: str) -> None:
    """No deadline is waited for: it is far."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"drain": "1h", "workers": 1})
    all_of_it = pids(daemon)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        kill(daemon, who)
        eventually(lambda: refused(port), "nobody takes new connections")
        assert echoed(client) == b"ping", "what is open goes on"
        again = daemons(one_endpoint(port, echo.target), {"workers": 1})
        with dial(port) as new:
            assert echoed(new) == b"ping", "the next one has the port"
        assert echoed(client) == b"ping"
        again.stop()
    eventually(lambda: all(map(gone, all_of_it)), "its processes ended by themselves")


@pytest.mark.parametrize("who", KILLED)
def test_the_deadline_holds(daemons: Daemons, echo: Echo, who: str) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"drain": "300ms", "workers": 1})
    all_of_it = pids(daemon)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        kill(daemon, who)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    eventually(lambda: all(map(gone, all_of_it)), "its processes ended by themselves")
    assert refused(port)


def test_a_worker_that_hangs_is_ended_by_its_holder(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(
        one_endpoint(port := free_port(), echo.target),
        {"drain": "100ms", "workers": 1},
        program=patched("relay.processes.holder.KILL_AFTER_S", value=0.5),
    )
    all_of_it = pids(daemon)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        worker = daemon.worker_pid()
        os.kill(worker, signal.SIGSTOP)
        os.kill(daemon.pid, signal.SIGKILL)
        assert daemon.process is not None
        daemon.process.wait(HANG_S)
        eventually(lambda: all(map(gone, all_of_it)), "its processes ended")
    assert refused(port)
