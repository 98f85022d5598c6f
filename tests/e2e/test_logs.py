"""What the daemon writes: one line for each connection, refusals in bounds, and never at the cost of a byte."""

import datetime
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import accept, counted, records, running
from tests.harness import HANG_S, Daemon, Echo, Scrape, denied, dial, echoed, eventually, one_endpoint
from tests.ports import free_port

FIELDS = [
    "time",
    "level",
    "event",
    "endpoint",
    "peer",
    "target",
    "received",
    "sent",
    "duration_s",
    "connect_s",
    "cause",
]


def test_a_connection_is_one_line_with_every_fact(daemons: Daemons, listener: socket.socket) -> None:
    target = f"127.0.0.1:{listener.getsockname()[1]}"
    daemon = daemons(one_endpoint(port := free_port(), target))
    began = datetime.datetime.now(datetime.UTC)
    began_s = time.monotonic()
    with dial(port, source="127.0.0.2") as client, accept(listener) as served:
        peer = f"127.0.0.2:{client.getsockname()[1]}"
        client.sendall(b"x" * 1000)
        served.sendall(b"y" * 70_000)
        client.shutdown(socket.SHUT_WR)
        while served.recv(65536):
            pass
        served.close()
        while client.recv(65536):
            pass
    (record,) = records(daemon, "connection", 1)
    assert list(record) == FIELDS
    at = datetime.datetime.fromisoformat(record["time"])
    assert began - datetime.timedelta(seconds=1) <= at <= datetime.datetime.now(datetime.UTC)
    assert 0 <= record["connect_s"] <= record["duration_s"] <= time.monotonic() - began_s + 0.001
    told = {key: record[key] for key in FIELDS if key not in ("time", "duration_s", "connect_s")}
    assert told == {
        "level": "info",
        "event": "connection",
        "endpoint": "web/in",
        "peer": peer,
        "target": target,
        "received": 1000,
        "sent": 70_000,
        "cause": "client_fin",
    }


def test_every_line_is_json_whatever_the_target_is_called(daemons: Daemons, tmp_path_factory: Any) -> None:
    """A path may hold a quote and letters beyond ASCII: the line is made by hand, and must still be JSON."""
    path = str(tmp_path_factory.mktemp("q") / 'a "quoted" \\ näme.sock')
    with Echo(path) as echo:
        daemon = daemons(one_endpoint(port := free_port(), echo.target))
        with dial(port) as client:
            assert echoed(client) == b"ping"
        (record,) = records(daemon, "connection", 1)
    assert record["target"] == f"unix:{path}"
    assert [json.loads(line)["event"] for line in daemon.log_text().splitlines()][-1] == "connection"


def test_refusals_are_written_in_bounds(daemons: Daemons, echo: Echo) -> None:
    declared = one_endpoint(port := free_port(), echo.target, access=[{"deny": "127.0.0.2"}])
    daemon = daemons(declared, {"workers": 2})
    total, began_s = 600, time.monotonic()
    for _ in range(total):
        assert denied(port, source="127.0.0.2")
    counted(daemon, denied={"access": total})
    took_s = time.monotonic() - began_s

    def accounted() -> int:
        return sum(record.get("left_out", 1) for record in daemon.events("denied"))

    eventually(lambda: accounted() == total, "every refusal is written or counted as left out")
    written = list(daemon.events("denied"))
    assert any(record["left_out"] > 1 for record in written if "left_out" in record)
    # Each second and worker ten, and how many more there were; seconds that have only begun count as well.
    assert len(written) <= 2 * 11 * (int(took_s) + 2)
    first = written[0]
    assert (first["level"], first["endpoint"], first["reason"]) == ("warning", "web/in", "access")
    assert re.fullmatch(r"127\.0\.0\.2:\d+", first["peer"])


