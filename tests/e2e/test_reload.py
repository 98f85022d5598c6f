"""Reload, by SIGHUP and by `relay reload`: all or nothing, and established connections are decided anew."""

import contextlib
import os
import signal
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import yaml

from tests.conftest import Daemons
from tests.e2e.peers import counted, endpoint, more, records, refused, shut
from tests.harness import HANG_S, Daemon, Echo, Scrape, denied, dial, echoed, eventually, service
from tests.ports import free_port


def reload(daemon: Daemon) -> dict[str, Any]:
    """Reload what is right; the answer."""
    code, answer = daemon.ask("POST", "/v1/reload")
    assert code == 200, answer
    return dict(answer)


def cut(client: socket.socket) -> bool:
    """Whether the connection is reset, with nothing sent before that."""
    try:
        return client.recv(1) == b"?"
    except ConnectionResetError:
        return True


# --- what is right takes ----------------------------------------------------------------------------------------------


def test_endpoints_come_go_and_move_beside_one_that_is_not_touched(daemons: Daemons, echo: Echo) -> None:
    stays, goes, old, new, comes = (free_port() for _ in range(5))
    kept = endpoint(stays, echo.target)
    daemon = daemons(service({"stays": kept, "goes": endpoint(goes, echo.target), "moves": endpoint(old, echo.target)}))
    with dial(stays) as untouched, dial(goes) as removed, dial(old) as moved:
        for client in (untouched, removed, moved):
            assert echoed(client) == b"ping"
        untouched.sendall(b"half a")
        daemon.write_service(
            service({"stays": kept, "moves": endpoint(new, echo.target), "comes": endpoint(comes, echo.target)})
        )
        done = daemon.relay("reload")
        assert done.returncode == 0, done
        assert sorted(done.stdout.splitlines()) == sorted(
            [
                f"close web/goes on 127.0.0.1:{goes}",
                f"change web/moves on 127.0.0.1:{new} (listen_port)",
                f"open web/comes on 127.0.0.1:{comes}",
                "generation 2 is in force",
            ]
        )
        assert cut(removed)
        shut(goes, old)
        for port in (new, comes):
            with dial(port) as client:
                assert echoed(client) == b"ping"
        untouched.sendall(b" word")
        received = b""
        while len(received) < 11:
            received += untouched.recv(64)
        assert received == b"half a word"
        assert echoed(moved) == b"ping"  # the endpoint is the same one: only new clients must find its new port
        ended = ("web/goes", "revoked")
        eventually(
            lambda: ended in [(each["endpoint"], each["cause"]) for each in daemon.events("connection")], "it is said"
        )
        assert daemon.endpoint("web/stays")["active"] == 1
        assert daemon.endpoint("web/moves")["accepted"] == 2  # its counters went with it


def test_two_endpoints_change_ports(daemons: Daemons) -> None:
    one, two = free_port(), free_port()
    with Echo() as first, Echo() as second:
        daemon = daemons(service({"a": endpoint(one, first.target), "b": endpoint(two, second.target)}))
        with dial(one) as client:
            assert echoed(client) == b"ping"
            daemon.write_service(service({"a": endpoint(two, first.target), "b": endpoint(one, second.target)}))
            reload(daemon)
            with dial(one) as new:
                assert echoed(new) == b"ping"
            assert (first.accepted, second.accepted) == (1, 1)
            assert echoed(client) == b"ping"


def test_a_port_that_is_said_to_be_closed_can_be_opened(daemons: Daemons, echo: Echo) -> None:
    """The keeper holds listening sockets too, and must have let go of this one, however late it comes to that."""
    port = free_port()
    kept, other = endpoint(free_port(), echo.target), endpoint(port, echo.target)
    daemon = daemons(service({"in": kept, "other": other}), {"workers": 1})
    daemon.write_service(service({"in": kept}))
    with ThreadPoolExecutor() as pool:
        os.kill(daemon.pid, signal.SIGSTOP)
        try:
            said = pool.submit(daemon.ask, "POST", "/v1/reload")
            eventually(lambda: daemon.status()["workers"][0]["generation"] == 2, "the worker has closed it")
            assert not said.done()
        finally:
            os.kill(daemon.pid, signal.SIGCONT)
        assert said.result()[0] == 200
    daemon.write_service(service({"in": kept, "other": other}))
    code, answer = daemon.ask("POST", "/v1/reload")
    assert code == 200, answer
    assert answer["changes"] == [f"open web/other on 127.0.0.1:{port}"]


def test_a_new_target_is_for_new_connections(daemons: Daemons) -> None:
    port = free_port()
    with Echo() as before, Echo() as after:
        daemon = daemons(service({"in": endpoint(port, before.target)}))
        with dial(port) as old:
            assert echoed(old) == b"ping"
            daemon.write_service(service({"in": endpoint(port, after.target)}))
            reload(daemon)
            with dial(port) as new:
                assert echoed(new) == b"ping"
            assert (before.accepted, after.accepted) == (1, 1)
            records(daemon, "connection", 1)
            assert echoed(old) == b"ping"
        targets = [record["target"] for record in records(daemon, "connection", 2)]
        assert targets == [after.target, before.target], "a line names the target that the connection had"


def test_a_rule_that_now_denies_cuts_whom_it_denies_and_nobody_else(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target)}), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    with dial(port, source="127.0.0.2") as unwanted, dial(port, source="127.0.0.3") as allowed:
        assert (echoed(unwanted), echoed(allowed)) == (b"ping", b"ping")
        daemon.write_service(service({"in": endpoint(port, echo.target, access=[{"deny": "127.0.0.2"}])}))
        reload(daemon)
        assert cut(unwanted)
        assert echoed(allowed) == b"ping"
        now = daemon.endpoint("web/in")
        assert (now["active"], now["closed"], now["denied"]) == (1, {"revoked": 1}, {})
        assert Scrape(metrics).value("relay_connections_closed_total", cause="revoked") == 1
        assert denied(port, source="127.0.0.2")
        counted(daemon, denied={"access": 1})
        daemon.write_service(service({"in": endpoint(port, echo.target)}))
        reload(daemon)
        with dial(port, source="127.0.0.2") as again:
            assert echoed(again) == b"ping"


