"""`relay import` as it is typed: what goes where, and that its file is one that relay runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from relay.cli.main import main
from tests.harness import HANG_S, run_relay

Capture = pytest.CaptureFixture[str]
CORPUS = Path(__file__).parents[1] / "corpus" / "csdef"
SHOP = [str(CORPUS / "shop.csdef"), str(CORPUS / "shop.cscfg")]


def test_to_standard_output_and_through_the_check(tmp_path: Path) -> None:
    done = run_relay("import", *SHOP)
    assert (done.returncode, done.stdout) == (0, (CORPUS / "shop.yaml").read_text())
    *notes, last = done.stderr.splitlines()
    assert last == "left out: 11, warnings: 2; each is a comment in the file"
    assert len(notes) == 13
    assert f"{SHOP[0]}:12:7: left out: certificate Tls" in "\n".join(notes)
    file = tmp_path / "service.yaml"
    file.write_text(done.stdout)
    checked = run_relay("check", str(file))
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


def test_to_a_file(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    assert main(["import", *SHOP, "-o", str(file)]) == 0
    assert file.read_text() == (CORPUS / "shop.yaml").read_text()
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.endswith(f"each is a comment in {file}\n")


def test_a_file_that_is_there(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("mine")
    assert main(["import", *SHOP, "--output", str(file)]) == 1
    assert capsys.readouterr() == ("", f"{file}:0:0: exists already; write `--force` to replace it, or another name\n")
    assert file.read_text() == "mine"
    assert main(["import", *SHOP, "--output", str(file), "--force"]) == 0
    assert file.read_text() == (CORPUS / "shop.yaml").read_text()


def test_for_machines_that_get_no_relay(capsys: Capture, tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    assert main(["import", "--bare", *SHOP, "-o", str(file)]) == 0
    assert file.read_text() == (CORPUS / "bare" / "shop.yaml").read_text()
    assert capsys.readouterr().err.endswith(f"left out: 10, warnings: 3; each is a comment in {file}\n")
    with pytest.raises(SystemExit) as caught:
        main(["import", "--help"])
    assert caught.value.code == 0
    assert "relay import --bare service.csdef service.cscfg" in " ".join(capsys.readouterr().out.split())


def test_without_a_configuration(capsys: Capture) -> None:
    assert main(["import", SHOP[0]]) == 0
    said = capsys.readouterr()
    assert said.out.count("  # a placeholder: write the address of your machine\n") == 2
    assert "warning: no configuration: one instance is assumed for each role" in said.err


def test_every_mistake_of_both_files_and_no_file(capsys: Capture, tmp_path: Path) -> None:
    wrong = [str(CORPUS / "bad-both-files.csdef"), str(CORPUS / "bad-both-files.cscfg")]
    assert main(["import", *wrong, "-o", str(tmp_path / "service.yaml")]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    expected = (CORPUS / "bad-both-files.expected").read_text()
    assert said.err == "".join(f"{CORPUS}/{line}\n" for line in expected.splitlines())
    assert list(tmp_path.iterdir()) == []


def test_the_terminals_encoding_does_not_count() -> None:
    files = (str(CORPUS / "utf16.csdef"), str(CORPUS / "utf16.cscfg"))
    done = run_relay("import", *files, PYTHONIOENCODING="ascii", PYTHONUTF8="0", LC_ALL="C")
    assert done.returncode == 0, done.stderr
    assert "its name in the source is Straße" in done.stdout


def test_misuse(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["import"])
    assert caught.value.code == 2
    assert "CSDEF" in capsys.readouterr().err


def test_it_does_not_need_the_daemons_libraries() -> None:
    code = (
        "import sys; from relay.cli.main import main; status = main(sys.argv[1:]); "
        "print(sorted({'aiohttp', 'uvloop', 'prometheus_client'} & sys.modules.keys()), file=sys.stderr); sys.exit(status)"
    )
    command = [sys.executable, "-c", code, "import", *SHOP]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_S, check=False)
    assert (done.returncode, done.stderr.splitlines()[-1]) == (0, "[]")