def test_text_for_people(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"log": {"format": "text"}})
    with dial(port) as client:
        assert echoed(client) == b"ping"
    line = eventually(lambda: [each for each in daemon.log_text().splitlines() if "connection" in each], "its line")[0]
    shape = (
        r"\d\d:\d\d:\d\d\.\d{3} info +connection endpoint=web/in peer=127\.0\.0\.1:\d+ target=\S+ received=4 sent=4 "
    )
    assert re.match(shape, line), line
    assert line.endswith("cause=client_fin")
    assert "{" not in daemon.log_text()


def test_a_level_leaves_out_what_is_below(daemons: Daemons, echo: Echo) -> None:
    declared = one_endpoint(port := free_port(), echo.target, access=[{"deny": "127.0.0.2"}])
    daemon = daemons(declared, {"log": {"level": "warning"}})
    with dial(port) as client:
        assert echoed(client) == b"ping"
    counted(daemon, closed={"client_fin": 1})
    assert denied(port, source="127.0.0.2")
    records(daemon, "denied", 1)
    assert daemon.log_text().count("\n") == 1


def start_with_stderr(daemon: Daemon, stderr: int, **environment: str) -> None:
    """Start the daemon with a standard error of the test's choice."""
    command = [sys.executable, "-m", "relay", "run", "--service", str(daemon.service_file)]
    daemon.process = subprocess.Popen(
        [*command, "--settings", str(daemon.settings_file), "--id", daemon.instance],
        env={**os.environ, **environment},
        stderr=stderr,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    running(daemon)


@pytest.mark.parametrize("ours", [True, False], ids=["the journal", "not the journal"])
def test_the_journal_gets_priorities(daemons: Daemons, echo: Echo, ours: bool) -> None:
    """systemd.exec(5): JOURNAL_STREAM is inherited by everybody; only if it names our standard error is that the journal."""
    daemon = daemons.make(one_endpoint(port := free_port(), echo.target, access=[{"deny": "127.0.0.2"}]))
    with daemon.log_file.open("ab") as log:
        status = os.fstat(log.fileno())
        name = f"{status.st_dev}:{status.st_ino}" if ours else "1:1"
        start_with_stderr(daemon, log.fileno(), JOURNAL_STREAM=name)
    assert denied(port, source="127.0.0.2")
    line = eventually(lambda: [each for each in daemon.log_text().splitlines() if '"denied"' in each], "its line")[0]
    assert line.startswith("<4>{" if ours else "{"), line
    assert json.loads(line.removeprefix("<4>"))["event"] == "denied"


def test_a_log_that_nobody_reads_stops_nobody(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons.make(
        one_endpoint(port, echo.target), {"metrics": {"listen": f"127.0.0.1:{metrics}"}, "workers": 1}
    )
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    try:
        start_with_stderr(daemon, writing)
        os.close(writing)
        begun_s, connections = time.monotonic(), 0
        with dial(port) as steady:
            while Scrape(metrics).value("relay_log_lines_dropped_total") == 0:
                for _ in range(250):
                    with dial(port) as client:
                        assert echoed(client) == b"ping"
                    connections += 1
                assert echoed(steady) == b"ping"
                assert time.monotonic() - begun_s < HANG_S, f"nothing dropped after {connections} connections"
            dropped = Scrape(metrics).value("relay_log_lines_dropped_total")
            assert 0 < dropped < connections
            assert sum(worker["log_lines_dropped"] for worker in daemon.status()["workers"]) >= dropped
            os.kill(daemon.worker_pid(), 9)
            eventually(lambda: daemon.status()["worker_restarts"], "the worker is started again")
            with dial(port) as client:
                assert echoed(client) == b"ping"
            assert Scrape(metrics).value("relay_log_lines_dropped_total") >= dropped, "a counter went back"
        daemon.stop()
    finally:
        os.close(reading)


def test_a_log_whose_reader_is_gone_stops_nobody(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons.make(one_endpoint(port := free_port(), echo.target))
    reading, writing = os.pipe()
    start_with_stderr(daemon, writing)
    os.close(writing)
    os.close(reading)
    for _ in range(5):
        with dial(port) as client:
            assert echoed(client) == b"ping"
    counted(daemon, accepted=5, active=0)
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    assert daemon.stop() == 0
