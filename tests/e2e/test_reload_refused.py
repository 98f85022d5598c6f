"""A reload that cannot be: nothing changes, and everybody is told, on the command line, in log, metrics and status."""

import os
import signal
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import yaml

from relay.cli.main import main
from tests.conftest import Daemons
from tests.e2e.peers import endpoint, records, refused, shut
from tests.harness import Daemon, Echo, Scrape, dial, echoed, eventually, service
from tests.ports import free_port

Break = Callable[[Daemon], None]


def _unknown_key(daemon: Daemon) -> None:
    service_file = daemon.service_file
    service_file.write_text(service_file.read_text().replace("target:", "tagret:"))


def _not_yaml(daemon: Daemon) -> None:
    daemon.service_file.write_text("version: 1\n\tservice: test\n")


def _missing(daemon: Daemon) -> None:
    daemon.service_file.unlink()


def _bad_settings(daemon: Daemon) -> None:
    settings = yaml.safe_load(daemon.settings_file.read_text())
    daemon.settings_file.write_text(yaml.safe_dump({**settings, "drain": "soon"}))


def _missing_settings(daemon: Daemon) -> None:
    daemon.settings_file.rename(daemon.settings_file.with_suffix(".away"))


def _another_role(daemon: Daemon) -> None:
    declared = yaml.safe_load(daemon.service_file.read_text())
    declared["roles"]["store"] = declared["roles"].pop("web")
    daemon.write_service(declared)


BREAKS = [
    pytest.param(_unknown_key, ["service.yaml:", "tagret", "target"], id="unknown key"),
    pytest.param(_not_yaml, ["service.yaml:2:1:", "tab"], id="not YAML"),
    pytest.param(_missing, ["service.yaml", "no such file"], id="missing"),
    pytest.param(_bad_settings, ["instance.yaml:", "drain", "soon"], id="bad settings"),
    pytest.param(_missing_settings, ["instance.yaml", "no such file"], id="missing settings"),
    pytest.param(_another_role, ["web", "store"], id="role gone"),
]


@dataclass(frozen=True)
class Standing:
    """One daemon for all wrong files: none of them may change it."""

    daemon: Daemon
    port: int
    metrics: int
    declared: dict[str, Any]
    settings: str


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standing]:
    made, port, metrics = Daemons(tmp_path_factory.mktemp("standing")), free_port(), free_port()
    try:
        with Echo() as echo:
            declared = service({"in": endpoint(port, echo.target)})
            daemon = made(declared, {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
            yield Standing(daemon, port, metrics, declared, daemon.settings_file.read_text())
    finally:
        made.end()


@pytest.mark.parametrize(("break_it", "words"), BREAKS)
def test_a_wrong_file_changes_nothing_and_says_so(
    standing: Standing, capsys: pytest.CaptureFixture[str], break_it: Break, words: list[str]
) -> None:
    daemon, admin = standing.daemon, str(standing.daemon.admin_socket)
    before, told_before = daemon.status(), len(list(daemon.events("reload failed")))
    assert Scrape(standing.metrics).value("relay_config_last_reload_successful") == 1
    with dial(standing.port) as client:
        assert echoed(client) == b"ping"
        break_it(daemon)
        try:
            assert main(["reload", "--socket", admin]) == 1
            said = capsys.readouterr()
            assert said.out == ""
            assert [word for word in words if word not in said.err] == [], said.err
            assert Scrape(standing.metrics).value("relay_config_last_reload_successful") == 0
            status = daemon.status()
            assert status["generation"] == before["generation"]
            assert status["reload"] == {
                **before["reload"],
                "last_successful": False,
                "failed": before["reload"]["failed"] + 1,
            }
            assert main(["status", "--socket", admin]) == 0
            assert "last reload FAILED" in capsys.readouterr().out
            told = records(daemon, "reload failed", told_before + 1)[-1]
            assert told["level"] == "error"
            assert [word for word in words if word not in "\n".join(told["problems"])] == []

            os.kill(daemon.pid, signal.SIGHUP)
            assert records(daemon, "reload failed", told_before + 2)[-1]["problems"] == told["problems"]
            assert echoed(client) == b"ping"
            with dial(standing.port) as new:
                assert echoed(new) == b"ping"
        finally:
            daemon.write_service(standing.declared)
            daemon.settings_file.write_text(standing.settings)
            os.kill(daemon.pid, signal.SIGHUP)
        eventually(lambda: daemon.status()["reload"]["last_successful"], "the right one took")
        scrape = Scrape(standing.metrics)
        assert scrape.value("relay_config_last_reload_successful") == 1
        took_at_s = scrape.value("relay_config_last_reload_success_timestamp_seconds")
        assert took_at_s > before["reload"]["last_success_timestamp"]
        assert daemon.status()["generation"] == before["generation"] + 1
        assert echoed(client) == b"ping"


def test_every_error_is_shown_on_a_line_of_its_own_as_relay_check_shows_it(
    daemons: Daemons, echo: Echo, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = daemons(service({"in": endpoint(free_port(), echo.target)}))
    daemon.write_service(service({"in": {"type": "inptu", "public_port": 0, "target": "nowhere"}}))
    assert main(["check", str(daemon.service_file)]) == 1
    checked = capsys.readouterr().out.splitlines()
    assert len(checked) == 3
    assert main(["reload", "--socket", str(daemon.admin_socket)]) == 1
    assert capsys.readouterr().err.splitlines() == checked


def test_a_port_in_use_changes_nothing_even_of_the_rest(daemons: Daemons, echo: Echo) -> None:
    port, free, taken = free_port(), free_port(), free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target)}))
    with socket.create_server(("127.0.0.1", taken)):
        wanted = service({"a": endpoint(free, echo.target), "b": endpoint(taken, echo.target)})
        daemon.write_service(wanted)
        done = daemon.relay("reload")
        assert done.returncode == 1
        assert f"cannot listen on 127.0.0.1:{taken} for web/b: the address is in use" in done.stderr
        assert [each["name"] for each in daemon.status()["endpoints"]] == ["web/in"]
        assert refused(free)
        with dial(port) as client:
            assert echoed(client) == b"ping"
    assert daemon.relay("reload").returncode == 0
    shut(port)
    with dial(free) as client, dial(taken) as other:
        assert (echoed(client), echoed(other)) == (b"ping", b"ping")
