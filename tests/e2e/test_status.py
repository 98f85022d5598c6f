"""`relay status`: what it shows, as text and as JSON, and what it says when there is nobody to ask."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest

from relay import __version__
from relay.cli.main import main
from tests.conftest import Daemons
from tests.e2e.peers import counted, endpoint
from tests.harness import HANG_S, Daemon, Echo, denied, dial, echoed, eventually, one_endpoint, service, unwatched
from tests.ports import free_port

Capture = pytest.CaptureFixture[str]


def said(capsys: Capture, daemon: Daemon, *options: str) -> str:
    assert main(["status", "--socket", str(daemon.admin_socket), *options]) == 0
    return capsys.readouterr().out


def test_status_as_json(daemons: Daemons, echo: Echo, capsys: Capture) -> None:
    port, store = free_port(), free_port()
    declared = service(
        {
            "in": endpoint(port, echo.target, access=[{"deny": "127.0.0.2"}]),
            "store": {"type": "internal", "port": store, "target": "localhost:9"},
        }
    )
    daemon = daemons(declared)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        assert denied(port, source="127.0.0.2")
        counted(daemon, denied={"access": 1}, received_bytes=4, sent_bytes=4)
        status = json.loads(said(capsys, daemon, "--json"))
    assert status == daemon.status() | {key: status[key] for key in ("uptime_s", "workers", "endpoints")}
    assert (status["version"], status["service"], status["instance"]) == (__version__, "test", "web_IN_0")
    assert (status["generation"], status["draining"], status["worker_restarts"]) == (1, False, 0)
    assert status["keeper"] == {"pid": daemon.pid}
    assert status["control"]["restarts"] == 0
    assert len({daemon.pid, status["control"]["pid"], status["workers"][0]["pid"]}) == 3
    assert 0 <= status["workers"][0]["heartbeat_age_s"] < status["uptime_s"]
    for each in ("target_since_s", "target_looked_s"):
        assert 0 <= status["endpoints"][0].pop(each) < status["uptime_s"]
    assert status["endpoints"] == [
        {
            "name": "web/in",
            "type": "input",
            "protocol": "tcp",
            "listen": f"127.0.0.1:{port}",
            "targets": [echo.target],
            "target_set": [],
            "distribution": None,
            "leads_to": "",
            "target_up": True,
            "target_reason": "",
            "target_looked": "dialled",
            "active": 1,
            "held": 0,
            "hold_for_s": 0.0,
            "accepted": 1,
            "denied": {"access": 1},
            "enforce": "strict",
            "deny": "reset",
            "would_deny": {},
            "closed": {},
            "received_bytes": 4,
            "sent_bytes": 4,
            "connect_failures": 0,
        },
        {
            "name": "web/store",
            "type": "internal",
            "protocol": "tcp",
            "listen": f"127.0.0.1:{store}",
            "targets": ["127.0.0.1:9", "[::1]:9"],
            "target_set": [],
            "distribution": None,
            "leads_to": "",
            "target_up": None,
            "target_reason": "",
            "target_since_s": None,
            "target_looked_s": None,
            "target_looked": None,
            "active": 0,
            "held": 0,
            "hold_for_s": 0.0,
            "accepted": 0,
            "denied": {},
            "enforce": "strict",
            "deny": "reset",
            "would_deny": {},
            "closed": {},
            "received_bytes": 0,
            "sent_bytes": 0,
            "connect_failures": 0,
        },
    ]


def test_status_and_connections_for_people(daemons: Daemons, echo: Echo, capsys: Capture) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target))
    assert said(capsys, daemon, "--connections") == "no open connections\n"
    assert json.loads(said(capsys, daemon, "--connections", "--json")) == []
    with dial(port) as client:
        assert len(echoed(client, b"x" * 2048)) == 2048
        counted(daemon, received_bytes=2048, sent_bytes=2048)
        moved = {"received_bytes": 2048, "sent_bytes": 2048}
        eventually(
            lambda: moved.items() <= daemon.ask("GET", "/v1/connections")[1][0].items(), "the connection's bytes"
        )
        head, generation, pids, blank, titles, row = said(capsys, daemon).splitlines()
        assert head.startswith("web_IN_0 of test: running for ")
        assert generation == "generation 1; last reload took"
        assert f"keeper {daemon.pid}, " in pids
        assert blank == ""
        assert titles.split()[:4] == ["ENDPOINT", "TYPE", "PROTOCOL", "LISTEN"]
        where = ["web/in", "input", "tcp", f"127.0.0.1:{port}", echo.target]
        assert row.split()[:7] == [*where, "up,", "dialled"]
        assert row.split()[8:] == ["ago", "1", "1", "0", "2.0KiB", "2.0KiB"]
        titles, row = said(capsys, daemon, "--connections").splitlines()
        assert titles.split() == ["ENDPOINT", "PEER", "STATE", "AGE", "RECEIVED", "SENT"]
        name, peer, state, _age, *sizes = row.split()
        assert (name, peer, state) == ("web/in", f"127.0.0.1:{client.getsockname()[1]}", "splice")
        assert sizes == ["2.0KiB", "2.0KiB"]


def test_option_or_environment_say_where_the_daemon_is(
    daemons: Daemons, echo: Echo, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemons(one_endpoint(free_port(), echo.target))
    assert main(["status", "--settings", str(daemon.settings_file)]) == 0
    assert capsys.readouterr().out.startswith("web_IN_0 of test")
    monkeypatch.setenv("RELAY_SETTINGS", str(daemon.settings_file))
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("web_IN_0 of test")


@pytest.mark.parametrize("command", ["status", "reload"])
def test_nobody_to_ask(capsys: Capture, tmp_path: Path, command: str) -> None:
    path = str(tmp_path / "admin.sock")
    assert main([command, "--socket", path]) == 1
    assert f"relay: cannot reach {path}: no such file; is relay running?" in capsys.readouterr().err
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(path)
    assert main([command, "--socket", path]) == 1
    assert f"cannot reach {path}: nobody listens there; is relay running?" in capsys.readouterr().err


def test_somebody_else_answers(capsys: Capture, tmp_path: Path) -> None:
    path = str(tmp_path / "other.sock")
    with Echo(path):
        assert main(["status", "--socket", path]) == 1
    assert "does not speak relay's admin API" in capsys.readouterr().err


def test_what_the_admin_api_does_not_do(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(free_port(), echo.target))
    for request, code in (("GET /v1/nothing", 404), ("GET /", 404), ("GET /v1/reload", 405), ("POST /v1/status", 405)):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(HANG_S)
            client.connect(str(daemon.admin_socket))
            client.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            assert client.recv(100).startswith(f"HTTP/1.1 {code} ".encode()), request
    assert daemon.status()["generation"] == 1


def test_the_heart_of_a_worker_that_hangs_is_seen_to_stand_still(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(free_port(), echo.target, timeouts={"idle": "200ms"}), program=unwatched())
    worker = daemon.worker_pid()

    def look() -> tuple[float, float, float]:
        """Its age, and when it was asked for and told."""
        asked_s = time.monotonic()
        age_s = daemon.status()["workers"][0]["heartbeat_age_s"]
        return age_s, asked_s, time.monotonic()

    eventually(lambda: look()[0] < 0.2, "it beats")
    os.kill(worker, signal.SIGSTOP)
    try:
        age_s, asked_s, told_s = eventually(lambda: (seen := look())[0] > 0.5 and seen, "it stands still")
        older_s, asked_again_s, told_again_s = eventually(
            lambda: (seen := look())[0] > age_s + 0.5 and seen, "it grows"
        )
        rounding_s = 0.001
        assert asked_again_s - told_s - rounding_s <= older_s - age_s <= told_again_s - asked_s + rounding_s
    finally:
        os.kill(worker, signal.SIGCONT)
