"""systemd/relay.service: what systemd says of it, and that its reload checks the files before it touches the daemon."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from relay import daemon
from relay.config.settings import Settings
from relay.processes import holder
from relay.processes.holder import KILL_AFTER_S
from tests.harness import HANG_S

CONTROL = daemon._SPARED_LESS_BY, daemon._SPARED_LESS_TO
WORKER = holder._SPARED_LESS_BY, holder._SPARED_LESS_TO
REPOSITORY = Path(__file__).parents[2]
UNIT = REPOSITORY / "systemd" / "relay.service"
INSTALLED = "/opt/relay/bin/relay"
EXPOSURE_MAX = 2.0


def values(key: str) -> list[str]:
    """Every value that the unit gives to `key`, in its order."""
    return [line.partition("=")[2] for line in UNIT.read_text().splitlines() if line.startswith(f"{key}=")]


def analyze(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, timeout=HANG_S)


@pytest.mark.real("systemd-analyze")
def test_exposure_is_low() -> None:
    # The threshold is in tenths (systemd-analyze(1), --threshold); the text shows what it was.
    report = analyze("security", "--offline=true", "--no-pager", f"--threshold={EXPOSURE_MAX * 10:.0f}", str(UNIT))
    assert "Overall exposure level for relay.service:" in report.stdout, report.stderr
    assert report.returncode == 0, report.stdout


@pytest.mark.real("systemd-analyze")
def test_unit_is_correct_but_for_the_program_that_is_not_installed(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace(INSTALLED, sys.executable))
    verdict = analyze("verify", str(copy))
    ours = [line for line in verdict.stderr.splitlines() if "relay" in line]
    assert (verdict.returncode, ours) == (0, []), verdict.stderr


def test_reload_checks_before_it_tells_the_daemon() -> None:
    check, reload = values("ExecReload")
    assert f"{INSTALLED} check /etc/relay/service.yaml" in check
    assert reload == f"{INSTALLED} reload"


def run_check(directory: Path) -> subprocess.CompletedProcess[str]:
    """The unit's first ExecReload as systemd would run it, with its paths in `directory`."""
    command = values("ExecReload")[0].replace("/etc/relay", str(directory)).replace("$$", "$")
    shell, option, script = command.split(" ", 2)
    assert (shell, option, script[0], script[-1]) == ("/bin/sh", "-c", "'", "'")
    relay = f"{sys.executable} -m relay"
    return subprocess.run(
        [shell, option, script[1:-1].replace(INSTALLED, relay)], capture_output=True, text=True, timeout=HANG_S
    )


def test_reload_refuses_a_bad_file_and_needs_no_settings(tmp_path: Path) -> None:
    service, settings = tmp_path / "service.yaml", tmp_path / "instance.yaml"
    shutil.copy(REPOSITORY / "config" / "service.yaml", service)
    without_settings = run_check(tmp_path)
    assert without_settings.returncode == 0, without_settings.stderr

    settings.write_text("drain: 10s\n")
    with_settings = run_check(tmp_path)
    assert with_settings.returncode == 0, with_settings.stderr

    settings.write_text("drian: 10s\n")
    bad_settings = run_check(tmp_path)
    assert bad_settings.returncode == 1
    assert "drian" in bad_settings.stdout

    settings.unlink()
    service.write_text("version: 1\n")
    bad_service = run_check(tmp_path)
    assert bad_service.returncode == 1
    assert str(service) in bad_service.stdout


def test_a_worker_that_is_killed_for_memory_does_not_end_the_others() -> None:
    """OOMPolicy=stop is the default of systemd; and by the score a worker is to be killed, and then control."""
    assert values("OOMPolicy") == ["continue"]
    (score,) = map(int, values("OOMScoreAdjust"))
    for by, least in (CONTROL, WORKER):
        assert score + by < least, "they are not spared at all"
    assert score < CONTROL[1] < WORKER[1]


def test_systemd_waits_longer_than_the_default_drain() -> None:
    (stop,) = values("TimeoutStopSec")
    assert stop.endswith("s")
    assert float(stop[:-1]) > Settings().drain_s + KILL_AFTER_S
