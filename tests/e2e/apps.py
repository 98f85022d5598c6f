"""Real applications on a machine of a network, which a test stops, kills and starts again: nginx, Redis, PostgreSQL."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.e2e.netns import Network
from tests.e2e.peers import children, gone
from tests.e2e.programs import RUN_S, answers, answers_at, other_user, program, run, serving
from tests.harness import eventually

HTTP_PORT, REDIS_PORT, _PG_PORT = 8080, 6379, 5432  # the last is only part of a socket's name
_UNWELL: Final = "unwell"


@dataclass
class App:
    """One application on one machine. `stop` is the signal of its service unit's stop; it then ends what it has begun."""

    network: Network
    host: str
    command: list[str]
    directory: Path
    target: str
    ready: Callable[[], object]
    stop_signal: signal.Signals
    user: str | None = None
    _running: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    _process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self.network.inside(self.host):
            made = serving(self.command, self.directory, self.ready, user=self.user, stop=self.stop_signal)
            self._process = self._running.enter_context(made)

    def stop(self) -> None:
        """As its service unit would, and wait for its end."""
        self._running.close()

    def kill(self) -> None:
        """All its processes at once. When this returns they have ended, and their connections with them."""
        assert self._process is not None  # it was started
        pids = children(self._process.pid)
        self._signal(signal.SIGKILL)
        self._running.close()
        eventually(lambda: all(map(gone, pids)), "they have ended")

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """All its processes stand still meanwhile. The kernel still takes connections in its name."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None  # it was started
        # PostgreSQL's are each in a session of their own.
        for pid in (self._process.pid, *children(self._process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@dataclass
class Web(App):
    """nginx."""

    def be_well(self, well: bool) -> None:
        """What it answers to the probe from now on: 200, or 503. It serves all the same."""
        mark = self.directory / _UNWELL
        mark.unlink() if well else mark.touch()

    def served(self) -> list[int]:
        """The numbers of the requests that it has answered."""
        return [int(line[1:]) for line in (self.directory / "access").read_text().splitlines()]


def nginx(network: Network, host: str, directory: Path) -> Web:
    """nginx, which answers each request but for the probe's with its number."""
    temporary = " ".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(f"""
        user root; daemon off; pid {directory}/pid; worker_processes 1;
        events {{}}
        http {{
            {temporary}
            log_format number "$request_uri";
            server {{
                listen 127.0.0.1:{HTTP_PORT};
                access_log {directory}/access number;
                location / {{ return 200 "$request_uri\\n"; }}
                location = /healthz {{
                    access_log off;
                    if (-e {directory}/{_UNWELL}) {{ return 503; }}
                    return 200;
                }}
            }}
        }}
    """)
    command = [program("nginx"), "-e", str(directory / "error.log"), "-c", str(config)]
    target = f"127.0.0.1:{HTTP_PORT}"
    return Web(network, host, command, directory, target, lambda: answers(HTTP_PORT), signal.SIGQUIT)


def redis(network: Network, host: str, directory: Path) -> App:
    """Redis without persistence."""
    command = [program("redis-server"), "--bind", "127.0.0.1", "--port", str(REDIS_PORT), "--dir", str(directory)]
    command += ["--save", "", "--appendonly", "no"]
    target = f"127.0.0.1:{REDIS_PORT}"
    return App(network, host, command, directory, target, lambda: answers(REDIS_PORT), signal.SIGTERM)


def database(directory: Path) -> Path:
    """PostgreSQL's data, for `postgres` to be copied. Its user must reach the directory, and gets it."""
    user, data = other_user(), directory / "data"
    if user is not None:
        shutil.chown(directory, user)
    initdb = ["-D", str(data), "-U", "relay", "--auth=trust", "--no-sync", "--no-locale", "-E", "UTF8"]
    run("initdb", *initdb, user=user, cwd=directory)
    return data


def postgres(network: Network, host: str, directory: Path, data: Path) -> App:
    """PostgreSQL on a Unix socket, with a copy of that data. Its user must reach the directory, and gets it."""
    user = other_user()
    if user is not None:
        shutil.chown(directory, user)
    run("cp", "-a", str(data), str(directory / "data"))
    command = [program("postgres"), "-D", str(directory / "data"), "-k", str(directory), "-p", str(_PG_PORT)]
    command += ["-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=1MB", "-c", "autovacuum=off"]
    path = directory / f".s.PGSQL.{_PG_PORT}"

    def ready() -> bool:
        asked = [program("pg_isready"), "-q", "-h", str(directory), "-p", str(_PG_PORT)]
        return answers_at(path) and subprocess.run(asked, timeout=RUN_S).returncode == 0

    # SIGINT is its `fast` stop, which Debian's unit asks for: open sessions are ended.
    return App(network, host, command, directory, f"unix:{path}", ready, signal.SIGINT, user)
