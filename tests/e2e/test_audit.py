"""`enforce: audit`: the envelope decides, counts and says, and lets everybody in; strict again, it cuts whom it refuses."""

from tests.conftest import Daemons
from tests.e2e.peers import counted, endpoint, records
from tests.harness import Echo, Scrape, denied, dial, echoed, eventually, service
from tests.ports import free_port

DENY = [{"deny": "127.0.0.2"}]


def test_rules_on_trial(daemons: Daemons, echo: Echo) -> None:
    port, other, metrics = free_port(), free_port(), free_port()
    internal = {"type": "internal", "port": other, "target": echo.target, "enforce": "audit"}
    trial = endpoint(port, echo.target, access=DENY, enforce="audit")
    daemon = daemons(
        service({"in": trial, "own": internal}, host="127.0.0.1"), {"metrics": {"listen": f"127.0.0.1:{metrics}"}}
    )
    warned = [each["message"] for each in records(daemon, "configuration", 2)]
    assert all("warning: roles.web.endpoints." in each and "only counted" in each for each in warned)

    for _ in range(30):
        with dial(port, source="127.0.0.2") as client:
            assert echoed(client) == b"ping"
    with dial(other, source="127.0.0.3") as client, dial(port, source="127.0.0.3") as permitted:
        assert (echoed(client), echoed(permitted)) == (b"ping", b"ping")
    counted(daemon, "web/in", accepted=31, denied={}, would_deny={"access": 30}, enforce="audit")
    counted(daemon, "web/own", accepted=1, denied={}, would_deny={"roster": 1})
    scraped = Scrape(metrics)
    assert scraped.value("relay_connections_would_deny_total", endpoint="in", reason="access") == 30
    assert scraped.value("relay_connections_would_deny_total", endpoint="own", reason="roster") == 1
    assert scraped.value("relay_connections_denied_total") == 0

    def said() -> int:
        lines = [each for each in daemon.events("would deny") if each["endpoint"] == "web/in"]
        return sum(each.get("left_out", 1) for each in lines)

    eventually(lambda: said() == 30, "every one is in the log, in full or as a number")
    full = [each for each in daemon.events("would deny") if each["reason"] == "access" and "peer" in each]
    assert full[0]["peer"].startswith("127.0.0.2:")
    assert list(daemon.events("denied")) == []

    text = daemon.relay("status").stdout
    assert "AUDIT: the envelope of web/in, web/own refuses nobody" in text
    assert "0; AUDIT, would deny: access=30" in text


def test_back_and_forth(daemons: Daemons, echo: Echo) -> None:
    port = free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target)}))

    def put_in_force(**keys: object) -> None:
        daemon.write_service(service({"in": endpoint(port, echo.target, **keys)}))
        assert daemon.ask("POST", "/v1/reload")[0] == 200

    with dial(port, source="127.0.0.2") as old:
        assert echoed(old) == b"ping"
        put_in_force(access=DENY, enforce="audit")
        assert echoed(old) == b"ping", "a trial cuts nobody"
        eventually(lambda: list(daemon.events("configuration")), "the reload warns")
        with dial(port, source="127.0.0.2") as new, dial(port, source="127.0.0.3") as permitted:
            for client in (new, permitted):
                assert echoed(client) == b"ping"
            put_in_force(access=DENY)
            counted(daemon, closed={"revoked": 2}, active=1)
            assert echoed(permitted) == b"ping"
    assert denied(port, source="127.0.0.2")
    counted(daemon, denied={"access": 1}, would_deny={"access": 1}, enforce="strict")
    assert "AUDIT" not in daemon.relay("status").stdout
