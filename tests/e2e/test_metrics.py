"""`/metrics`: the names and labels that dashboards rely on, and that they say what happened."""

import http.client
import os
import signal
import socket
import time

from tests.conftest import Daemons
from tests.e2e.peers import counted, endpoint
from tests.harness import HANG_S, Echo, Scrape, denied, dial, echoed, service
from tests.ports import free_port

BY_ENDPOINT = {"role", "endpoint", "type"}
FAMILIES: dict[str, tuple[str, set[str]]] = {  # name: type and labels
    "relay_connections_accepted": ("counter", BY_ENDPOINT),
    "relay_connections_denied": ("counter", BY_ENDPOINT | {"reason"}),
    "relay_connections_active": ("gauge", BY_ENDPOINT),
    "relay_connections_closed": ("counter", BY_ENDPOINT | {"cause"}),
    "relay_received_bytes": ("counter", BY_ENDPOINT),
    "relay_sent_bytes": ("counter", BY_ENDPOINT),
    "relay_connect_duration_seconds": ("histogram", BY_ENDPOINT),
    "relay_connection_duration_seconds": ("histogram", BY_ENDPOINT),
    "relay_target_up": ("gauge", BY_ENDPOINT | {"target"}),
    "relay_target_connect_failures": ("counter", BY_ENDPOINT),
    "relay_target_other_source": ("counter", BY_ENDPOINT),
    "relay_config_last_reload_successful": ("gauge", set()),
    "relay_config_last_reload_success_timestamp_seconds": ("gauge", set()),
    "relay_worker_restarts": ("counter", set()),
    "relay_flows_adopted": ("counter", set()),
    "relay_worker_connections": ("gauge", {"worker"}),
    "relay_worker_crashes_in_a_row": ("gauge", {"worker"}),
    "relay_worker_unserved": ("gauge", {"worker"}),
    "relay_hung": ("counter", set()),
    "relay_worker_unguarded": ("gauge", {"worker"}),
    "relay_roster_age_seconds": ("gauge", set()),
    "relay_build_info": ("gauge", {"version", "compiled"}),
}


def test_every_promised_metric_is_there_with_its_type_and_labels(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    daemons(service({"in": endpoint(port, echo.target)}), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    with dial(port) as client:
        assert echoed(client) == b"ping"
    scrape = Scrape(metrics)
    assert scrape.content_type.startswith("text/plain; version=0.0.4")
    found = {family.name: family for family in scrape.families}
    for name, (kind, labels) in FAMILIES.items():
        assert name in found, name
        family = found[name]
        assert (family.type, bool(family.documentation)) == (kind, True), name
        samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
        assert samples, name
        for sample in samples:
            assert sample.labels.keys() - {"le"} == labels, sample
    assert "127.0.0.1" not in scrape.text.replace(echo.target, ""), "no client's address is in a label"


def test_metrics_say_what_happened(daemons: Daemons, echo: Echo) -> None:
    port, dead, metrics = free_port(), free_port(), free_port()
    declared = {
        "in": endpoint(port, echo.target, access=[{"deny": "127.0.0.2"}]),
        "dead": endpoint(dead, f"127.0.0.1:{free_port()}"),
    }
    daemon = daemons(service(declared), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    before = Scrape(metrics)
    assert before.value("relay_connections_accepted_total") == 0
    assert before.value("relay_connections_denied_total", endpoint="in", reason="access") == 0  # there from the start
    with dial(port) as client:
        assert echoed(client, b"x" * 5000) == b"x" * 5000
        assert Scrape(metrics).value("relay_connections_active", endpoint="in") == 1
    for _ in range(3):
        assert denied(port, source="127.0.0.2")
    assert denied(dead)
    counted(daemon, denied={"access": 3}, active=0, closed={"client_fin": 1})
    counted(daemon, "web/dead", active=0, closed={"connect_failed": 1})
    after = Scrape(metrics)
    labels = {"role": "web", "endpoint": "in", "type": "input"}
    assert after.value("relay_connections_accepted_total", **labels) == 1
    assert after.value("relay_connections_denied_total", **labels) == 3
    assert after.value("relay_connections_denied_total", **labels, reason="access") == 3
    assert after.value("relay_connections_active", **labels) == 0
    assert after.value("relay_connections_closed_total", **labels) == 1
    assert after.value("relay_connections_closed_total", **labels, cause="client_fin") == 1
    assert after.value("relay_received_bytes_total", **labels) == 5000
    assert after.value("relay_sent_bytes_total", **labels) == 5000
    assert after.value("relay_target_up", **labels, target=echo.target) == 1
    assert after.value("relay_target_up", endpoint="dead") == 0
    assert after.value("relay_target_connect_failures_total", endpoint="dead") == 1
    assert after.value("relay_connections_closed_total", endpoint="dead", cause="connect_failed") == 1
    for name in ("relay_connect_duration_seconds", "relay_connection_duration_seconds"):
        assert after.value(f"{name}_count", **labels) == 1
        assert after.value(f"{name}_bucket", **labels, le="+Inf") == 1
        assert 0 < after.value(f"{name}_sum", **labels) < 15


def test_counters_of_an_endpoint_that_goes_go_with_it(daemons: Daemons, echo: Echo) -> None:
    port, other, metrics = free_port(), free_port(), free_port()
    kept = endpoint(port, echo.target)
    declared = service({"in": kept, "goes": endpoint(other, echo.target)})
    daemon = daemons(declared, {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    for each in (port, other):
        with dial(each) as client:
            assert echoed(client) == b"ping"
    daemon.write_service(service({"in": kept}))
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    scrape = Scrape(metrics)
    assert scrape.value("relay_connections_accepted_total", endpoint="in") == 1
    assert 'endpoint="goes"' not in scrape.text
    daemon.write_service(declared)
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    assert Scrape(metrics).value("relay_connections_accepted_total", endpoint="goes") == 0


def test_the_time_stamps_move(daemons: Daemons, echo: Echo) -> None:
    port, metrics = free_port(), free_port()
    began_s = time.time()
    daemon = daemons(service({"in": endpoint(port, echo.target)}), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    name = "relay_config_last_reload_success_timestamp_seconds"
    first = Scrape(metrics)
    assert began_s - 1 <= first.value(name) <= time.time()
    assert daemon.ask("POST", "/v1/reload")[0] == 200
    second = Scrape(metrics)
    assert second.value(name) > first.value(name)
    assert second.value("relay_roster_age_seconds") < time.time() - began_s


def test_nothing_but_metrics_is_on_the_metrics_port(daemons: Daemons, echo: Echo) -> None:
    """It is on TCP, where everybody on the machine can ask: neither the admin API nor a reload is there."""
    port, metrics = free_port(), free_port()
    daemon = daemons(service({"in": endpoint(port, echo.target)}), {"metrics": {"listen": f"127.0.0.1:{metrics}"}})
    for method, path in (("GET", "/v1/status"), ("POST", "/v1/reload"), ("GET", "/"), ("POST", "/metrics")):
        connection = http.client.HTTPConnection("127.0.0.1", metrics, timeout=HANG_S)
        connection.request(method, path)
        assert connection.getresponse().status in (404, 405), (method, path)
        connection.close()
    assert daemon.status()["generation"] == 1
    with socket.create_connection(("127.0.0.1", metrics), HANG_S):  # one that asks nothing holds nobody up
        assert Scrape(metrics).value("relay_build_info") == 1
        os.kill(daemon.pid, signal.SIGTERM)
        assert daemon.process is not None
        assert daemon.process.wait(HANG_S) == 0  # and `drain` is longer
