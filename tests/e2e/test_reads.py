"""Files that are none, or that hang: a start, a reload and an upgrade say so, count it, and the next one begins."""

import os
import signal
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import control_pid, records
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint, run_relay
from tests.ports import free_port

# A file system whose server is away, for a file beside which another one ends in `.away`. It answers when that is gone.
AWAY = """
import os, time
stat = os.stat
def hanging(path, *arguments, **keys):
    while os.path.lexists(f"{path}.away"):
        time.sleep(0.01)
    return stat(path, *arguments, **keys)
os.stat = hanging
import relay.config.reading
relay.config.reading.DEADLINE_S = 0.5
import relay.cli.main
exit(relay.cli.main.main())
"""
NEVER = "import relay.processes.keeper; relay.processes.keeper._KILL_AFTER_S = 3600.0"


def replaced_by_a_pipe(file: Path) -> Path:
    """Where the file is now."""
    kept = file.with_suffix(".kept")
    file.rename(kept)
    os.mkfifo(file)
    return kept


@pytest.mark.parametrize("which", ["service_file", "settings_file"])
def test_a_pipe_in_place_of_a_file_fails_a_reload_and_nothing_else(daemons: Daemons, echo: Echo, which: str) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(one_endpoint(port, echo.target), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    file: Path = getattr(daemon, which)
    with dial(port) as client:
        kept = replaced_by_a_pipe(file)
        for failed in range(1, 3):
            code, answer = daemon.ask("POST", "/v1/reload")
            assert code == 409
            assert answer["error"].startswith(f"{file}:0:0: cannot be read: is a pipe, not a file; write the path of")
            assert daemon.status()["reload"]["failed"] == failed
            assert Scrape(metrics).value("relay_config_last_reload_successful") == 0
        os.kill(daemon.pid, signal.SIGHUP)
        assert "is a pipe" in records(daemon, "reload failed", 3)[-1]["message"]
        assert "is a pipe" in daemon.ask("POST", "/v1/reload?dry_run=1")[1]["error"]
        assert "is a pipe" in daemon.ask("POST", "/v1/upgrade")[1]["error"], "the trial reads it, too"
        kept.rename(file)
        assert daemon.ask("POST", "/v1/reload")[0] == 200
        assert Scrape(metrics).value("relay_config_last_reload_successful") == 1
        assert echoed(client) == b"ping"


@pytest.mark.parametrize("which", ["service_file", "settings_file"])
def test_a_pipe_in_place_of_a_file_fails_a_start_and_a_check(daemons: Daemons, echo: Echo, which: str) -> None:
    daemon = daemons.make(one_endpoint(free_port(), echo.target))
    file: Path = getattr(daemon, which)
    replaced_by_a_pipe(file)
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 1
    assert daemon.log_text().startswith(f"{file}:0:0: cannot be read: is a pipe, not a file")
    done = run_relay("check", str(daemon.service_file), str(daemon.settings_file))
    assert done.returncode == 1
    assert done.stdout.startswith(f"{file}:0:0: cannot be read: is a pipe, not a file")


def test_a_read_that_hangs_fails_its_reload_and_the_next_one_begins(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    daemon = daemons(one_endpoint(port, echo.target), program=("-c", AWAY))
    away = daemon.service_file.with_name("service.yaml.away")
    before = threads(daemon)
    away.touch()
    with dial(port) as client:
        for failed in range(1, 13):
            code, answer = daemon.ask("POST", "/v1/reload")
            assert code == 409
            why = "its file system has not answered within 0.5 s" if failed <= 4 else "4 reads from its directory hang"
            assert f"{daemon.service_file}:0:0: cannot be read: {why}" in answer["error"]
            assert daemon.status()["reload"]["failed"] == failed
            assert threads(daemon) < before + 8, "no more than four hang"
        os.kill(daemon.pid, signal.SIGHUP)
        assert "hang" in records(daemon, "reload failed", 13)[-1]["message"]
        away.unlink()
        eventually(lambda: daemon.ask("POST", "/v1/reload")[0] == 200, "its server is back")
        assert echoed(client) == b"ping"


def test_who_stops_does_not_wait_for_a_read_that_hangs(daemons: Daemons, echo: Echo) -> None:
    # Nobody kills control at its end, either.
    program = AWAY.replace("0.5", "3600.0").replace("import relay.cli.main", f"{NEVER}; import relay.cli.main")
    daemon = daemons(one_endpoint(free_port(), echo.target), program=("-c", program))
    before = threads(daemon)
    daemon.service_file.with_name("service.yaml.away").touch()
    os.kill(daemon.pid, signal.SIGHUP)
    eventually(lambda: threads(daemon) > before, "it hangs")
    assert daemon.status()["reload"]["failed"] == 0
    assert daemon.stop() == 0


def threads(daemon: Daemon) -> int:
    """How many control has."""
    return len(os.listdir(f"/proc/{control_pid(daemon)}/task"))
