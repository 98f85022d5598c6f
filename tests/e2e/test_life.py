"""The daemon's end, and the death of each of its processes: what goes on, what is lost, and what is said about it."""

import contextlib
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.conformance.proc import opened
from tests.conftest import Daemons
from tests.e2e.peers import control_pid, control_restarted, endpoint, gone, pids, refused, shut
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint, service, unwatched
from tests.ports import free_port

STOPS = pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])


def rests(pid: int) -> bool:
    """Whether the process has no signal to handle and waits for something: proc(5)."""
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    pending = int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)
    return pending == 0 and status["State"].startswith("S")


def wait(daemon: Daemon) -> int:
    assert daemon.process is not None
    return daemon.process.wait(HANG_S)


# --- stop -------------------------------------------------------------------------------------------------------------


@STOPS
def test_a_stop_refuses_new_connections_and_lets_the_open_one_end(
    daemons: Daemons, echo: Echo, stop: signal.Signals
) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(one_endpoint(port, echo.target), {"drain": "2m", "metrics": {"listen": f"127.0.0.1:{metrics}"}})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, stop)
        eventually(lambda: refused(port), "a new connection is refused")
        eventually(lambda: daemon.status()["draining"], "the status says so")
        assert "draining" in daemon.relay("status").stdout
        assert echoed(client, b"x" * 100_000) == b"x" * 100_000
        assert Scrape(metrics).value("relay_connections_active") == 1
        client.shutdown(socket.SHUT_WR)
        assert client.recv(1) == b""
    assert wait(daemon) == 0
    assert {record["cause"] for record in daemon.events("connection")} == {"client_fin"}
    assert [len(list(daemon.events(name))) for name in ("draining", "stopped")] == [1, 1]


def test_the_deadline_cuts_what_is_still_open(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"drain": "400ms"})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        begun_s = time.monotonic()
        os.kill(daemon.pid, signal.SIGTERM)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert time.monotonic() - begun_s >= 0.3
    assert wait(daemon) == 0
    assert [record["cause"] for record in daemon.events("connection")] == ["drain"]


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_the_second_stop_is_at_once(daemons: Daemons, echo: Echo, second: signal.Signals) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"drain": "2m"})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGINT)
        eventually(lambda: daemon.status()["draining"], "it drains")
        os.kill(daemon.pid, second)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    assert wait(daemon) == 0
    assert [record["cause"] for record in daemon.events("connection")] == ["drain"]


def test_two_stops_that_come_close_together_are_two(daemons: Daemons, echo: Echo) -> None:
    """Standard signals do not queue (signal(7)): two that the keeper passes on must not reach the worker as one."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"drain": "2m", "workers": 1}, program=unwatched())
    with dial(port) as client:
        assert echoed(client) == b"ping"
        worker = daemon.worker_pid()
        os.kill(worker, signal.SIGSTOP)  # it has no CPU at this moment
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: any(daemon.events("draining")), "the keeper knows")
        os.kill(daemon.pid, signal.SIGINT)
        eventually(lambda: rests(daemon.pid), "the keeper has passed it on")
        os.kill(worker, signal.SIGCONT)
        assert wait(daemon) == 0
    assert [record["cause"] for record in daemon.events("connection")] == ["drain"]


def test_a_stop_takes_those_who_wait_in_the_backlog(daemons: Daemons, echo: Echo) -> None:
    """The kernel has told them that they are connected: closing the listening socket would reset them."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, program=unwatched())
    worker = daemon.worker_pid()
    with contextlib.ExitStack() as stack:
        os.kill(worker, signal.SIGSTOP)
        try:
            clients = [stack.enter_context(dial(port)) for _ in range(300)]
            os.kill(daemon.pid, signal.SIGTERM)
            eventually(lambda: daemon.status()["draining"], "it drains")
        finally:
            os.kill(worker, signal.SIGCONT)
        assert [echoed(client) for client in clients] == [b"ping"] * len(clients)
    assert wait(daemon) == 0


def test_a_stop_without_connections_is_quick(daemons: Daemons) -> None:
    daemon = daemons(one_endpoint(free_port(), "127.0.0.1:9"), {"drain": "2m"})
    os.kill(daemon.pid, signal.SIGTERM)
    assert wait(daemon) == 0


