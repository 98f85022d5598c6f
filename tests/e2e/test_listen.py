"""Where the daemon listens: on exactly the declared addresses; and what it says when it cannot start."""

import ctypes
import errno
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import endpoint, pids, running
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint, service
from tests.ports import free_port

PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE = 24, 10  # prctl(2), capabilities(7)
UNPRIVILEGED_FROM = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")


def listening(kind: str) -> dict[str, set[int]]:
    """Every address that somebody listens on (`t`: TCP, `u`: bound UDP), with the pids that hold it, as ss(8) says."""
    program = shutil.which("ss", path="/usr/bin:/bin:/usr/sbin:/sbin")
    assert program is not None
    said = subprocess.run([program, f"-l{kind}npH"], capture_output=True, text=True, check=True, timeout=HANG_S).stdout
    found: dict[str, set[int]] = {}
    for line in said.splitlines():
        fields = line.split()
        pids = {int(part.split(",")[0]) for part in line.split("pid=")[1:]}
        found.setdefault(fields[3], set()).update(pids)
    return found


def ours_now(daemon: Daemon) -> set[str]:
    """The TCP addresses that the daemon listens on, all of its processes together."""
    return {address for address, holders in listening("t").items() if holders & pids(daemon)}


def fails(daemon: Daemon) -> str:
    """Start it; what it says on its way out, with status 1 and no traceback."""
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 1, daemon.log_text()
    text = daemon.log_text()
    assert "Traceback" not in text
    return text


