"""Where a daemon is started: what is closed there, and what is missing."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import Daemons
from tests.harness import HANG_S, Echo, dial, echoed, one_endpoint
from tests.ports import free_port

NO_PROC = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs -o ro none /proc; exec "$@"', "sh")


def closing(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_closed_descriptor_at_the_start_costs_nobody_anything(
    daemons: Daemons, echo: Echo, closed: tuple[int, ...]
) -> None:
    """Its number would be a socket's, which a worker takes for what everybody has open."""
    daemon = daemons(one_endpoint(port := free_port(), echo.target), before_exec=closing(*closed))
    for _ in range(4):  # so that each worker has one
        with dial(port) as client:
            assert echoed(client) == b"ping"
    assert daemon.relay("status").returncode == 0


@pytest.mark.real("unshare")
@pytest.mark.skipif(os.getuid() != 0, reason="mounts need root")
def test_without_proc_it_does_not_start(daemons: Daemons) -> None:
    """Workers find there what is open; without it they would die, one after the other, and clients would wait."""
    daemon = daemons.make(one_endpoint(free_port(), "127.0.0.1:9"), wrapper=NO_PROC).start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 1
    assert "mount -t proc proc /proc" in daemon.log_text()
    assert not list(daemon.events("starting")), "nothing was opened"


@pytest.mark.parametrize("closed", [(1,), (1, 2)])
def test_a_command_without_an_output_does_its_work(daemons: Daemons, closed: tuple[int, ...]) -> None:
    daemon = daemons(one_endpoint(free_port(), "127.0.0.1:9"))
    command = ["relay", "reload", "--settings", str(daemon.settings_file)]
    done = subprocess.run(
        [sys.executable, "-m", *command], preexec_fn=closing(*closed), timeout=HANG_S, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert daemon.status()["generation"] == 2


def lock_no_memory() -> None:
    """As an ordinary user whose LimitMEMLOCK= is 0. Root may lock all the same, with CAP_IPC_LOCK."""
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))


@pytest.mark.real("setpriv")
def test_where_no_memory_may_be_locked_all_is_spliced(daemons: Daemons, echo: Echo) -> None:
    wrapper = ("setpriv", "--bounding-set=-ipc_lock") if os.geteuid() == 0 else ()
    daemon = daemons(one_endpoint(port := free_port(), echo.target), wrapper=wrapper, before_exec=lock_no_memory)
    assert {event["process"] for event in daemon.events("not copied")} == {"worker-0", "worker-1"}
    with dial(port) as client:
        assert echoed(client) == b"ping"
    assert daemon.endpoint("web/in")["sent_bytes"] == 4
