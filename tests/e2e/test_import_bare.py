"""A cloud service of Windows machines, imported as it is, behind an edge: from its two files to clients that are served."""

import contextlib
import http.server
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import Daemons
from tests.harness import HANG_S, Daemon, Echo, denied, dial, echoed, eventually, run_relay
from tests.ports import free_port, free_ports

CORPUS = Path(__file__).parents[1] / "corpus" / "csdef"
EDGE = "127.250.7.1"
MACHINES = ["127.7.0.1", "127.7.0.2"]
FRIENDS, FRIEND = "127.203.0.0/24", "127.203.0.9"


class Windows(http.server.BaseHTTPRequestHandler):
    """The web server of a machine, which says which one it is, and whether it is among those that are unwell."""

    def __init__(self, unwell: set[str], *arguments: Any) -> None:
        self.unwell = unwell
        super().__init__(*arguments)  # which serves the request

    def do_GET(self) -> None:
        address = self.connection.getsockname()[0]
        self.send_response(503 if self.path == "/healthz" and address in self.unwell else 200)
        self.send_header("Content-Length", str(len(address)))
        self.end_headers()
        self.wfile.write(address.encode())

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def serving(*ports: int, unwell: set[str]) -> Iterator[None]:
    """Each machine has its web server on these ports meanwhile."""
    with contextlib.ExitStack() as running:
        for address in MACHINES:
            for port in ports:
                server = running.enter_context(
                    http.server.ThreadingHTTPServer((address, port), partial(Windows, unwell))
                )
                thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
                running.callback(thread.join)
                running.callback(server.shutdown)
                thread.start()
        yield


def imported(folder: Path, name: str) -> dict[str, Any]:
    """What a user gets, and finds right."""
    file = folder / f"{name}.yaml"
    made = run_relay(
        "import", "--bare", *(str(CORPUS / f"{name}.{kind}") for kind in ("csdef", "cscfg")), "-o", str(file)
    )
    assert made.returncode == 0, made.stderr
    checked = run_relay("check", str(file))
    assert checked.returncode == 0, checked.stdout
    assert all(": warning: " in line for line in checked.stdout.splitlines())
    service: dict[str, Any] = yaml.safe_load(file.read_text())
    return service


class Here:
    """A service whose machines are loopback addresses of this one, where its ports are free ones; its edge is running."""

    def __init__(self, daemons: Daemons, service: dict[str, Any]) -> None:
        self.ports: dict[int, int] = {}
        self.roles = service["roles"]
        service["edge"]["instances"] = [EDGE]
        for role in self.roles.values():
            role["instances"] = list(MACHINES)  # a list of its own, which the file would have as an alias
            for endpoint in role["endpoints"].values():
                self._move(endpoint)
        self.daemon: Daemon = daemons(service, instance="edge_IN_0")

    def _move(self, endpoint: dict[str, Any]) -> None:
        if "public_port" in endpoint:
            endpoint["public_port"] = free_port(EDGE)
        if "instance_ports" in endpoint:
            first = free_ports(len(MACHINES), EDGE)
            endpoint["instance_ports"] = f"{first}-{first + len(MACHINES) - 1}"
        for keys in (endpoint, endpoint.get("probe", {})):
            if "port" in keys:
                keys["port"] = self.port(keys["port"])

    def port(self, of_the_source: int) -> int:
        """Where what listens there on the machines of the source, listens on these."""
        if of_the_source not in self.ports:
            self.ports[of_the_source] = free_port("0.0.0.0")
        return self.ports[of_the_source]

    def public(self, role: str, endpoint: str) -> int:
        """The public port of the endpoint."""
        return int(self.roles[role]["endpoints"][endpoint]["public_port"])

    def alone(self, role: str, endpoint: str) -> list[int]:
        """The public port of each instance."""
        first, _, last = self.roles[role]["endpoints"][endpoint]["instance_ports"].partition("-")
        return list(range(int(first), int(last) + 1))


def get(port: int, source: str = FRIEND) -> str:
    """Which machine answers at the edge's port."""
    with dial(port, host=EDGE, source=source) as client, client.makefile("rb") as answer:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return answer.read().rpartition(b"\r\n")[2].decode()


