"""The form of the engine in a daemon: all its processes run the same, also after an upgrade, and it says which."""

from pathlib import Path

import pytest

from relay import ENGINE, __version__, engine
from tests.conftest import Daemons
from tests.e2e.chaos import Streams, assert_accounted
from tests.e2e.installed import Installed, upgraded
from tests.e2e.peers import settled
from tests.e2e.streams import WELL_ENDED, target
from tests.harness import Daemon, Echo, Scrape, dial, echoed, one_endpoint
from tests.ports import free_port

COMPILED = f"/relay/dataplane/share{engine.SUFFIX}"


def mapped(daemon: Daemon) -> set[bool]:
    """Whether compiled code is mapped in the keeper, in control, in a worker and its holder."""
    status = daemon.status()
    (worker,) = status["workers"]
    pids = (daemon.pid, status["control"]["pid"], worker["pid"], worker["holder_pid"])
    return {COMPILED in Path(f"/proc/{pid}/maps").read_text() for pid in pids}


@pytest.mark.parametrize("wanted", ["interpreted", "compiled"])
def test_the_whole_daemon_runs_one_form_and_says_which(wanted: str, daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    settings = {"metrics": {"listen": f"127.0.0.1:{metrics}"}, "workers": 1}
    daemon = daemons(one_endpoint(port, echo.target), settings, environment={engine.VARIABLE: wanted})
    (started,) = daemon.events("starting")
    form, _, reason = started["engine"].partition(" ")
    if wanted == "interpreted" or ENGINE.compiled:
        assert form == wanted
    for program in (0, 1):
        with dial(port) as client:
            assert echoed(client) == b"ping"
        assert mapped(daemon) == {form == "compiled"}
        status = daemon.status()
        assert (status["engine"], status["engine_reason"]) == (form, reason.strip("()"))
        head = daemon.relay("status").stdout.splitlines()[0]
        assert head.endswith(f", relay {__version__}, {started['engine']}")
        compiled = "true" if form == "compiled" else "false"
        assert Scrape(metrics).value("relay_build_info", version=__version__, compiled=compiled) == 1
        if program == 0:
            assert daemon.ask("POST", "/v1/upgrade")[0] == 202
            upgraded(daemon)
    (upgrading,) = daemon.events("upgrading")
    assert upgrading["engine"] == started["engine"]


@pytest.mark.slow
def test_streams_go_on_over_upgrades_from_one_form_to_the_other(daemons: Daemons, installed: Installed) -> None:
    with target() as (_, address):
        endpoint = one_endpoint(port := free_port(), address)
        daemon = daemons(endpoint, {"workers": 2, "log": {"level": "warning"}}, wrapper=installed.wrapper)
        streams = Streams(("127.0.0.1", port), 7, sorted(WELL_ENDED, key=lambda shape: shape.__name__))
        forms: list[str] = []
        with streams.running(8):
            for _ in streams.turns(6):
                if len(forms) % 2:
                    installed.restore()
                else:  # it is not what was compiled any more
                    installed.change("dataplane/share.py", "One worker's part in it", "A worker's part in it")
                assert (done := daemon.relay("upgrade")).returncode == 0, done
                forms.append(daemon.status()["engine"])
        assert set(forms[::2]) == {"interpreted"}
        assert not ENGINE.compiled or set(forms[1::2]) == {"compiled"}
        assert sum(worker["flows_adopted"] for worker in daemon.status()["workers"]) > 0
        assert_accounted(settled(daemon), streams.done)
