"""`relay weight`: a canary and back, on this machine, over reloads, kills, upgrades and restarts."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.installed import NEW, Installed, upgraded
from tests.harness import Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint
from tests.ports import free_port


@pytest.fixture
def two() -> Iterator[list[Echo]]:
    with Echo() as old, Echo() as canary:
        yield [old, canary]


def file_for(port: int, targets: list[Any], **keys: Any) -> dict[str, Any]:
    file = one_endpoint(port, "", target_distribution="round-robin", **keys)
    file["roles"]["web"]["endpoints"]["in"]["target"] = targets
    return file


def weights(daemon: Daemon) -> list[int]:
    return [each["weight"] for each in daemon.endpoint("web/in")["target_set"]]


def got(port: int, echoes: list[Echo], count: int = 10) -> list[int]:
    """How many of so many connections each of them gets."""
    before = [each.accepted for each in echoes]
    for _ in range(count):
        with dial(port) as client:
            assert echoed(client) == b"ping"
    return [each.accepted - already for each, already in zip(echoes, before, strict=True)]


def test_a_canary_and_back(daemons: Daemons, two: list[Echo], tmp_path: Path) -> None:
    port, metrics = free_port(), free_port()
    settings = {"workers": 1, "metrics": {"listen": f"127.0.0.1:{metrics}"}, "state": str(tmp_path)}
    old, canary = (each.target for each in two)
    daemon = daemons(file_for(port, [{"address": old, "weight": 9}, {"address": canary, "weight": 0}]), settings)
    assert got(port, two) == [10, 0]
    with dial(port) as client:
        assert echoed(client) == b"ping"
        done = daemon.relay("weight", "web/in", canary, "1")
        assert done.stdout == f"web/in: {canary} has the weight 1 by hand (0 in the file)\n"
        assert (done.returncode, done.stderr) == (0, "")
        assert got(port, two) == [9, 1]
        assert f"WEIGHT: web/in: {canary} has 1 by hand (0 in the file)" in daemon.relay("status").stdout
        assert Scrape(metrics).value("relay_target_weight", target=canary) == 1
        assert daemon.relay("weight", "web/in", old, "0").returncode == 0
        assert got(port, two) == [0, 10]
        listed = daemon.relay("weight").stdout.splitlines()
        assert [line.split()[-2:] for line in listed[1:]] == [["file)", "1"], ["file)", "0"]]
        for target in (old, canary):
            assert "by hand" not in daemon.relay("weight", "web/in", target, "off").stdout
        assert got(port, two) == [10, 0]
        assert echoed(client) == b"ping", "who was connected noticed nothing of it"
    eventually(lambda: [event["weight"] for event in daemon.events("weight")] == [1, 0, 9, 0], "each is told")


def test_it_outlasts_whatever_comes(daemons: Daemons, two: list[Echo], tmp_path: Path, installed: Installed) -> None:
    """A reload, a changed file, kills of worker and control, a live upgrade, and a restart."""
    port = free_port()
    targets = [each.target for each in two]
    file = file_for(port, targets)
    daemon = daemons(file, {"workers": 1, "state": str(tmp_path)}, wrapper=installed.wrapper)
    assert daemon.relay("weight", "web/in", targets[1], "0").returncode == 0

    def holds(why: str) -> None:
        assert weights(daemon) == [1, 0], why
        assert got(port, two, 4) == [4, 0], why

    holds("at once")
    daemon.write_service(file_for(port, [targets[0], {"address": targets[1], "weight": 5}], deny="drop"))
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    holds("after a reload")
    assert daemon.endpoint("web/in")["target_set"][1]["declared_weight"] == 5
    restarts = daemon.status()["worker_restarts"]
    os.kill(daemon.worker_pid(), signal.SIGKILL)
    eventually(lambda: daemon.status()["worker_restarts"] > restarts, "another worker works")
    holds("after a worker's death")
    control = daemon.status()["control"]["pid"]
    os.kill(control, signal.SIGKILL)
    eventually(lambda: daemon.ask("GET", "/v1/status")[1]["control"]["pid"] != control, "another control works")
    holds("after control's death")
    (tmp_path / "test.weights.json").unlink()  # as if it had died before it was written
    control = daemon.status()["control"]["pid"]
    os.kill(control, signal.SIGKILL)
    eventually((tmp_path / "test.weights.json").exists, "the next one writes it down")
    eventually(lambda: daemon.ask("GET", "/v1/status")[1]["control"]["pid"] != control, "another control works")
    installed.release()
    assert daemon.relay("upgrade").returncode == 0
    upgraded(daemon, version=NEW)
    holds("after an upgrade")
    daemon.stop()
    daemon.start()
    holds("after a restart")
    kept = json.loads((tmp_path / "test.weights.json").read_text())
    assert kept["weights"] == [["web/in", targets[1], 0]]


def test_one_that_cannot_be_kept_is_in_force_and_that_is_said(
    daemons: Daemons, two: list[Echo], tmp_path: Path
) -> None:
    port = free_port()
    targets = [each.target for each in two]
    daemon = daemons(file_for(port, targets), {"workers": 1, "state": str(tmp_path / "nowhere")})
    done = daemon.relay("weight", "web/in", targets[1], "0")
    assert done.returncode == 1
    assert "it is in force, and a restart of relay would forget it: cannot write" in done.stderr
    assert weights(daemon) == [1, 0]
    [event] = eventually(lambda: list(daemon.events("weight")), "it is told")
    assert event["level"] == "warning"


def test_how_a_target_is_stays_known(daemons: Daemons, two: list[Echo], tmp_path: Path) -> None:
    """Another share makes nobody another: one that is down is not tried for it."""
    port = free_port()
    up, down = two[0].target, f"127.0.0.1:{free_port()}"
    file = file_for(port, [up, down], probe={"interval": "100ms"})
    daemon = daemons(file, {"workers": 1, "state": str(tmp_path)})

    def health() -> list[str]:
        return [each["health"] for each in daemon.endpoint("web/in")["target_set"]]

    eventually(lambda: health() == ["up", "down"], "both are asked")
    since_s = daemon.endpoint("web/in")["target_set"][1]["since_s"]
    for weight in ("9", "off"):
        assert daemon.relay("weight", "web/in", down, weight).returncode == 0
        assert health() == ["up", "down"]
    assert daemon.endpoint("web/in")["target_set"][1]["since_s"] > since_s


def test_what_there_is_not(daemons: Daemons, two: list[Echo], tmp_path: Path) -> None:
    port = free_port()
    daemon = daemons(file_for(port, [each.target for each in two]), {"state": str(tmp_path)})
    generation = daemon.status()["generation"]
    for asked, told in (
        (("web/in", "web_IN_7", "1"), "no target `web_IN_7` at web/in; it has"),
        (("web/out", two[0].target, "1"), "no endpoint `web/out` with several targets"),
        (("web/in", two[0].target, "many"), "`many` is no weight"),
        (("web/in", two[0].target), "say which: `relay weight ENDPOINT INSTANCE N`"),
        (("web/out",), "no endpoint `web/out` with several targets here; there are: web/in"),
    ):
        done = daemon.relay("weight", *asked)
        assert (done.returncode, told in done.stderr) == (1, True), done.stderr
    assert daemon.status()["generation"] == generation