def test_a_stop_waits_for_a_connection_that_is_still_dialling(daemons: Daemons) -> None:
    """A full backlog keeps the dial from ending; the stop must still end by its deadline."""
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(0)
        with contextlib.ExitStack() as fillers:
            for _ in range(3):
                filler = fillers.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(deaf.getsockname())
            daemon = daemons(
                one_endpoint(port := free_port(), f"127.0.0.1:{deaf.getsockname()[1]}"), {"drain": "300ms"}
            )
            with dial(port) as client:
                eventually(lambda: daemon.endpoint("web/in")["active"] == 1, "it was let in")
                (connection,) = eventually(lambda: daemon.ask("GET", "/v1/connections")[1], "it stands in the ledger")
                assert connection["state"] == "dial"
                os.kill(daemon.pid, signal.SIGTERM)
                with pytest.raises(ConnectionResetError):
                    client.recv(1)
            assert wait(daemon) == 0


def test_control_that_dies_while_draining_still_drains(daemons: Daemons, echo: Echo) -> None:
    """The one that takes its place must know that the end has come: it reloads nothing and opens no port."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"drain": "2m"})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: daemon.status()["draining"], "it drains")
        os.kill(control_pid(daemon), signal.SIGKILL)
        control_restarted(daemon)
        assert echoed(client) == b"ping"
        eventually(lambda: daemon.status()["draining"], "the new control knows that relay drains")
        code, answer = daemon.ask("POST", "/v1/reload")
        assert (code, "stopping" in str(answer)) == (409, True)
        shut(port)  # a worker closes it when it hears of the stop, which a busy machine may tell it late
    assert wait(daemon) == 0  # by its last connection, long before the deadline


# --- the keeper -------------------------------------------------------------------------------------------------------


def test_a_killed_keeper_leaves_nothing(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(one_endpoint(port, echo.target), {"drain": "2m", "metrics": {"listen": f"127.0.0.1:{metrics}"}})
    children = pids(daemon) - {daemon.pid}
    assert len(children) >= 2
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGKILL)
        assert wait(daemon) == -signal.SIGKILL
        eventually(lambda: refused(port), "nobody takes new connections")
        assert echoed(client) == b"ping"  # what is open may end in its own time
    eventually(lambda: all(map(gone, children)), "its processes ended by themselves")
    assert refused(metrics)


def test_a_killed_keepers_place_can_be_taken_while_an_old_connection_goes_on(daemons: Daemons, echo: Echo) -> None:
    """A service manager starts it anew at once; the old worker, still draining, must not hold what the new one needs."""
    port, metrics = free_port(), free_port()
    daemon = daemons(one_endpoint(port, echo.target), {"drain": "2m", "metrics": {"listen": f"127.0.0.1:{metrics}"}})
    old = pids(daemon)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGKILL)
        wait(daemon)
        eventually(lambda: refused(port), "the old worker drains")
        try:
            daemon.start()
            with dial(port) as new:
                assert echoed(new) == b"ping"
        finally:
            client.close()
            eventually(lambda: all(map(gone, old)), "the old processes ended")


def test_descriptors_do_not_pile_up_over_reloads(daemons: Daemons, echo: Echo) -> None:
    host = "127.0.0.7"  # no client of anybody takes a port of it for its own
    stays, comes_and_goes = free_port(host), free_port(host)
    kept = endpoint(stays, echo.target)
    other = endpoint(comes_and_goes, echo.target)
    daemon = daemons(service({"in": kept}, host=host), {"workers": 1})
    pids = {"keeper": daemon.pid, "control": control_pid(daemon), "worker": daemon.worker_pid()}

    def reload(times: int) -> None:
        for _ in range(times):
            for declared in ({"in": kept, "other": other}, {"in": kept}):
                daemon.write_service(service(declared, host=host))
                code, answer = daemon.ask("POST", "/v1/reload")
                assert (code, len(answer["changes"])) == (200, 1)

    def held(pid: int) -> Counter[str]:  # what they are, without inode numbers
        return Counter(leads_to.split(":")[0] for leads_to in opened(pid).values())

    reload(2)
    before = {name: held(pid) for name, pid in pids.items()}
    reload(23)
    assert daemon.status()["generation"] == 51
    for name, pid in pids.items():
        # A process may still be closing what the last request needed.
        with contextlib.suppress(AssertionError):
            eventually(lambda pid=pid, name=name: held(pid) <= before[name], "no more than before")  # type: ignore[misc]
        assert held(pid) - before[name] == Counter(), name
