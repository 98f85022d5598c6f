"""Short runs of every bench. tests/bench/ has what they are made of."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.harness import Echo, dial, echoed, one_endpoint
from tests.ports import free_port, free_ports

BENCH = Path(__file__).resolve().parent.parent / "bench"
BENCH_PORTS = 100  # an axis takes 2 for each forwarder, and leaves some of them in TIME_WAIT
BENCH_HANG_S = 200.0  # for a whole bench, each of whose parts has a bound of its own

pytestmark = pytest.mark.real("cc")


def bench(name: str, *options: str) -> subprocess.CompletedProcess[str]:
    """One bench to its end, on ports that nobody else has."""
    first = free_ports(BENCH_PORTS)
    ports = {"RELAY_BENCH_PORTS": f"{first}-{first + BENCH_PORTS - 1}"}
    return subprocess.run(
        [sys.executable, str(BENCH / name), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=BENCH_HANG_S,
        env={**os.environ, "PYTHONWARNINGS": "error", **ports},
    )


@pytest.mark.alone
def test_a_whole_run_writes_every_measurement_and_does_not_pass_without_relay(tmp_path: Path) -> None:
    file = tmp_path / "results" / "run.json"
    options = ("--seconds", "0.1", "--rounds", "2", "--only", "direct", "--axes", "rr-1", "bulk-up", "--pin", "one")
    done = bench("run.py", *options, "--json", str(file), "--gate", "--picture", str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "picture: nothing to draw" in done.stdout
    # Three are on rr-1, four on bulk-up.
    assert re.search(r"^gate: NOT passed: 7 of 7 do not hold; \d+ were not asked for$", done.stdout, re.MULTILINE)
    axes = json.loads(file.read_text())["axes"]
    assert [(axis["axis"]["name"], axis["pin"]) for axis in axes] == [("bulk-up", "one"), ("rr-1", "one")]
    for axis in axes:
        assert axis["failures"] == {}
        assert len(axis["runs"]["direct"]) == 2
        assert all(run["units"] > 0 for run in axis["runs"]["direct"])


EVERYBODY = {"direct", "relay", "haproxy", "haproxy-splice", "nginx", "proxyd"}
WITH_WORKERS = EVERYBODY - {"proxyd"}


def twice(names: set[str], what: str) -> set[str]:
    return names | {f"{name}, {what}" for name in names}


@pytest.mark.alone
@pytest.mark.real("haproxy", "nginx", "systemd-socket-activate")
@pytest.mark.parametrize(
    "rows",
    [
        {"rr-4k": EVERYBODY, "rr-16k": EVERYBODY},
        {"bulk-down-8": EVERYBODY, "bulk-up-8": EVERYBODY},
        {"https": WITH_WORKERS, "http": WITH_WORKERS - {"nginx"}, "proxy": WITH_WORKERS},
        {"tail": EVERYBODY},
        {"idle": twice(EVERYBODY, "idle")},
        pytest.param(
            {"workers": twice(WITH_WORKERS, "workers")},
            marks=pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="takes two CPUs"),
        ),
    ],
    ids=lambda rows: " ".join(rows),
)
def test_every_axis_with_every_forwarder(rows: dict[str, set[str]], tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    run_bench("run.py", "--seconds", "0.2", "--rounds", "1", "--idle", "50", "--json", str(file), "--axes", *rows)
    axes = json.loads(file.read_text())["axes"]
    assert {axis["axis"]["name"]: set(axis["runs"]) for axis in axes} == rows
    for axis in axes:
        assert axis["failures"] == {}
        assert all(run["units"] > 0 and run["errors"] == 0 for (run,) in axis["runs"].values())
        spent = {name: run["cpu_s"] for name, (run,) in axis["runs"].items() if not name.startswith("direct")}
        assert None not in spent.values()


@pytest.mark.alone
@pytest.mark.real("haproxy", "nginx", "systemd-socket-activate", "ip", "ethtool", "nsenter")
@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root")
def test_a_short_run_over_a_veth_pair(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    options = ("--veth", "--seconds", "0.2", "--rounds", "1", "--axes", "rr-16k", "bulk-up", "--json", str(file))
    run_bench("run.py", *options)
    axes = json.loads(file.read_text())["axes"]
    assert {axis["axis"]["name"]: set(axis["runs"]) for axis in axes} == {"rr-16k": EVERYBODY, "bulk-up": EVERYBODY}
    for axis in axes:
        assert axis["failures"] == {}
        assert all(run["units"] > 0 for (run,) in axis["runs"].values())


@pytest.mark.alone
@pytest.mark.real("haproxy")
def test_the_edges_lead_to_the_server(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    options = ("--mode", "edge", "--seconds", "0.1", "--rounds", "1", "--axes", "cps", "bulk-down", "tail")
    run_bench("run.py", *options, "--json", str(file))
    axes = json.loads(file.read_text())["axes"]
    assert [axis["axis"]["name"] for axis in axes] == ["bulk-down", "cps", "tail"]
    for axis in axes:
        assert axis["failures"] == {}
        assert all(run["units"] > 0 and run["errors"] == 0 for (run,) in axis["runs"].values())
        assert set(axis["runs"]) == {"direct", "relay", "haproxy", "haproxy-splice"}


def run_bench(name: str, *options: str) -> str:
    """One bench to its good end; what it printed."""
    done = bench(name, *options)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


@pytest.mark.alone
def test_a_short_run_of_the_ledgers_cost() -> None:
    printed = run_bench("ledger.py", "--starts", "1", "--rounds", "1", "--seconds", "0.1", "--axes", "rr-64", "cps")
    found = re.findall(r"^(\S+) +beside (\S+) +CPU +[+-].* % .* time +[+-].* %", printed, re.MULTILINE)
    assert found == [(axis, name) for axis in ("rr-64", "cps") for name in ("no-records", "no-ledger")]


@pytest.mark.parametrize(
    ("alteration", "counted", "recorded"), [("no-records", 1, 0), ("no-ledger", 0, 0), ("two-descriptors", 1, 1)]
)
def test_what_is_altered_is_gone(daemons: Daemons, alteration: str, counted: int, recorded: int) -> None:
    with Echo() as echo:
        port = free_port()
        daemon = daemons(
            one_endpoint(port, echo.target), {"workers": 1}, program=(str(BENCH / "variants.py"), alteration)
        )
        with dial(port) as client:
            assert echoed(client) == b"ping"
            assert daemon.endpoint("web/in")["accepted"] == counted
            assert len(daemon.ask("GET", "/v1/connections")[1]) == recorded


@pytest.mark.alone
def test_a_short_run_of_survival() -> None:
    printed = run_bench("survival.py", "--flows", "1", "20", "--kills", "2", "--upgrades", "1")
    rows = re.findall(r"^kill +(\d+) +(\d+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
    assert [row[:2] for row in rows] == [("1", "2"), ("20", "2")]
    for _, _, pause_ms, most_ms, adoption_ms, longest_ms in rows:
        # Which of the two is longer is not said: the flow that talks is served before the last of an adoption is done.
        assert 0 < float(adoption_ms) <= float(longest_ms)
        assert 0 < float(pause_ms) <= float(most_ms)
    assert re.search(r"^upgrade ", printed, re.MULTILINE)


@pytest.mark.alone
@pytest.mark.parametrize("shape", ["forward", "edge", pytest.param("etcd", marks=pytest.mark.real("etcd"))])
def test_a_short_run_of_an_idle_relay(shape: str, tmp_path: Path) -> None:
    file = tmp_path / "idle.json"
    printed = run_bench("idle.py", "--shape", shape, "--seconds", "0.5", "--json", str(file))
    rows = re.findall(r"^(\S+) +([\d.]+) +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
    roles = ["keeper", "control", "holder-0", "holder-1", "worker-0", "worker-1"]
    assert [row[0] for row in rows] == [*roles, "whole"]
    assert [each["role"] for each in json.loads(file.read_text())] == roles
    pss_mib = [float(row[1]) for row in rows]
    assert sum(pss_mib[:-1]) == pytest.approx(pss_mib[-1], abs=0.5)
    assert all(float(row[4]) == 0 for row in rows if row[0].startswith("holder")), "a holder waits"
    assert re.search(r"^scraped +[\d.]+$", printed, re.MULTILINE)


@pytest.mark.alone
def test_what_an_idle_connection_costs() -> None:
    printed = run_bench("idle.py", "--connections", "1000")
    found = re.search(r"^(\d+) bytes for each of 1000 idle connections$", printed, re.MULTILINE)
    assert found is not None
    assert 100 < int(found[1]) < 1400, "docs/why/engine.md says 1 KiB; the set of all connections grows in steps"


def test_what_a_library_costs() -> None:
    printed = run_bench("idle.py", "--libraries", "yaml", "no_such_module")
    assert re.search(r"^yaml +[\d.]+ +[\d.]+ +\d+$", printed, re.MULTILINE)
    assert re.search(r"^no_such_module +not installed$", printed, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.real("etcd")
def test_a_short_run_of_a_fleet(tmp_path: Path) -> None:
    file = tmp_path / "fleet.json"
    size = ("--instances", "20", "--roles", "4", "--processes", "2", "--ttl", "5")
    printed = run_bench("fleet.py", *size, "--steady", "0.5", "--down", "0.2", "--json", str(file))
    assert "nobody was missing" in printed
    phases = {phase["name"]: phase for phase in json.loads(file.read_text())}
    assert list(phases) == ["join storm", "steady", "one joins", "leave", "etcd restart"]
    assert [len(phase["converged_s"]) for phase in phases.values()] == [20, 20, 21, 19, 19]
    assert phases["join storm"]["events"] > 0
    assert phases["join storm"]["relay"]["rosters"] > 0
    assert phases["etcd restart"]["notes"]["least"] == 20, "the instances, and the whole relay among them"


@pytest.mark.slow
@pytest.mark.real("haproxy", "nginx", "ip")
@pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root")
def test_a_short_run_of_what_is_lost_behind_an_edge(tmp_path: Path) -> None:
    file = tmp_path / "behind.json"
    size = ("--requests", "300", "--rate", "100", "--events", "kill", "worker")
    printed = run_bench("behind.py", *size, "--json", str(file))
    assert re.search(r"^\| nginx is killed .* \| .* ms \| .* \| .* ms \|$", printed, re.MULTILINE), printed
    events = json.loads(file.read_text())["events"]
    assert {name: list(found) for name, found in events.items()} == {"kill": ["relay", "haproxy"], "worker": ["relay"]}
    for found in events.values():
        assert [(result["trouble"], result["requests"]) for result in found.values()] == [("", 300)] * len(found)
        assert found["relay"]["failed"] == found["relay"]["in_flight"]
        assert found["relay"]["twice"] == []
