"""`deny: drop`: whom the envelope denies gets no answer at all, and is counted; everybody else notices nothing."""

import ctypes
import os
import signal
from typing import Any

import pytest

from tests.conftest import Daemons
from tests.e2e.peers import counted, endpoint, records, refused
from tests.harness import Daemon, Echo, Scrape, denied, dial, echoed, eventually, service, unanswered
from tests.ports import free_port, free_ports

PR_CAPBSET_DROP, CAP_NET_ADMIN = 24, 12  # prctl(2), capabilities(7)
SHORT_S = 0.5  # the kernel asks again after a second (RFC 6298): within this there is one packet


def deny(source: str = "127.0.0.2") -> list[dict[str, str]]:
    """Access rules that deny it."""
    return [{"deny": source}]


def reload(daemon: Daemon, port: int, target: str, **keys: Any) -> None:
    daemon.write_service(service({"in": endpoint(port, target, **keys)}))
    code, answer = daemon.ask("POST", "/v1/reload")
    assert code == 200, answer


def refusals(daemon: Daemon, reason: str = "access", name: str = "web/in") -> int:
    return int(daemon.endpoint(name)["denied"].get(reason, 0))


@pytest.mark.usefixtures("filters")
def test_silence_for_the_denied_and_for_nobody_else(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    daemon = daemons(
        service({"in": endpoint(port, echo.target, access=deny(), deny="drop")}),
        {"metrics": {"listen": f"127.0.0.1:{metrics}"}},
    )
    assert daemon.endpoint("web/in")["deny"] == "drop"
    assert list(daemon.events("configuration")) == []
    assert unanswered(port, "127.0.0.2")
    with dial(port, source="127.0.0.3") as client:
        assert echoed(client) == b"ping"
    eventually(lambda: refusals(daemon) >= 2, "the packet and its repetition are counted")
    eventually(
        lambda: (
            Scrape(metrics).value("relay_connections_denied_total", endpoint="in", reason="access") == refusals(daemon)
        ),
        "by the metric too",
    )
    (one, *_) = eventually(lambda: list(daemon.events("denied")), "the log has their number")
    assert (one["endpoint"], one["reason"], "peer" in one) == ("web/in", "access", False)
    assert echo.accepted == 1


@pytest.mark.usefixtures("filters")
def test_a_reload_moves_the_silence(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target)}))
    with dial(port, source="127.0.0.2") as unwanted, dial(port, source="127.0.0.3") as allowed:
        assert (echoed(unwanted), echoed(allowed)) == (b"ping", b"ping")
        reload(daemon, port, echo.target, access=deny(), deny="drop")
        counted(daemon, closed={"revoked": 1}, active=1)
        with pytest.raises(ConnectionResetError):  # a connection that stood is cut, as ever
            unwanted.recv(1)
        assert unanswered(port, "127.0.0.2", for_s=SHORT_S)
        assert echoed(allowed) == b"ping"
        reload(daemon, port, echo.target, access=deny("127.0.0.3"), deny="drop")
        assert unanswered(port, "127.0.0.3", for_s=SHORT_S)
        with dial(port, source="127.0.0.2") as again:
            assert echoed(again) == b"ping"
        reload(daemon, port, echo.target, access=deny())
        assert denied(port, source="127.0.0.2")
        with dial(port, source="127.0.0.3") as permitted:
            assert echoed(permitted) == b"ping"


