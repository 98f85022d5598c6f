"""A reload in the midst of an upgrade: who is denied now is denied at once, by workers of either program."""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.conftest import Daemons
from tests.e2e.installed import NEW, Installed, asked, upgraded
from tests.e2e.peers import counted, typed
from tests.harness import Daemon, Echo, denied, dial, echoed, eventually, one_endpoint
from tests.ports import free_port

FAILS = "    try:\n        end.send(_MINE)\n"  # in succession.py: before a successor says that everything is its own


def stays_half_way(daemon: Daemon, installed: Installed) -> None:
    """Go over to a program that cannot take the workers over: keeper and control are of it, and the workers are not."""
    installed.change("processes/succession.py", FAILS, f"    no_such_name\n{FAILS}")
    installed.release()
    assert daemon.ask("POST", "/v1/upgrade")[0] == 202
    eventually(lambda: (status := asked(daemon)) and status["upgrade_failed"], "it is half way")


def denying(port: int, echo: Echo) -> dict[str, Any]:
    return one_endpoint(port, echo.target, access=[{"deny": "127.0.0.1"}])


def test_workers_of_the_program_before_are_told_too(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with dial(port) as client, dial(port, source="127.0.0.2") as other:
        assert (echoed(client), echoed(other)) == (b"ping", b"ping")
        stays_half_way(daemon, installed)
        assert (echoed(client), echoed(other)) == (b"ping", b"ping")
        daemon.write_service(denying(port, echo))
        code, answer = daemon.ask("POST", "/v1/reload")
        assert (code, answer["notes"]) == (200, [])
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert denied(port)
        assert echoed(other) == b"ping"
        assert daemon.status()["upgrading"], "all of this was in its midst"
        installed.restore()
        installed.release()
        done = typed("upgrade", "--settings", str(daemon.settings_file))
        assert done.returncode == 0, done
        upgraded(daemon, 2, NEW)
        assert denied(port)
        assert echoed(other) == b"ping"
    counted(daemon, active=0, closed={"revoked": 1, "client_fin": 1})


def test_new_rules_that_a_worker_of_the_program_before_cannot_read(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    """It lets nobody in any more: nobody by the rules before. Its connections are decided on when it is taken over."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        installed.change("config/snapshot.py", "FORMAT: Final = 7", "FORMAT: Final = 8")
        installed.change("config/snapshot.py", "READABLE_FROM: Final = 7", "READABLE_FROM: Final = 8")
        stays_half_way(daemon, installed)
        daemon.write_service(denying(port, echo))
        code, answer = daemon.ask("POST", "/v1/reload")
        assert (code, len(answer["notes"])) == (200, 1)
        assert answer["notes"][0].startswith("worker 0 is still of the program before, and works by the former")
        eventually(lambda: any(daemon.events("outdated")), "it has heard")
        before = daemon.endpoint("web/in")["accepted"]
        with dial(port) as new:
            assert echoed(client) == b"ping"
            assert daemon.endpoint("web/in")["accepted"] == before
            installed.change("processes/succession.py", f"    no_such_name\n{FAILS}", FAILS)
            done = typed("upgrade", "--settings", str(daemon.settings_file))
            assert done.returncode == 0, done
            for each in (client, new):
                with pytest.raises(ConnectionResetError):
                    each.recv(1)
    counted(daemon, accepted=1, active=0, closed={"revoked": 1}, denied={"access": 1})


def by_command(daemon: Daemon) -> None:
    done = typed("reload", "--settings", str(daemon.settings_file))
    assert done.returncode == 0, done


def by_signal(daemon: Daemon) -> None:
    os.kill(daemon.pid, signal.SIGHUP)


@pytest.mark.parametrize("reload", [by_command, by_signal])
@pytest.mark.parametrize("replaced", ["is being read", "takes its time to end"])
def test_a_reload_while_control_is_replaced_is_the_next_ones(
    daemons: Daemons, echo: Echo, installed: Installed, reload: Callable[[Daemon], None], replaced: str
) -> None:
    """What the control before would put in force nobody would hear."""
    if replaced == "takes its time to end":
        ends = "        await self._work_until_stopped()\n"
        installed.change("control/control.py", ends, ends + "        await asyncio.sleep(0.3)\n")
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        installed.release()
        assert daemon.ask("POST", "/v1/upgrade")[0] == 202
        if replaced == "takes its time to end":
            eventually(lambda: any(daemon.events("upgrading")), "the keeper is the new one")
        daemon.write_service(denying(port, echo))
        reload(daemon)
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert denied(port)
        upgraded(daemon, 1, NEW)
        assert denied(port)


def test_a_reload_by_signal_in_the_last_moment_is_the_next_programs(
    daemons: Daemons, echo: Echo, installed: Installed, tmp_path: Path
) -> None:
    """The keeper has heard of it, and has told nobody yet, when it replaces its program."""
    later, file = tmp_path / "later.yaml", tmp_path / "which"
    last = "        process.block()\n        self._on_signals()"
    moment = f"        os.rename({str(later)!r}, open({str(file)!r}).read()); os.kill(os.getpid(), signal.SIGHUP)\n"
    installed.change("processes/keeper.py", last, moment + last)
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    later.write_text(yaml.safe_dump(denying(port, echo)))
    file.write_text(str(daemon.service_file))
    with dial(port) as client:
        assert echoed(client) == b"ping"
        installed.restore()
        installed.release()
        assert daemon.ask("POST", "/v1/upgrade")[0] == 202
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    upgraded(daemon, 1, NEW)


def test_no_reload_waits_for_a_trial(daemons: Daemons, echo: Echo, installed: Installed, tmp_path: Path) -> None:
    """What was tried is old then, so it is tried once more: what is put in force is not taken back."""
    begun, go = tmp_path / "begun", tmp_path / "go"
    waits = (
        "    import pathlib, time\n"
        f"    pathlib.Path({str(begun)!r}).touch()\n"
        f"    while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.01)\n"
    )
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client, ThreadPoolExecutor() as pool:
        assert echoed(client) == b"ping"
        installed.change("control/upgrade.py", "    loop_factory()\n", f"    loop_factory()\n{waits}")
        installed.release()
        upgrade = pool.submit(daemon.ask, "POST", "/v1/upgrade")
        try:
            eventually(begun.exists, "it is being tried out")
            assert daemon.ask("POST", "/v1/upgrade")[0] == 409, "one at a time"
            daemon.write_service(denying(port, echo))
            assert daemon.ask("POST", "/v1/reload")[0] == 200
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        finally:
            go.touch()
        assert upgrade.result()[0] == 202
        status = upgraded(daemon, 1, NEW)
        assert status["generation"] == 3, "the first, the reload's, and that of the second trial"
        assert denied(port)
