"""A live upgrade from a program whose ledger has the layout before: connections, counts and limits go on."""

from contextlib import ExitStack

import pytest

from relay.ledger import convert
from tests.conftest import Daemons
from tests.e2e.installed import NEW, Installed, upgraded
from tests.e2e.peers import counted
from tests.e2e.test_upgrade import streamed
from tests.harness import Echo, Scrape, denied, dial, echoed, eventually, one_endpoint
from tests.ports import free_port

# What layout 4 has otherwise. It has no room for more than the causes that there were.
BEFORE = (
    ("CAUSES_MAX: Final = 32", "CAUSES_MAX: Final = 14"),
    ("CLEAN_CAUSES: Final =", "CAUSES = CAUSES[:14]\n\nCLEAN_CAUSES: Final ="),
    ("VERSION: Final = 5", f"VERSION: Final = {convert.BEFORE}"),
    ("WORKER_WORDS: Final = 1024", "WORKER_WORDS: Final = 512"),
    ("SLOT_WORDS: Final = 128", "SLOT_WORDS: Final = 64"),
    ("TARGET_WORDS: Final = 16", "TARGET_WORDS: Final = 8"),
    ("DENIED: Final = 16", "DENIED: Final = 10"),
    ("CLOSED: Final = 32", "CLOSED: Final = 17"),
    ("CONNECT_BUCKETS: Final = 64", "CONNECT_BUCKETS: Final = 31"),
    ("DURATION_BUCKETS: Final = 80", "DURATION_BUCKETS: Final = 45"),
    ("WOULD_DENY: Final = 96", "WOULD_DENY: Final = 59"),
    # What the one before did not have: counts, which are put into words that its rows left empty.
    ("DIAL_WHY: Final = 112", "DIAL_WHY: Final = 61"),
    ("OTHER_SOURCE: Final = 113", "OTHER_SOURCE: Final = 61"),
    ("HEALTH: Final = 114", "HEALTH: Final = 62"),
    ("LOOKED_NS: Final = 115", "LOOKED_NS: Final = 63"),
)


def of_before(installed: Installed) -> None:
    """The program as it is, with a ledger as the one before has it."""
    for piece in BEFORE:
        installed.change("ledger/layout.py", *piece)


def test_connections_and_counts_go_on(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    of_before(installed)
    port, metrics = free_port(), free_port()
    declared = one_endpoint(port, echo.target, limits={"connections": 21}, access=[{"deny": "127.0.0.9"}])
    settings = {"workers": 2, "metrics": {"listen": f"127.0.0.1:{metrics}"}}
    daemon = daemons(declared, settings, wrapper=installed.wrapper)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(20)]
        assert [echoed(client) for client in clients] == [b"ping"] * 20
        with dial(port) as one:
            assert echoed(one) == b"ping"
        counted(daemon, accepted=21, active=20, closed={"client_fin": 1})
        received = Scrape(metrics).value("relay_received_bytes_total")
        installed.restore()
        installed.release()
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        upgraded(daemon, 1, NEW)
        assert sum(worker["flows_adopted"] for worker in daemon.status()["workers"]) == 20
        assert [echoed(client, b"pong") for client in clients] == [b"pong"] * 20
        counted(daemon, accepted=21, active=20, closed={"client_fin": 1})
        eventually(lambda: Scrape(metrics).value("relay_received_bytes_total") >= received, "no count goes back")
        with dial(port) as last:
            assert echoed(last) == b"ping"
            assert denied(port), "the limit is one over all workers"
        counted(daemon, denied={"connections": 1})
    counted(daemon, active=0, closed={"client_fin": 22})


@pytest.mark.slow
def test_under_load_and_once_more(daemons: Daemons, installed: Installed) -> None:
    """Streams of every shape, an upgrade out of the layout before, and others from then on: no byte and no count is lost."""
    of_before(installed)
    with streamed(daemons, installed) as (daemon, streams):
        installed.restore()
        installed.patient()
        for turn in streams.turns(3):
            installed.release(f"9.9.{turn}")
            assert daemon.ask("POST", "/v1/upgrade")[0] == 202
            upgraded(daemon, 1 + turn, f"9.9.{turn}")
        assert list(daemon.events("upgrade failed")) == []


def test_a_ledger_without_tables_of_sources_gets_them(daemons: Daemons, echo: Echo, installed: Installed) -> None:
    """Who is open stays open, and the limit for each source holds over all workers from then on."""
    installed.change("ledger/ledger.py", "        source_tables.append(fd)\n", "")
    installed.change("ledger/by_source.py", "[at for at in ledger.all_sources_at if at != self._own]", "[]")
    installed.change("ledger/by_source.py", "source_tables.wipe(self._ledger.memory, self._words, self._own)", "return")
    port = free_port()
    declared = one_endpoint(port, echo.target, limits={"per_source": {"limit": 8, "ipv4": 31}})
    daemon = daemons(declared, {"workers": 2}, wrapper=installed.wrapper)
    with ExitStack() as stack:
        clients = [stack.enter_context(dial(port)) for _ in range(8)]
        assert [echoed(client) for client in clients] == [b"ping"] * 8
        installed.restore()
        installed.release()
        done = daemon.relay("upgrade")
        assert done.returncode == 0, done
        upgraded(daemon, 1, NEW)
        assert [echoed(client, b"pong") for client in clients] == [b"pong"] * 8
        assert denied(port), "the eight are with both workers"
        counted(daemon, denied={"per_source": 1}, active=8)
        assert sorted(each["connections"] > 0 for each in daemon.status()["workers"]) == [True, True]
        clients[0].close()
        counted(daemon, active=7)
        with dial(port) as last:
            assert echoed(last) == b"ping"
    counted(daemon, active=0)
