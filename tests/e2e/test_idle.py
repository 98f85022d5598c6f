"""What a relay costs that has nothing to do; and that all is loaded before a process is forked, and no more than needed."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import pids
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, one_endpoint
from tests.ports import free_port

PSS_MIB: Final = 62.8  # of the whole daemon, with two workers: docs/why/engine.md
MARGIN: Final = 1.1  # another Python, other versions of the libraries

# Nothing of the configuration, of control and of what they need; a worker goes by a snapshot.
NOT_OF_A_WORKER: Final = {
    "aiohttp",
    "dns",
    "email",
    "prometheus_client",
    "pydantic",
    "pydantic_core",
    "relay.cli",
    "relay.config.check",
    "relay.config.load",
    "relay.config.model",
    "relay.config.settings",
    "relay.control",
    "relay.csdef",
    "relay.daemon",
    "relay.fleet",
    "relay.names",
    "yaml",
}
# Of no process of a daemon whose service has no names. A worker has in memory what the keeper had, and shares it.
NOT_OF_A_DAEMON: Final = {
    "dns",
    "multiprocessing",
    "relay.cli.client",
    "relay.csdef",
}

# relay whose workers and control write down what is imported when they begin, and what has been since when they end.
TELLS: Final = """
import json, os, sys
import relay.daemon
from relay.control import control
from relay.dataplane import worker

def told(module, name):
    work = module.main
    def main(*arguments):
        before = set(sys.modules)
        try:
            work(*arguments)
        finally:
            with open(os.environ["RELAY_TEST_MODULES"], "a") as file:
                file.write(json.dumps([name, sorted(before), sorted(set(sys.modules) - before)]) + chr(10))
    module.main = main

told(control, "control")
told(worker, "worker")
import relay.cli.main
exit(relay.cli.main.main())
"""
PROGRAM: Final = ("-c", TELLS)


class Loaded:
    """Which modules the processes of a daemon had."""

    def __init__(self, file: Path) -> None:
        self.environment = {"RELAY_TEST_MODULES": str(file)}
        self._file = file

    def all(self) -> list[tuple[str, set[str], list[str]]]:
        """Of each process that has ended in order: what it is, what it began with, and what it has imported."""
        lines = self._file.read_text().splitlines()
        return [(name, set(before), since) for name, before, since in map(json.loads, lines)]


@pytest.fixture
def loaded(tmp_path: Path) -> Loaded:
    return Loaded(tmp_path / "modules")


def pss_mib(pid: int) -> float:
    """A process' part of what it has in memory: what it shares with n processes counts as 1/n."""
    found = re.search(r"^Pss: +(\d+) kB$", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.alone
def test_an_idle_daemon_is_small(daemons: Daemons) -> None:
    metrics = free_port()
    settings = {"workers": 2, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
    keys: dict[str, Any] = {"environment": {"PYTHONDONTWRITEBYTECODE": ""}}  # what it compiles it should do once
    daemon = daemons(one_endpoint(free_port(), "127.0.0.1:9"), settings, **keys)
    assert Scrape(metrics).value("relay_build_info") == 1
    found_mib = {pid: pss_mib(pid) for pid in pids(daemon)}
    assert len(found_mib) == 6, "keeper, control, two holders, two workers"
    assert sum(found_mib.values()) < MARGIN * PSS_MIB, found_mib


def modules_of(module: str) -> set[str]:
    """All that is imported with it, in an interpreter of its own."""
    code = f"import json, sys, {module}; print(json.dumps(list(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_S, check=True)
    return set(json.loads(done.stdout))


@pytest.mark.parametrize("module", ["relay.dataplane.worker", "relay.processes.keeper"])
def test_what_forwards_imports_nothing_of_control(module: str) -> None:
    found = modules_of(module)
    assert module in found
    assert found & NOT_OF_A_WORKER == set()


def ask_for_all(daemon: Daemon, metrics: int) -> None:
    """Have control do what it can do."""
    Scrape(metrics)
    for path in (
        "status", "connections", "identity", "roles", "instances", "endpoints", "prometheus", "environment", "hosts",
        "openapi.json", "explain?to=web/in&from=192.0.2.1", "route?to=web/in&client=192.0.2.1:9", "nothing",
    ):  # fmt: skip
        daemon.ask("GET", f"/v1/{path}")
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    daemon.service_file.write_text("version: 2\nrolls: {}\n")
    assert daemon.ask("POST", "/v1/reload")[0] == 409


def test_nothing_is_imported_after_the_start(daemons: Daemons, echo: Echo, loaded: Loaded) -> None:
    port, metrics = free_port(), free_port()
    settings = {"workers": 2, "metrics": {"listen": f"127.0.0.1:{metrics}"}, "names": {"hosts": "/nowhere/hosts"}}
    daemon = daemons(one_endpoint(port, echo.target), settings, program=PROGRAM, environment=loaded.environment)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        ask_for_all(daemon, metrics)
    assert daemon.stop() == 0
    found = loaded.all()
    assert sorted(name for name, _, _ in found) == ["control", "worker", "worker"]
    for name, before, since in found:
        assert since == [], name
        assert before & NOT_OF_A_DAEMON == set(), name