@pytest.mark.usefixtures("filters")
def test_two_workers_count_a_packet_once_and_a_death_counts_none_again(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    declared = service({"in": endpoint(port, echo.target, access=deny(), deny="drop")})
    daemon = daemons(declared, {"workers": 2})
    for _ in range(6):
        assert unanswered(port, "127.0.0.2", for_s=SHORT_S)
    before = eventually(lambda: (now := refusals(daemon)) >= 6 and now, "all are counted")
    assert before < 12
    os.kill(daemon.worker_pid(), signal.SIGKILL)
    records(daemon, "adopted", 1)  # it says so when it has read the number from which it counts on
    assert unanswered(port, "127.0.0.2", for_s=SHORT_S)
    with dial(port, source="127.0.0.3") as client:
        assert echoed(client) == b"ping"
    after = eventually(lambda: (now := refusals(daemon)) > before and now, "the next one counts on")
    assert after < before + 6


@pytest.mark.usefixtures("filters")
def test_every_port_of_a_range_and_all_but_the_roster(daemons: Daemons, echo: Echo) -> None:
    first = free_ports(5) + 1
    own = {"type": "internal", "port": f"{first}-{first + 2}", "target": echo.target, "deny": "drop"}
    declared = service({"in": own})
    declared["roles"]["app"] = {"instances": ["127.0.0.3"]}
    daemon = daemons(declared)
    for port in range(first, first + 3):
        assert unanswered(port, "127.0.0.2", for_s=SHORT_S)
        for source in ("127.0.0.1", "127.0.0.3"):
            with dial(port, source=source) as client:
                assert echoed(client) == b"ping"
    eventually(lambda: refusals(daemon, "roster") >= 3, "each port's are counted")
    assert refused(first - 1)
    assert refused(first + 3)


@pytest.mark.usefixtures("filters")
def test_an_upgrade_keeps_the_silence(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target, access=deny(), deny="drop")}))
    with dial(port, source="127.0.0.3") as client:
        assert echoed(client) == b"ping"
        assert daemon.relay("upgrade").returncode == 0
        assert echoed(client) == b"ping"
        assert unanswered(port, "127.0.0.2", for_s=SHORT_S)

        def counts() -> bool:  # what comes before the new worker has read from where it counts is nobody's
            assert unanswered(port, "127.0.0.2", for_s=SHORT_S)
            return refusals(daemon) >= 1

        eventually(counts, "the new program counts")
        reload(daemon, port, echo.target, access=deny())
        assert denied(port, source="127.0.0.2")
        assert echoed(client) == b"ping"


@pytest.mark.usefixtures("filters")
def test_limits_and_audit_are_as_without(daemons: Daemons, echo: Echo) -> None:
    limited, audited = free_port(), free_port()
    daemon = daemons(
        service(
            {
                "in": endpoint(limited, echo.target, access=deny(), deny="drop", limits={"connections": 1}),
                "trial": endpoint(audited, echo.target, access=deny(), deny="drop", enforce="audit"),
            }
        )
    )
    with dial(limited, source="127.0.0.3") as one:
        assert echoed(one) == b"ping"
        assert denied(limited, source="127.0.0.3")
    with dial(audited, source="127.0.0.2") as client:
        assert echoed(client) == b"ping"
    counted(daemon, "web/trial", would_deny={"access": 1}, denied={})


def drop_capability() -> None:
    """Run without CAP_NET_ADMIN, as the unit does."""
    ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_NET_ADMIN, 0, 0, 0)


def test_what_a_daemon_without_privileges_says_is_what_it_does(daemons: Daemons, echo: Echo) -> None:
    """Kernels differ in whether they take a filter from it. It starts on each, denies on each, and says how."""
    port = free_port()
    declared = service({"in": endpoint(port, echo.target, access=deny(), deny="drop")})
    daemon = daemons(declared, before_exec=drop_capability)
    warned = [each["message"] for each in daemon.events("configuration")]
    if daemon.endpoint("web/in")["deny"] == "drop":
        assert unanswered(port, "127.0.0.2", for_s=SHORT_S)
        assert warned == []
    else:
        assert denied(port, source="127.0.0.2")
        assert ["CAP_NET_ADMIN" in each and "web/in" in each for each in warned] == [True]
        done = daemon.relay("reload")
        assert (done.returncode, "`deny: drop` is a reset here" in done.stdout) == (0, True)
    with dial(port, source="127.0.0.3") as client:
        assert echoed(client) == b"ping"
