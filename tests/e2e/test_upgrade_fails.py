"""`relay upgrade` to code that does not work: in its trial, or only when it holds the connections. Nobody notices."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

import relay
from tests.conftest import Daemons
from tests.e2e.installed import NEW, Installed, asked, upgraded
from tests.e2e.peers import pids, typed
from tests.harness import HANG_S, Daemon, Echo, dial, echoed, eventually, one_endpoint
from tests.ports import free_port


def refused(daemon: Daemon, command: str) -> str:
    """What the command says when it is not done."""
    done = typed(command, "--settings", str(daemon.settings_file))
    assert done.returncode == 1, done
    return done.stderr


@contextmanager
def in_use(
    daemons: Daemons, echo: Echo, installed: Installed, **settings: Any
) -> Iterator[tuple[Daemon, int, socket.socket]]:
    """A daemon that runs from `installed`, its port, and a client that it serves."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), settings, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        yield daemon, port, client


@dataclass(frozen=True)
class Standing:
    """A daemon that no upgrade of these tests changes, so that they share it."""

    daemon: Daemon
    installed: Installed
    port: int
    service: dict[str, Any]

    def restore(self) -> None:
        """What is installed, and the service file, are as they were at first."""
        self.installed.restore()
        self.daemon.write_service(self.service)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    """One that runs."""
    directory = tmp_path_factory.mktemp("standing")
    installed, port, daemons = Installed(directory), free_port(), Daemons(directory)
    with Echo() as echo:
        service = one_endpoint(port, echo.target)
        try:
            yield Standing(daemons(service, wrapper=installed.wrapper), installed, port, service)
        finally:
            daemons.end()


Breakage = Callable[[Installed, Daemon], None]


def import_fails(installed: Installed, _daemon: Daemon) -> None:
    installed.change("dataplane/dialling.py", "import errno", "import errno, no_such_module")


def syntax_is_wrong(installed: Installed, _daemon: Daemon) -> None:
    installed.change("control/control.py", "import asyncio", "import asyncio (")


def is_gone(installed: Installed, _daemon: Daemon) -> None:
    (installed.package / "__main__.py").unlink()


def ledger_has_another_layout(installed: Installed, _daemon: Daemon) -> None:
    installed.change("ledger/layout.py", "VERSION: Final = ", "VERSION: Final = 7 + ")


def hands_over_in_another_format(installed: Installed, _daemon: Daemon) -> None:
    installed.change("processes/handover.py", "FORMAT: Final = ", "FORMAT: Final = 7 + ")


RUNS = '        """Work until drained."""\n'


def worker_fails(installed: Installed, _daemon: Daemon) -> None:
    installed.change("dataplane/worker.py", RUNS, f'{RUNS}        raise RuntimeError("broken release")\n')


def worker_hangs(installed: Installed, _daemon: Daemon) -> None:
    installed.change("dataplane/worker.py", RUNS, f"{RUNS}        time.sleep(1000)\n")
    installed.change("processes/rehearsal.py", "_START_S: Final = 5.0", "_START_S: Final = 0.5")


def file_is_bad(_installed: Installed, daemon: Daemon) -> None:
    daemon.service_file.write_text("version: 2")


def file_is_missing(_installed: Installed, daemon: Daemon) -> None:
    daemon.service_file.unlink()


def file_opens_another_port(_installed: Installed, daemon: Daemon) -> None:
    daemon.write_service(one_endpoint(free_port(), "127.0.0.1:1"))


