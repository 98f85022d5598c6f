"""The bench's generator and servers against each other, and one short run of the whole."""

import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.harness import HANG_S, Echo, dial, echoed, one_endpoint
from tests.ports import free_port, free_ports

BENCH = Path(__file__).resolve().parent.parent / "bench"
SECONDS = 0.3
BENCH_PORTS = 100  # an axis takes 3 for each forwarder, and leaves some of them in TIME_WAIT
BENCH_HANG_S = 200.0  # for a whole bench, each of whose parts has a bound of its own

pytestmark = pytest.mark.real("cc")


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The compiled load program; a warning of the compiler is an error."""
    program = tmp_path_factory.mktemp("bench") / "load"
    flags = ["-O2", "-Wall", "-Wextra", "-Werror"]
    subprocess.run(["cc", *flags, "-o", str(program), str(BENCH / "load.c")], check=True)
    return str(program)


@contextmanager
def serving(load: str, kind: str) -> Iterator[str]:
    """A server of this kind on a free port; yields the port."""
    with subprocess.Popen([load, kind, "0"], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            (port,) = json.loads(server.stdout.readline())["ports"]
            assert 0 < port < 65536
            yield str(port)
            assert server.poll() is None
        finally:
            server.kill()


def run_client(load: str, mode: str, port: str, count: int, *extra: str) -> dict[str, float]:
    command = [load, mode, "127.0.0.1", port, str(count), str(SECONDS), *extra]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_S)
    figures: dict[str, float] = json.loads(done.stdout)
    assert SECONDS <= figures["seconds"] < SECONDS + 10
    assert figures["errors"] == 0
    return figures


def assert_plausible(figures: dict[str, float]) -> None:
    assert figures.keys() == {"ops", "seconds", "errors", "p50_us", "p99_us", "max_us"}
    assert figures["ops"] > 10
    assert 0 < figures["p50_us"] <= figures["p99_us"] <= figures["max_us"] < 1e6 * figures["seconds"]


@pytest.mark.alone
@pytest.mark.parametrize("size", [1, 64, 16384])
@pytest.mark.parametrize("connections", [1, 64])
def test_round_trips(load: str, connections: int, size: int) -> None:
    with serving(load, "echo") as port:
        figures = run_client(load, "rr", port, connections, str(size))
    assert_plausible(figures)
    # Closed loop (Little's law): each connection has one message under way, so the mean latency cannot pass the longest.
    assert figures["max_us"] * 1.02 >= connections * figures["seconds"] * 1e6 / (figures["ops"] + connections)


@pytest.mark.alone
def test_connections_per_second(load: str) -> None:
    with serving(load, "echo") as port:
        assert_plausible(run_client(load, "cps", port, 16))


@pytest.mark.parametrize("rest", [b"", b"x"])
def test_an_edge_server_takes_the_header_and_no_more(load: str, rest: bytes) -> None:
    header = b"\r\n\r\n\x00\r\nQUIT\n\x21\x11\x00\x0c" + bytes(12)
    with serving(load, "edge-echo") as port:
        with socket.create_connection(("127.0.0.1", int(port)), HANG_S) as client:
            client.sendall(header + rest)
            client.sendall(header)  # only the first one is a header
            client.shutdown(socket.SHUT_WR)
            with client.makefile("rb") as stream:
                assert stream.read() == rest + header
        assert_plausible(run_client(load, "cps", port, 16))  # and without one it echoes


@pytest.mark.alone
def test_a_connection_closed_at_once_counts_as_denied(load: str) -> None:
    program = (
        "import socket\n"
        "s = socket.create_server(('127.0.0.1', 0), backlog=64)\n"
        "print(s.getsockname()[1], flush=True)\n"
        "while True: s.accept()[0].close()\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as closer:
        try:
            assert closer.stdout is not None
            assert_plausible(run_client(load, "denied", closer.stdout.readline().strip(), 16))
        finally:
            closer.kill()


@pytest.mark.alone
@pytest.mark.parametrize(("kind", "direction"), [("source", "down"), ("sink", "up")])
@pytest.mark.parametrize("streams", [1, 4])
def test_bulk(load: str, kind: str, direction: str, streams: int) -> None:
    with serving(load, kind) as port:
        figures = run_client(load, "bulk", port, streams, direction)
    assert figures.keys() == {"bytes", "seconds", "errors"}
    assert figures["bytes"] > 1 << 20


@pytest.mark.parametrize("mode", ["cps", "denied"])
def test_nobody_listening_is_a_failure_not_a_rate(load: str, mode: str) -> None:
    command = [load, mode, "127.0.0.1", str(free_port()), "4", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 1
    assert "Connection refused" in done.stderr


def test_a_port_that_lets_in_is_not_denied(load: str) -> None:
    with serving(load, "source") as port:
        command = [load, "denied", "127.0.0.1", port, "4", "0.3"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 1
    assert "answered with data" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["echo"],
        ["echo", "x"],
        ["echo", "10.0.0.1:0"],
        ["rr", "10.0.0.1", "80", "1", "1", "64"],
        ["bulk", "127.0.0.1", "80", "1", "1", "x"],
    ],
)
def test_a_wrong_command_line_is_refused(load: str, arguments: list[str]) -> None:
    done = subprocess.run([load, *arguments], capture_output=True, text=True, check=False, timeout=HANG_S)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: load")


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
    options = ("--seconds", "0.1", "--rounds", "2", "--only", "direct", "--axes", "rr-1", "bulk-up")
    done = bench("run.py", *options, "--json", str(file), "--gate")
    assert done.returncode == 1, done.stderr
    assert "gate: NOT passed" in done.stdout
    axes = json.loads(file.read_text())["axes"]
    assert [axis["axis"]["name"] for axis in axes] == ["bulk-up", "rr-1"]
    for axis in axes:
        assert axis["failures"] == {}
        assert len(axis["runs"]["direct"]) == 2
        assert all(run["units"] > 0 for run in axis["runs"]["direct"])


@pytest.mark.alone
@pytest.mark.real("haproxy")
def test_the_edges_lead_to_the_server(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    options = ("--mode", "edge", "--seconds", "0.1", "--rounds", "1", "--axes", "cps", "bulk-down", "denied")
    run_bench("run.py", *options, "--json", str(file))
    axes = json.loads(file.read_text())["axes"]
    assert [axis["axis"]["name"] for axis in axes] == ["bulk-down", "cps"]
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
        assert 0 < float(adoption_ms) <= float(longest_ms) < float(most_ms)
        assert float(pause_ms) <= float(most_ms)
    assert re.search(r"^upgrade ", printed, re.MULTILINE)


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
