"""What the tests of a whole daemon ask of it and of its two sides."""

import contextlib
import errno
import io
import select
import socket
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from relay.cli.main import main
from tests.conftest import Daemons
from tests.harness import HANG_S, Daemon, eventually, one_endpoint
from tests.ports import free_port


class Front:
    """A daemon with one endpoint in front of `target`: where it is, and what it says of its connections."""

    def __init__(
        self, daemons: Daemons, target: str | int, *, settings: dict[str, Any] | None = None, **keys: Any
    ) -> None:
        self.port = free_port()
        where = f"127.0.0.1:{target}" if isinstance(target, int) else target
        self.daemon: Daemon = daemons(one_endpoint(self.port, where, **keys), settings)

    def url(self, scheme: str = "http", path: str = "") -> str:
        """Where its endpoint is."""
        return f"{scheme}://127.0.0.1:{self.port}/{path}"

    def account(self, **denied: int) -> dict[str, Any]:
        """The endpoint's status once nothing is open: every connection has one cause, and relay is none of them."""

        status = settled(self.daemon)
        assert status["accepted"] > 0
        assert "error" not in status["closed"]
        assert status["denied"] == denied
        return status


def typed(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in this process. One of each kind has a process of its own: a start takes half a second of CPU."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(list(arguments))
    return subprocess.CompletedProcess(arguments, status, out.getvalue(), err.getvalue())


def endpoint(port: int, target: str, **keys: Any) -> dict[str, Any]:
    """An input endpoint as a file has it."""
    return {"type": "input", "public_port": port, "target": target, **keys}


def refused(port: int) -> bool:
    """Whether nobody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def shut(*ports: int) -> None:
    """Wait until nobody listens there: the keeper closes its own copy of a socket a moment after the workers."""
    eventually(lambda: all(map(refused, ports)), f"{ports} are closed")


def accept(listener: socket.socket) -> socket.socket:
    """The next connection of a target."""
    connection, _ = listener.accept()
    connection.settimeout(HANG_S)
    return connection


def untouched(listener: socket.socket) -> bool:
    """Whether nobody waits to be accepted."""
    return not select.select([listener], [], [], 0)[0]


def settled(daemon: Daemon, name: str = "web/in") -> dict[str, Any]:
    """The account of the endpoint once every connection has ended, with a cause: that is counted last."""

    def account() -> dict[str, Any] | None:
        now = daemon.endpoint(name)
        return now if now["active"] == 0 and now["accepted"] == sum(now["closed"].values()) else None

    return dict(eventually(account, "every connection has ended, and is counted"))


def counted(daemon: Daemon, name: str = "web/in", **expected: Any) -> None:
    """Wait until the endpoint's account says so: a client sees its reset a moment before it is counted."""
    seen: dict[str, Any] = {}

    def check() -> bool:
        seen.update(daemon.endpoint(name))
        return expected.items() <= seen.items()

    with contextlib.suppress(AssertionError):
        eventually(check, "the account")
    assert {key: seen[key] for key in expected} == expected


def gone(pid: int) -> bool:
    """Whether the process has ended; one that nobody has waited for yet counts as ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def control_pid(daemon: Daemon) -> int:
    """The pid of the control process."""
    return int(daemon.status()["control"]["pid"])


def pids(daemon: Daemon) -> set[int]:
    """The pids of all of the daemon's processes."""
    return {daemon.pid, *descendants(daemon.pid)}


def children(pid: int) -> list[int]:
    """The pids of a process's children (proc(5), /proc/PID/task/TID/children); none, when it is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(each) for each in file.read().split()]
    return []


def descendants(pid: int) -> list[int]:
    """The pids of all processes that this one and its own have started."""
    return [each for child in children(pid) for each in (child, *descendants(child))]


def control_restarted(daemon: Daemon, times: int = 1) -> dict[str, Any]:
    """The status once control was started again, for the first time, or so many times."""

    def check() -> dict[str, Any] | None:
        with contextlib.suppress(OSError):
            now = daemon.status()
            return now if now["control"]["restarts"] == times else None
        return None

    return dict(eventually(check, "control answers again"))


def running(daemon: Daemon) -> dict[str, Any]:
    """The status of a daemon that was started without a manager to tell that it is ready."""

    def check() -> dict[str, Any] | None:
        with contextlib.suppress(OSError):
            now = daemon.status()
            return now if all(worker["pid"] for worker in now["workers"]) else None
        return None

    return dict(eventually(check, "it runs"))


def next_worker(daemon: Daemon, last_pid: int) -> int:
    """The pid of the worker that took the place of `last_pid`."""
    return int(eventually(lambda: (now := daemon.worker_pid()) != last_pid and now, "another worker"))


def more(counts: Counter[str], key: str) -> None:
    """Wait until one more is counted."""
    seen = counts[key]
    eventually(lambda: counts[key] > seen, f"one more {key}")


def records(daemon: Daemon, event: str, count: int) -> list[dict[str, Any]]:
    """The log's first `count` records of one kind, once they are written; fails when there are more."""

    def written() -> Iterator[dict[str, Any]]:
        return daemon.events(event)

    eventually(lambda: len(list(written())) >= count, f"{count} records `{event}`")
    found = list(written())
    assert len(found) == count, found
    return found


def listening(*wrapper: str) -> set[str]:
    """Every TCP address that somebody listens on here, as `host:port`; `wrapper` is a command that goes elsewhere first."""
    done = subprocess.run([*wrapper, "ss", "-Hltn"], capture_output=True, text=True, timeout=HANG_S, check=True)
    return {line.split()[3] for line in done.stdout.splitlines()}
