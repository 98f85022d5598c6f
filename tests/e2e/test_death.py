"""A worker or control dies: what goes on, what is lost, and how the next one takes over."""

import os
import resource
import select
import signal
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Daemons
from tests.dataplane.unprivileged import NOBODY, as_nobody
from tests.e2e.peers import control_pid, control_restarted, counted, endpoint, more, next_worker, records, shut, typed
from tests.harness import (
    HANG_S,
    Daemon,
    Echo,
    Scrape,
    dial,
    echoed,
    eventually,
    one_endpoint,
    patched,
    service,
    unwatched,
)
from tests.ports import free_port

CRASH = signal.SIGALRM  # ends a process as a bug would, and leaves no core file; SIGKILL does not count as a crash


# --- the worker -------------------------------------------------------------------------------------------------------


def test_a_killed_worker_is_replaced_and_no_client_notices(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    settings = {"workers": 1, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
    daemon = daemons(one_endpoint(port, echo.target), settings)
    old = [dial(port) for _ in range(3)]
    assert [echoed(client) for client in old] == [b"ping"] * 3
    counted(daemon, sent_bytes=3 * 4)  # a byte is counted when it has gone on: a kill between the two loses the count
    killed = daemon.worker_pid()
    os.kill(killed, signal.SIGKILL)
    new = [dial(port) for _ in range(10)]  # most of them before there is anybody to accept them
    try:
        assert [echoed(client) for client in (*old, *new)] == [b"ping"] * 13
        status = daemon.status()
        assert (status["worker_restarts"], status["workers"][0]["pid"] != killed) == (1, True)
        scrape = Scrape(metrics)
        assert scrape.value("relay_worker_restarts_total") == 1
        assert scrape.value("relay_flows_adopted_total") == 3
        assert scrape.value("relay_connections_active") == 13
        account = daemon.endpoint("web/in")
        assert (account["accepted"], account["active"], account["closed"]) == (13, 13, {})

        def all_counted() -> bool:  # after the bytes have gone on, so the client may be the first to know
            return [daemon.endpoint("web/in")[key] for key in ("received_bytes", "sent_bytes")] == [16 * 4] * 2

        eventually(all_counted, "every byte is counted")
        assert len(daemon.ask("GET", "/v1/connections")[1]) == 13
        (died,) = records(daemon, "died", 1)
        assert (died["message"], died["how"]) == ("worker-0", "signal 9")
    finally:
        for client in (*old, *new):
            client.close()
    counted(daemon, active=0, closed={"client_fin": 13})


def kill_with_holder(daemon: Daemon) -> None:
    """Kill the first worker and the process that would have kept its connections, and wait for the next ones."""
    worker = daemon.status()["workers"][0]
    os.kill(worker["holder_pid"], signal.SIGKILL)
    os.kill(worker["pid"], signal.SIGKILL)
    next_worker(daemon, worker["pid"])


def test_connections_that_die_with_worker_and_holder_are_accounted_for(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1})
    with dial(port) as one, dial(port) as two:
        assert (echoed(one), echoed(two)) == (b"ping", b"ping")
        kill_with_holder(daemon)
        for client in (one, two):
            with pytest.raises(ConnectionResetError):  # a FIN would say that this was all
                client.recv(1)
        with dial(port) as new:
            assert echoed(new) == b"ping"
            counted(daemon, accepted=3, active=1, closed={"error": 2})
            assert len(daemon.ask("GET", "/v1/connections")[1]) == 1
    (died,) = records(daemon, "died", 1)
    assert (died["message"], died["how"]) == ("worker-0", "signal 9")
    (lost,) = records(daemon, "lost", 1)
    assert lost["connections"] == 2
    assert [list(daemon.events(event)) for event in ("upgrade failed", "guarded")] == [[], []]


def test_the_next_holder_has_other_things_under_the_numbers_of_the_dead_ones(daemons: Daemons, echo: Echo) -> None:
    """The keeper opens ports for a reload: their numbers there are clients' in the table of the dead worker."""
    ports = [free_port() for _ in range(40)]
    daemon = daemons(service({"in": endpoint(ports[0], echo.target)}), {"workers": 1})
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(ports[0])) for _ in range(12)]
        assert [echoed(client) for client in clients] == [b"ping"] * 12
        declared = {f"in{n or ''}": endpoint(port, echo.target) for n, port in enumerate(ports)}
        daemon.write_service(service(declared))
        assert daemon.ask("POST", "/v1/reload")[0] == 200
        kill_with_holder(daemon)
        for port in ports:
            with dial(port) as new:
                assert echoed(new) == b"ping"
        counted(daemon, accepted=13, active=0, closed={"error": 12, "client_fin": 1})
        assert list(daemon.events("bug")) == []
        assert daemon.status()["workers"][0]["flows_adopted"] == 0


