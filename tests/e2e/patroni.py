"""A cluster as Patroni runs it: real PostgreSQL on three machines, and a stand-in for Patroni's REST API on each.

Who is the primary one is what a test decides: nobody elects.
"""

import contextlib
import http.server
import shutil
import signal
import socketserver
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tests.e2e import apps
from tests.e2e.apps import App
from tests.e2e.netns import Network
from tests.e2e.programs import RUN_S, other_user, program, run
from tests.harness import HANG_S, eventually

PORT: Final = 5432
API_PORT: Final = 8008
DATABASES: Final = {"pg0": "10.0.2.11", "pg1": "10.0.2.12", "pg2": "10.0.2.13"}
CREATE: Final = "CREATE TABLE written (at timestamptz)"
_PACE_S: Final = 0.02  # between two writes of one writer
_INSERT: Final = "INSERT INTO written SELECT now() RETURNING host(inet_server_addr());"


class Api:
    """What Patroni says of its PostgreSQL: 200 to the question for what it is, and 503 to every other one."""

    def __init__(self, address: str) -> None:
        self.says: Literal["primary", "replica", "neither"] = "replica"
        api = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = self.path.partition("?")[0]
                self.send_response(200 if asked == f"/{api.says}" else 503)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        # Not HTTPServer, which looks up the name of its address, and there is no DNS on this network.
        self._server = socketserver.ThreadingTCPServer((address, API_PORT), Handler)
        self._server.daemon_threads = True

    @contextlib.contextmanager
    def serving(self) -> Iterator[None]:
        """It answers meanwhile."""
        with self._server:
            thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
            thread.start()
            try:
                yield
            finally:
                self._server.shutdown()
                thread.join()


@dataclass
class Database:
    """PostgreSQL on one of the machines, and what Patroni says of it."""

    host: str
    directory: Path
    app: App
    api: Api

    @property
    def address(self) -> str:
        """Where it is."""
        return DATABASES[self.host]

    @property
    def target(self) -> str:
        """The same as relay has it."""
        return f"{self.address}:{PORT}"

    def sql(self, statement: str) -> str:
        """What it answers to somebody on its own machine."""
        where = ("-h", str(self.directory), "-U", "relay", "-d", "postgres")
        return run("psql", *where, "-Atqc", statement).decode().strip()

    def promoted(self) -> None:
        """It takes writes from now on; then Patroni says that it is the primary one."""
        if self.sql("SELECT pg_is_in_recovery()") == "t":
            assert self.sql("SELECT pg_promote()") == "t"
        self.api.says = "primary"

    def clients(self) -> list[str]:
        """The addresses of those who are connected from other machines."""
        asked = "SELECT host(client_addr) FROM pg_stat_activity WHERE backend_type = 'client backend'"
        return [each for each in self.sql(asked).splitlines() if each]


@contextlib.contextmanager
def cluster(network: Network, directory: Path) -> Iterator[dict[str, Database]]:
    """The three by their machines: the first is the primary one, each other one follows the one before it.

    So the second can be promoted while the first one goes on, and the third follows the second all the same.
    """
    with contextlib.ExitStack() as stack:
        made: dict[str, Database] = {}
        before: Database | None = None
        for host, address in DATABASES.items():
            here = directory / host
            here.mkdir()
            if before is None:
                data = apps.database(here)
                with (data / "pg_hba.conf").open("a") as rules:
                    rules.write("host all all all trust\nhost replication all all trust\n")
            else:
                _copy(network, host, before.address, here)
            with network.inside(host):
                database = Database(host, here, listening(network, host, here, address), Api(address))
                stack.enter_context(database.api.serving())
            stack.callback(database.app.stop)
            database.app.start()
            if before is None:
                database.sql(CREATE)
                database.api.says = "primary"
            made[host] = before = database
        yield made


def _copy(network: Network, host: str, source: str, directory: Path) -> None:
    user = other_user()
    if user is not None:
        shutil.chown(directory, user)
    how = ("-h", source, "-U", "relay", "-D", str(directory / "data"), "-R", "--checkpoint=fast", "--no-sync")
    with network.inside(host):
        run("pg_basebackup", *how, user=user, cwd=directory)


def listening(network: Network, host: str, directory: Path, address: str, *settings: str) -> App:
    """PostgreSQL with the data that are in that directory, at an address of that machine; with further `settings`."""
    command = [program("postgres"), "-D", str(directory / "data"), "-k", str(directory), "-p", str(PORT)]
    command += ["-c", f"listen_addresses={address}", "-c", "fsync=off", "-c", "shared_buffers=1MB"]
    command += ["-c", "autovacuum=off", *(part for each in settings for part in ("-c", each))]

    def ready() -> bool:
        asked = [program("pg_isready"), "-q", "-h", str(directory), "-p", str(PORT)]
        return subprocess.run(asked, timeout=RUN_S).returncode == 0

    # SIGQUIT: at once, for a standby that lost its primary may take long to end. Nobody needs the data.
    return App(network, host, command, directory, f"{address}:{PORT}", ready, signal.SIGQUIT, other_user())


@dataclass(frozen=True)
class Write:
    """One row: when it was asked for and answered (CLOCK_MONOTONIC), and by which server; empty: it failed."""

    began_s: float
    ended_s: float
    server: str


@dataclass
class Writer:
    """psql, which writes one row after the other by way of an address, and connects again when it has been cut off."""

    address: tuple[str, int]
    written: list[Write] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def writing(self) -> Iterator["Writer"]:
        """It writes meanwhile, from the machine that this thread is on."""
        thread = threading.Thread(target=self._write_on, name=f"writer to {self.address}")
        thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            thread.join(HANG_S)

    def wait_for(self, server: str, since_s: float = 0.0) -> Write:
        """The first row that this server took, asked for after that moment."""

        def found() -> Write | None:
            return next(
                (each for each in list(self.written) if (each.server, each.began_s > since_s) == (server, True)), None
            )

        write: Write = eventually(found, f"{self.address} leads to {server}")
        return write

    def last_of(self, server: str) -> float:
        """When this server took its last row."""
        return max(each.ended_s for each in list(self.written) if each.server == server)

    def _write_on(self) -> None:
        host, port = self.address
        command = [program("psql"), "-h", host, "-p", str(port), "-U", "relay", "-d", "postgres", "-AtqX"]
        while not self._stop.is_set():
            began_s = time.monotonic()
            with subprocess.Popen(
                [*command, "-v", "ON_ERROR_STOP=1"],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, bufsize=1,
            ) as psql:  # fmt: skip
                self._through(psql, began_s)
            self._stop.wait(_PACE_S)

    def _through(self, psql: "subprocess.Popen[str]", began_s: float) -> None:
        assert psql.stdin is not None
        assert psql.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            while not self._stop.is_set():
                psql.stdin.write(_INSERT + "\n")
                server = psql.stdout.readline().strip()
                self.written.append(Write(began_s, time.monotonic(), server))
                if not server:
                    return
                self._stop.wait(_PACE_S)
                began_s = time.monotonic()
