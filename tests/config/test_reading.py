"""Files that others write: ordinary ones alone, of a size that makes sense, and never waited for without end."""

import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from relay.config import reading
from relay.config.document import SIZE_MAX_BYTES
from relay.config.load import check_files, load_settings
from relay.config.reading import is_there, read, read_bytes, within
from relay.errors import ConfigError, Problem, UnreadableError
from tests.harness import HANG_S, eventually

SOON_S = 0.05  # a deadline that is to be missed
FIX = "check that this is the right file"


def unreadable(path: str) -> Problem:
    with pytest.raises(ConfigError) as caught:
        read(path)
    [problem] = caught.value.problems
    return problem


class Away:
    """A file system whose server is away: nothing that is asked of it comes back until `end`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._back = threading.Event()
        self._read = os.read
        monkeypatch.setattr(os, "read", self._wait)

    def _wait(self, fd: int, size: int) -> bytes:
        assert self._back.wait(HANG_S), "nobody ended it"
        return self._read(fd, size)

    def end(self) -> None:
        """The server is back."""
        self._back.set()
        eventually(lambda: not any(reading._hanging.values()), "who hung has ended")


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Iterator[Away]:
    made = Away(monkeypatch)
    yield made
    made.end()


def refusal(path: Path | str, most_bytes: int = 100, deadline_s: float = HANG_S) -> UnreadableError:
    with pytest.raises(UnreadableError) as caught:
        read_bytes(str(path), deadline_s=deadline_s, most_bytes=most_bytes)
    return caught.value


def test_what_is_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "file"
    for content in (b"", b"x" * 100, os.urandom(3 * 1024 * 1024)):
        file.write_bytes(content)
        assert read_bytes(str(file), deadline_s=HANG_S, most_bytes=len(content)) == content
    assert read_bytes("/proc/self/comm", deadline_s=HANG_S, most_bytes=100), "it has no size"
    link = tmp_path / "link"
    link.symlink_to(file)
    assert len(read_bytes(str(link), deadline_s=HANG_S, most_bytes=2**22)) == 3 * 1024 * 1024


def test_a_pipe_that_nobody_writes_is_refused_and_not_opened(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    error = refusal(pipe)
    assert (error.reason, error.code) == ("is a pipe, not a file", 0)
    assert str(error) == f"{pipe} cannot be read: {error.reason}; write the path of an ordinary file, or put one there"
    assert str(unreadable(str(pipe))).startswith(f"{pipe}:0:0: cannot be read: is a pipe, not a file; write")
    assert not any(reading._hanging.values())


def test_a_pipe_that_comes_between_look_and_open_does_not_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, file = tmp_path / "pipe", tmp_path / "file"
    os.mkfifo(pipe)
    file.touch()
    before = os.stat(file)
    with monkeypatch.context() as earlier:
        earlier.setattr(os, "stat", lambda _path: before)
        error = refusal(pipe)
    assert error.reason == "is a pipe, not a file"


def test_other_kinds(tmp_path: Path) -> None:
    for device in ("/dev/zero", "/dev/null", "/dev/tty"):
        assert refusal(device).reason == "is a device, not a file"
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(tmp_path / "socket"))
        assert refusal(tmp_path / "socket").reason == "is a socket, not a file"


@pytest.mark.parametrize(("most_bytes", "size"), [(4096, "4 KiB"), (4 * 1024 * 1024, "4 MiB")])
def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path, most_bytes: int, size: str) -> None:
    file = tmp_path / "large"
    file.touch()
    os.truncate(file, 2**40)
    assert refusal(file, most_bytes).reason == f"is larger than {size}"


def test_a_read_that_hangs_is_left_alone_and_the_next_one_begins(tmp_path: Path, away: Away) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    error = refusal(file, deadline_s=SOON_S)
    assert error.reason == "its file system has not answered within 0.05 s"
    assert "findmnt" in error.fix
    assert "restart relay" in error.fix
    away.end()
    assert read_bytes(str(file), deadline_s=HANG_S, most_bytes=100) == b"content"


def test_reads_that_hang_do_not_pile_up(tmp_path: Path, away: Away) -> None:
    file = tmp_path / "file"
    file.write_text("content")
    before = threading.active_count()
    for _ in range(4):
        refusal(file, deadline_s=SOON_S)
    for _ in range(10):
        assert refusal(file).reason == "4 reads from its directory hang already, and no more are begun"
    assert threading.active_count() == before + 4
    assert all(thread.daemon for thread in reading._hanging[str(tmp_path)]), "no process waits for them at its end"
    assert is_there("/"), "of another file system nothing is known"
    away.end()
    eventually(lambda: threading.active_count() == before, "their threads are gone")
    assert read_bytes(str(file), deadline_s=HANG_S, most_bytes=100) == b"content"


class SlowToLeave(set[threading.Thread]):
    """Has a thread that has read what it should go on for a moment."""

    def discard(self, element: object) -> None:
        time.sleep(0.01)
        super().discard(element)


def test_nothing_is_left_of_a_read_that_took_its_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon reads before it forks."""
    monkeypatch.setattr(reading, "_hanging", defaultdict(SlowToLeave))
    before = threading.active_count()
    (tmp_path / "file").touch()
    for _ in range(5):
        read_bytes(str(tmp_path / "file"), deadline_s=HANG_S, most_bytes=1)
        assert threading.active_count() == before
    with pytest.raises(ZeroDivisionError):
        within(HANG_S, "/", lambda: 1 // 0)
    assert threading.active_count() == before


def test_no_thread_is_to_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", full)
    assert "TasksMax" in refusal(tmp_path / "file").fix


def test_settings_that_need_not_be_there_may_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    back = threading.Event()
    monkeypatch.setattr(os, "lstat", lambda _path: back.wait(HANG_S))
    monkeypatch.setattr(reading, "DEADLINE_S", SOON_S)
    with pytest.raises(ConfigError, match="has not answered within"):
        load_settings(str(tmp_path / "instance.yaml"), required=False)
    back.set()
    eventually(lambda: not any(reading._hanging.values()), "it has ended")


def test_at_the_command_line_what_the_shell_has_opened_is_read(tmp_path: Path) -> None:
    """And there alone: a daemon reads again at each reload."""
    service = b"version: 1\nservice: shop\nroles: {web: {instances: [10.0.0.4]}}\n"
    for path in ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"):
        ran = subprocess.run([sys.executable, "-m", "relay", "check", path], input=service, timeout=HANG_S)
        assert ran.returncode == 0
    receiver, sender = os.pipe()
    os.write(sender, service)
    os.close(sender)
    with os.fdopen(receiver):
        assert "is a pipe" in unreadable(f"/dev/fd/{receiver}").what
        assert check_files([f"/dev/fd/{receiver}"]) == []
    os.mkfifo(tmp_path / "pipe")
    assert "is a pipe" in check_files([str(tmp_path / "pipe")])[0].what


def test_a_file_over_the_cap(tmp_path: Path) -> None:
    file = tmp_path / "large.yaml"
    file.write_bytes(b"# " + b"x" * (10 * 1024 * 1024))
    assert str(unreadable(str(file))) == f"{file}:0:0: cannot be read: is larger than 4 MiB; {FIX}"
    file.write_bytes(b"#" * SIZE_MAX_BYTES)
    assert read(str(file)).data == {}


def test_a_directory(tmp_path: Path) -> None:
    assert unreadable(str(tmp_path)).what == "cannot be read: is a directory, not a file"


def test_a_missing_file(tmp_path: Path) -> None:
    problem = unreadable(str(tmp_path / "none.yaml"))
    assert (problem.line, problem.what) == (0, "cannot be read: no such file")
    assert problem.fix == "check the path and the permissions"


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "", "/etc/passwd/x"])
def test_paths_that_cannot_be(path: str) -> None:
    assert "\0" not in str(unreadable(path))


def test_no_permission(tmp_path: Path) -> None:
    file = tmp_path / "secret.yaml"
    file.write_text("version: 1\n")
    file.chmod(0)
    assert stat.S_IMODE(file.stat().st_mode) == 0
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:  # root reads everything
                os.setuid(65534)
            read(str(file))
            os.write(sender, b"could be read")
        except BaseException as error:
            os.write(sender, str(error).encode())
        finally:
            os._exit(0)
    os.close(sender)
    with open(receiver) as answer:
        text = answer.read()
    os.waitpid(child, 0)
    assert text == f"{file}:0:0: cannot be read: no permission; check the path and the permissions"
