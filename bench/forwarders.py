"""The forwarders that the bench compares: how each is found and started. configs.py has their configurations.

Each listens on one port that leads to the target, or denies everybody. All of them log nothing about a connection.
"""

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from axes import WORKERS, Axis
from configs import (
    ALWAYS_SPLICE,
    KINDS,
    NGINX_KINDS,
    Setting,
    haproxy_config,
    nginx_config,
    relay_service,
    relay_settings,
)
from process import BenchError

BENCH = Path(__file__).resolve().parent
REPOSITORY = BENCH.parent
SOCKET_PROXYD = "/lib/systemd/systemd-socket-proxyd"  # systemd-socket-proxyd(8); not on the PATH
VARIANTS = str(BENCH / "variants.py")


@dataclass(frozen=True, slots=True)
class Adapter:
    """One forwarder.

    `version()` says which one is installed and raises BenchError where it is missing. `command(folder, setting)` writes
    the configuration into the folder and returns the command line. Both are None for no forwarder at all. `kinds` are
    the settings' that it can do; `has_workers`, whether it can have more than one.
    """

    name: str
    version: Callable[[], str] | None
    command: Callable[[Path, Setting], list[str]] | None
    kinds: frozenset[str] = frozenset(KINDS)
    has_workers: bool = True

    def can(self, axis: Axis) -> bool:
        """Whether it has a row on this axis."""
        return axis.kind in self.kinds and (self.has_workers or axis.versus != WORKERS)


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


def relay_version() -> str:
    """Its version, the commit, and whether its engine is compiled. Raises BenchError where relay is missing."""
    package = REPOSITORY / "relay"
    if not (package / "__main__.py").exists():
        raise BenchError(f"not runnable: {package / '__main__.py'} does not exist")
    version = re.search(r'__version__ = "(.+)"', (package / "__init__.py").read_text())
    # Without optional locks git only reads (git(1)).
    git = ["git", "--no-optional-locks", "-C", str(REPOSITORY), "describe", "--always", "--dirty"]
    commit = _first_line(git) if shutil.which("git") else "unknown"
    return f"{version[1] if version else 'unknown'} (commit {commit}; {compiled_modules(package)})"


def compiled_modules(package: Path) -> str:
    """Which modules of the package are compiled, for the head of a report."""
    files = (file.relative_to(package.parent) for file in package.rglob("*.so"))
    found = sorted(".".join((*file.parent.parts, file.name.partition(".")[0])) for file in files)
    return f"compiled: {', '.join(found)}" if found else "no module compiled"


def relay_run(program: tuple[str, ...], folder: Path, instance: str) -> list[str]:
    """The command line for service.yaml and instance.yaml in the folder; `program` is what Python runs: `-m relay`."""
    files = ["--service", str(folder / "service.yaml"), "--settings", str(folder / "instance.yaml")]
    return [sys.executable, *program, "run", *files, "--id", instance]


def _relay_command(program: tuple[str, ...], log_level: str, folder: Path, setting: Setting) -> list[str]:
    (folder / "service.yaml").write_text(relay_service(setting))
    (folder / "instance.yaml").write_text(relay_settings(folder, setting.workers, log_level))
    return relay_run(program, folder, "web_IN_0")


def relay_adapter(name: str = "relay", *alteration: str, log_level: str = "warning") -> Adapter:
    """relay as it is, or with what variants.py alters in it."""
    program = (VARIANTS, *alteration) if alteration else ("-m", "relay")
    return Adapter(name, relay_version, partial(_relay_command, program, log_level))


# ---- HAProxy


def haproxy_version() -> str:
    """What `haproxy -v` says first. Raises BenchError where it is missing."""
    return _first_line([find_program("haproxy", "haproxy"), "-v"])


def haproxy_run(folder: Path, config: str) -> list[str]:
    """The command line, with this configuration written into the folder."""
    file = folder / "haproxy.cfg"
    file.write_text(config)
    return [find_program("haproxy", "haproxy"), "-db", "-f", str(file)]


def _haproxy_command(splice: str, folder: Path, setting: Setting) -> list[str]:
    return haproxy_run(folder, haproxy_config(setting, splice))


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


def _nginx_command(folder: Path, setting: Setting) -> list[str]:
    config = folder / "nginx.conf"
    config.write_text(nginx_config(setting, folder, _stream_module()))
    return [find_program("nginx", "nginx"), "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]


# ---- systemd-socket-proxyd


def _proxyd_version() -> str:
    find_program("systemd-socket-activate", "systemd")
    if not Path(SOCKET_PROXYD).exists():
        raise BenchError(f"no {SOCKET_PROXYD} (apt-get install systemd)")
    return _first_line([SOCKET_PROXYD, "--version"])


def _proxyd_command(_folder: Path, setting: Setting) -> list[str]:
    # systemd-socket-activate(1) execs it at the first connection, which is the one that asks whether the port accepts.
    activate = [find_program("systemd-socket-activate", "systemd"), "--listen", str(setting.listen)]
    return [*activate, SOCKET_PROXYD, f"--connections-max={setting.connections}", str(setting.target)]


ADAPTERS = (
    Adapter("direct", None, None, kinds=frozenset(KINDS) - {"denied"}),
    relay_adapter(),
    Adapter("haproxy", haproxy_version, partial(_haproxy_command, "option splice-auto")),
    # splice-auto leaves it to HAProxy whether to splice. In bulk here 2.6 did not splice one byte, either way ("show
    # info", TotalSplicdedBytesOut), so that HAProxy copies; this one splices every byte.
    Adapter("haproxy-splice", haproxy_version, partial(_haproxy_command, ALWAYS_SPLICE)),
    Adapter("nginx", _nginx_version, _nginx_command, kinds=NGINX_KINDS),
    Adapter("proxyd", _proxyd_version, _proxyd_command, kinds=frozenset({"tcp"}), has_workers=False),
)
