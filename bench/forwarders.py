"""The forwarders that the bench compares: how each is found, configured and started.

Each gets one port that leads to the target and, where it can deny, one port that denies all of 127.0.0.0/8. All of
them run one worker (thread) and log nothing about a connection.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from process import BenchError, Process, accepts, throws_out

BENCH = Path(__file__).resolve().parent
REPOSITORY = BENCH.parent
SOCKET_PROXYD = "/lib/systemd/systemd-socket-proxyd"  # systemd-socket-proxyd(8); not on the PATH

# Ample for the widest axis, 64 connections, and small enough that HAProxy, which counts both sockets and pipes of
# each connection against RLIMIT_NOFILE, starts under a limit of 20,000.
MAX_CONNECTIONS = 4096


@dataclass(frozen=True, slots=True)
class Ports:
    """Ports on 127.0.0.1: two to listen on, and the target's."""

    forward: int
    denied: int
    target: int


@dataclass(frozen=True, slots=True)
class Adapter:
    """One forwarder.

    `version()` says which one is installed and raises BenchError where it is missing. `command(folder, ports)` writes
    the configuration into the folder and returns the command line. Both are None for no forwarder at all.
    """

    name: str
    version: Callable[[], str] | None
    command: Callable[[Path, Ports], list[str]] | None
    denies: bool


@dataclass(frozen=True, slots=True)
class Running:
    """A forwarder ready to be measured; `process` is None for no forwarder at all."""

    adapter: Adapter
    ports: Ports
    process: Process | None

    def cpu_s(self) -> float | None:
        """CPU seconds of its process tree so far; None for no forwarder at all."""
        return self.process.cpu_s() if self.process else None


def start(adapter: Adapter, folder: Path, ports: Ports, cpu: int | None) -> Running:
    """Starts it on `cpu`. `wait_ready` comes next. Raises BenchError when it cannot be started."""
    if adapter.command is None:
        return Running(adapter, Ports(ports.target, 0, ports.target), None)
    folder.mkdir()
    command = adapter.command(folder, ports)
    return Running(adapter, ports, Process(adapter.name, command, cpu=cpu, log=folder / "output", cwd=REPOSITORY))


def wait_ready(running: Running) -> None:
    """Returns once it listens and, where it can deny, denies. Raises BenchError when that does not come."""
    if running.process is None:
        return
    ports = running.ports
    running.process.wait_until(partial(accepts, ports.forward), f"listening on 127.0.0.1:{ports.forward}")
    if running.adapter.denies:
        # Clients of a process that listens and is not yet at work wait in the backlog.
        running.process.wait_until(partial(throws_out, ports.denied), f"denying on 127.0.0.1:{ports.denied}")


