"""A connection by an edge finds an application that is there, whatever the edge thinks; beside older relays too."""

import contextlib
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pytest

from tests.conftest import Daemons
from tests.e2e.installed import Installed
from tests.e2e.test_edge import EDGE, INSTANCES, Backend, Site, is_reset, line
from tests.harness import HANG_S, Daemon, Scrape, dial, echoed, eventually
from tests.ports import free_port

# Nobody looks in time: what is learnt, connections learn.
RARELY: Final = {"interval": "1h", "timeout": "2m"}


@pytest.fixture
def pair() -> Iterator[list[Backend]]:
    """Backends for two instances."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(contextlib.closing(Backend(f"web_IN_{n}"))) for n in range(2)]


def target_set(site: Site) -> list[dict[str, Any]]:
    return list(site.edge.endpoint("web/in")["target_set"])


def test_an_application_that_is_gone_loses_no_connection(daemons: Daemons, pair: list[Backend]) -> None:
    metrics = free_port()
    site = Site(daemons, pair, edge_settings={"metrics": {"listen": f"127.0.0.1:{metrics}"}}, probe=RARELY)
    site.wait_health("up", "up")
    pair[0].close()
    with ThreadPoolExecutor(8) as together:
        answers = list(together.map(lambda _: site.ask(), range(200)))
    assert {answer.split()[0] for answer in answers} == {"web_IN_1"}
    gone, other = target_set(site)
    assert gone["failures"] == gone["retries"] >= gone["ejections"] >= 1
    assert (other["failures"], other["connected"]) == (0, 200)
    logged = eventually(
        lambda: [record for record in site.edge.events("connection") if "attempts" in record],
        "who was tried again is logged",
    )
    assert {record["attempts"] for record in logged} == {2}
    assert {record["cause"] for record in logged} <= {"client_fin", "target_fin"}
    assert Scrape(metrics).value("relay_target_retries_total") == gone["retries"]


def test_a_machine_that_is_gone_and_one_whose_application_is(daemons: Daemons, pair: list[Backend]) -> None:
    site = Site(daemons, pair, probe=RARELY)
    site.wait_health("up", "up")
    pair[1].close()
    assert {site.ask(source=f"127.0.0.{n}").split()[0] for n in range(10, 30)} == {"web_IN_0"}
    site.instances[0].stop()
    assert is_reset(site.public, host=EDGE, data=b"hello\n")


def test_what_a_client_had_sent_comes_to_the_other_one_whole(daemons: Daemons, pair: list[Backend]) -> None:
    site = Site(daemons, pair, probe=RARELY)
    site.wait_health("up", "up")
    pair[0].close()
    long = b"x" * 100_000 + b"\n"
    for n in range(10, 30):
        with dial(site.public, host=EDGE, source=f"127.0.0.{n}") as client:
            assert line(client, long).split()[0] == "web_IN_1"
            assert line(client, b"\x01\n").split()[0] == "web_IN_1"


# --- beside an older relay ----------------------------------------------------------------------------------------------


class SpeaksFirst:
    """A service that speaks first, and what it says begins like a relay's answer; then it gives back what it gets."""

    SAID: Final = b"\x01\x00\x01"

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self._pool = ThreadPoolExecutor(16)
        self._pool.submit(self._accept)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                self._pool.submit(self._serve, peer)

    def _serve(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError):
            peer.sendall(self.SAID)
            while data := peer.recv(4096):
                peer.sendall(data)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self._pool.shutdown()


def knows_no_questions(installed: Installed) -> None:
    """As relay 0.1.0 is: it skips what it is asked, and asks nothing."""
    installed.change("envelope/asking.py", "_KNOWN: Final = (THROUGH, RELAY, TAKEN, LINE)", "_KNOWN: Final = ()")
    installed.change("envelope/asking.py", "return proxyproto.local_v2(tlvs)", "return proxyproto.LOCAL_V2")


def knows_some_questions(installed: Installed) -> None:
    """As a relay between the two is."""
    installed.change(
        "envelope/asking.py", "_KNOWN: Final = (THROUGH, RELAY, TAKEN, LINE)", "_KNOWN: Final = (THROUGH, RELAY)"
    )
    installed.change("envelope/asking.py", 'WELL: Final = b"\\x01relay: taken\\n"', 'WELL: Final = b"\\x01"')


@pytest.mark.parametrize("older", [knows_no_questions, knows_some_questions])
@pytest.mark.parametrize("which", ["edge", "web"])
@pytest.mark.parametrize("probe", [RARELY, None, False], ids=["probed", "not-probed", "never"])
def test_beside_an_older_relay_nothing_is_lost_and_nothing_added(
    which: str, older: Any, probe: Any, daemons: Daemons, installed: Installed
) -> None:
    older(installed)
    with contextlib.closing(SpeaksFirst()) as service:
        public, private = free_port(EDGE), free_port(INSTANCES[0])
        own = {"type": "input", "public_port": public, "port": private, "target": f"127.0.0.1:{service.port}"}
        role = {"instances": [INSTANCES[0]], "endpoints": {"in": own | ({} if probe is None else {"probe": probe})}}
        file = {"version": 1, "service": "test", "edge": {"instances": [EDGE]}, "roles": {"web": role}}

        def start(instance: str) -> Daemon:
            wrapper = {"wrapper": installed.wrapper} if instance.startswith(which) else {}
            return daemons(file, {"workers": 1}, instance=instance, **wrapper)

        old = start("edge_IN_0" if which == "edge" else "web_IN_0")
        new = start("web_IN_0" if which == "edge" else "edge_IN_0")
        edge = old if which == "edge" else new
        eventually(lambda: edge.endpoint("web/in")["target_set"][0]["health"] == "up", "it has been asked")
        for _ in range(3):
            with dial(public, host=EDGE) as client:
                client.settimeout(HANG_S)
                assert client.recv(3, socket.MSG_WAITALL) == service.SAID
                assert echoed(client, b"\x01\x00") == b"\x01\x00"
        assert list(old.events("bug")) == list(new.events("bug")) == []
