"""The files of `config/recipes`, unchanged: each machine of one is a network namespace with the addresses that it names."""

import contextlib
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.conftest import Daemons
from tests.e2e.apps import App
from tests.e2e.netns import Network
from tests.e2e.programs import answers_at, program, run
from tests.harness import Daemon

_ROOT: Final = Path(__file__).parents[2]
FILES: Final = _ROOT / "config" / "recipes"
PAGE: Final = _ROOT / "docs" / "recipes.md"


@contextlib.contextmanager
def machines(hosts: Mapping[str, Sequence[str]]) -> Iterator[Network]:
    """Machines by name, with their addresses; those of other networks are on the same cable."""
    with Network(hosts) as network:
        for host in hosts:
            with network.inside(host):
                run("ip", "route", "add", "default", "dev", "eth0")
        yield network


def started(
    daemons: Daemons, network: Network, host: str, recipe: str, settings: dict[str, Any] | None = None, **keys: Any
) -> Daemon:
    """relay on that machine, with the recipe as it is. Which instance that is, it finds out as it does for a user."""
    daemon = daemons.make({}, {"workers": 2, **(settings or {})}, instance="", **keys)
    shutil.copy(FILES / f"{recipe}.yaml", daemon.service_file)
    with network.inside(host):
        return daemon.start()


def targets(daemon: Daemon, endpoint: str) -> dict[str, dict[str, Any]]:
    """What a machine says of each target of an endpoint, or of a door."""
    return {each["target"]: each for each in daemon.endpoint(endpoint)["target_set"]}


def health(daemon: Daemon, endpoint: str) -> list[str]:
    """How each target is, in their order."""
    return [each["health"] for each in targets(daemon, endpoint).values()]


@dataclass
class Nginx(App):
    """nginx, which can be unwell: then it answers the probe with 503, and serves all the same."""

    def be_well(self, well: bool) -> None:
        """What the probe gets from now on."""
        mark = self.directory / "unwell"
        mark.unlink() if well else mark.touch()


def iis(network: Network, host: str, directory: Path, address: str) -> Nginx:
    """What stands in for IIS on a machine: it says its own address at 8080, and by TLS at 443; at 8081 how it is."""
    here = directory / host
    here.mkdir()
    certificate, key = here / "certificate.pem", here / "key.pem"
    request = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=x"]
    run("openssl", *request, "-keyout", str(key), "-out", str(certificate))
    return _nginx(network, host, here, address, f"""
        ssl_certificate {certificate}; ssl_certificate_key {key};
        server {{ listen {address}:8080; listen {address}:443 ssl; return 200 {address}; }}
        server {{
            listen {address}:8081;
            location = /healthz {{ if (-e {here}/unwell) {{ return 503; }} return 200; }}
        }}
    """)  # fmt: skip


def worker(network: Network, host: str, directory: Path, listen: str) -> Nginx:
    """One of several processes: it answers each request with its name."""
    here = directory / listen.rpartition("/")[2].replace(":", "-")
    here.mkdir()
    return _nginx(network, host, here, listen, f"""
        server {{ listen {listen}; location ~ ^/(.*)$ {{ return 200 $1; }} }}
    """)  # fmt: skip


def _nginx(network: Network, host: str, directory: Path, target: str, servers: str) -> Nginx:
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {directory}/{kind};" for kind in kinds)
    config = directory / "nginx.conf"
    config.write_text(f"""
        user root; daemon off; pid {directory}/pid; worker_processes 1;
        events {{}}
        http {{ access_log off; keepalive_timeout 0; {temporary} {servers} }}
    """)
    command = [program("nginx"), "-e", str(directory / "error.log"), "-c", str(config)]

    def ready() -> bool:
        if target.startswith("unix:"):
            return answers_at(Path(target.removeprefix("unix:")))
        address, _, port = target.partition(":")
        with socket.socket() as probe:
            return probe.connect_ex((address, int(port or 8080))) == 0

    return Nginx(network, host, command, directory, target, ready, signal.SIGQUIT)
