"""Under the unit's hardening, without root: workers are killed, files reloaded, the code upgraded; nobody notices."""

import contextlib
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.dataplane.unprivileged import NOBODY, as_nobody
from tests.e2e.peers import children
from tests.harness import Daemon, Echo, dial, echoed, eventually, one_endpoint
from tests.ports import free_port

REPOSITORY = Path(__file__).parents[2]
UNIT = REPOSITORY / "systemd" / "relay.service"
CONFINE = Path(__file__).with_name("confine.py")


def as_the_unit_is_spared() -> None:
    with contextlib.suppress(PermissionError):  # then from what this process has
        Path("/proc/self/oom_score_adj").write_text("-500")


def hardened(daemons: Daemons, service: dict[str, object]) -> Daemon:
    """A daemon that runs as nobody, under the unit's system call filter."""
    wrapper = (*as_nobody(), sys.executable, str(CONFINE), str(UNIT))
    daemon = daemons.make(service, {"workers": 2}, wrapper=wrapper, before_exec=as_the_unit_is_spared)
    if os.getuid() == 0:
        os.chown(daemon.directory, NOBODY, NOBODY)
    return daemon.start()


def who_goes_first(daemon: Daemon) -> None:
    """Where memory is short: a worker, then control, and at last those without whom connections are lost."""
    eventually(lambda: len(children(daemon.pid)) == 3, "who was replaced has ended")
    status = daemon.status()
    control, workers = status["control"]["pid"], [worker["pid"] for worker in status["workers"]]
    holders = [pid for pid in children(daemon.pid) if pid != control]
    keeper = score(daemon.pid)
    assert {score(pid) for pid in holders} == {keeper}
    assert [score(pid) for pid in (control, *workers)] == [max(keeper + 100, 0), *[max(keeper + 200, 100)] * 2]


def score(pid: int) -> int:
    """By which the kernel decides (proc_pid_oom_score_adj(5))."""
    return int(Path(f"/proc/{pid}/oom_score_adj").read_text())


@pytest.mark.real("systemd-analyze", "setpriv")
def test_nothing_is_lost_under_the_units_filter(daemons: Daemons) -> None:
    port = free_port()
    with Echo() as echo:
        daemon = hardened(daemons, one_endpoint(port, echo.target))
        assert "Seccomp:\t2" in Path(f"/proc/{daemon.pid}/status").read_text()
        with dial(port) as client:
            assert echoed(client) == b"ping"
            who_goes_first(daemon)
            for worker in daemon.status()["workers"]:
                assert worker["survives_crash"], "clone(CLONE_FILES) is let through"
                os.kill(worker["pid"], signal.SIGKILL)
            assert echoed(client) == b"ping"
            eventually(lambda: daemon.status()["worker_restarts"] == 2, "both were started again")
            daemon.admin_socket.unlink()
            eventually(daemon.admin_socket.exists, "it is made again")
            daemon.write_service(one_endpoint(port, echo.target, access=[{"permit": "127.0.0.0/8"}]))
            assert daemon.ask("POST", "/v1/reload")[0] == 200
            code, answer = daemon.ask("POST", "/v1/upgrade")
            assert code == 202, answer
            eventually(lambda: any(daemon.events("upgraded")), "every worker runs in the new program")
            who_goes_first(daemon)
            assert echoed(client) == b"ping"
        eventually(lambda: daemon.endpoint("web/in")["closed"] == {"client_fin": 1}, "it ended well")
    assert list(daemon.events("bug")) == []
