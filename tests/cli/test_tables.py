"""Status for people: what a person must see, and columns that line up."""

from typing import Any

import pytest

from relay.cli.tables import connections_text, drain_text, hold_text, instances_text, route_text, status_text


def status(**keys: Any) -> Any:
    endpoint = {
        "name": "web/http-in", "type": "input", "protocol": "http", "listen": "10.0.0.4:8080",
        "targets": ["127.0.0.1:3000", "[::1]:3000"], "target_up": True, "target_reason": "",
        "target_since_s": 9000.0, "target_looked_s": 190.0, "target_looked": "dialled", "active": 3, "accepted": 70,
        "denied": {"access": 4, "rate": 1}, "closed": {"client_fin": 67}, "received_bytes": 1536, "sent_bytes": 0,
        "connect_failures": 0, "enforce": "strict", "would_deny": {}, "target_set": [],
        "distribution": None, "leads_to": "", "held": 0, "hold_for_s": 0.0,
    }  # fmt: skip
    return {
        "version": "1.2.3", "engine": "compiled", "engine_reason": "", "service": "shop", "instance": "web_IN_0",
        "generation": 4, "uptime_s": 7200.0,
        "keeper": {"pid": 10}, "control": {"pid": 11, "restarts": 0}, "worker_restarts": 5,
        "hung": 0, "troubles": [],
        "workers": [
            {"pid": 12, "holder_pid": 22, "survives_crash": True, "connections": 2},
            {"pid": 13, "holder_pid": 23, "survives_crash": True, "connections": 1},
        ],
        "reload": {"last_successful": True}, "endpoints": [endpoint], "draining": False,
        "busy_for_s": 0.0, "registry": None, "upgrade_failed": "",
    } | keys  # fmt: skip


def test_the_whole_of_it() -> None:
    assert status_text(status()).splitlines() == [
        "web_IN_0 of shop: running for 2.0h, relay 1.2.3, compiled",
        "generation 4; last reload took",
        "pids: keeper 10, control 11, workers 12 (2 open), 13 (1 open); 5 restarts",
        "",
        "ENDPOINT     TYPE   PROTOCOL  LISTEN         TARGET                     "
        "IS                  ACTIVE  ACCEPTED  DENIED           RECEIVED  SENT",
        "web/http-in  input  http      10.0.0.4:8080  127.0.0.1:3000 [::1]:3000  "
        "up, dialled 3m ago  3       70        access=4 rate=1  1.5KiB    0B",
    ]


@pytest.mark.parametrize(
    ("keys", "program"),
    [
        ({}, "relay 1.2.3, compiled"),
        ({"engine": "interpreted", "engine_reason": "not compiled"}, "relay 1.2.3, interpreted (not compiled)"),
        (None, "relay 1.2.3"),
    ],
)
def test_the_form_of_the_engine_stands_by_the_version(keys: dict[str, str] | None, program: str) -> None:
    told = status(**(keys or {}))
    if keys is None:  # a daemon of the program before
        del told["engine"], told["engine_reason"]
    assert status_text(told).splitlines()[0].endswith(f" {program}")


def test_processes_that_are_not_well() -> None:
    wrong = status(control={"pid": 11, "restarts": 2}, hung=1, troubles=["worker-0 ends at its start"])
    assert status_text(wrong).splitlines()[2:4] == [
        "pids: keeper 10, control 11, workers 12 (2 open), 13 (1 open); 5 restarts, 2 of control; 1 were killed because "
        "they hung",
        "NOT WELL: worker-0 ends at its start",
    ]


def test_what_is_wrong_catches_the_eye() -> None:
    [endpoint] = status()["endpoints"]
    text = status_text(
        status(
            draining=True,
            reload={"last_successful": False},
            endpoints=[
                endpoint | {"target_up": False, "target_reason": "connection refused", "denied": {}},
                endpoint | {"target_up": False, "target_since_s": None},
                endpoint | {"target_up": None, "target_since_s": None, "target_looked_s": None, "target_looked": None},
            ],
        )
    )
    assert "draining" in text
    assert "last reload FAILED: the former configuration is in force, see the log" in text
    assert [line.split("::1]:3000  ")[1].split("  ")[0] for line in text.splitlines()[5:]] == [
        "DOWN for 2h: connection refused",
        "DOWN",
        "-",
    ]


@pytest.mark.parametrize(
    ("holder_pid", "why"),
    [
        (0, "its holder is dead (see the log: `holder died`), and it gets another one"),
        (23, "the kernel shares no descriptors (see the log: `unshared`)"),
    ],
)
def test_connections_that_hang_by_one_process_catch_the_eye(holder_pid: int, why: str) -> None:
    first, second = status()["workers"]
    alone = second | {"survives_crash": False, "holder_pid": holder_pid}
    lines = status_text(status(workers=[first, alone])).splitlines()
    assert [line for line in lines if "NO NET" in line] == [f"NO NET: if worker 1 dies, its 1 connection will; {why}"]


