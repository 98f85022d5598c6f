"""The admin socket is removed under a running daemon: it comes back, for this control, the next one and a new program."""

import os
import signal

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import control_pid, control_restarted
from tests.harness import Daemon, Echo, dial, echoed, eventually, one_endpoint
from tests.ports import free_port

SELDOM = "import relay.control.admin_socket as s; s._LOOK_S = 3600; import relay.cli.main; exit(relay.cli.main.main())"


def comes_back(daemon: Daemon) -> int:
    """The inode of the one that is there, and answers."""
    eventually(daemon.admin_socket.exists, "it is there again")
    done = daemon.relay("status")
    assert done.returncode == 0, done.stderr
    return os.stat(daemon.admin_socket).st_ino


def descriptors(daemon: Daemon) -> int:
    """How many the keeper has."""
    return len(os.listdir(f"/proc/{daemon.pid}/fd"))


def said(daemon: Daemon, times: int) -> None:
    eventually(
        lambda: len(list(daemon.events("admin socket"))) == times, "it is said each time, and never without need"
    )


def test_it_comes_back_and_outlives_control_and_upgrade(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    daemon = daemons(one_endpoint(port, echo.target))
    with dial(port) as client:
        before = descriptors(daemon)
        for times in range(1, 3):
            daemon.admin_socket.unlink()
            here = comes_back(daemon)
            said(daemon, times)
        for restarts in range(1, 3):
            os.kill(control_pid(daemon), signal.SIGKILL)
            control_restarted(daemon, restarts)
            assert comes_back(daemon) == here, "the next control has the same"
        eventually(lambda: descriptors(daemon) <= before, "those from before are closed")

        code, answer = daemon.ask("POST", "/v1/upgrade")
        assert code == 202, answer
        eventually(lambda: any(daemon.events("upgraded")), "every worker runs in the new program")
        assert comes_back(daemon) == here
        daemon.admin_socket.unlink()
        comes_back(daemon)
        assert echoed(client) == b"ping"
    said(daemon, 3)
    assert list(daemon.events("bug")) == []


@pytest.mark.parametrize("who", ["keeper", "control"])
def test_a_reload_and_a_new_control_look_at_once(daemons: Daemons, echo: Echo, who: str) -> None:
    daemon = daemons(one_endpoint(free_port(), echo.target), program=("-c", SELDOM))
    control = control_pid(daemon)
    daemon.admin_socket.unlink()
    if who == "keeper":
        os.kill(daemon.pid, signal.SIGHUP)
    else:
        os.kill(control, signal.SIGKILL)
    comes_back(daemon)


def test_what_another_program_put_there_stays(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(free_port(), echo.target))
    other = daemon.directory / "other"
    other.write_text("precious")
    other.rename(daemon.admin_socket)
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: list(daemon.events("admin socket")), "it is said")
    assert daemon.admin_socket.read_text() == "precious"
    daemon.admin_socket.unlink()
    comes_back(daemon)
