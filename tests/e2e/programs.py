"""Real programs for tests: each server in a directory of its own, on a free port, awaited, and ended by its pid."""

import contextlib
import hashlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.harness import HANG_S, eventually
from tests.ports import free_port

RUN_S = 120.0  # for one client's whole work: a bound for hanging, below the time limit of a test
_AS_ROOT = os.geteuid() == 0


def program(name: str) -> str:
    """The path of a program that the test's `real(...)` mark asked for; Debian keeps some out of PATH."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: -int(path.parent.name))
    places = [os.environ.get("PATH", ""), "/usr/sbin", "/sbin", *map(str, versions)]
    found = shutil.which(name, path=os.pathsep.join(places))
    assert found is not None, f"{name} is not installed"
    return found


def run(name: str, *arguments: str, stdin: bytes = b"", user: str | None = None, cwd: Path | None = None) -> bytes:
    """What the program writes to its standard output. Fails the test with all it wrote when it does not exit with 0."""
    done = subprocess.run(
        [program(name), *arguments], input=stdin, capture_output=True, timeout=RUN_S, user=user, cwd=cwd
    )
    assert done.returncode == 0, f"{name} ended with {done.returncode}: {(done.stderr + done.stdout).decode()}"
    return done.stdout


def curl(*arguments: str) -> bytes:
    """What curl writes; it must end well, and asks nobody for a proxy."""
    return run("curl", "-sS", "--fail", "--noproxy", "*", "--max-time", f"{RUN_S}", *arguments)


def sha256(data: bytes) -> str:
    """A short name for many bytes, so that a failure can be read."""
    return hashlib.sha256(data).hexdigest()


def answers(*ports: int) -> bool:
    """Whether somebody accepts on each of these ports of 127.0.0.1."""
    for port in ports:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return False
    return True


def answers_at(path: Path) -> bool:
    """Whether somebody accepts on this Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


