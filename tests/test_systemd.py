"""sd_notify against a service manager's own socket."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay import systemd


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """A service manager that listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def test_lines_go_in_one_datagram(manager: socket.socket) -> None:
    systemd.notify("READY=1", "STATUS=web_IN_0: 2 endpoints open")
    assert manager.recv(4096) == b"READY=1\nSTATUS=web_IN_0: 2 endpoints open"


def test_an_abstract_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"relay-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.notify("STOPPING=1")
        assert listening.recv(4096) == b"STOPPING=1"


@pytest.mark.parametrize("path", ["", "/nonexistent/notify", "relative", "vsock:2:1234", "/" + "x" * 200])
def test_nobody_listens_and_nothing_happens(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", path)
    systemd.notify("READY=1")


def test_a_manager_that_does_not_read_holds_up_nothing(manager: socket.socket) -> None:
    for _ in range(5000):
        systemd.notify("STATUS=" + "x" * 1000)
    assert manager.recv(4096).startswith(b"STATUS=")


def test_reloading_says_when(manager: socket.socket) -> None:
    systemd.reloading()
    first, second = manager.recv(4096).split(b"\n")
    assert first == b"RELOADING=1"
    name, _, stamp = second.partition(b"=")
    assert name == b"MONOTONIC_USEC"
    assert int(stamp) > 0


@pytest.mark.parametrize(
    ("usec", "pid", "expected_s"),
    [
        ("20000000", "", 20.0),
        ("500000", "own", 0.5),
        ("500000", "1", None),
        ("0", "", None),
        ("", "", None),
        ("-5", "", None),
        ("soon", "", None),
    ],
)
def test_watchdog(usec: str, pid: str, expected_s: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", usec)
    monkeypatch.delenv("WATCHDOG_PID", raising=False)
    if pid:
        monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()) if pid == "own" else pid)
    assert systemd.watchdog_s() == expected_s
