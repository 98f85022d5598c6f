"""The application sees the client's own address, behind an edge and without one: in a PROXY header, or as its peer."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e import farm
from tests.e2e.farm import CLIENT_V6, CLIENTS, EDGES, INSTANCE_V6, INSTANCES, NAMES, PLAIN, PROXIED, SELDOM
from tests.e2e.netns import Network
from tests.e2e.peers import counted, records
from tests.e2e.programs import RUN_S
from tests.harness import Daemon, Echo, denied, eventually, one_endpoint
from tests.ports import free_port

SCRIPT: Final = Path(__file__).parents[2] / "systemd" / "transparent"
TABLE: Final = "4711"

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root")


def without(*capabilities: str) -> tuple[str, ...]:
    """How to start a daemon without these."""
    return ("setpriv", f"--bounding-set={','.join(f'-{each}' for each in capabilities)}") if os.geteuid() == 0 else ()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    """A client, an edge and one instance with nginx."""
    hosts = {name: addresses for name, addresses in farm.hosts().items() if name in ("client", "edge0", "web0")}
    with Network(hosts) as made, farm.nginx(made, 0, tmp_path_factory.mktemp("nginx")):
        yield made


def service(address: str, endpoints: dict[str, dict[str, Any]], *, edge: bool) -> dict[str, Any]:
    """One instance, with endpoints whose port is their public port."""
    # Copies: PyYAML writes the same object twice as an alias, which relay does not read.
    declared = {name: {"type": "input", "probe": dict(SELDOM), **each} for name, each in endpoints.items()}
    whole = {"version": 1, "service": "test", "roles": {"web": {"instances": [address], "endpoints": declared}}}
    return {**whole, "edge": {"instances": [EDGES[0]]}} if edge else whole


def script(network: Network, action: str, *targets: str) -> None:
    """Run systemd/transparent on the instance."""
    with network.inside("web0"):
        done = subprocess.run(["sh", SCRIPT, action, TABLE, *targets], capture_output=True, text=True, timeout=RUN_S)
    assert (done.returncode, done.stderr) == (0, "")


def rules(network: Network) -> list[str]:
    """What the script has made, on the instance."""
    with network.inside("web0"):
        asked = [
            subprocess.run(["ip", family, *what], capture_output=True, text=True, timeout=RUN_S).stdout.splitlines()
            for family in ("-4", "-6")
            for what in (("rule",), ("route", "show", "table", TABLE))
        ]
    return [line for lines in asked for line in lines if TABLE in line or "local default" in line]


@pytest.mark.real("ip", "nginx", "setpriv")
@needs_root
def test_behind_an_edge(network: Network, daemons: Daemons) -> None:
    own_address = f"{INSTANCES[0]}:{PLAIN}"
    endpoints = {
        "v1": {"public_port": 81, "target": f"127.0.0.1:{PROXIED}", "send_proxy": "v1"},
        "v2": {"public_port": 82, "target": f"127.0.0.1:{PROXIED}", "send_proxy": "v2"},
        "loopback": {"public_port": 83, "target": f"127.0.0.1:{PLAIN}", "transparent": True},
        "address": {"public_port": 84, "target": own_address, "transparent": True},
        "both": {"public_port": 85, "target": f"127.0.0.1:{PROXIED}", "transparent": True, "send_proxy": "v2"},
    }
    endpoints["hasty"] = {**endpoints["loopback"], "public_port": 86, "timeouts": {"connect": "1s"}}
    whole = service(INSTANCES[0], endpoints, edge=True)
    with network.inside("web0"):
        web = daemons(whole, {"workers": 1}, instance=NAMES[0], wrapper=without("net_admin"))  # CAP_NET_RAW is enough
    with network.inside("edge0"):
        daemons(whole, {"workers": 1}, instance="edge_IN_0")
    assert rules(network) == []
    with pytest.raises(ConnectionError):
        farm.ask(network, CLIENTS[5], port=86)
    eventually(
        lambda: web.endpoint("web/hasty")["closed"].get("connect_timeout"), "without the rules no answer comes back"
    )
    for _ in range(2):
        script(network, "up", own_address)
    for n, port in enumerate((81, 82, 83, 84, 85)):
        assert farm.ask(network, CLIENTS[n], port=port).client == CLIENTS[n], f"port {port}"
    script(network, "down", own_address)
    assert rules(network) == []


@pytest.mark.real("ip", "nginx", "setpriv")
@needs_root
def test_ipv6_and_no_edge(network: Network, daemons: Daemons) -> None:
    own_address = f"[{INSTANCE_V6}]:{PLAIN}"
    endpoints = {
        "v2": {"public_port": 82, "target": f"[::1]:{PROXIED}", "send_proxy": "v2"},
        "loopback": {"public_port": 83, "target": f"[::1]:{PLAIN}", "transparent": True},
        "address": {"public_port": 84, "target": own_address, "transparent": True},
        "localhost": {"public_port": 85, "target": f"localhost:{PLAIN}", "transparent": True},
        "other": {"public_port": 86, "target": f"127.0.0.1:{PLAIN}", "transparent": True},
    }
    with network.inside("web0"):
        web = daemons(service(INSTANCE_V6, endpoints, edge=False), {"workers": 1})
    script(network, "up", own_address)
    try:
        for port in (82, 83, 84, 85):
            assert farm.ask(network, CLIENT_V6, to=INSTANCE_V6, port=port).client == CLIENT_V6, f"port {port}"
        with pytest.raises(ConnectionError):
            farm.ask(network, CLIENT_V6, to=INSTANCE_V6, port=86)
    finally:
        script(network, "down", own_address)
    counted(web, "web/other", closed={"error": 1})
    [line] = records(web, "dial", 1)
    assert "`localhost`" in line["reason"]
    assert rules(network) == []


@pytest.mark.real("setpriv")
def test_without_the_capability_it_is_said_once_a_second_and_counted(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    daemon: Daemon = daemons(
        one_endpoint(port, echo.target, transparent=True), {"workers": 1}, wrapper=without("net_admin", "net_raw")
    )
    tries = 25
    for _ in range(tries):
        assert denied(port)
    counted(daemon, closed={"error": tries})

    def told() -> int:
        return sum(line.get("left_out", 1) for line in daemon.events("dial"))

    eventually(lambda: told() == tries, f"{tries} are told of")
    lines = list(daemon.events("dial"))
    assert len(lines) < tries
    assert all("CAP_NET_RAW" in line["reason"] and line["level"] == "error" for line in lines)
    assert echo.accepted == 0