def test_an_instance_that_leaves_the_roster_is_cut_off(daemons: Daemons, echo: Echo) -> None:
    port = free_port()

    def declared(*clients: str) -> dict[str, Any]:
        store = {"type": "internal", "port": port, "target": echo.target, "from": ["app"]}
        return {
            "version": 1,
            "service": "test",
            "roles": {
                "web": {"instances": ["127.0.0.1"], "endpoints": {"in": store}},
                "app": {"instances": list(clients)},
            },
        }

    daemon = daemons(declared("127.0.0.2", "127.0.0.3"))
    with dial(port, source="127.0.0.2") as leaves, dial(port, source="127.0.0.3") as stays:
        assert (echoed(leaves), echoed(stays)) == (b"ping", b"ping")
        daemon.write_service(declared("127.0.0.3"))
        reload(daemon)
        assert cut(leaves)
        assert echoed(stays) == b"ping"
    assert denied(port, source="127.0.0.2")
    counted(daemon, denied={"roster": 1})


def test_lower_limits_cut_nobody(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(service({"in": endpoint(port := free_port(), echo.target)}))
    with dial(port) as one, dial(port) as two:
        assert (echoed(one), echoed(two)) == (b"ping", b"ping")
        daemon.write_service(service({"in": endpoint(port, echo.target, limits={"connections": 1})}))
        reload(daemon)
        assert (echoed(one), echoed(two)) == (b"ping", b"ping")
        assert denied(port)
    counted(daemon, denied={"connections": 1})


def test_nobody_is_refused_over_twenty_reloads(daemons: Daemons, echo: Echo) -> None:
    host = "127.0.0.7"  # no client of anybody takes a port of it for its own
    port, other = free_port(host), free_port(host)
    daemon = daemons(service({"in": endpoint(port, echo.target)}, host=host))
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def clients() -> None:
        while not stop.is_set():
            try:
                with dial(port, host=host) as client:
                    outcomes["echoed" if echoed(client) == b"ping" else "ended"] += 1
            except OSError as error:
                outcomes[type(error).__name__] += 1

    threads = [threading.Thread(target=clients) for _ in range(2)]
    with dial(port, host=host) as steady:
        for thread in threads:
            thread.start()
        try:
            for number in range(20):
                extra = {"other": endpoint(other, echo.target)} if number % 2 else {}
                limits = {"connections": 1000 + number}
                daemon.write_service(service({"in": endpoint(port, echo.target, limits=limits), **extra}, host=host))
                assert reload(daemon)["changes"]
                more(outcomes, "echoed")
            assert echoed(steady) == b"ping"
        finally:
            stop.set()
            for thread in threads:
                thread.join(HANG_S)
    assert outcomes.keys() == {"echoed"}, outcomes
    assert daemon.status()["generation"] == 21


# --- settings ---------------------------------------------------------------------------------------------------------


def test_settings_that_need_a_restart_are_said_and_the_others_take(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(service({"in": endpoint(port := free_port(), echo.target)}))
    settings = yaml.safe_load(daemon.settings_file.read_text())
    new = {**settings, "workers": 2, "address": "127.0.0.9", "log": {"level": "error", "format": "text"}}
    daemon.settings_file.write_text(yaml.safe_dump(new))
    done = daemon.relay("reload")
    assert done.returncode == 0
    for key in ("workers", "address", "log.format"):
        assert f"`{key}` in the settings changed; that takes a restart" in done.stdout
    assert "`log.level`" not in done.stdout  # it took
    lines = daemon.log_text().count("\n")
    with dial(port) as client:
        assert echoed(client) == b"ping"
    eventually(lambda: daemon.endpoint("web/in")["closed"], "it is over")
    reload(daemon)
    assert daemon.log_text().count("\n") == lines, "nothing is written below the level `error`"


def test_a_shorter_drain_holds_from_the_reload_on(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(service({"in": endpoint(port := free_port(), echo.target)}), {"drain": "2m"})
    settings = yaml.safe_load(daemon.settings_file.read_text())
    daemon.settings_file.write_text(yaml.safe_dump({**settings, "drain": "200ms"}))
    reload(daemon)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGTERM)
        assert cut(client)
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 0


def test_a_reload_while_draining_is_refused_and_opens_nothing(daemons: Daemons, echo: Echo) -> None:
    port, added = free_port(), free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target)}), {"drain": "2m"})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        daemon.write_service(service({"in": endpoint(port, echo.target), "new": endpoint(added, echo.target)}))
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: daemon.status()["draining"], "it drains")
        done = daemon.relay("reload")
        assert (done.returncode, "stopping" in done.stderr) == (1, True)
        assert refused(added)
        assert echoed(client) == b"ping"


def test_a_file_that_is_replaced_by_a_link_is_read_anew(daemons: Daemons, echo: Echo, tmp_path: Path) -> None:
    """As configuration management does it: the path is a symbolic link, and the link changes."""
    port, added = free_port(), free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target)}))
    new = tmp_path / "release-2.yaml"
    new.write_text(yaml.safe_dump(service({"new": endpoint(added, echo.target)})))
    with contextlib.suppress(FileNotFoundError):
        daemon.service_file.unlink()
    daemon.service_file.symlink_to(new)
    reload(daemon)
    with dial(added) as client:
        assert echoed(client) == b"ping"
