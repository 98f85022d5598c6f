"""Writing a file: whole or not at all, never over another one unasked, and nothing left beside it."""

import errno
import os
import stat
from pathlib import Path

import pytest

from relay.config.output import write_file
from relay.errors import ConfigError


def refused(path: str, *, replace: bool = False) -> str:
    with pytest.raises(ConfigError) as caught:
        write_file(path, "new", replace=replace)
    [problem] = caught.value.problems
    assert str(problem).isprintable()
    return f"{problem.what}; {problem.fix}"


@pytest.mark.parametrize("replace", [False, True])
def test_a_new_file(tmp_path: Path, replace: bool) -> None:
    file = tmp_path / "service.yaml"
    write_file(str(file), "größe: 1\n", replace=replace)
    assert file.read_bytes() == "größe: 1\n".encode()
    assert os.listdir(tmp_path) == ["service.yaml"]


def test_a_name_without_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_file("service.yaml", "a", replace=False)
    assert (tmp_path / "service.yaml").read_text() == "a"


@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_the_mode_is_an_ordinary_files(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write_file(str(tmp_path / "a"), "a", replace=False)
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "directory"])
def test_what_is_there_stays(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "there", tmp_path / "other"
    match kind:
        case "file":
            path.write_text("old")
        case "directory":
            path.mkdir()
        case _:
            path.symlink_to(other)
            if kind == "link":
                other.write_text("old")
    before = sorted(os.listdir(tmp_path))
    assert refused(str(path)) == "exists already; write `--force` to replace it, or another name"
    assert sorted(os.listdir(tmp_path)) == before
    assert not path.is_file() or path.read_text() == "old"


def test_force_replaces(tmp_path: Path) -> None:
    file = tmp_path / "service.yaml"
    file.write_text("old")
    with file.open() as reader:
        write_file(str(file), "new", replace=True)
        assert reader.read() == "old"  # who has it open reads a whole file still
    assert file.read_text() == "new"
    assert os.listdir(tmp_path) == ["service.yaml"]


def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    assert "cannot be written: no such file" in refused(str(tmp_path / "none" / "a"))
    assert "is a directory" in refused(str(tmp_path), replace=True)
    assert "the path holds a NUL" in refused("a\0b")
    assert os.listdir(tmp_path) == []


def test_a_disk_that_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "service.yaml"
    file.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    assert "cannot be written: no space left on device" in refused(str(file), replace=True)
    assert (os.listdir(tmp_path), file.read_text()) == (["service.yaml"], "old")


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", none)
    assert "`--force` writes where there are no hard links" in refused(str(tmp_path / "a"))
    assert os.listdir(tmp_path) == []
