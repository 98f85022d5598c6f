"""A declared address for which a worker has no socket: that is no start, and no reload."""

from typing import Final

from tests.conftest import Daemons
from tests.e2e.peers import endpoint, records, refused
from tests.harness import HANG_S, Daemon, Echo, dial, echoed, eventually, one_endpoint, service
from tests.ports import free_port

# What replaces `-m relay`: no worker finds a socket that the keeper left; or it loses those that control sends.
FINDS_NONE: Final = ("-c", "from relay.dataplane.open_ports import OpenPorts; OpenPorts.find = lambda *_: set(); ")
LOSES: Final = (
    "-c",
    "from relay.dataplane.open_ports import OpenPorts; import os; "
    "OpenPorts.add = lambda _, __, fds: [os.close(fd) for fd in fds]; ",
)
MAIN: Final = "import relay.cli.main; exit(relay.cli.main.main())"


def broken(how: tuple[str, str]) -> tuple[str, str]:
    return how[0], how[1] + MAIN


def test_a_start_without_a_socket_fails(daemons: Daemons) -> None:
    daemon = daemons.make(one_endpoint(free_port(), "127.0.0.1:9"), {"workers": 2}, program=broken(FINDS_NONE))
    daemon.start(wait=False)
    assert daemon.process is not None
    assert daemon.process.wait(HANG_S) == 1
    (failed,) = records(daemon, "start failed", 1)
    assert "no socket for a declared address: worker-0 for 1, worker-1 for 1" in failed["message"]


def reload_loses_the_new_port(daemon: Daemon) -> str:
    done = daemon.relay("reload")
    assert done.returncode == 1
    return done.stderr


def test_a_reload_without_a_socket_fails_and_what_stood_before_stands_again(daemons: Daemons, echo: Echo) -> None:
    stays, goes, comes = free_port(), free_port(), free_port()
    before = service({"in": endpoint(stays, echo.target), "goes": endpoint(goes, echo.target)})
    daemon = daemons(before, {"workers": 2}, program=broken(LOSES))
    with dial(stays) as client:
        assert echoed(client) == b"ping"
        daemon.write_service(service({"in": endpoint(stays, echo.target), "new": endpoint(comes, echo.target)}))
        said = reload_loses_the_new_port(daemon)
        # The port that was closed for it is lost to these workers, too: here nothing that is opened reaches them.
        assert "no socket for a declared address: worker-0 for 1, worker-1 for 1" in said
        assert echoed(client) == b"ping"
    status = daemon.status()
    assert (status["generation"], status["reload"]["failed"]) == (3, 1)
    assert status["reload"]["last_successful"] is False
    assert [each["name"] for each in status["endpoints"]] == ["web/in", "web/goes"]
    eventually(lambda: refused(comes), "it is not open")
    assert len(records(daemon, "reload failed", 1)) == 1


def test_a_reload_that_only_adds_leaves_no_trace(daemons: Daemons, echo: Echo) -> None:
    stays, comes = free_port(), free_port()
    daemon = daemons(one_endpoint(stays, echo.target), {"workers": 2}, program=broken(LOSES))
    daemon.write_service(service({"in": endpoint(stays, echo.target), "new": endpoint(comes, echo.target)}))
    assert "What stood before stands again" in reload_loses_the_new_port(daemon)
    status = daemon.status()
    assert (status["generation"], status["troubles"]) == (3, [])
    assert [each["name"] for each in status["endpoints"]] == ["web/in"]
    with dial(stays) as client:
        assert echoed(client) == b"ping"
    shown = daemon.relay("status")
    assert (shown.returncode, "last reload FAILED" in shown.stdout) == (0, True)