def test_two_machines_behind_an_edge(daemons: Daemons, tmp_path: Path) -> None:
    """The public port leads to both, the port of an instance to one of them, and either to those alone who may connect."""
    service = imported(tmp_path, "instance-ports")
    service["access_lists"]["friends"] = [{"permit": FRIENDS}]
    here = Here(daemons, service)
    with serving(here.port(80), unwell=set()):
        public = here.public("media", "Http")
        found = Counter(get(public) for _ in range(60))
        assert sorted(found) == MACHINES
        for port, machine in zip(here.alone("media", "Http"), MACHINES, strict=True):
            assert {get(port) for _ in range(10)} == {machine}
        for port in (public, *here.alone("media", "Http")):
            assert denied(port, host=EDGE)
        status = here.daemon.endpoint("media/Http")
        assert [(each["target"], each["connected"]) for each in status["target_set"]] == [
            (f"{machine}:{here.port(80)}", found[machine]) for machine in MACHINES
        ]


def test_two_endpoints_on_one_port_of_the_machines(daemons: Daemons, tmp_path: Path) -> None:
    """Each has rules of its own, though one application answers both."""
    service = imported(tmp_path, "instance-ports")
    service["access_lists"]["friends"] = [{"permit": FRIENDS}]
    here = Here(daemons, service)
    everyone, friends = here.public("media", "Chat"), here.alone("media-2", "ChatOfFriends")
    with Echo((MACHINES[0], here.port(6667))) as first, Echo((MACHINES[1], here.port(6667))) as second:
        with dial(everyone, host=EDGE) as client:
            assert echoed(client) == b"ping"
        before = (first.accepted, second.accepted)
        assert denied(friends[1], host=EDGE)
        with dial(friends[1], host=EDGE, source=FRIEND) as client:
            assert echoed(client) == b"ping"
        assert (first.accepted, second.accepted) == (before[0], before[1] + 1)


def test_a_machine_whose_probe_fails_on_another_port_gets_nobody(daemons: Daemons, tmp_path: Path) -> None:
    service = imported(tmp_path, "shop")
    service["roles"]["Front"]["endpoints"]["HttpIn"]["probe"] |= {"interval": "100ms", "timeout": f"{HANG_S:.0f}s"}
    here = Here(daemons, service)
    unwell: set[str] = set()
    public = here.public("Front", "HttpIn")

    def states() -> dict[str, str]:
        return {each["target"]: each["health"] for each in here.daemon.endpoint("Front/HttpIn")["target_set"]}

    targets = [f"{machine}:{here.port(8080)}" for machine in MACHINES]
    with serving(here.port(8080), here.port(8081), unwell=unwell):
        eventually(lambda: states() == dict.fromkeys(targets, "up"), "both are up")
        unwell.add(MACHINES[0])
        eventually(lambda: states() == dict(zip(targets, ("down", "up"), strict=True)), "the first is down")
        assert {get(public) for _ in range(30)} == {MACHINES[1]}
        unwell.clear()
        eventually(lambda: states() == dict.fromkeys(targets, "up"), "both are up again")
        eventually(lambda: get(public) == MACHINES[0], "the first serves again")


def test_the_list_of_the_source_decides_at_the_edge(daemons: Daemons, tmp_path: Path) -> None:
    """The first rule that matches, as written: one network is refused within another that is let in."""
    service = imported(tmp_path, "shop")
    moved = {"175.1.0.0/24": "127.175.1.0/24", "175.0.0.0/8": "127.175.0.0/16"}
    service["access_lists"]["office"] = [
        {action: moved[network] for action, network in rule.items()} for rule in service["access_lists"]["office"]
    ]
    assert all(ip_network(each).is_loopback for each in moved.values())
    here = Here(daemons, service)
    admin = here.public("Front", "Admin")
    with Echo((MACHINES[0], here.port(7000))), Echo((MACHINES[1], here.port(7000))):
        with dial(admin, host=EDGE, source="127.175.2.1") as client:
            assert echoed(client) == b"ping"
        assert denied(admin, host=EDGE, source="127.175.1.1")
        assert denied(admin, host=EDGE, source="127.0.0.1")
