"""`relay upgrade`: the daemon goes over to the code that is installed now, and nobody who is connected notices."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conformance.proc import descriptors
from tests.conftest import Daemons
from tests.e2e.chaos import Streams, renew_workers
from tests.e2e.installed import NEW, Installed, upgraded
from tests.e2e.peers import children, counted, settled, typed
from tests.e2e.streams import target
from tests.harness import HANG_S, Daemon, Echo, Scrape, dial, echoed, eventually, one_endpoint
from tests.ports import free_port

USUAL = 40  # kills while one upgrade takes place, on a machine that does nothing else


def pids(daemon: Daemon) -> set[int]:
    """Control's and the workers': what an upgrade replaces."""
    status = daemon.status()
    return {status["control"]["pid"], *(worker["pid"] for worker in status["workers"])}


def test_established_connections_and_the_main_process_live_on(
    daemons: Daemons, echo: Echo, installed: Installed
) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(
        one_endpoint(port, echo.target),
        {"workers": 2, "metrics": {"listen": f"127.0.0.1:{metrics}"}},
        wrapper=installed.wrapper,
    )
    before, main_pid, mine = pids(daemon), daemon.pid, daemon.status()["keeper"]["pid"]
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(20)]
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        before_bytes = Scrape(metrics).value("relay_received_bytes_total")
        installed.release()
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        assert f"is now {NEW}" in done.stdout
        assert "20 connections go on" in done.stdout
        assert [echoed(client, b"pong") for client in clients] == [b"pong"] * 20
        with dial(port) as new:
            assert echoed(new) == b"ping"
        status = daemon.status()
        assert (status["version"], status["program"], status["upgrading"]) == (NEW, 1, False)
        assert (status["keeper"]["pid"], daemon.pid) == (mine, main_pid)
        assert not before & pids(daemon)
        assert sum(worker["flows_adopted"] for worker in status["workers"]) == 20
        eventually(
            lambda: Scrape(metrics).value("relay_received_bytes_total") > before_bytes, "what came since is counted"
        )
        after = Scrape(metrics)
        assert after.value("relay_upgrades_total") == 1
        assert after.value("relay_build_info", version=NEW) == 1
    assert daemon.status()["worker_restarts"] == 0
    counted(daemon, active=0, closed={"client_fin": 21})


def test_a_signal_does_the_same(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    daemon = daemons(one_endpoint(port := free_port(), echo.target), wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        for program in (1, 2, 3):
            installed.release(f"9.9.{program}")
            os.kill(daemon.pid, signal.SIGUSR2)
            upgraded(daemon, program, f"9.9.{program}")
            assert echoed(client) == b"ping"


def test_holders_that_are_slow_to_hear_and_slow_to_end(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    """The second is called as soon as the first one's worker is up, which may be before the first one has ended."""
    slow = "            time.sleep(0.1)\n"
    hears = "            end = succession.fetched(self._hand)\n"
    ends = "    os._exit(0)\n"
    installed.change("processes/holder.py", hears, slow + hears)
    installed.change("processes/succession.py", ends, "    __import__('time').sleep(0.1)\n" + ends)
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGUSR2)
        upgraded(daemon)
        assert echoed(client) == b"ping"
    assert list(daemon.events("upgrade failed")) == []


