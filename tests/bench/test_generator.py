"""How the load generator is run."""

from pathlib import Path

import generator
import pytest
from generator import run_clients, together
from process import BenchError


def program(monkeypatch: pytest.MonkeyPatch, folder: Path, script: str) -> None:
    """Have this shell script in place of the load generator."""
    file = folder / "load"
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(0o755)
    monkeypatch.setattr(generator, "LOAD", file)


def test_clients_beside_each_other_are_added_up() -> None:
    one = {"ops": 10.0, "seconds": 1.0, "errors": 1.0, "p99_us": 5.0}
    two = {"ops": 20.0, "seconds": 1.5, "errors": 0.0, "p99_us": 4.0}
    assert together([one, two]) == {"ops": 30.0, "seconds": 1.5, "errors": 1.0, "p99_us": 5.0}
    assert together([one]) == one


def test_each_client_is_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, 'echo "{\\"ops\\": $2}"')
    assert run_clients(["rr", "7"], 1.0, [None, None]) == [{"ops": 7.0}, {"ops": 7.0}]


def test_a_client_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, "echo load: no way >&2; exit 1")
    with pytest.raises(BenchError, match=r"^no way$"):
        run_clients(["rr"], 1.0, [None])


def test_a_client_that_is_stuck_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program(monkeypatch, tmp_path, "exec sleep 1000")
    monkeypatch.setattr(generator, "GRACE_S", 0.05)
    with pytest.raises(BenchError, match="stuck"):
        run_clients(["rr"], 0.05, [None, None])