def test_an_upgrade_that_has_not_come_to_its_end_catches_the_eye() -> None:
    text = status_text(status(upgrade_failed="worker-0 could not be taken over"))
    assert "\nUPGRADE: it has not come to its end: worker-0 could not be taken over\n" in text


def test_an_envelope_that_is_not_enforced_catches_the_eye() -> None:
    [endpoint] = status()["endpoints"]
    audited = endpoint | {"name": "web/trial", "enforce": "audit", "denied": {}, "would_deny": {"access": 7}}
    lines = status_text(status(endpoints=[endpoint, audited])).splitlines()
    assert lines[3] == "AUDIT: the envelope of web/trial refuses nobody, it only counts (`enforce: audit`)"
    assert "  0; AUDIT, would deny: access=7  " in lines[-1]
    assert "AUDIT" not in lines[-2]


def test_an_instance_that_edges_send_nobody_to_catches_the_eye() -> None:
    assert status_text(status(busy_for_s=60.0)).startswith(
        "web_IN_0 of shop: running for 2.0h, busy for 1.0m more (`relay drain off` ends it), relay "
    )
    assert status_text(status(busy_for_s=60.0, draining=True)).startswith("web_IN_0 of shop: draining, up for 2.0h")


def test_connections_that_wait_catch_the_eye() -> None:
    [endpoint] = status()["endpoints"]
    lines = status_text(status(endpoints=[endpoint | {"held": 2, "hold_for_s": 90.0}])).splitlines()
    assert lines[3] == "HOLD: web/http-in holds new connections for 1.5m more (`relay release web/http-in`)"
    assert "  3 (2 held)  " in lines[-1]


@pytest.mark.parametrize(
    ("for_s", "held", "text"),
    [
        (60.0, 0, "web/in holds new connections for 1.0m (`relay release web/in` ends it); 0 connections wait"),
        (0.0, 1, "web/in holds nobody any more; 1 connection waited"),
    ],
)
def test_who_holds(for_s: float, held: int, text: str) -> None:
    assert hold_text({"endpoint": "web/in", "hold_for_s": for_s, "held": held}) == text


def member(instance: int, **keys: Any) -> dict[str, Any]:
    return {
        "target": f"10.0.0.{instance}:8080", "instance": f"web_IN_{instance}", "health": "up", "reason": "",
        "since_s": 90.0, "looked_s": 1.5, "looked": "probed", "active": 2, "connected": 30,
        "failures": 0, "ejections": 0, "ejected_for_s": 0, "mean_connect_s": 0.001,
    } | keys  # fmt: skip


def test_the_targets_of_an_edge_are_a_table_of_their_own() -> None:
    [plain] = status()["endpoints"]
    sick = member(1, health="down", reason="HTTP 503", failures=7, ejections=2, ejected_for_s=90.0, active=0)
    edge = plain | {"name": "web/edge", "targets": ["a", "b", "c"]}
    edge["distribution"] = "five-tuple"
    edge["target_set"] = [member(0), sick, member(10, health="unknown", since_s=None, looked_s=None, looked=None)]
    other = plain | {"name": "web/edge@instance", "distribution": "instance", "target_set": [member(0)]}
    lines = status_text(status(endpoints=[edge, plain, other])).splitlines()
    assert [line.split("8080  ")[1].split("  ")[0] for line in lines[5:8]] == [
        "3 instances",
        "127.0.0.1:3000 [::1]:3000",
        "2 instances",
    ]
    assert "  1 of 3 up, 1 not tried  " in lines[5]
    assert "  1 of 1 up  " in lines[7]
    assert lines[8:] == [
        "",
        "ENDPOINT           INSTANCE   TARGET          IS                                       "
        "ACTIVE  CONNECTED  FAILURES  EJECTIONS",
        "web/edge           web_IN_0   10.0.0.0:8080   up, probed 1s ago                        "
        "2       30         0         0",
        "                   web_IN_1   10.0.0.1:8080   DOWN for 1m: HTTP 503, ejected for 1.5m  "
        "0       30         7         2",
        "                   web_IN_10  10.0.0.10:8080  -                                        "
        "2       30         0         0",
        "web/edge@instance  web_IN_0   10.0.0.0:8080   up, probed 1s ago                        "
        "2       30         0         0",
    ]


def test_where_a_client_goes() -> None:
    answer: Any = {
        "to": "web/in", "client": "203.0.113.9", "distribution": "source-ip", "target": "10.0.0.1:8080",
        "instance": "web_IN_1", "waits": False, "order": [member(0, health="down"), member(1)],
    }  # fmt: skip
    assert route_text(answer).splitlines() == [
        "203.0.113.9 goes to web_IN_1 (10.0.0.1:8080), by source-ip; in the order of its hash:",
        "  web_IN_0 10.0.0.0:8080: down, 2 active",
        "  web_IN_1 10.0.0.1:8080: up, 2 active",
    ]
    nowhere = route_text(answer | {"target": None, "instance": None}).splitlines()
    assert nowhere[0] == "203.0.113.9 is refused: no target is up, by source-ip; in the order of its hash:"
    later = route_text(answer | {"target": None, "instance": None, "waits": True})
    assert later.startswith("203.0.113.9 waits, for no target is up, by source-ip")
    tried = route_text(answer | {"order": [member(0, health="down"), member(1, health="down")]})
    assert tried.startswith("203.0.113.9 is tried at web_IN_1 (10.0.0.1:8080), for all are down, by source-ip")