@pytest.mark.parametrize(
    ("breakage", "says"),
    [
        (import_fails, "no_such_module"),
        (syntax_is_wrong, "SyntaxError"),
        (is_gone, "No module named relay.__main__"),
        (ledger_has_another_layout, "keeps its ledger in layout"),
        (hands_over_in_another_format, "cannot take over from the running version"),
        (worker_fails, "its worker does not start: RuntimeError: broken release"),
        (worker_hangs, "its worker does not start: it gives no sign of life within 0.5 s"),
        (file_is_bad, "service.yaml:1:10: version: `2` is not a format"),
        (file_is_missing, "no such file"),
        (file_opens_another_port, "do not say what is open now (web/in); reload first"),
    ],
)
def test_what_does_not_start_changes_nothing(standing: Standing, breakage: Breakage, says: str) -> None:
    daemon, before = standing.daemon, pids(standing.daemon)
    with dial(standing.port) as client:
        assert echoed(client) == b"ping"
        try:
            standing.installed.release()
            breakage(standing.installed, daemon)
            said = refused(daemon, "upgrade")
        finally:
            standing.restore()
        assert says in said
        assert "nothing has changed" in said
        assert echoed(client) == b"ping"
        status = daemon.status()
        assert (status["version"], status["program"], pids(daemon)) == (relay.__version__, 0, before)
        eventually(lambda: any(says in failed["message"] for failed in daemon.events("upgrade failed")), "it is logged")


def test_an_upgrade_while_draining_is_refused(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    with in_use(daemons, echo, installed) as (daemon, _port, client):
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: daemon.status()["draining"], "it drains")
        assert refused(daemon, "upgrade") == "relay: relay is stopping; nothing is upgraded\n"
        assert echoed(client) == b"ping"


def test_a_stop_in_the_midst_of_an_upgrade_is_a_stop(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    with in_use(daemons, echo, installed, workers=2) as (daemon, _port, client):
        assert daemon.ask("POST", "/v1/upgrade")[0] == 202
        os.kill(daemon.pid, signal.SIGTERM)  # while the new program is being read
        assert echoed(client) == b"ping"
        eventually(lambda: any(daemon.events("draining")), "it drains")
        assert echoed(client) == b"ping"
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 0


SAYS_IT_IS_ITS_OWN = "    try:\n        end.send(_MINE)\n"


@pytest.mark.parametrize(
    "breakage",
    [
        "    os.kill(os.getpid(), 9)\n",
        "    raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))\n",
        "    no_such_name\n",
    ],
    ids=["is-killed", "has-no-room", "is-wrong"],
)
def test_where_a_holder_cannot_be_succeeded_its_connections_go_on(
    daemons: Daemons, echo: Echo, installed: Installed, breakage: str
) -> None:
    """Its successor has all descriptors already when it fails. It stays in the old code, says so, and stops as ever."""
    with in_use(daemons, echo, installed, workers=1) as (daemon, port, client):
        before = daemon.worker_pid()
        installed.change("processes/succession.py", SAYS_IT_IS_ITS_OWN, breakage + SAYS_IT_IS_ITS_OWN)
        os.kill(daemon.pid, signal.SIGUSR2)
        [failed] = eventually(
            lambda: [each for each in daemon.events("upgrade failed") if "goes on in the old code" in each["message"]],
            "it is said",
        )
        assert failed["message"].startswith("worker-0 goes on in the old code: ")
        assert echoed(client) == b"ping"
        with dial(port) as new:
            assert echoed(new) == b"ping"
        status = eventually(lambda: asked(daemon), "the new control answers")
        assert (status["program"], status["upgrading"]) == (1, True)
        assert status["workers"][0]["pid"] != before
        os.kill(status["workers"][0]["pid"], signal.SIGKILL)
        assert echoed(client) == b"ping", "it is held as before"
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: any(daemon.events("draining")), "it drains")
        assert echoed(client) == b"ping"
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 0


