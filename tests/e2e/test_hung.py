"""A process hangs: it is noticed, killed and started again, and no connection is lost by it."""

import os
import signal
import socket
from pathlib import Path
from typing import Final

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import control_pid, control_restarted, counted, next_worker, pids
from tests.harness import Daemon, Echo, Scrape, denied, dial, echoed, eventually, one_endpoint, patched
from tests.ports import free_port

# What replaces `-m relay`: who denies somebody goes round in circles, the first time.
LOOPS: Final = """
import os, relay.cli.main
from relay.dataplane.gate import Gate
denied = Gate.denied
def loop(*facts):
    denied(*facts)
    if not os.path.exists({flag!r}):
        open({flag!r}, "w").close()
        while True:
            pass
Gate.denied = loop
exit(relay.cli.main.main())
"""
CLIENT: Final = "127.0.0.77"


def hung(daemon: Daemon) -> str:
    """What is said of the first one, once it is said."""
    return str(eventually(lambda: next(daemon.events("hung"), None), "it is noticed")["message"])


def test_a_worker_that_is_stopped(daemons: Daemons, echo: Echo) -> None:
    metrics = free_port()
    settings = {"workers": 1, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
    daemon = daemons(one_endpoint(port := free_port(), echo.target), settings)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(worker := daemon.worker_pid(), signal.SIGSTOP)
        client.sendall(b"pong")
        assert client.recv(4) == b"pong", "the next one has taken it over"
        status = daemon.status()
        assert (status["hung"], status["workers"][0]["hung"], status["worker_restarts"]) == (1, 1, 1)
        assert next_worker(daemon, worker) != worker
        assert Scrape(metrics).value("relay_hung_total") == 1
        assert "1 were killed because they hung" in daemon.relay("status").stdout
    assert hung(daemon).startswith("worker-0 has given no sign of life for ")
    counted(daemon, accepted=1, closed={"client_fin": 1})


@pytest.mark.interpreted
def test_a_worker_that_goes_round_in_circles(daemons: Daemons, echo: Echo, tmp_path: Path) -> None:
    service = one_endpoint(port := free_port(), echo.target, access=[{"deny": CLIENT}])
    program = ("-c", LOOPS.format(flag=str(tmp_path / "flag")))
    daemon = daemons(service, {"workers": 1}, program=program)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        worker = daemon.worker_pid()
        assert denied(port, source=CLIENT), "by the next one at the latest"
        assert echoed(client) == b"ping"
        assert next_worker(daemon, worker) != worker
        assert hung(daemon).startswith("worker-0 has given no sign of life for ")


def test_control_that_is_stopped(daemons: Daemons, echo: Echo) -> None:
    program = patched("relay.processes.watch.CONTROL_HUNG_S", value=4.0)
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, program=program)
    eventually(lambda: daemon.status()["uptime_s"] > 1.5, "it has given a sign of life")
    with dial(port) as client:
        os.kill(control_pid(daemon), signal.SIGSTOP)
        assert control_restarted(daemon)["hung"] == 1
        assert echoed(client) == b"ping"
    assert hung(daemon).startswith("control has given no sign of life for ")


def test_a_holder_that_is_stopped_is_woken(daemons: Daemons, echo: Echo) -> None:
    """It would not notice that its worker has ended; the connections are still its own."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        worker = daemon.status()["workers"][0]
        os.kill(worker["holder_pid"], signal.SIGSTOP)
        os.kill(worker["pid"], signal.SIGKILL)
        assert echoed(client) == b"ping", "the next one has taken it over"
        status = daemon.status()["workers"][0]
        assert (status["holder_pid"], status["hung"]) == (worker["holder_pid"], 0)
    assert "has not noticed" in hung(daemon)


def test_a_worker_that_hangs_does_not_hold_up_a_drain(daemons: Daemons, echo: Echo) -> None:
    """Without a watch its connection would be cut at the deadline, which is far."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1, "drain": "1h"})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: daemon.status()["draining"], "it drains")
        os.kill(daemon.worker_pid(), signal.SIGSTOP)
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b"", "passed on by the next one"
    assert daemon.process is not None
    assert daemon.process.wait(60) == 0


@pytest.mark.slow
def test_a_machine_that_stands_still_stops_nobody(daemons: Daemons, echo: Echo) -> None:
    """As a suspended container or virtual machine: all of them are stopped, for longer than one may be silent."""
    program = patched("relay.processes.watch.HUNG_S", "relay.processes.watch.CONTROL_HUNG_S", value=4.0)
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, program=program)
    before = pids(daemon)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.killpg(daemon.pid, signal.SIGSTOP)
        try:
            client.settimeout(5.0)
            client.sendall(b"pong")
            with pytest.raises(TimeoutError):
                client.recv(4)
        finally:
            os.killpg(daemon.pid, signal.SIGCONT)
        client.settimeout(60)
        assert client.recv(4) == b"pong"
        eventually(lambda: all(worker["heartbeat_age_s"] < 1.0 for worker in daemon.status()["workers"]), "they go on")
        assert (pids(daemon), daemon.status()["hung"]) == (before, 0)