def find_program(name: str, package: str) -> str:
    """The path of a program. Raises BenchError that names the Debian package where it is missing."""
    path = shutil.which(name, path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        raise BenchError(f"not installed (apt-get install {package})")
    return path


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


# ---- relay

RELAY_SETTINGS = """\
workers: 1
metrics: false
admin: {{socket: {folder}/admin.sock}}
log: {{level: {level}, format: json}}
"""


VARIANTS = str(BENCH / "variants.py")


def relay_version() -> str:
    """What `relay --version` says, and the commit. Raises BenchError where relay is missing."""
    package = REPOSITORY / "relay"
    if not (package / "__main__.py").exists():
        raise BenchError(f"not runnable: {package / '__main__.py'} does not exist")
    version = re.search(r'__version__ = "(.+)"', (package / "__init__.py").read_text())
    # Without optional locks git only reads (git(1)).
    git = ["git", "--no-optional-locks", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    commit = _first_line(git) if shutil.which("git") else "unknown"
    return f"{version[1] if version else 'unknown'} (commit {commit})"


def relay_command(program: tuple[str, ...], log_level: str, folder: Path, ports: Ports) -> list[str]:
    """`program` is what Python runs: `-m relay`, or variants.py and what it shall alter."""
    service, settings = folder / "service.yaml", folder / "instance.yaml"
    service.write_text(f"""\
version: 1
service: bench
roles:
  web:
    instances: [127.0.0.1]
    endpoints:
      tcp:
        type: input
        protocol: tcp
        public_port: {ports.forward}
        target: "127.0.0.1:{ports.target}"
      denied:
        type: input
        protocol: tcp
        public_port: {ports.denied}
        target: "127.0.0.1:{ports.target}"
        access:
          - deny: 127.0.0.0/8
""")
    settings.write_text(RELAY_SETTINGS.format(folder=folder, level=log_level))
    run = [sys.executable, *program, "run", "--service", str(service), "--settings", str(settings)]
    return [*run, "--id", "web_IN_0"]


def relay_adapter(name: str = "relay", *alteration: str, log_level: str = "warning") -> Adapter:
    """relay as it is, or with what variants.py alters in it."""
    program = (VARIANTS, *alteration) if alteration else ("-m", "relay")
    return Adapter(name, relay_version, partial(relay_command, program, log_level), denies=True)


# ---- HAProxy

ALWAYS_SPLICE = "option splice-request\n    option splice-response"


def haproxy_version() -> str:
    """What `haproxy -v` says first. Raises BenchError where it is missing."""
    return _first_line([find_program("haproxy", "haproxy"), "-v"])


def _haproxy_command(splice: str, folder: Path, ports: Ports) -> list[str]:
    config = folder / "haproxy.cfg"
    config.write_text(f"""\
global
    nbthread 1
    maxconn {MAX_CONNECTIONS}
    tune.pipesize 1048576

defaults
    mode tcp
    {splice}
    timeout connect 5s
    timeout client 1h
    timeout server 1h

frontend tcp
    bind 127.0.0.1:{ports.forward}
    default_backend target

frontend denied
    bind 127.0.0.1:{ports.denied}
    tcp-request connection reject if {{ src 127.0.0.0/8 }}
    default_backend target

backend target
    server target 127.0.0.1:{ports.target}
""")
    return [find_program("haproxy", "haproxy"), "-db", "-f", str(config)]


# ---- nginx


def _stream_module() -> str:
    """The directive that loads the stream module; empty where it is built in. BenchError where there is none."""
    nginx = find_program("nginx", "nginx libnginx-mod-stream")
    build = subprocess.run([nginx, "-V"], capture_output=True, text=True, check=False, timeout=10).stderr
    if re.search(r"--with-stream(\s|$)", build):
        return ""
    folder = re.search(r"--modules-path=(\S+)", build)
    module = Path(folder[1] if folder else "/usr/lib/nginx/modules") / "ngx_stream_module.so"
    if not module.exists():
        raise BenchError(f"no stream module at {module} (apt-get install libnginx-mod-stream)")
    return f"load_module {module};"


def _nginx_version() -> str:
    _stream_module()
    return _first_line([find_program("nginx", "nginx"), "-v"])


def _nginx_command(folder: Path, ports: Ports) -> list[str]:
    config = folder / "nginx.conf"
    # Level crit: a denied connection is an error to nginx, and a line for each would be measured too.
    config.write_text(f"""\
{_stream_module()}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log crit;
events {{
    worker_connections {MAX_CONNECTIONS};
}}
stream {{
    access_log off;
    proxy_connect_timeout 5s;
    proxy_timeout 1h;
    server {{
        listen 127.0.0.1:{ports.forward} backlog=4096;
        proxy_pass 127.0.0.1:{ports.target};
    }}
    server {{
        listen 127.0.0.1:{ports.denied} backlog=4096;
        deny all;
        proxy_pass 127.0.0.1:{ports.target};
    }}
}}
""")
    return [find_program("nginx", "nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]


# ---- systemd-socket-proxyd


def _proxyd_version() -> str:
    find_program("systemd-socket-activate", "systemd")
    if not Path(SOCKET_PROXYD).exists():
        raise BenchError(f"no {SOCKET_PROXYD} (apt-get install systemd)")
    return _first_line([SOCKET_PROXYD, "--version"])


def _proxyd_command(folder: Path, ports: Ports) -> list[str]:
    # systemd-socket-activate(1) execs it at the first connection, which is the one that asks whether the port accepts.
    activate = [find_program("systemd-socket-activate", "systemd"), "--listen", f"127.0.0.1:{ports.forward}"]
    return [*activate, SOCKET_PROXYD, f"--connections-max={MAX_CONNECTIONS}", f"127.0.0.1:{ports.target}"]


ADAPTERS = (
    Adapter("direct", None, None, denies=False),
    relay_adapter(),
    Adapter("haproxy", haproxy_version, partial(_haproxy_command, "option splice-auto"), denies=True),
    # splice-auto leaves it to HAProxy whether to splice. In bulk here 2.6 did not splice one byte, either way ("show
    # info", TotalSplicdedBytesOut), so that HAProxy copies; this one splices every byte.
    Adapter("haproxy-splice", haproxy_version, partial(_haproxy_command, ALWAYS_SPLICE), denies=True),
    Adapter("nginx", _nginx_version, _nginx_command, denies=True),
    Adapter("proxyd", _proxyd_version, _proxyd_command, denies=False),
)
