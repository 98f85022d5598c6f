"""What the service manager is told: sd_notify(3), heard on a socket as systemd hears it."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import pytest
import yaml

from relay.processes.child import CRASHES_SAID
from tests.conftest import Daemons
from tests.e2e.peers import endpoint, next_worker, running, shut, typed
from tests.harness import HANG_S, Daemon, Echo, dial, echoed, eventually, one_endpoint, service, unwatched
from tests.ports import free_port

WATCHDOG_S = 0.6


class Manager:
    """The service manager's socket. `address` is what NOTIFY_SOCKET says."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def next(self, within_s: float = HANG_S) -> dict[str, str]:
        """The next message's assignments. Raises TimeoutError."""
        self._socket.settimeout(within_s)
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().split("\n"))

    def until(self, key: str, *others: str) -> dict[str, str]:
        """The next message that assigns `key`. READY may be said more than once: systemd asks for the first alone.

        So may `others`.
        """
        while key not in (message := self.next()):
            assert message.keys() <= {"READY", "STATUS", *others}, message
        return message

    def forget(self) -> None:
        """What has come so far is no matter."""
        self._socket.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while self._socket.recv(4096):
                pass

    def hear(self, seconds: float) -> int:
        """How many messages come in the next `seconds`."""
        count, deadline_s = 0, time.monotonic() + seconds
        while (left_s := deadline_s - time.monotonic()) > 0:
            try:
                self.next(left_s)
            except TimeoutError:
                break
            count += 1
        return count


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(str(tmp_path / "manager")) as made:
        yield made


def start(
    daemons: Daemons,
    manager: Manager,
    target: str = "127.0.0.1:9",
    *,
    keys: dict[str, Any] | None = None,
    **environment: str,
) -> tuple[Daemon, int]:
    """A daemon that `manager` started, and its port. `keys` are the endpoint's."""
    port = free_port()
    variables = {"NOTIFY_SOCKET": manager.address, **environment}
    declared = one_endpoint(port, target, **(keys or {}))
    daemon = daemons.make(declared, {"drain": "2m"}, environment=variables, program=unwatched())
    return daemon.start(wait=False), port


def test_ready_comes_when_the_port_is_open(daemons: Daemons, manager: Manager) -> None:
    with Echo() as echo:
        _, port = start(daemons, manager, echo.target)
        assert manager.next() == {"READY": "1", "STATUS": "web_IN_0: 1 endpoints open, generation 1"}
        with dial(port) as client:
            assert echoed(client) == b"ping"


def test_a_manager_that_is_gone_stops_nobody(daemons: Daemons, tmp_path: Path) -> None:
    port = free_port()
    daemon = daemons.make(
        one_endpoint(port, "127.0.0.1:9"), environment={"NOTIFY_SOCKET": str(tmp_path / "nobody")}
    ).start(wait=False)
    assert running(daemon)["generation"] == 1
    assert daemon.relay("reload").returncode == 0


