"""`relay env` and `relay exec`: a program that knows nothing of relay is told who it is, and where it is reached."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from relay.cli.main import main
from tests.harness import HANG_S, Daemon, run_relay
from tests.ports import free_port

DUMP: Final = (
    "import json, os; print(json.dumps({k: v for k, v in os.environ.items()"
    " if k.startswith('RELAY_') and k != 'RELAY_REQUIRE_REAL'}))"
)


def shop(directory: Path, door: int, private: int) -> dict[str, Any]:
    """A web instance whose target's path is none that a shell likes."""
    pg = {"type": "internal", "port": private, "target": f'unix:{directory}/it\'s a "$HOME" `path`'}
    return {
        "version": 1,
        "service": "shop",
        "roles": {
            "web": {
                "instances": ["127.0.0.1"],
                "endpoints": {"pg-in": pg},
                "uses": {"db": {"endpoint": "store/pg", "listen": f"127.0.0.1:{door}"}},
            },
            "store": {"instances": ["127.7.0.1"], "endpoints": {"pg": dict(pg)}},
        },
    }


class Here(Daemon):
    """The web instance, and what a program there is to be told."""

    def __init__(self, directory: Path) -> None:
        door, private = free_port(), free_port()
        file = shop(directory, door, private)
        super().__init__(directory, file, {"workers": 1})
        self.wanted = {
            "RELAY_SERVICE_NAME": "shop",
            "RELAY_INSTANCE": "web_IN_0",
            "RELAY_ROLE": "web",
            "RELAY_ORDINAL": "0",
            "RELAY_ADDRESS": "127.0.0.1",
            "RELAY_ENDPOINT_PG_IN": f"127.0.0.1:{private}",
            "RELAY_ENDPOINT_PG_IN_HOST": "127.0.0.1",
            "RELAY_ENDPOINT_PG_IN_PORT": f"{private}",
            "RELAY_ENDPOINT_PG_IN_TARGET": file["roles"]["web"]["endpoints"]["pg-in"]["target"],
            "RELAY_DOOR_DB": f"127.0.0.1:{door}",
            "RELAY_DOOR_DB_HOST": "127.0.0.1",
            "RELAY_DOOR_DB_PORT": f"{door}",
        }

    def execute(self, *command: str, **keys: Any) -> subprocess.CompletedProcess[str]:
        """`relay exec`, with its settings named in the environment, as the command's own would be."""
        return subprocess.run(
            [sys.executable, "-m", "relay", "exec", "--", *command],
            env={**os.environ, "RELAY_SETTINGS": str(self.settings_file)},
            capture_output=True,
            text=True,
            timeout=HANG_S,
            **keys,
        )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    made = Here(tmp_path_factory.mktemp("here"))
    with made:
        yield made


def test_a_shell_takes_it(here: Here) -> None:
    script = 'eval "$("$1" -m relay env)" && exec "$1" -c "$2"'
    environment = {**os.environ, "RELAY_SETTINGS": str(here.settings_file)}
    run = subprocess.run(
        ["sh", "-euc", script, "sh", sys.executable, DUMP],
        env=environment,
        capture_output=True,
        check=True,
        timeout=HANG_S,
    )
    assert json.loads(run.stdout) == {**here.wanted, "RELAY_SETTINGS": str(here.settings_file)}


def test_as_json_and_for_systemd(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    settings = ("--settings", str(here.settings_file))
    assert main(["env", "--format", "json", *settings]) == 0
    assert json.loads(capsys.readouterr().out) == here.wanted
    assert main(["env", "--format", "systemd", *settings]) == 0
    text = capsys.readouterr().out
    target = here.wanted["RELAY_ENDPOINT_PG_IN_TARGET"]
    escaped = target.replace('"', '\\"').replace("$", "\\$").replace("`", "\\`")
    assert f'RELAY_ENDPOINT_PG_IN_TARGET="{escaped}"\n' in text
    assert len(text.splitlines()) == len(here.wanted)


# --- exec ---------------------------------------------------------------------------------------------------------------


def test_a_command_has_the_variables_and_what_was_there_before(here: Here) -> None:
    run = here.execute(sys.executable, "-c", DUMP)
    assert json.loads(run.stdout) == {**here.wanted, "RELAY_SETTINGS": str(here.settings_file)}


def test_arguments_are_the_commands_own(here: Here) -> None:
    arguments = ["-h", "--settings", "a b", "--", "-x", "", "'\"$"]
    run = here.execute(sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))", *arguments)
    assert json.loads(run.stdout) == arguments


def test_signals_and_exit_status_are_the_commands_own(here: Here) -> None:
    """It is the same process: nobody stands between the command and whoever started it. SIGPIPE is as it should be."""
    script = 'grep SigIgn /proc/self/status; read line; echo "$line"; exec sleep 600'
    environment = {**os.environ, "RELAY_SETTINGS": str(here.settings_file)}
    process = subprocess.Popen(
        [sys.executable, "-m", "relay", "exec", "sh", "-c", script],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with process:
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            ignored = int(process.stdout.readline().split()[1], 16)
            assert not ignored & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1)
            process.stdin.write(b"hello\n")
            process.stdin.flush()
            assert process.stdout.readline() == b"hello\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(HANG_S) == -signal.SIGTERM
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["sh", "-c", "exit 42"], 42, ""),
        (["relay-no-such-command"], 127, "relay: cannot run `relay-no-such-command`: command not found\n"),
        (["/etc/passwd"], 126, "relay: cannot run `/etc/passwd`: no permission\n"),
        ([""], 127, "relay: cannot run ``: command not found\n"),
    ],
)
def test_exit_status(here: Here, command: list[str], status: int, said: str) -> None:
    run = here.execute(*command)
    assert (run.returncode, run.stdout, run.stderr) == (status, "", said)


def test_no_daemon_and_no_command(tmp_path: Path) -> None:
    """125, as of env(1) and others: no command ever ran."""
    socket = str(tmp_path / "none.sock")
    run = run_relay("exec", "--socket", socket, "--", "true")
    assert run.returncode == 125
    assert run.stderr.startswith(f"relay: cannot reach {socket}: no such file; is relay running?")
    for arguments in (["exec"], ["exec", "--"]):
        run = run_relay(*arguments)
        assert run.returncode == 2
        assert "write the command after it: `relay exec -- CMD ARGS…`" in run.stderr
