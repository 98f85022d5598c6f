"""Which machine, and which daemon on it."""

import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from relay.errors import IdentityError
from relay.fleet.machine_id import Daemon, machine_hash

HERE = Daemon.of(os.getpid(), "10.0.0.4")


def test_the_machine_id_is_never_told(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4\n")
    shop, other = machine_hash(str(file), "shop"), machine_hash(str(file), "other")
    assert shop != other  # nor that two services have the same machine
    assert len(shop) == 32
    assert "3d1219c7" not in shop + other
    file.write_text("3d1219c7c4c5404aaa1f6d2a48adfda4")
    assert machine_hash(str(file), "shop") == shop
    file.write_text("3d1219c7c4c5404aaa1f6d2a48adfda5\n")
    assert machine_hash(str(file), "shop") != shop


@pytest.mark.parametrize("content", ["", "\n", "uninitialized\n", None])
def test_no_machine_id(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "machine-id"
    if content is not None:
        file.write_text(content)
    with pytest.raises(IdentityError) as caught:
        machine_hash(str(file), "shop")
    why = f"{file}: no such file" if content is None else f"{file} has no machine id"
    assert str(caught.value) == (
        f"cannot tell this machine from others: {why}; run `rm -f /etc/machine-id /var/lib/dbus/machine-id && "
        "systemd-machine-id-setup` as root, or write `machine_id` with another file into instance.yaml"
    )


def test_a_machine_id_that_is_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "machine-id")
    with pytest.raises(IdentityError, match=r"machine-id: is a pipe, not a file; run"):
        machine_hash(str(tmp_path / "machine-id"), "shop")


@pytest.mark.parametrize("content", ["0" * 32, "00000000-0000-0000-0000-000000000000\n"])
def test_a_machine_id_of_zeros(tmp_path: Path, content: str) -> None:
    file = tmp_path / "machine-id"
    file.write_text(content)
    with pytest.raises(IdentityError) as caught:
        machine_hash(str(file), "shop")
    assert f"{file} has a machine id of zeros, which any machine may have; run `rm -f " in str(caught.value)
    assert machine_hash(str(file), "shop", known=True), "whoever has a number by it keeps it"


@pytest.mark.parametrize(
    "content",
    ["3D1219C7C4C5404AAA1F6D2A48ADFDA4", "3d1219c7-c4c5-404a-aa1f-6d2a48adfda4\n", "0" * 31 + "1", "serial 7"],
)
def test_other_ways_to_write_a_machine_id(tmp_path: Path, content: str) -> None:
    file = tmp_path / "machine-id"
    file.write_text(content)
    assert machine_hash(str(file), "shop") == machine_hash(str(file), "shop", known=True)


def test_an_empty_one_is_none_for_whoever_has_a_number_either(tmp_path: Path) -> None:
    file = tmp_path / "machine-id"
    file.write_text("\n")
    with pytest.raises(IdentityError, match="has no machine id"):
        machine_hash(str(file), "shop", known=True)


def test_a_daemon_stays_the_same() -> None:
    assert Daemon.of(os.getpid(), "10.0.0.4") == HERE
    assert Daemon.of(os.getppid(), "10.0.0.4") != HERE
    assert not HERE.sees_dead(str(HERE))
    with pytest.raises(OSError, match="No such file"):
        Daemon.of(2**22 + 1, "10.0.0.4")  # above the largest pid there can be (proc_sys_kernel(5), pid_max)


def test_a_daemon_that_is_dead() -> None:
    with subprocess.Popen(["sleep", "600"]) as child:
        try:
            other = Daemon.of(child.pid, "10.0.0.4")
            assert not HERE.sees_dead(str(other))
            assert HERE.runs_here(str(other)) == child.pid
        finally:
            child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # a zombie is nobody
        assert HERE.sees_dead(str(other))
        assert not HERE.runs_here(str(other))
        with pytest.raises(ProcessLookupError):
            Daemon.of(child.pid, "10.0.0.4")
    assert HERE.sees_dead(str(other))
    assert HERE.sees_dead(str(replace(HERE, started_ticks=HERE.started_ticks + 1)))  # its pid is another's now


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """As under a unit with ProcSubset=pid."""
    read_text = Path.read_text

    def read(path: Path, *arguments: Any) -> str:
        if path.name == "boot_id":
            raise FileNotFoundError(path)
        return read_text(path, *arguments)

    monkeypatch.setattr(Path, "read_text", read)
    monkeypatch.delenv("RELAY_BOOT_ID", raising=False)


@pytest.mark.usefixtures("hidden")
def test_the_boot_by_the_units_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Written as the kernel writes it: a relay that reads the file takes it for the same boot."""
    monkeypatch.setenv("RELAY_BOOT_ID", HERE.boot.replace("-", ""))
    assert Daemon.of(os.getpid(), "10.0.0.9") == HERE
    gone = replace(HERE, pid=2**22 + 1)
    assert Daemon.of(os.getpid(), "10.0.0.9").sees_dead(str(gone))


def test_the_kernels_own_word_comes_before_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RELAY_BOOT_ID", "3d1219c7c4c5404aaa1f6d2a48adfda4")
    assert Daemon.of(os.getpid(), "10.0.0.4") == HERE


@pytest.mark.usefixtures("hidden")
@pytest.mark.parametrize("text", [None, "", "%b", "3d1219c7"])
def test_where_the_boot_cannot_be_told_an_address_tells_clones_apart(
    monkeypatch: pytest.MonkeyPatch, text: str | None
) -> None:
    if text is not None:
        monkeypatch.setenv("RELAY_BOOT_ID", text)
    here, clone = Daemon.of(os.getpid(), "2001:db8::4"), Daemon.of(os.getpid(), "2001:db8::5")
    assert str(here) == str(Daemon.of(os.getpid(), "2001:db8::4")) != str(clone)
    assert not here.sees_dead(str(replace(here, pid=2**22 + 1))), "it may be a clone's"


def test_what_cannot_be_seen_from_here_is_not_dead() -> None:
    gone = replace(HERE, pid=2**22 + 1)
    assert HERE.sees_dead(str(gone))
    assert not HERE.sees_dead(str(replace(gone, boot="another")))
    assert not HERE.runs_here(str(replace(HERE, boot="another")))
    assert not HERE.sees_dead(str(replace(gone, pid_namespace=1)))


@pytest.mark.parametrize(
    "rest", ["", ":", ":::", ":1:2", ":x:y:z", ":-1:1:1", f":{HERE.pid_namespace}:0:1", ":1:2:3:4"]
)
def test_garbage_is_not_dead(rest: str) -> None:
    assert not HERE.sees_dead(HERE.boot + rest)