@pytest.mark.real("ss")
def test_what_is_declared_listens_and_nothing_else(daemons: Daemons, echo: Echo) -> None:
    ports = [free_port("127.0.0.7") for _ in range(3)]
    metrics, moved = free_port(), free_port("127.0.0.7")
    before = listening("t")
    declared = {f"e{n}": endpoint(port, echo.target) for n, port in enumerate(ports)}
    daemon = daemons(service(declared, host="127.0.0.7"), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    after = listening("t")
    expected = {*(f"127.0.0.7:{port}" for port in ports), f"127.0.0.1:{metrics}"}
    assert ours_now(daemon) == expected
    assert expected <= after.keys() - before.keys()
    assert {address for address, holders in listening("u").items() if holders & pids(daemon)} == set()

    declared["e0"]["public_port"] = moved
    del declared["e1"]
    daemon.write_service(service(declared, host="127.0.0.7"))
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    wanted = {f"127.0.0.7:{moved}", f"127.0.0.7:{ports[2]}", f"127.0.0.1:{metrics}"}
    eventually(lambda: ours_now(daemon) == wanted, "a reload opens and closes the same way")
    daemon.stop()
    assert listening("t").keys() & wanted == set()


@pytest.mark.real("ss")
def test_a_role_without_endpoints_or_metrics_opens_nothing(daemons: Daemons) -> None:
    daemon = daemons(service({}))
    assert ours_now(daemon) == set()
    assert daemon.status()["endpoints"] == []


def test_the_wildcard_only_when_the_settings_say_so(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    settings: dict[str, Any] = {"address": "0.0.0.0"}
    said = fails(daemons.make(one_endpoint(port, echo.target), settings))
    assert "address: `0.0.0.0` listens on every network of this machine" in said
    daemon = daemons(one_endpoint(port, echo.target), {**settings, "unsafe_listen": True})
    assert daemon.endpoint("web/in")["listen"] == f"0.0.0.0:{port}"
    with dial(port, host="127.0.0.8") as client:
        assert echoed(client) == b"ping"


def test_another_local_address_is_not_answered(daemons: Daemons, echo: Echo) -> None:
    daemons(one_endpoint(port := free_port(), echo.target))
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.8", port)) == errno.ECONNREFUSED


def test_ipv6(daemons: Daemons, echo: Echo) -> None:
    port = free_port("::1")
    daemon = daemons(one_endpoint(port, echo.target, host="::1", access=[{"permit": "::1"}]))
    assert daemon.endpoint("web/in")["listen"] == f"[::1]:{port}"
    with dial(port, host="::1") as client:
        assert echoed(client) == b"ping"
        (connection,) = daemon.ask("GET", "/v1/connections")[1]
        assert connection["peer"] == f"[::1]:{client.getsockname()[1]}"
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


# --- what it says when it cannot start --------------------------------------------------------------------------------


def test_a_second_daemon_does_not_disturb_the_first(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    settings = {"metrics": {"listen": f"127.0.0.1:{metrics}"}}
    first = daemons(one_endpoint(port, echo.target), settings)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        same_port = daemons.make(one_endpoint(port, echo.target))
        said = fails(same_port)
        assert f"cannot listen on 127.0.0.1:{port} for web/in: the address is in use" in said
        assert "`port`" in said

        same_admin = daemons.make(
            one_endpoint(free_port(), echo.target), {"admin": {"socket": str(first.admin_socket)}}
        )
        assert f"another relay serves {first.admin_socket}" in fails(same_admin)

        same_metrics = daemons.make(one_endpoint(free_port(), echo.target), settings)
        said = fails(same_metrics)
        assert f"cannot serve metrics on 127.0.0.1:{metrics}" in said
        assert "metrics.listen" in said

        assert echoed(client) == b"ping"
        assert first.endpoint("web/in")["active"] == 1
        assert first.relay("status").returncode == 0
        assert Scrape(metrics).value("relay_connections_active") == 1


def test_an_admin_socket_that_nobody_serves_is_replaced(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons.make(one_endpoint(free_port(), echo.target))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as left_behind:
        left_behind.bind(str(daemon.admin_socket))
    daemon.start()
    assert daemon.status()["generation"] == 1
    assert daemon.admin_socket.stat().st_mode & 0o777 == 0o660


def test_an_admin_path_that_is_no_socket_is_left_alone(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons.make(one_endpoint(free_port(), echo.target))
    daemon.admin_socket.write_text("something of value")
    said = fails(daemon)
    assert f"cannot serve {daemon.admin_socket}" in said
    assert "not a socket" in said, "in use by another program it is not"
    assert daemon.admin_socket.read_text() == "something of value"


def test_an_admin_socket_without_a_directory(daemons: Daemons, tmp_path: Path) -> None:
    path = tmp_path / "not-made" / "admin.sock"
    said = fails(daemons.make(one_endpoint(free_port(), "127.0.0.1:9"), {"admin": {"socket": str(path)}}))
    assert f"cannot serve {path}: no such file" in said
    assert "create its directory" in said


def drop_capability() -> None:
    """Run without the right to ports below 1024, as an ordinary user does."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_NET_BIND_SERVICE, 0, 0, 0)


def test_a_privileged_port(daemons: Daemons) -> None:
    port = 81
    assert int(UNPRIVILEGED_FROM.read_text()) > port, "this machine lets everybody have every port"
    said = fails(daemons.make(one_endpoint(port, "127.0.0.1:9"), before_exec=drop_capability))
    assert f"cannot listen on 127.0.0.1:{port} for web/in: no permission" in said
    assert "CAP_NET_BIND_SERVICE" in said


def test_an_address_that_is_not_local(daemons: Daemons) -> None:
    said = fails(daemons.make(one_endpoint(port := free_port(), "127.0.0.1:9", host="203.0.113.250")))
    assert f"cannot listen on 203.0.113.250:{port} for web/in: the address is not on any interface" in said
    assert "`instances`" in said


def test_no_service_file(daemons: Daemons) -> None:
    daemon = daemons.make(one_endpoint(free_port(), "127.0.0.1:9"))
    daemon.service_file.unlink()
    said = fails(daemon)
    assert f"{daemon.service_file}:0:0: cannot be read: no such file" in said


def test_a_wrong_service_file_shows_every_error(daemons: Daemons) -> None:
    daemon = daemons.make(one_endpoint(free_port(), "127.0.0.1:9"))
    daemon.write_service(service({"in": {"type": "inptu", "public_port": 0, "target": "nowhere"}}))
    lines = fails(daemon).splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{daemon.service_file}:") for line in lines)


def test_a_warning_of_the_file_is_written_at_the_start(daemons: Daemons, echo: Echo) -> None:
    declared = one_endpoint(free_port(), echo.target, access=[{"permit": "127.0.0.1/8"}])
    daemon = daemons(declared)
    eventually(lambda: "host bits" in daemon.log_text(), "the log has the warning")


# --- where it is told what to do --------------------------------------------------------------------------------------


def run_plain(daemon: Daemon, **environment: str) -> subprocess.Popen[bytes]:
    """`relay run` without one option, told by its environment."""
    with daemon.log_file.open("ab") as log:
        daemon.process = subprocess.Popen(
            [sys.executable, "-m", "relay", "run"],
            env={**os.environ, **environment},
            stderr=log,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    return daemon.process


def two_instances(port: int, *addresses: str) -> dict[str, Any]:
    declared = one_endpoint(port, "127.0.0.1:9")
    declared["roles"]["web"]["instances"] = list(addresses)
    return declared


def test_the_environment_says_all(daemons: Daemons) -> None:
    daemon = daemons.make(two_instances(port := free_port(), "127.0.0.1", "127.0.0.6"))
    run_plain(
        daemon,
        RELAY_SERVICE=str(daemon.service_file),
        RELAY_SETTINGS=str(daemon.settings_file),
        RELAY_INSTANCE="web_IN_1",
    )
    assert running(daemon)["instance"] == "web_IN_1"
    assert daemon.endpoint("web/in")["listen"] == f"127.0.0.6:{port}"


def test_the_option_comes_before_the_environment(daemons: Daemons) -> None:
    daemon = daemons(
        two_instances(free_port(), "127.0.0.1", "127.0.0.6"),
        {"id": "web_IN_1"},
        instance="web_IN_0",
        environment={"RELAY_INSTANCE": "web_IN_1", "RELAY_SERVICE": "/nowhere", "RELAY_SETTINGS": "/nowhere"},
    )
    assert daemon.status()["instance"] == "web_IN_0"


def test_the_address_says_who_it_is(daemons: Daemons) -> None:
    daemon = daemons.make(two_instances(free_port(), "203.0.113.250", "127.0.0.6"))
    run_plain(daemon, RELAY_SERVICE=str(daemon.service_file), RELAY_SETTINGS=str(daemon.settings_file))
    assert running(daemon)["instance"] == "web_IN_1"
