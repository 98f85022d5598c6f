"""Somebody sets the machine's clock while relay runs: what lasts, and how old something is, stays as it was."""

from pathlib import Path
from typing import Final

from tests.conftest import Daemons
from tests.e2e.installed import NEW, Installed, upgraded
from tests.harness import Daemon, Echo, Scrape, eventually, one_endpoint
from tests.ports import free_port

HOUR_S: Final = 3600

# relay whose CLOCK_REALTIME is ahead by as much as the file says.
_STEPPED: Final = """
import time
true_ns = time.time_ns
time.time_ns = lambda: true_ns() + int(open({path!r}).read()) * 10**9
time.time = lambda: time.time_ns() / 1e9
import relay.cli.main
exit(relay.cli.main.main())
"""


def test_a_clock_that_is_set_changes_no_duration(daemons: Daemons, echo: Echo, tmp_path: Path) -> None:
    step, metrics = tmp_path / "step", free_port()
    step.write_text("0")
    settings = {"metrics": {"listen": f"127.0.0.1:{metrics}"}}
    file = one_endpoint(free_port(), echo.target)
    daemon = daemons(file, settings, program=("-c", _STEPPED.format(path=str(step))))
    assert daemon.relay("drain", "--for", "1h").returncode == 0
    stamp_s = Scrape(metrics).value("relay_config_last_reload_success_timestamp_seconds")
    for ahead_s in (2 * HOUR_S, -5 * HOUR_S):
        step.write_text(str(ahead_s))
        assert HOUR_S / 2 < daemon.status()["busy_for_s"] <= HOUR_S
        assert ages_are_small(daemon, metrics)
        assert daemon.ask("POST", "/v1/reload")[0] == 200
        after_s = Scrape(metrics).value("relay_config_last_reload_success_timestamp_seconds")
        assert after_s - stamp_s > ahead_s - HOUR_S, "an instant goes by the clock"
        assert ages_are_small(daemon, metrics)
    assert daemon.relay("drain", "--for", "1s").returncode == 0
    step.write_text(str(-50 * HOUR_S))
    eventually(lambda: not daemon.status()["busy_for_s"], "it is over after a second")
    assert Scrape(metrics).value("relay_busy") == 0


# As a program has it that knows CLOCK_REALTIME alone: it writes the words of that clock, and no others.
BY_WALL: Final = (
    ("ledger/layout.py", "BUSY_UNTIL_MONOTONIC_NS: Final = 29", "BUSY_UNTIL_MONOTONIC_NS: Final = 12"),
    ("ledger/layout.py", "BUSY_TAKEN_NS: Final = 34", "BUSY_TAKEN_NS: Final = 12"),
    ("ledger/layout.py", "STARTED_MONOTONIC_NS: Final = 30", "STARTED_MONOTONIC_NS: Final = 4"),
    ("ledger/layout.py", "RELOAD_OK_AT_MONOTONIC_NS: Final = 33", "RELOAD_OK_AT_MONOTONIC_NS: Final = 6"),
    ("ledger/clocks.py", "monotonic_ns() + for_ns", "time_ns() + for_ns"),
    ("ledger/clocks.py", "put_instant(words, word, time.monotonic_ns())", "words[word] = time.time_ns()"),
)


def test_a_drain_goes_on_over_an_upgrade_from_a_program_that_goes_by_the_clock(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    for change in BY_WALL:
        installed.change(*change)
    metrics = free_port()
    settings = {"metrics": {"listen": f"127.0.0.1:{metrics}"}}
    daemon = daemons(one_endpoint(free_port(), echo.target), settings, wrapper=installed.wrapper)
    assert daemon.relay("drain", "--for", "1h").returncode == 0
    installed.restore()
    installed.release()
    assert daemon.relay("upgrade").returncode == 0
    assert HOUR_S / 2 < upgraded(daemon, 1, NEW)["busy_for_s"] <= HOUR_S
    assert ages_are_small(daemon, metrics)


def ages_are_small(daemon: Daemon, metrics: int) -> bool:
    age_s, uptime_s = Scrape(metrics).value("relay_roster_age_seconds"), daemon.status()["uptime_s"]
    return 0 <= age_s < HOUR_S / 2 and 0 <= uptime_s < HOUR_S / 2