@pytest.mark.slow
def test_a_program_that_cannot_succeed_can_be_replaced_by_one_that_can(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    with in_use(daemons, echo, installed, workers=2) as (daemon, _port, client):
        installed.change("processes/succession.py", SAYS_IT_IS_ITS_OWN, f"    no_such_name\n{SAYS_IT_IS_ITS_OWN}")
        os.kill(daemon.pid, signal.SIGUSR2)
        status = eventually(lambda: (found := asked(daemon)) and found["upgrade_failed"] and found, "it is said")
        assert (status["program"], status["upgrading"]) == (1, True)
        assert status["upgrade_failed"].startswith("worker-0 could not be taken over")
        said = typed("status", "--settings", str(daemon.settings_file)).stdout
        assert "UPGRADE: it has not come to its end: worker-0 could not be taken over" in said
        assert echoed(client) == b"ping"
        installed.change("processes/succession.py", "    no_such_name\n", "")
        installed.release()
        done = typed("upgrade", "--settings", str(daemon.settings_file))
        assert done.returncode == 0, done
        assert upgraded(daemon, 2, NEW)["workers"][1]["survives_crash"]
        assert echoed(client) == b"ping"
        assert daemon.status()["upgrade_failed"] == ""
        assert daemon.ask("POST", "/v1/reload")[0] == 200


def test_who_asked_for_an_upgrade_is_told_why_it_fails(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    """Also where the trial was right."""
    with in_use(daemons, echo, installed, workers=1) as (daemon, _port, client):
        installed.release()
        installed.change("processes/succession.py", SAYS_IT_IS_ITS_OWN, f"    no_such_name\n{SAYS_IT_IS_ITS_OWN}")
        said = refused(daemon, "upgrade")
        assert f"the upgrade to {NEW} has not come to its end: worker-0 could not be taken over" in said
        assert echoed(client) == b"ping"


# In the trial the worker is that of the first program.
IN_EARNEST = "        if self._program:\n"


@pytest.mark.parametrize(
    ("does", "says"),
    [
        ('raise RuntimeError("broken release")', "the new worker does not start: RuntimeError: broken release"),
        ("os.kill(os.getpid(), 9)", "the new worker gives no sign of life within 2 s"),
        ("time.sleep(1000)", "the new worker gives no sign of life within 2 s"),
    ],
    ids=["fails", "is-killed", "hangs"],
)
def test_a_worker_that_starts_in_the_trial_alone_costs_nobody_a_connection(
    daemons: Daemons, echo: Echo, installed: Installed, does: str, says: str
) -> None:
    """It gives no sign of life, so the holder before goes on with everything, and whoever asked is told why."""
    with in_use(daemons, echo, installed, workers=2) as (daemon, port, client):
        installed.change("dataplane/worker.py", RUNS, f"{RUNS}{IN_EARNEST}            {does}\n")
        installed.release()
        assert f"worker-0 could not be taken over: {says}; that is tried again" in refused(daemon, "upgrade")
        assert echoed(client) == b"ping"
        status = daemon.status()
        assert (status["program"], status["upgrading"]) == (1, True)
        assert status["upgrade_failed"].startswith(f"worker-0 could not be taken over: {says}")
        with dial(port) as new:
            assert echoed(new) == b"ping"
        assert daemon.ask("POST", "/v1/reload")[0] == 200
        installed.restore()
        installed.release()
        done = typed("upgrade", "--settings", str(daemon.settings_file))
        assert done.returncode == 0, done
        assert echoed(client) == b"ping"
        assert upgraded(daemon, 2, NEW)["upgrade_failed"] == ""


def dies_after(installed: Installed, step: str) -> None:
    """The old program's holder dies while it gives."""
    indent = step[: -len(step.lstrip())]
    installed.change("processes/succession.py", step, f"{step}{indent}os.kill(os.getpid(), 9)\n")


def test_a_holder_that_dies_when_it_has_given_all_has_lost_nothing(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    dies_after(installed, "        end.send(_ALL)\n")
    with in_use(daemons, echo, installed, workers=1) as (daemon, _port, client):
        os.kill(daemon.pid, signal.SIGUSR2)
        upgraded(daemon)
        assert echoed(client) == b"ping"
        os.kill(daemon.worker_pid(), signal.SIGKILL)
        assert echoed(client) == b"ping"


def test_a_holder_that_dies_before_it_gives_is_replaced_at_once(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    """Holder and worker both dead is what loses connections; it must not cost those that come after."""
    dies_after(installed, "    _expect(end, _READY)\n")
    with in_use(daemons, echo, installed, workers=1) as (daemon, port, client):
        os.kill(daemon.pid, signal.SIGUSR2)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with dial(port) as new:
            assert echoed(new) == b"ping"
            upgraded(daemon)
            os.kill(daemon.worker_pid(), signal.SIGKILL)
            assert echoed(new) == b"ping"