@contextlib.contextmanager
def serving(
    command: list[str],
    directory: Path,
    ready: Callable[[], object],
    *,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server in the foreground: yields when `ready` is true, ends it with `stop`."""
    log_file = directory / "output"
    with log_file.open("wb") as log:
        server = subprocess.Popen(
            command, cwd=directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=user, start_new_session=True
        )
    try:
        eventually(lambda: ready() or server.poll() is not None, f"{command[0]} is ready")
        assert server.poll() is None, f"{command[0]} did not start: {log_file.read_text()}"
        yield server
    finally:
        server.send_signal(stop)
        try:
            server.wait(HANG_S)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()
            raise


@dataclass(frozen=True, slots=True)
class Nginx:
    """A running nginx: its three servers' ports and where its files are."""

    plain: int
    tls: int
    proxied: int  # wants a PROXY protocol header, and answers with what it says
    files: Path
    certificate: Path


@contextlib.contextmanager
def nginx(directory: Path) -> Iterator[Nginx]:
    """nginx with an HTTP server that serves and takes files, the same with TLS, and one behind the PROXY protocol."""
    files, certificate = directory / "files", directory / "certificate.pem"
    files.mkdir()
    (files / "index.html").write_text("hello from nginx\n")
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    run("openssl", *request, *names, "-keyout", str(directory / "key.pem"), "-out", str(certificate))
    made = Nginx(free_port(), free_port(), free_port(), files, certificate)
    temporary = " ".join(
        f"{kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = directory / "nginx.conf"
    config.write_text(f"""
        {"user root;" if _AS_ROOT else ""}  # the test's directory is closed to others
        daemon off; pid {directory}/pid; worker_processes 1;
        events {{}}
        http {{
            access_log off; root {files}; keepalive_requests 1000000; client_max_body_size 0; {temporary}
            ssl_certificate {certificate}; ssl_certificate_key {directory}/key.pem;
            server {{
                listen 127.0.0.1:{made.plain}; listen 127.0.0.1:{made.tls} ssl;
                dav_methods PUT;
            }}
            server {{
                listen 127.0.0.1:{made.proxied} proxy_protocol;
                return 200 "$proxy_protocol_addr $proxy_protocol_port";
            }}
        }}
    """)
    command = [program("nginx"), "-e", str(directory / "error.log"), "-c", str(config)]
    with serving(command, directory, lambda: answers(made.plain, made.tls, made.proxied)):
        yield made


@dataclass(frozen=True, slots=True)
class Redis:
    """A running Redis: the two ways to reach it, as relay's targets."""

    tcp: str
    unix: str


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[Redis]:
    """Redis without persistence, on a port and on a Unix socket."""
    port, path = free_port(), directory / "redis.sock"
    command = [program("redis-server"), "--bind", "127.0.0.1", "--port", str(port), "--unixsocket", str(path)]
    command += ["--dir", str(directory), "--save", "", "--appendonly", "no"]
    with serving(command, directory, lambda: answers(port) and answers_at(path)):
        yield Redis(f"127.0.0.1:{port}", f"unix:{path}")


@dataclass(frozen=True, slots=True)
class Postgres:
    """A running PostgreSQL: its only way in as relay's target, and its superuser."""

    unix: str
    user: str

    def client(self, port: int) -> tuple[str, ...]:
        """The arguments of its client programs that lead there by way of this port."""
        return ("-h", "127.0.0.1", "-p", str(port), "-U", self.user)


def other_user() -> str | None:
    """Whom PostgreSQL can run as, which refuses to run as root; None: as ourselves."""
    if not _AS_ROOT:
        return None
    return next(name for name in ("postgres", "nobody") if name in {each.pw_name for each in pwd.getpwall()})


@contextlib.contextmanager
def postgres(directory: Path) -> Iterator[Postgres]:
    """PostgreSQL with a database of its own, on a Unix socket alone."""
    owner = other_user()
    if owner is not None:
        shutil.chown(directory, owner)
    data, port = directory / "data", 5432  # only part of the socket's name
    initdb = ["-D", str(data), "-U", "relay", "--auth=trust", "--no-sync", "--no-locale", "-E", "UTF8"]
    run("initdb", *initdb, user=owner, cwd=directory)
    command = [program("postgres"), "-D", str(data), "-k", str(directory), "-p", str(port)]
    command += ["-c", "listen_addresses=", "-c", "fsync=off"]

    def ready() -> bool:
        asked = [program("pg_isready"), "-q", "-h", str(directory), "-p", str(port)]
        return subprocess.run(asked, timeout=RUN_S).returncode == 0

    # SIGINT: end open sessions; with SIGTERM it would wait for them.
    with serving(command, directory, ready, user=owner, stop=signal.SIGINT):
        yield Postgres(f"unix:{directory}/.s.PGSQL.{port}", "relay")


@contextlib.contextmanager
def iperf3(directory: Path) -> Iterator[int]:
    """An iperf3 server; its port. It is asked by its output: a connection that says nothing would be a test to it."""
    port = free_port()
    command = [program("iperf3"), "-s", "-B", "127.0.0.1", "-p", str(port), "--forceflush"]
    with serving(command, directory, lambda: "listening" in (directory / "output").read_text()):
        yield port


@dataclass(frozen=True, slots=True)
class Sshd:
    """A running sshd: its port, and what a client needs to be let in by it."""

    port: int
    host_key: str
    client_key: Path
    user: str

    def client(self, port: int) -> tuple[str, ...]:
        """The arguments of ssh that lead there by way of this port; the command to run comes after them."""
        known = self.client_key.with_name("known_hosts")
        known.write_text(f"[127.0.0.1]:{port} {self.host_key}\n")
        options = ("BatchMode=yes", "IdentitiesOnly=yes", "StrictHostKeyChecking=yes", f"UserKnownHostsFile={known}")
        named = [part for option in options for part in ("-o", option)]
        return (*named, "-F", "none", "-i", str(self.client_key), "-p", str(port), f"{self.user}@127.0.0.1")


@contextlib.contextmanager
def sshd(directory: Path) -> Iterator[Sshd]:
    """sshd with a host key of its own, which lets in whoever runs the test, with a key made for it."""
    for name in ("host_key", "client_key"):
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(directory / name))
    shutil.copy(directory / "client_key.pub", directory / "authorized_keys")
    if _AS_ROOT:  # sshd(8): where its unprivileged half lives; its service unit makes it
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    port, config = free_port(), directory / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1\nPort {port}\nHostKey {directory}/host_key\nPidFile none\nUsePAM no\n"
        f"AuthorizedKeysFile {directory}/authorized_keys\nStrictModes no\nPermitRootLogin yes\nPrintMotd no\n"
    )
    with serving([program("sshd"), "-D", "-e", "-f", str(config)], directory, lambda: answers(port)):
        yield Sshd(
            port,
            (directory / "host_key.pub").read_text().strip(),
            directory / "client_key",
            pwd.getpwuid(os.geteuid()).pw_name,
        )
