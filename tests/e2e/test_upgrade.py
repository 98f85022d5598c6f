"""`relay upgrade`: the daemon goes over to the code that is installed now, and nobody who is connected notices.

What is installed is a copy of the package, which a test changes under the running daemon as a package manager would.
"""

import os
import random
import re
import shutil
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import relay
from tests.conftest import Daemons
from tests.e2e.chaos import Streams, children
from tests.e2e.streams import target
from tests.e2e.test_chaos import open_descriptors
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint
from tests.ports import free_port

NEW = "9.9.9"


class Installed:
    """A copy of relay that daemons run from."""

    def __init__(self, directory: Path) -> None:
        self.package = directory / "relay"
        shutil.copytree(Path(relay.__file__).parent, self.package, ignore=shutil.ignore_patterns("__pycache__"))

    @property
    def wrapper(self) -> tuple[str, ...]:
        """Before `python -m relay`: which looks for the package in the working directory."""
        return ("env", "-C", str(self.package.parent))

    def change(self, file: str, before: str, after: str) -> None:
        """Replace a piece of a file."""
        path = self.package / file
        text = path.read_text()
        assert before in text, f"{file} does not hold {before!r}"
        path.write_text(text.replace(before, after, 1))

    def release(self, version: str = NEW) -> None:
        """Another version."""
        path = self.package / "__init__.py"
        path.write_text(re.sub(r'__version__ = ".*"', f'__version__ = "{version}"', path.read_text()))


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    directory = tmp_path / "installed"
    directory.mkdir()
    return Installed(directory)


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as running:
        yield running


def pids(daemon: Daemon) -> set[int]:
    """Control's and the workers': what an upgrade replaces."""
    status = daemon.status()
    return {status["control"]["pid"], *(worker["pid"] for worker in status["workers"])}


def asked(daemon: Daemon) -> dict[str, Any] | None:
    """The status; None while control is replaced."""
    try:
        return daemon.status()
    except (OSError, AssertionError):
        return None


def upgraded(daemon: Daemon, program: int = 1) -> dict[str, Any]:
    """The status, once every part runs in that program."""

    def arrived() -> dict[str, Any] | None:
        status = asked(daemon)
        return status if status and status["program"] == program and not status["upgrading"] else None

    return dict(eventually(arrived, "every part runs in the new program"))


def test_established_connections_and_the_main_process_live_on(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(
        one_endpoint(port, echo.target),
        {"workers": 2, "metrics": {"listen": f"127.0.0.1:{metrics}"}},
        wrapper=installed.wrapper,
    )
    before, main_pid, mine = pids(daemon), daemon.pid, daemon.status()["keeper"]["pid"]
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(20)]
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        counted = Scrape(metrics).value("relay_received_bytes_total")
        installed.release()
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        assert f"is now {NEW}" in done.stdout
        assert "20 connections go on" in done.stdout
        assert [echoed(client, b"pong") for client in clients] == [b"pong"] * 20
        with dial(port) as new:
            assert echoed(new) == b"ping"
        status = daemon.status()
        assert (status["version"], status["keeper"]["pid"], daemon.pid) == (NEW, mine, main_pid)
        assert not before & pids(daemon)
        assert sum(worker["flows_adopted"] for worker in status["workers"]) == 20
        after = Scrape(metrics)
        assert after.value("relay_received_bytes_total") > counted
        assert after.value("relay_upgrades_total") == 1
        assert after.value("relay_build_info", version=NEW) == 1
    assert daemon.status()["worker_restarts"] == 0
    eventually(lambda: daemon.endpoint("web/in")["active"] == 0, "every flow has ended")
    assert daemon.endpoint("web/in")["closed"] == {"client_fin": 21}