@pytest.mark.parametrize("good", [True, False], ids=["good", "bad"])
def test_a_reload_is_announced_and_ends(daemons: Daemons, manager: Manager, good: bool) -> None:
    daemon, _ = start(daemons, manager)
    manager.until("READY")
    if not good:
        daemon.service_file.write_text("version: 1\n")
    before_usec = time.monotonic_ns() // 1000
    os.kill(daemon.pid, signal.SIGHUP)
    reloading, ready = manager.until("RELOADING"), manager.next()
    assert reloading.keys() == {"RELOADING", "MONOTONIC_USEC"}
    assert reloading["RELOADING"] == "1"
    assert before_usec <= int(reloading["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    assert ready["READY"] == "1"
    assert ("generation 2" in ready["STATUS"]) is good
    assert ("failed" in ready["STATUS"]) is not good


def test_a_stop_that_comes_in_the_midst_of_a_reload_leaves_no_new_port(
    daemons: Daemons, manager: Manager, echo: Echo
) -> None:
    daemon, port = start(daemons, manager, echo.target)
    manager.until("READY")
    added = free_port()
    rules = [{"deny": f"10.{n // 256}.{n % 256}.0/24"} for n in range(5000)]  # reading them takes half a second
    both = {"in": endpoint(port, echo.target), "new": endpoint(added, echo.target, access=rules)}
    with dial(port) as client:
        assert echoed(client) == b"ping"
        daemon.service_file.write_text(yaml.safe_dump(service(both)))
        os.kill(daemon.pid, signal.SIGHUP)
        manager.until("RELOADING")
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: [*daemon.events("reload failed"), *daemon.events("reloaded")], "the reload ends")
        assert daemon.status()["draining"]
        assert echoed(client) == b"ping"
        shut(port, added)
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 0
    assert "Traceback" not in daemon.log_text()


def test_stopping_is_announced_at_once(daemons: Daemons) -> None:
    """To a manager that has an abstract socket, as systemd may have."""
    with Echo() as echo, Manager(f"@relay-test-{os.getpid()}") as manager:
        daemon, port = start(daemons, manager, echo.target)
        manager.until("READY")
        with dial(port) as client:
            assert echoed(client) == b"ping"
            os.kill(daemon.pid, signal.SIGTERM)
            assert manager.until("STOPPING") == {"STOPPING": "1", "STATUS": "draining"}
            os.kill(daemon.pid, signal.SIGTERM)
            assert daemon.process is not None
            assert daemon.process.wait(HANG_S) == 0


def heard(manager: Manager, words: str) -> str:
    """The next status that has these words in it."""
    while words not in (text := manager.next().get("STATUS", "")):
        pass
    return text


def crash(pid: int) -> None:
    """End a process as a bug would, and leave no core file."""
    os.kill(pid, signal.SIGALRM)


def has(daemon: Daemon, process: str, crashes: int) -> bool:
    """Whether the worker, or control, has crashed so often in a row."""
    status = running(daemon)
    found = status["control"] if process == "control" else status["workers"][0]
    return bool(found["crashes_in_a_row"] == crashes)


def shown(daemon: Daemon, *options: str) -> "subprocess.CompletedProcess[str]":
    return typed("status", "--settings", str(daemon.settings_file), *options)


def test_a_crash_loop_of_a_worker_is_a_state(daemons: Daemons, manager: Manager) -> None:
    daemon, _ = start(daemons, manager)
    manager.until("READY")
    worker = daemon.worker_pid()
    for count in range(1, CRASHES_SAID + 1):
        assert daemon.status()["troubles"] == []
        crash(worker)
        eventually(partial(has, daemon, "worker", count), "it is counted")
        worker = next_worker(daemon, worker)
    said = f"worker-0 ends at its start, {CRASHES_SAID} times in a row, and is started again ever later"
    assert said in heard(manager, "generation 1; worker-0")
    told = shown(daemon)
    assert (told.returncode, f"NOT WELL: {said}" in told.stdout) == (1, True)
    assert told.stderr.startswith(f"relay: not well: {said}")
    assert shown(daemon, "--json").returncode == 1
    # It has lived for ten seconds: nobody crashes at his start.
    assert heard(manager, "generation 1").endswith("generation 1")
    status = daemon.status()
    assert (status["troubles"], status["workers"][0]["crashes_in_a_row"]) == ([], 0)
    assert shown(daemon).returncode == 0


def test_a_crash_loop_of_control_is_a_state(daemons: Daemons, manager: Manager) -> None:
    """It cannot say so itself: the keeper does, and the next one that lives."""
    daemon, _ = start(daemons, manager)
    manager.until("READY")
    for count in range(CRASHES_SAID):
        crash(running(daemon)["control"]["pid"])
        eventually(partial(has, daemon, "control", count + 1), "it is started again")
    heard(manager, f"control ends at its start, {CRASHES_SAID} times in a row (see the log); forwarding goes on")
    said = f"control ends at its start, {CRASHES_SAID} times in a row, and is started again"
    heard(manager, f"generation 1; {said}")
    assert said in shown(daemon).stderr
    assert heard(manager, "generation 1").endswith("generation 1")
    assert (daemon.status()["troubles"], daemon.status()["control"]["crashes_in_a_row"]) == ([], 0)


@pytest.mark.alone
def test_the_watchdog_is_fed_while_the_worker_works(daemons: Daemons, manager: Manager) -> None:
    # The short idle timeout makes the worker's heart beat often: it looks for idle connections with every beat.
    often = {"timeouts": {"idle": "400ms"}}
    daemon, _ = start(daemons, manager, keys=often, WATCHDOG_USEC=f"{WATCHDOG_S * 1e6:.0f}")
    manager.until("READY", "WATCHDOG")  # a slow start is fed too
    manager.until("WATCHDOG")
    began_s = time.monotonic()
    for _ in range(4):
        assert manager.until("WATCHDOG") == {"WATCHDOG": "1"}
    assert time.monotonic() - began_s < 4 * WATCHDOG_S
    worker = daemon.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    try:
        eventually(lambda: daemon.status()["workers"][0]["heartbeat_age_s"] > WATCHDOG_S, "its heart does not beat")
        manager.forget()
        assert manager.hear(1.1 * WATCHDOG_S) == 0
    finally:
        os.kill(worker, signal.SIGCONT)
    assert manager.next() == {"WATCHDOG": "1"}


def test_a_watchdog_that_is_somebody_elses_is_not_fed(daemons: Daemons, manager: Manager) -> None:
    """sd_watchdog_enabled(3): WATCHDOG_PID says whom it means."""
    start(daemons, manager, WATCHDOG_USEC="100000", WATCHDOG_PID="1")
    manager.until("READY")
    assert manager.hear(0.5) <= 1  # READY again; a watchdog would be ten