def test_a_killed_holder_is_replaced_and_then_its_worker_may_die(daemons: Daemons, echo: Echo) -> None:
    """Holder and worker are killed in turns, with what follows from each in between. Nobody who is connected notices."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2})
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(20)]
        for turn in range(1, 5):
            assert [echoed(client) for client in clients] == [b"ping"] * 20
            before = daemon.status()["workers"][0]
            os.kill(before["holder_pid"], signal.SIGKILL)
            [*_, guarded] = records(daemon, "guarded", turn)
            assert guarded["message"] == "worker-0 has a holder again"
            after = daemon.status()["workers"][0]
            assert after["survives_crash"]
            assert after["holder_pid"] not in (before["holder_pid"], before["pid"])
            assert [echoed(client) for client in clients] == [b"ping"] * 20
            worker = next_worker(daemon, before["pid"])
            os.kill(worker, signal.SIGKILL)
            next_worker(daemon, worker)
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        assert [list(daemon.events(event)) for event in ("bug", "crash", "not guarded")] == [[], [], []]
    counted(daemon, accepted=20, active=0, closed={"client_fin": 20})


def test_a_worker_without_a_holder_says_so_until_it_has_one(daemons: Daemons, echo: Echo, tmp_path: Path) -> None:
    """Each new holder ends at once, for as long as the test looks."""
    port, metrics, hinders = free_port(), free_port(), tmp_path / "hinders"
    fails = (
        "import errno, os, relay.cli.main, relay.processes.succession as it; take = it.take\n"
        "def fails(*given):\n"
        f"    if os.path.exists({str(hinders)!r}):\n"
        "        raise OSError(errno.ENOMEM, 'no memory')\n"
        "    return take(*given)\n"
        "it.take = fails; exit(relay.cli.main.main())"
    )
    settings = {"workers": 1, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
    daemon = daemons(one_endpoint(port, echo.target), settings, program=("-c", fails))
    hinders.touch()
    with dial(port) as client:
        assert echoed(client) == b"ping"
        worker = daemon.status()["workers"][0]
        os.kill(worker["holder_pid"], signal.SIGKILL)
        eventually(lambda: len(list(daemon.events("not guarded"))) > 1, "it is tried, and tried again")
        assert echoed(client) == b"ping"
        now = daemon.status()["workers"][0]
        assert (now["pid"], now["holder_pid"], now["survives_crash"]) == (worker["pid"], 0, False)
        assert Scrape(metrics).value("relay_worker_unguarded", worker="0") == 1
        said = typed("status", "--settings", str(daemon.settings_file)).stdout
        assert "NO NET: if worker 0 dies, its 1 connection will; its holder is dead" in said
        hinders.unlink()
        records(daemon, "guarded", 1)
        assert daemon.status()["workers"][0]["survives_crash"]
        assert Scrape(metrics).value("relay_worker_unguarded", worker="0") == 0
        assert "NO NET" not in typed("status", "--settings", str(daemon.settings_file)).stdout
        assert echoed(client) == b"ping"


def test_the_port_is_open_at_every_moment_of_a_workers_death(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1})
    outcomes: Counter[str] = Counter()
    stop = threading.Event()

    def clients() -> None:
        while not stop.is_set():
            try:
                with dial(port) as client:
                    outcomes["echoed" if echoed(client) == b"ping" else "ended"] += 1
            except ConnectionRefusedError:
                outcomes["refused"] += 1
            except ConnectionError:
                outcomes["lost"] += 1

    thread = threading.Thread(target=clients)
    thread.start()
    try:
        worker = daemon.worker_pid()
        for _ in range(3):
            more(outcomes, "echoed")
            os.kill(worker, signal.SIGKILL)
            worker = next_worker(daemon, worker)
        more(outcomes, "echoed")
    finally:
        stop.set()
        thread.join(HANG_S)
    assert outcomes.keys() == {"echoed"}, outcomes


def test_a_crash_loop_is_damped(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1})
    worker = daemon.worker_pid()
    for crash in range(1, 5):
        os.kill(worker, CRASH)
        worker = next_worker(daemon, worker)
        assert daemon.status()["worker_restarts"] == crash
    delays_s = [died["restart_in_s"] for died in records(daemon, "died", 4)]
    assert delays_s == sorted(delays_s)
    assert 0 < delays_s[0] <= 0.2
    assert delays_s[-1] >= 5 * delays_s[0]
    with dial(port) as client:
        assert echoed(client) == b"ping"


@pytest.mark.real("setpriv", "prlimit")
def test_connections_wait_where_no_process_can_be_started(daemons: Daemons, echo: Echo) -> None:
    """At the limit of processes nobody gives up: what is held is held until there is room again."""
    daemon = daemons.make(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=as_nobody())
    if os.getuid() == 0:
        os.chown(daemon.directory, NOBODY, NOBODY)
    daemon.start()
    with dial(port) as client:
        assert echoed(client) == b"ping"
        worker, holder = (daemon.status()["workers"][0][key] for key in ("pid", "holder_pid"))
        most = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        for pid in (holder, daemon.pid):
            subprocess.run([*as_nobody(), "prlimit", f"--pid={pid}", "--nproc=0:"], check=True)
        os.kill(worker, signal.SIGKILL)
        eventually(lambda: any(daemon.events("not started")), "it is said")
        os.kill(control_pid(daemon), signal.SIGKILL)
        client.sendall(b"pong")
        assert not select.select([client], [], [], 0.1)[0]
        for pid in (holder, daemon.pid):
            subprocess.run(
                [*as_nobody(), "prlimit", f"--pid={pid}", f"--nproc={'unlimited' if most < 0 else most}:"], check=True
            )
        assert client.recv(4) == b"pong"
        control_restarted(daemon)
        message = next(daemon.events("not started"))["message"]
        assert message.startswith("worker-0 cannot be started: Resource temporarily unavailable; it is tried again")


def test_a_holder_that_starts_late_opens_no_port_of_the_past(daemons: Daemons, echo: Echo) -> None:
    """Messages wait for the worker in the kernel. Those that are out of date when one comes must not open a port again."""
    stays, extra = free_port(), free_port()
    kept = endpoint(stays, echo.target)
    daemon = daemons(service({"in": kept}), {"workers": 1}, program=unwatched())
    os.kill(daemon.worker_pid(), signal.SIGSTOP)
    daemon.write_service(service({"in": kept, "extra": endpoint(extra, echo.target)}))
    code, answer = daemon.ask("POST", "/v1/reload")
    assert (code, answer["notes"]) == (200, ["worker 0 has not answered yet"])
    daemon.write_service(service({"in": kept}))
    with ThreadPoolExecutor() as pool:
        second = pool.submit(daemon.ask, "POST", "/v1/reload")
        eventually(lambda: daemon.status()["generation"] == 3, "it is in force")
        kill_with_holder(daemon)
        assert second.result()[0] == 200
    eventually(lambda: daemon.status()["workers"][0]["generation"] == 3, "the new worker works by it")
    with dial(stays) as client:
        assert echoed(client) == b"ping"
    shut(extra)


def test_what_a_dead_worker_counted_is_not_the_next_endpoints(daemons: Daemons, echo: Echo) -> None:
    """An endpoint goes while its worker and holder die with a connection of it; a later one gets its row of counters."""
    ports = [free_port() for _ in range(3)]
    keep, leaves, comes = (endpoint(port, echo.target) for port in ports)
    daemon = daemons(service({"in": keep, "leaves": leaves}), {"workers": 1}, program=unwatched())
    with dial(ports[1]) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.worker_pid(), signal.SIGSTOP)
        daemon.write_service(service({"in": keep}))
        with ThreadPoolExecutor() as pool:
            first = pool.submit(daemon.ask, "POST", "/v1/reload")
            eventually(lambda: daemon.status()["generation"] == 2, "it is in force")
            kill_with_holder(daemon)
            assert first.result()[0] == 200
    eventually(lambda: daemon.status()["workers"][0]["generation"] == 2, "a worker works by it")
    daemon.write_service(service({"in": keep, "comes": comes}))
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    fresh = daemon.endpoint("web/comes")
    assert (fresh["accepted"], fresh["active"], fresh["closed"], fresh["received_bytes"]) == (0, 0, {}, 0)


def test_a_worker_that_dies_in_the_midst_of_a_reload_works_by_the_new_one(daemons: Daemons, echo: Echo) -> None:
    stays, extra = free_port(), free_port()
    kept = endpoint(stays, echo.target)
    # However late the next worker is, it is waited for.
    patient = patched("relay.control.delivery._APPLY_S", value=HANG_S)
    daemon = daemons(service({"in": kept}), {"workers": 1}, program=unwatched(patient))
    worker = daemon.worker_pid()
    os.kill(worker, signal.SIGSTOP)
    daemon.write_service(service({"in": kept, "extra": endpoint(extra, echo.target)}))
    with ThreadPoolExecutor() as pool:
        reload = pool.submit(daemon.ask, "POST", "/v1/reload")
        eventually(lambda: daemon.status()["generation"] == 2, "it is in force")
        os.kill(worker, signal.SIGKILL)
        code, answer = reload.result()
    assert (code, answer["notes"]) == (200, [])
    with dial(extra) as client:
        assert echoed(client) == b"ping"


def test_of_two_workers_one_dies(daemons: Daemons, echo: Echo) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2})
    clients = [dial(port) for _ in range(40)]
    try:
        assert [echoed(client) for client in clients] == [b"ping"] * 40
        held = Counter(each["worker"] for each in daemon.ask("GET", "/v1/connections")[1])
        assert sum(held.values()) == 40
        pids = [worker["pid"] for worker in daemon.status()["workers"]]
        os.kill(pids[0], signal.SIGKILL)
        next_worker(daemon, pids[0])
        assert daemon.status()["workers"][1]["pid"] == pids[1]
        assert [echoed(client) for client in clients] == [b"ping"] * 40
        assert Counter(each["worker"] for each in daemon.ask("GET", "/v1/connections")[1]) == held
    finally:
        for client in clients:
            client.close()
    counted(daemon, active=0, closed={"client_fin": 40})


# --- control ----------------------------------------------------------------------------------------------------------


def test_forwarding_does_not_notice_that_control_stops_and_dies(daemons: Daemons, echo: Echo) -> None:
    port, metrics, added = free_port(), free_port(), free_port()
    kept = endpoint(port, echo.target)
    daemon = daemons(service({"in": kept}), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    with dial(port) as client:
        assert echoed(client) == b"ping"
        counted(daemon, received_bytes=4, sent_bytes=4)
        before = Scrape(metrics)
        killed, worker = control_pid(daemon), daemon.worker_pid()
        os.kill(killed, signal.SIGSTOP)
        assert echoed(client) == b"ping"
        with dial(port) as during:
            assert echoed(during) == b"ping"
        os.kill(killed, signal.SIGKILL)
        assert echoed(client) == b"ping"
        status = control_restarted(daemon)
        assert (status["control"]["pid"] != killed, status["workers"][0]["pid"]) == (True, worker)
        assert echoed(client) == b"ping"
        after = Scrape(metrics)
        for name in ("relay_connections_accepted_total", "relay_received_bytes_total", "relay_sent_bytes_total"):
            assert after.value(name) > before.value(name) > 0
        assert after.value("relay_control_restarts_total") == 1
        assert after.value("relay_worker_restarts_total") == 0
        other = endpoint(added, echo.target)
        daemon.write_service(service({"in": kept, "added": other}))
        done = daemon.relay("reload")
        assert (done.returncode, "open web/added" in done.stdout) == (0, True), done
        with dial(added) as new:
            assert echoed(new) == b"ping"
        assert echoed(client) == b"ping"
    eventually(lambda: len(list(daemon.events("connection"))) == 3, "the log is written on")


def test_control_that_dies_right_after_a_reload_keeps_it(daemons: Daemons, echo: Echo) -> None:
    first, second = free_port(), free_port()
    endpoints = {"in": endpoint(first, echo.target)}
    daemon = daemons(service(endpoints))
    endpoints["second"] = endpoint(second, echo.target)
    daemon.write_service(service(endpoints))
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    os.kill(control_pid(daemon), signal.SIGKILL)
    status = control_restarted(daemon)
    assert (status["generation"], len(status["endpoints"])) == (2, 2)
    del endpoints["second"]
    daemon.write_service(service(endpoints))
    assert daemon.ask("POST", "/v1/reload")[1]["generation"] == 3
    shut(second)