def test_a_reload_a_kill_and_a_stop_after_an_upgrade(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    """The new program does all that the old one did."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        installed.release()
        done = typed("upgrade", "--settings", str(daemon.settings_file))
        assert done.returncode == 0, done
        status = daemon.status()
        assert (status["version"], status["program"], status["upgrading"]) == (NEW, 1, False)
        daemon.write_service(one_endpoint(port, echo.target, access=[{"permit": "127.0.0.1"}]))
        assert daemon.ask("POST", "/v1/reload")[0] == 200
        worker = daemon.worker_pid()
        os.kill(worker, signal.SIGKILL)
        assert echoed(client) == b"ping"
        eventually(lambda: daemon.worker_pid() != worker, "the next worker is at work")
        os.kill(daemon.status()["control"]["pid"], signal.SIGKILL)
        eventually(lambda: any(died["message"] == "control" for died in daemon.events("died")), "it is noticed")
        assert echoed(client) == b"ping"
        os.kill(daemon.pid, signal.SIGTERM)
        eventually(lambda: any(daemon.events("draining")), "it drains")
        assert echoed(client) == b"ping"
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 0


@contextmanager
def streamed(daemons: Daemons, installed: Installed) -> Iterator[tuple[Daemon, Streams]]:
    """A daemon and streams of every shape through it. At the end everything must be accounted for."""
    installed.patient()
    with target() as (at, address):
        port = free_port()
        daemon = daemons(one_endpoint(port, address), {"workers": 2}, wrapper=installed.wrapper)
        streams = Streams(("127.0.0.1", port), 20261125)
        with streams.running(6):
            yield daemon, streams
        assert at.failures == []

        endpoint = settled(daemon)
        assert endpoint["accepted"] == streams.done.total()
        assert set(endpoint["closed"]) <= {"client_fin", "target_fin"}
        assert list(daemon.events("bug")) == []


@pytest.mark.slow
def test_streams_of_every_shape_over_many_upgrades(daemons: Daemons, installed: Installed, long: bool) -> None:
    upgrades = int(os.environ.get("RELAY_CHAOS_UPGRADES", "100" if long else "5"))
    with streamed(daemons, installed) as (daemon, streams):
        for turn in streams.turns(upgrades):
            assert daemon.ask("POST", "/v1/upgrade")[0] == 202
            upgraded(daemon, 1 + turn)


@pytest.mark.slow
def test_workers_are_killed_while_their_holders_change(daemons: Daemons, installed: Installed) -> None:
    """Old ones and new ones, at any moment. Nothing is left open in any process."""
    with streamed(daemons, installed) as (daemon, streams), killing(daemon) as killed:
        for turn in streams.turns(8):
            killed.before = killed.count
            asked_for(daemon)
            upgraded(daemon, 1 + turn)
            if turn == 0:
                first = descriptors(daemon.pid)
        eventually(lambda: killed.count >= 100, "many were killed")
    assert list(daemon.events("upgrade failed")) == []
    assert descriptors(daemon.pid) == first
    renew_workers(daemon)
    holders = {descriptors(worker["holder_pid"]) for worker in daemon.status()["workers"]}
    assert max(holders) < first + 20, "what is open is listeners, channels, a pipe, and the loop's"


def asked_for(daemon: Daemon) -> None:
    """An upgrade, as soon as control is there to be asked."""
    eventually(lambda: accepted(daemon), "it is accepted")


def accepted(daemon: Daemon) -> bool:
    try:
        return daemon.ask("POST", "/v1/upgrade")[0] == 202
    except OSError:
        return False


@dataclass
class Killed:
    """How many workers were killed: so far, and before the last upgrade began. Each has one thread that writes it."""

    count: int = 0
    before: int = 0


@contextmanager
def killing(daemon: Daemon) -> Iterator[Killed]:
    """Somebody who kills workers meanwhile."""
    stop, chance, killed = threading.Event(), random.Random(20261126), Killed()

    def kill() -> None:
        # Ever later in one upgrade: where a start takes longer than the time between two kills, it would never end.
        while not stop.wait(chance.uniform(0.005, 0.05) * max(1.0, (killed.count - killed.before) / USUAL) ** 2):
            workers = [pid for holder in children(daemon.pid) for pid in children(holder) if is_worker(pid)]
            for pid in workers and [chance.choice(workers)]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.count += 1

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield killed
    finally:
        stop.set()
        thread.join()


def is_worker(pid: int) -> bool:
    """And not the trial of an upgrade, which control starts."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("relay-worker")
    return False


def test_to_a_program_that_knows_another_setting(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    """What the one before has not told of, it did not know: that is no change of what a running daemon keeps."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        installed.change(
            "config/settings.py", "    resolvers: tuple", "    later: Flag = False\n\n    resolvers: tuple"
        )
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        upgraded(daemon)
        assert echoed(client) == b"ping"


def test_back_to_a_program_that_knows_fewer_settings(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    """As the ones before did, it takes a section with a key more for one that has changed."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        known = '"10.0.0.2:53")], ...] = '
        installed.change("config/settings.py", known + "()", known + "Field(default=(), exclude=True)")
        installed.change("control/upgrade.py", "not _agrees(value, fixed[key])", "value != fixed[key]")
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        upgraded(daemon)
        assert echoed(client) == b"ping"
