"""The command line: what each command prints where, and its exit status."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest
import yaml

from relay import ENGINE, __version__
from relay.cli.main import main
from relay.config.reading import read
from tests.conftest import Daemons
from tests.e2e.peers import endpoint
from tests.harness import HANG_S, Echo, run_relay, service
from tests.ports import free_port

Capture = pytest.CaptureFixture[str]
SAMPLES = Path(__file__).parents[2] / "config"
WRONG = {"version": 1, "service": "x", "roles": {"web": {"instances": ["127.0.0.1"], "endpoint": {}}}}


@pytest.fixture
def no_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    """`relay run` in this process must fail before it becomes a daemon."""

    def refuse() -> int:
        raise AssertionError("relay run started")

    monkeypatch.setattr(os, "fork", refuse)


def write(directory: Path, name: str, content: object) -> str:
    path = directory / name
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return str(path)


def misuse(capsys: Capture, *arguments: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


# --- misuse, help, version ------------------------------------------------------------------------------------------------


def test_version_of_the_program() -> None:
    done = run_relay("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"relay {__version__}, {ENGINE}\n", "")


def test_misuse(capsys: Capture) -> None:
    assert "COMMAND" in misuse(capsys)
    assert "'chekc'" in misuse(capsys, "chekc")
    assert "FILE" in misuse(capsys, "check")
    assert "--jsn" in misuse(capsys, "status", "--jsn")
    assert "invalid choice: 'both'" in misuse(capsys, "schema", "both")


def test_help_names_every_command(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert [
        name
        for name in ("run", "check", "schema", "emulate", "import", "status", "reload")
        if f"\n    {name} " not in text
    ] == []


@pytest.mark.parametrize("command", ["run", "check", "schema", "emulate", "import", "status", "reload"])
def test_every_command_has_help(capsys: Capture, command: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: relay {command}" in capsys.readouterr().out


def test_a_reader_that_has_seen_enough() -> None:
    """`relay schema | head -1`: no traceback, whatever the size of what was left."""
    command = f"{sys.executable} -m relay schema | head -c 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"{", b"")


# --- check ----------------------------------------------------------------------------------------------------------------


def test_the_samples_are_right(capsys: Capture) -> None:
    assert main(["check", str(SAMPLES / "service.yaml"), str(SAMPLES / "instance.yaml")]) == 0
    assert capsys.readouterr() == ("", "")


def test_check_shows_every_error_of_every_file(capsys: Capture, tmp_path: Path) -> None:
    service_file = write(tmp_path, "service.yaml", WRONG)
    settings_file = write(tmp_path, "instance.yaml", {"wrokers": 2, "drain": "soon"})
    missing = str(tmp_path / "missing.yaml")
    right = str(SAMPLES / "service.yaml")
    assert main(["check", service_file, right, settings_file, missing]) == 1
    said = capsys.readouterr()
    lines = said.out.splitlines()
    assert said.err == ""
    assert [line.split(":")[0] for line in lines] == [settings_file, settings_file, missing, service_file]
    assert [int(line.split(":")[1]) for line in lines] == [1, 2, 0, 7]
    assert "did you mean `workers`" in lines[0]
    assert "did you mean `endpoints`" in lines[3]


def test_a_warning_alone_is_shown_and_is_no_failure(capsys: Capture, tmp_path: Path) -> None:
    declared = service({"in": endpoint(80, "127.0.0.1:3000", access=[{"permit": "10.0.0.1/8"}])})
    assert main(["check", write(tmp_path, "service.yaml", declared)]) == 0
    assert "warning" in capsys.readouterr().out


def test_check_does_not_need_the_daemons_libraries(tmp_path: Path) -> None:
    """It runs in editors and commit hooks: an HTTP server's modules would make it wait."""
    code = (
        "import sys; from relay.cli.main import main; status = main(sys.argv[1:]); "
        "print(sorted({'aiohttp', 'uvloop', 'prometheus_client'} & sys.modules.keys())); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "check", str(SAMPLES / "service.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr


# --- schema ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "sample"), [("service", "service.yaml"), ("settings", "instance.yaml")])
def test_the_schema_is_one_and_takes_the_sample(capsys: Capture, kind: str, sample: str) -> None:
    assert main(["schema", kind]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft7Validator.check_schema(schema)
    validator = jsonschema.Draft7Validator(schema)
    validator.validate(read(str(SAMPLES / sample)).data)
    assert list(validator.iter_errors({"unknown": 1}))
    assert schema == json.loads((SAMPLES / sample.replace(".yaml", ".schema.json")).read_text())


def test_the_schema_is_the_services_unless_said_otherwise(capsys: Capture) -> None:
    assert main(["schema"]) == 0
    assert "roles" in json.loads(capsys.readouterr().out)["properties"]


# --- run ------------------------------------------------------------------------------------------------------------------


def run_fails(capsys: Capture, *arguments: str) -> str:
    assert main(["run", *arguments]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    return said.err


IDENTITIES = [
    pytest.param("web_IN_7", ["--id", "`web` has 1 instances", "web_IN_0"], id="ordinal"),
    pytest.param("wbe_IN_0", ["--id", "no role `wbe`", "it has web"], id="role"),
    pytest.param("web-0", ["--id", "`web-0` is not an instance id", "web_IN_0"], id="form"),
]


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize(("instance", "words"), IDENTITIES)
def test_an_identity_that_is_none(capsys: Capture, tmp_path: Path, instance: str, words: list[str]) -> None:
    file = write(tmp_path, "service.yaml", service({"in": endpoint(free_port(), "127.0.0.1:9")}))
    settings = write(tmp_path, "instance.yaml", {"metrics": False})
    said = run_fails(capsys, "--service", file, "--settings", settings, "--id", instance)
    assert [word for word in words if word not in said] == [], said


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize(
    ("addresses", "words"),
    [
        (["203.0.113.250", "203.0.113.251"], ["no address in the roster", "--id"]),
        (["127.0.0.1", "127.0.0.6"], ["web_IN_0, web_IN_1", "--id"]),
    ],
    ids=["none is local", "two are local"],
)
def test_addresses_that_do_not_say_who_it_is(
    capsys: Capture, tmp_path: Path, addresses: list[str], words: list[str]
) -> None:
    declared = service({"in": endpoint(free_port(), "127.0.0.1:9")})
    declared["roles"]["web"]["instances"] = addresses
    settings = write(tmp_path, "instance.yaml", {"metrics": False})
    said = run_fails(capsys, "--service", write(tmp_path, "service.yaml", declared), "--settings", settings)
    assert [word for word in words if word not in said] == [], said


@pytest.mark.usefixtures("no_fork")
@pytest.mark.parametrize("missing", ["RELAY_SERVICE", "RELAY_SETTINGS"])
def test_a_file_that_is_named_must_be_there(
    capsys: Capture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    declared = service({"in": endpoint(free_port(), "127.0.0.1:9")})
    monkeypatch.setenv("RELAY_SERVICE", write(tmp_path, "service.yaml", declared))
    monkeypatch.setenv("RELAY_SETTINGS", write(tmp_path, "instance.yaml", {"metrics": False}))
    monkeypatch.setenv(missing, str(tmp_path / "missing.yaml"))
    assert "missing.yaml:0:0: cannot be read: no such file" in run_fails(capsys)


# --- reload ---------------------------------------------------------------------------------------------------------------


def test_reload_says_what_changed(daemons: Daemons, echo: Echo) -> None:
    """As a process of its own, as the unit runs it."""
    port, added = free_port(), free_port()
    declared = {"in": endpoint(port, echo.target)}
    daemon = daemons(service(declared))
    done = daemon.relay("reload")
    assert (done.returncode, done.stdout, done.stderr) == (0, "generation 2 is in force; nothing changed\n", "")
    new = {**declared, "new": endpoint(added, echo.target, access=[{"permit": "127.0.0.1/8"}])}
    daemon.write_service(service(new))
    done = daemon.relay("reload")
    assert done.returncode == 0
    change, warning, verdict = done.stdout.splitlines()
    assert change == f"open web/new on 127.0.0.1:{added}"
    assert "warning" in warning
    assert "host bits" in warning
    assert verdict == "generation 3 is in force"


def test_the_console_script_is_the_module() -> None:
    script = shutil.which("relay", path=str(Path(sys.executable).parent))
    if script is None:  # the package is not installed in this environment: the module is all there is
        assert run_relay("--version").returncode == 0
        return
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=HANG_S, check=False)
    assert done.stdout == f"relay {__version__}, {ENGINE}\n"