def test_a_signal_does_the_same(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        for program in (1, 2, 3):
            installed.release(f"9.9.{program}")
            os.kill(daemon.pid, signal.SIGUSR2)
            assert upgraded(daemon, program)["version"] == f"9.9.{program}"
            assert echoed(client) == b"ping"


def test_a_reload_a_kill_and_a_stop_after_an_upgrade(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    """The new program does all that the old one did."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        assert daemon.relay("upgrade").returncode == 0
        daemon.write_service(one_endpoint(port, echo.target, access=[{"permit": "127.0.0.1"}]))
        assert daemon.relay("reload").returncode == 0
        worker = daemon.worker_pid()
        os.kill(worker, signal.SIGKILL)
        assert echoed(client) == b"ping"
        eventually(lambda: daemon.worker_pid() != worker, "the next worker is at work")
        os.kill(daemon.status()["control"]["pid"], signal.SIGKILL)
        eventually(lambda: any(daemon.events("died")), "it is noticed")
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: any(daemon.events("draining")), "it drains")
        assert echoed(client) == b"ping"
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 0


Breakage = Callable[[Installed, Daemon], None]


def import_fails(installed: Installed, _daemon: Daemon) -> None:
    installed.change("dataplane/dial.py", "import errno", "import errno, no_such_module")


def syntax_is_wrong(installed: Installed, _daemon: Daemon) -> None:
    installed.change("control/control.py", "import asyncio", "import asyncio (")


def is_gone(installed: Installed, _daemon: Daemon) -> None:
    (installed.package / "__main__.py").unlink()


def ledger_has_another_layout(installed: Installed, _daemon: Daemon) -> None:
    installed.change("dataplane/words.py", "VERSION: Final = ", "VERSION: Final = 7 + ")


def hands_over_in_another_format(installed: Installed, _daemon: Daemon) -> None:
    installed.change("dataplane/handover.py", "FORMAT: Final = ", "FORMAT: Final = 7 + ")


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
        (file_is_bad, "service.yaml:1:10: version: `2` is not a format"),
        (file_is_missing, "no such file"),
        (file_opens_another_port, "do not say what is open now (web/in); reload first"),
    ],
)
def test_what_does_not_start_changes_nothing(
    daemons: Daemons, echo: Echo, installed: Installed, breakage: Breakage, says: str
) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), wrapper=installed.wrapper)
    before = pids(daemon)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        installed.release()
        breakage(installed, daemon)
        done = daemon.relay("upgrade")
        assert (done.returncode, says in done.stderr) == (1, True), done
        assert "nothing has changed" in done.stderr
        assert echoed(client) == b"ping"
        status = daemon.status()
        assert (status["version"], status["program"], pids(daemon)) == (relay.__version__, 0, before)
        assert any(says in failed["message"] for failed in daemon.events("upgrade failed"))


def test_an_upgrade_while_draining_is_refused(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: daemon.status()["draining"], "it drains")
        done = daemon.relay("upgrade")
        assert (done.returncode, done.stderr) == (1, "relay: relay is stopping; nothing is upgraded\n")
        assert echoed(client) == b"ping"


def test_a_stop_in_the_midst_of_an_upgrade_is_a_stop(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        assert daemon.ask("POST", "/v1/upgrade")[0] == 202
        os.kill(daemon.pid, signal.SIGTERM)  # while the new program is being read
        assert echoed(client) == b"ping"
        eventually(lambda: any(daemon.events("draining")), "it drains")
        assert echoed(client) == b"ping"
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 0


SAYS_IT_IS_ITS_OWN = "    with end:\n"


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
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        before = daemon.worker_pid()
        installed.change("dataplane/succession.py", SAYS_IT_IS_ITS_OWN, breakage + SAYS_IT_IS_ITS_OWN)
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


def test_a_program_that_cannot_succeed_can_be_replaced_by_one_that_can(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        installed.change("dataplane/succession.py", SAYS_IT_IS_ITS_OWN, f"    no_such_name\n{SAYS_IT_IS_ITS_OWN}")
        os.kill(daemon.pid, signal.SIGUSR2)
        eventually(lambda: any(daemon.events("upgrade failed")), "it is said")
        installed.change("dataplane/succession.py", "    no_such_name\n", "")
        eventually(lambda: asked(daemon), "the new control answers")
        assert "an upgrade is under way" in daemon.relay("reload").stderr
        refused = eventually(
            lambda: "under way" not in (said := daemon.relay("reload").stderr) and said, "time is up", 20
        )
        assert "the upgrade has not come to its end" in refused
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        assert upgraded(daemon, 2)["workers"][1]["survives_crash"]
        assert echoed(client) == b"ping"
        assert daemon.relay("reload").returncode == 0


def dies_after(installed: Installed, step: str) -> None:
    """The old program's holder dies while it gives."""
    installed.change("dataplane/succession.py", step, step + "    os.kill(os.getpid(), 9)\n")


def test_a_holder_that_dies_when_it_has_given_all_has_lost_nothing(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    dies_after(installed, "    end.send(_ALL)\n")
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGUSR2)
        upgraded(daemon)
        assert echoed(client) == b"ping"
        os.kill(daemon.worker_pid(), signal.SIGKILL)
        assert echoed(client) == b"ping"


def test_a_holder_that_dies_before_it_gives_is_replaced_at_once(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    """Holder and worker both dead is what loses connections; it must not cost those that come after."""
    dies_after(installed, "    stop()\n")
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGUSR2)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        with dial(port) as new:
            assert echoed(new) == b"ping"
            upgraded(daemon)
            os.kill(daemon.worker_pid(), signal.SIGKILL)
            assert echoed(new) == b"ping"


@contextmanager
def streamed(daemons: Daemons, installed: Installed) -> Iterator[Daemon]:
    """A daemon with streams of every shape through it. At the end everything must be accounted for."""
    with target() as (at, address):
        port = free_port()
        # As it is installed: nothing changes here that Python could miss.
        compiled = {"PYTHONDONTWRITEBYTECODE": ""}
        daemon = daemons(one_endpoint(port, address), {"workers": 2}, wrapper=installed.wrapper, environment=compiled)
        streams = Streams(("127.0.0.1", port), 20261125)
        with streams.running(6):
            yield daemon
        assert at.failures == []
        eventually(lambda: daemon.endpoint("web/in")["active"] == 0, "every flow has ended")
        endpoint = daemon.endpoint("web/in")
        assert endpoint["accepted"] == sum(endpoint["closed"].values()) == streams.done.total()
        assert set(endpoint["closed"]) <= {"client_fin", "target_fin"}
        assert list(daemon.events("bug")) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_streams_of_every_shape_over_many_upgrades(daemons: Daemons, installed: Installed) -> None:
    with streamed(daemons, installed) as daemon:
        for program in range(1, 6):
            assert daemon.ask("POST", "/v1/upgrade")[0] == 202
            upgraded(daemon, program)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_workers_are_killed_while_their_holders_change(daemons: Daemons, installed: Installed) -> None:
    """Old ones and new ones, at any moment. Nothing is left open in any process."""
    with streamed(daemons, installed) as daemon, killing(daemon) as killed:
        for program in range(1, 9):
            asked_for(daemon)
            upgraded(daemon, program)
            if program == 1:
                first = open_descriptors(daemon.pid)
        eventually(lambda: killed[0] >= 100, "many were killed")
    assert list(daemon.events("upgrade failed")) == []
    assert open_descriptors(daemon.pid) == first
    holders = {open_descriptors(worker["holder_pid"]) for worker in daemon.status()["workers"]}
    assert max(holders) < first + 20, "what is open is listeners, channels, a pipe, and the loop's"


def asked_for(daemon: Daemon) -> None:
    """An upgrade, as soon as control is there to be asked."""
    eventually(lambda: accepted(daemon), "it is accepted")


def accepted(daemon: Daemon) -> bool:
    try:
        return daemon.ask("POST", "/v1/upgrade")[0] == 202
    except OSError:
        return False


@contextmanager
def killing(daemon: Daemon) -> Iterator[list[int]]:
    """Somebody who kills workers meanwhile; how many so far."""
    stop, chance, killed = threading.Event(), random.Random(20261126), [0]

    def kill() -> None:
        while not stop.wait(chance.uniform(0.005, 0.05)):
            workers = [pid for holder in children(daemon.pid) for pid in children(holder) if is_worker(pid)]
            for pid in workers and [chance.choice(workers)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed[0] += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def is_worker(pid: int) -> bool:
    """And not the trial of an upgrade, which control starts."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("relay-worker")
    return False
