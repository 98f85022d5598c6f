"""`relay upgrade` where a holder is dead, dies meanwhile, or hangs: it goes on all the same, and nobody notices."""

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from relay.kernel.process import has_ended
from tests.conftest import Daemons
from tests.e2e.installed import NEW, Installed, upgraded
from tests.e2e.peers import typed
from tests.harness import Daemon, Echo, dial, echoed, eventually, one_endpoint
from tests.ports import free_port


def hinder(installed: Installed) -> None:
    """A dead holder stays dead in the program that runs: it is the upgrade that replaces it."""
    installed.change("processes/renewal.py", "        self._children.succeed(index)\n", "")


def upgrade(daemon: Daemon) -> None:
    done = typed("upgrade", "--settings", str(daemon.settings_file))
    assert done.returncode == 0, done
    upgraded(daemon, 1, NEW)


def test_a_worker_without_a_holder_is_upgraded(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    hinder(installed)
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(20)]
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        os.kill(daemon.status()["workers"][1]["holder_pid"], signal.SIGKILL)
        eventually(lambda: any(daemon.events("holder died")), "it is noticed")
        installed.restore()
        installed.release()
        upgrade(daemon)
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        assert all(worker["survives_crash"] for worker in daemon.status()["workers"])


@pytest.mark.parametrize("worker_too", [False, True])
def test_a_holder_that_is_stopped_hinders_nothing(
    daemons: Daemons, echo: Echo, installed: Installed, worker_too: bool
) -> None:
    """Where its worker lives, that gives its table itself, and the holder is ended. Else it alone has the connections."""
    installed.change("processes/succession.py", "_PATIENCE_S: Final = 5.0", "_PATIENCE_S: Final = 0.5")
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 1}, wrapper=installed.wrapper)
    with dial(port) as client:
        assert echoed(client) == b"ping"
        worker = daemon.status()["workers"][0]
        os.kill(worker["holder_pid"], signal.SIGSTOP)
        if worker_too:
            os.kill(worker["pid"], signal.SIGKILL)
            eventually(lambda: has_ended(worker["pid"]), "it is dead")
        installed.release()
        upgrade(daemon)
        assert echoed(client) == b"ping"
        assert len(list(daemon.events("hung"))) == (not worker_too)
        assert daemon.status()["workers"][0]["survives_crash"]


@pytest.mark.parametrize("moment", ["before it says mine", "when it has said it", "before its worker goes on"])
@pytest.mark.parametrize("holder_too", [False, True])
def test_a_successor_that_dies_leaves_all_to_its_worker(
    daemons: Daemons, echo: Echo, installed: Installed, tmp_path: Path, moment: str, holder_too: bool
) -> None:
    """It lives by then, and has everything open. So nothing is lost, whoever gave, and there is another holder at once."""
    file, indent, line = {
        "before it says mine": ("inherited.py", " " * 8, "        succession.say_mine(end)\n    except"),
        "when it has said it": ("inherited.py", " " * 4, "    _settle(state, index, end)\n    holder"),
        "before its worker goes on": ("holder.py", " " * 20, "                    self._beginning.go()\n"),
    }[moment]
    marker = tmp_path / "died"
    once = f"if not os.path.exists({str(marker)!r}): open({str(marker)!r}, 'w').close(); os.kill(os.getpid(), 9)\n"
    installed.change(f"processes/{file}", line, indent + once + line)
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(20)]
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        if holder_too:
            os.kill(daemon.status()["workers"][1]["holder_pid"], signal.SIGKILL)
            eventually(lambda: len(list(daemon.events("guarded"))) == 1, "it has another holder")
        else:
            installed.release()
            upgrade(daemon)
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        eventually(lambda: all(worker["survives_crash"] for worker in daemon.status()["workers"]), "each has a holder")
        assert marker.exists()
        assert list(daemon.events("not guarded")) + list(daemon.events("upgrade failed")) == []
        assert daemon.status()["worker_restarts"] == 0


@pytest.mark.parametrize("moment", ["called", "ready"])
def test_a_holder_that_dies_meanwhile_is_done_without(
    daemons: Daemons, echo: Echo, installed: Installed, moment: str
) -> None:
    """As soon as it has heard, and when its successor was ready: it has not ended its worker yet, which gives by itself."""
    before = {
        "called": "            if not succession.is_called(self._hand):\n",
        "ready": "        if self._worker_pid:\n            with contextlib.suppress(ProcessLookupError, Child",
    }[moment]
    installed.change(
        "processes/holder.py", before, f"        {'    ' * (moment == 'called')}os.kill(os.getpid(), 9)\n{before}"
    )
    daemon = daemons(one_endpoint(port := free_port(), echo.target), {"workers": 2}, wrapper=installed.wrapper)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(20)]
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        installed.restore()
        installed.release()
        upgrade(daemon)
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        assert len(list(daemon.events("holder died"))) == 2
        assert list(daemon.events("not guarded")) == []
