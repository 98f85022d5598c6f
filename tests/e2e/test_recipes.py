"""Recipes of web services as they are: Windows machines behind an edge, several processes, and a canary."""

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.e2e.programs import program
from tests.e2e.recipes import PAGE, health, iis, machines, started, targets, worker
from tests.e2e.restarts import Application, Load
from tests.harness import HANG_S, Daemon, Echo, denied, echoed, eventually

pytestmark = [
    pytest.mark.real("ip", "nginx", "openssl"),
    pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces, which takes root"),
]

EDGE = "198.51.100.10"
CLIENTS = [f"203.0.113.{n}" for n in range(1, 41)]
GUEST, STRANGER = "203.0.113.200", "198.51.100.77"


def ask(address: str, source: str, name: str = "", *, tls: bool = False) -> str:
    """What an HTTP server says to a client of that address."""
    port = 443 if tls else 80
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(socket.create_connection((address, port), HANG_S, source_address=(source, 0)))
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            client = stack.enter_context(context.wrap_socket(client))
        client.sendall(f"GET /{name} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        return b"".join(iter(lambda: client.recv(65536), b"")).rpartition(b"\r\n\r\n")[2].decode()


@pytest.fixture
def directory() -> Iterator[Path]:
    """A directory with a path that is short enough for a Unix socket's."""
    with tempfile.TemporaryDirectory(prefix="relay-recipe-") as name:
        yield Path(name)


def test_windows_machines_behind_an_edge(daemons: Daemons, directory: Path) -> None:
    """nginx stands in for IIS, and for its Remote Desktop whoever sends back what he gets."""
    windows = {"front0": "10.0.1.4", "front1": "10.0.1.5"}
    hosts = {"edge": [EDGE, "10.0.1.2"], "client": [*CLIENTS, GUEST, STRANGER]}
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(machines(hosts | {host: [address] for host, address in windows.items()}))
        servers = [iis(network, host, directory, address) for host, address in windows.items()]
        desktops = []
        for host, address in windows.items():
            with network.inside(host):
                desktops.append(stack.enter_context(Echo((address, 3389))))
        for server in servers:
            stack.callback(server.stop)
            server.start()
        edge = started(daemons, network, "edge", "windows-behind-an-edge", {"state": str(directory)})
        for name in ("front/http-in", "front/https-in"):
            eventually(lambda name=name: health(edge, name) == ["up", "up"], "both are up")  # type: ignore[misc]
        with network.inside("client"):
            first = {source: ask(EDGE, source) for source in CLIENTS}
            assert set(first.values()) == set(windows.values())
            assert {source: ask(EDGE, source) for source in CLIENTS} == first, "each stays with its machine"
            assert {ask(EDGE, source, tls=True) for source in CLIENTS} == set(windows.values())
            for number, desktop in enumerate(desktops):
                before = desktop.accepted
                where = (EDGE, 3390 + number)
                with socket.create_connection(where, HANG_S, source_address=(CLIENTS[0], 0)) as client:
                    assert echoed(client) == b"ping"
                assert desktop.accepted == before + 1
                assert denied(where[1], host=EDGE, source=GUEST)
                assert denied(where[1], host=EDGE, source=STRANGER)
            servers[0].be_well(False)
            eventually(lambda: health(edge, "front/http-in") == ["down", "up"], "its probe says so")
            assert {ask(EDGE, source) for source in CLIENTS} == {windows["front1"]}
            servers[0].be_well(True)
            eventually(lambda: health(edge, "front/http-in") == ["up", "up"], "it is well again")
            assert {source: ask(EDGE, source) for source in CLIENTS} == first, "each is back"
            servers[0].kill()
            assert {ask(EDGE, source) for source in CLIENTS} == {windows["front1"]}, "nobody waits for a probe"


def test_four_processes_restarted_one_after_the_other(daemons: Daemons, directory: Path) -> None:
    """As the page says, under load, and not one request is lost; then all four are away, and clients wait."""
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(machines({"web": ["10.0.0.4"], "client": [CLIENTS[0]]}))
        (directory / "shop").mkdir()
        listens = [f"127.0.0.1:{port}" for port in (3001, 3002, 3003)] + [f"unix:{directory}/shop/4.sock"]
        workers = [worker(network, "web", directory, listen) for listen in listens]
        for each in workers:
            stack.callback(each.stop)
            each.start()
        mounted = ("unshare", "--mount", "sh", "-c", f'mount --bind {directory} /run && exec "$@"', "sh")
        web = started(daemons, network, "web", "four-processes", {"state": str(directory)}, wrapper=mounted)
        eventually(lambda: health(web, "web/http-in") == ["up"] * 4, "all are up")
        with network.inside("client"), Load(("10.0.0.4", 80)).running() as load:
            with typed(web, directory) as release:
                for number, each in enumerate(workers):
                    asked = directory / f"shop@{number + 1}"
                    eventually(lambda asked=asked: asked.exists() or release.poll() is not None, "its turn")  # type: ignore[misc]
                    now = list(targets(web, "web/http-in").values())[number]
                    assert (now["weight"], now["active"]) == (0, 0)
                    each.stop()
                    load.go_on()
                    eventually(lambda number=number: health(web, "web/http-in")[number] == "down", "it is seen")  # type: ignore[misc]
                    each.start()
                    asked.unlink()
                assert release.wait(HANG_S) == 0
            assert [each["weight"] for each in targets(web, "web/http-in").values()] == [1] * 4
            assert list(targets(web, "web/http-in").values())[3]["share"] < 1, "it begins slowly"
        assert (load.failed, set(web.endpoint("web/http-in")["closed"])) == ([], {"target_fin"})
        for each in workers:
            each.stop()
        eventually(lambda: health(web, "web/http-in") == ["down"] * 4, "all are away")
        with network.inside("client"), socket.create_connection(("10.0.0.4", 80), HANG_S) as client:
            client.sendall(b"GET /waits HTTP/1.1\r\nHost: x\r\n\r\n")
            eventually(lambda: web.endpoint("web/http-in")["held"] == 1, "it waits")
            workers[3].start()
            assert client.recv(4096).startswith(b"HTTP/1.1 200")


@contextlib.contextmanager
def typed(web: Daemon, directory: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """The page's release of all four, on their machine. `systemctl` asks for a restart by a file, and waits for it."""
    (script,) = re.findall(r"```sh\n(release.*?)```", PAGE.read_text(), re.DOTALL)
    programs = {
        "relay": f'exec {sys.executable} -m relay "$@" --settings {web.settings_file}',
        "systemctl": f'touch {directory}/"$2"; while [ -e {directory}/"$2" ]; do sleep 1; done',
        "sleep": f"exec {program('sleep')} 0.05",
    }
    places = directory / "bin"
    places.mkdir()
    for name, line in programs.items():
        (places / name).write_text(f"#!/bin/sh\n{line}\n")
        (places / name).chmod(0o755)
    with subprocess.Popen(
        ["sh", "-eu", "-c", script], env={**os.environ, "PATH": f"{places}:{os.environ['PATH']}"}
    ) as made:
        try:
            yield made
        finally:
            made.kill()


def test_a_canary_and_back(daemons: Daemons, directory: Path) -> None:
    """A share of the clients moves to it and back, and nobody else moves; a restart of the edge's relay changes nothing."""
    webs = {f"web{n}": f"10.0.0.{n + 4}" for n in range(3)}
    hosts = {"edge": [EDGE], "client": CLIENTS} | {host: [address] for host, address in webs.items()}
    with contextlib.ExitStack() as stack:
        network = stack.enter_context(machines(hosts))
        versions = []
        for host in webs:
            with network.inside(host):
                versions.append(stack.enter_context(Application(3000)))
        relays = [started(daemons, network, host, "canary", {"state": str(directory / host)}) for host in webs]
        stack.callback(daemons.end)
        edge = started(daemons, network, "edge", "canary", {"state": str(directory)})
        eventually(lambda: health(edge, "web/http-in") == ["up"] * 3, "all are up")

        def split() -> dict[str, int]:
            """Which version each client gets."""
            found = {}
            for source in CLIENTS:
                before = [version.answered[source] for version in versions]
                with network.inside("client"):
                    assert ask(EDGE, source, source) == source
                (found[source],) = (n for n in range(3) if versions[n].answered[source] > before[n])
            return found

        def set_to(weight: str) -> str:
            done = edge.relay("weight", "web/http-in", "web_IN_2", weight)
            assert (done.returncode, done.stderr) == (0, "")
            return done.stdout

        def moved(before: dict[str, int], after: dict[str, int]) -> set[tuple[int, int]]:
            return {(before[each], after[each]) for each in CLIENTS if before[each] != after[each]}

        first = split()
        assert Counter(first.values()).keys() == {0, 1}
        assert set_to("2") == "web/http-in: web_IN_2 (10.0.0.6:8080) has the weight 2 by hand (0 in the file)\n"
        few = split()
        assert moved(first, few) <= {(0, 2), (1, 2)}, "nobody moves but to the canary"
        set_to("50")
        more = split()
        assert moved(few, more) <= {(0, 2), (1, 2)}
        assert Counter(few.values())[2] < Counter(more.values())[2] < len(CLIENTS) / 2
        by_hand = "WEIGHT: web/http-in: web_IN_2 has 50 by hand (0 in the file)"
        assert by_hand in edge.relay("status").stdout
        assert not any(by_hand in each.relay("status").stdout for each in relays), "it is this edge's alone"
        edge.stop()
        with network.inside("edge"):
            edge.start()
        eventually(lambda: health(edge, "web/http-in") == ["up"] * 3, "all are up")
        assert by_hand in edge.relay("status").stdout
        assert split() == more
        set_to("0")
        assert split() == first, "each is back where it was"
        set_to("off")
        assert "WEIGHT:" not in edge.relay("status").stdout
