"""A file that outlasts the daemon: whole or not at all."""

import os
import stat
from pathlib import Path

import pytest

from relay.kernel import state_file


def test_it_is_there_for_no_one_else(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    state_file.write(path, b"one")
    state_file.write(path, b"two")
    assert path.read_bytes() == b"two"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == ["kept.json"], "nothing else is left"


def test_a_write_that_fails_leaves_the_former_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "kept.json"
    state_file.write(path, b"one")

    def full(_fd: int) -> None:
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space"):
        state_file.write(path, b"two")
    assert path.read_bytes() == b"one"
    assert os.listdir(tmp_path) == ["kept.json"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        state_file.write(tmp_path / "nowhere" / "kept.json", b"x")


def test_a_link_in_its_way_is_not_followed(tmp_path: Path) -> None:
    """The file's own name is replaced, and the temporary one is a new file or none."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path = tmp_path / "kept.json"
    path.with_name(f".kept.json.{os.getpid()}").symlink_to(precious)
    with pytest.raises(OSError, match=r"symbolic links"):
        state_file.write(path, b"x")
    assert precious.read_text() == "precious"