def test_out_of_rotation_and_back() -> None:
    answer: Any = {"busy_for_s": 600.0, "behind_edge": ["web/in"], "active": 3, "told": False}
    assert drain_text(answer) == "for 10.0m the edges' probes are refused; 3 connections go on"
    assert drain_text(answer | {"behind_edge": [], "active": 1}) == (
        "for 10.0m NOBODY IS TOLD: no endpoint here is behind an edge, and no registry is told; 1 connection goes on"
    )
    assert drain_text(answer | {"behind_edge": [], "told": True}) == (
        "for 10.0m the registry is told, so other machines' doors out and names leave it out; 3 connections go on"
    )
    assert drain_text(answer | {"busy_for_s": 0}) == "this instance is in rotation again"


def test_no_endpoints() -> None:
    assert status_text(status(endpoints=[])).splitlines()[-1].startswith("ENDPOINT  TYPE")


def test_connections() -> None:
    one: Any = {
        "endpoint": "web/in", "peer": "[2001:db8::1]:5", "state": "splice", "age_s": 90.0, "received_bytes": 5,
        "sent_bytes": 3 * 1024**3, "worker": 0,
    }  # fmt: skip
    assert connections_text([one]).splitlines() == [
        "ENDPOINT  PEER             STATE   AGE   RECEIVED  SENT",
        "web/in    [2001:db8::1]:5  splice  1.5m  5B        3.0GiB",
    ]
    assert connections_text([]) == "no open connections"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        ({"healthy": True}, "healthy"),
        ({"busy": True}, "busy"),
        ({"busy": True, "down": ["pg", "redis"]}, "busy, DOWN: pg, DOWN: redis"),
        ({"down": ["pg"], "reasons": {"pg": "HTTP 503"}}, "DOWN: pg (HTTP 503)"),
        ({"reasons": {"web_IN_0": "its relay: no answer in 5 s"}}, "DOWN: its relay: no answer in 5 s"),
        ({}, "DOWN: does not answer this machine"),
    ],
)
def test_how_an_instance_is(keys: dict[str, Any], told: str) -> None:
    instance: Any = {"id": "web_IN_0", "address": "10.0.0.4", "self": False, "metrics": None, "endpoints": []}
    (_, line) = instances_text(
        [instance | {"healthy": False, "busy": False, "down": [], "reasons": {}} | keys]
    ).splitlines()
    assert line == f"web_IN_0  10.0.0.4  {told}{' ' * max(0, 2 - len(told))}  -        -"


def test_no_instances() -> None:
    assert instances_text([]) == "no such instance is there"


def test_names_that_say_where_instances_are() -> None:
    source = {"role": "db", "source": "db.test", "kind": "name", "targets": 2, "age_s": 3.2, "ttl_s": 60.0}
    well = {**source, "doubted": False, "trouble": "", "failures": 0, "left_out": 0}
    never = {**well, "source": "file: t.yaml", "targets": 0, "age_s": None, "ttl_s": None, "trouble": "no such file"}
    text = status_text(status(sources=[well, {**well, "source": "a.test", "doubted": True}, never]))
    assert [line for line in text.splitlines() if line.startswith("SOURCE")] == [
        "SOURCE: a.test of role db: it says that half of them or more are gone, and is not believed yet; "
        "2 addresses stand, as it said 3.2s ago",
        "SOURCE: file: t.yaml of role db: no such file; 0 addresses stand",
    ]
    assert text.endswith(
        "ROLE  SOURCE        ADDRESSES  ANSWERED  TTL\n"
        "db    db.test       2          3.2s ago  1.0m\n"
        "db    a.test        2          3.2s ago  1.0m\n"
        "db    file: t.yaml  0          -         -"
    )


def test_instances_by_name() -> None:
    common: dict[str, Any] = {"self": False, "healthy": True, "metrics": None, "endpoints": []}
    there: Any = [
        {**common, "id": "db_IN_0", "address": "10.0.0.4", "name": "db.test"},
        {**common, "id": "web_IN_0", "address": "10.0.0.5", "name": ""},
    ]
    assert instances_text(there).splitlines() == [
        "INSTANCE  ADDRESS   NAME     IS       METRICS  ENDPOINTS",
        "db_IN_0   10.0.0.4  db.test  healthy  -        -",
        "web_IN_0  10.0.0.5  -        healthy  -        -",
    ]
