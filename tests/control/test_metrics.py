"""The scrape, read by Prometheus' own parser."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relay import ENGINE, __version__
from relay.config.snapshot import Snapshot, TargetRow
from relay.control.metrics import LedgerCollector, render
from relay.ledger import clocks
from relay.ledger.layout import (
    CAUSES,
    CONNECT_BOUNDS_S,
    DURATION_BOUNDS_S,
    ENVELOPE_REASONS,
    NAMES_RCODES,
    REASONS,
    Count,
    DaemonWord,
    Health,
    TargetCount,
    Word,
    health_at,
)
from relay.ledger.ledger import Ledger
from tests.config.rig import endpoint_row, snapshot_of
from tests.control.rig import standing
from tests.ledger.rig import add, new_ledger

Labels = dict[str, str]
Samples = dict[str, list[tuple[Labels, float]]]

# DESIGN section 6: names that dashboards and alerts are built on. The last six are relay's own health beyond it.
NAMES = {
    "relay_connections_accepted_total",
    "relay_connections_denied_total",
    "relay_connections_would_deny_total",
    "relay_connections_active",
    "relay_connections_held",
    "relay_connections_closed_total",
    "relay_received_bytes_total",
    "relay_sent_bytes_total",
    "relay_connect_duration_seconds_bucket",
    "relay_connect_duration_seconds_count",
    "relay_connect_duration_seconds_sum",
    "relay_connection_duration_seconds_bucket",
    "relay_connection_duration_seconds_count",
    "relay_connection_duration_seconds_sum",
    "relay_target_up",
    "relay_target_connect_failures_total",
    "relay_target_other_source_total",
    "relay_config_last_reload_successful",
    "relay_config_last_reload_success_timestamp_seconds",
    "relay_worker_restarts_total",
    "relay_flows_adopted_total",
    "relay_roster_age_seconds",
    "relay_roster_rejected_total",
    "relay_names_queries_total",
    "relay_build_info",
    "relay_busy",
    "relay_accept_pauses_total",
    "relay_control_restarts_total",
    "relay_upgrades_total",
    "relay_log_lines_dropped_total",
    "relay_worker_connections",
    "relay_worker_crashes_in_a_row",
    "relay_worker_unserved",
    "relay_hung_total",
    "relay_worker_unguarded",
    "relay_pipes",
    "relay_pipes_degraded_total",
    "relay_pipes_refused_total",
    "relay_sources_uncounted_total",
}
OF_AN_EDGES_TARGETS = {
    "relay_target_connections_active",
    "relay_target_connections_total",
    "relay_target_failures_total",
    "relay_target_ejections_total",
    "relay_target_retries_total",
    "relay_target_connect_seconds_total",
    "relay_target_weight",
}
OF_THE_DAEMON = {
    "relay_busy",
    "relay_config_last_reload_successful",
    "relay_config_last_reload_success_timestamp_seconds",
    "relay_worker_restarts_total",
    "relay_control_restarts_total",
    "relay_upgrades_total",
    "relay_flows_adopted_total",
    "relay_roster_age_seconds",
    "relay_roster_rejected_total",
    "relay_names_queries_total",
    "relay_build_info",
    "relay_accept_pauses_total",
    "relay_log_lines_dropped_total",
    "relay_worker_connections",
    "relay_worker_crashes_in_a_row",
    "relay_worker_unserved",
    "relay_hung_total",
    "relay_worker_unguarded",
    "relay_pipes",
    "relay_pipes_degraded_total",
    "relay_pipes_refused_total",
    "relay_sources_uncounted_total",
}

SNAPSHOT = snapshot_of(
    endpoint_row("web/in", slot=4, targets=(TargetRow("127.0.0.1:3000"), TargetRow("[::1]:3000"))),
    endpoint_row("web/api", slot=2, type="internal", targets=(TargetRow('unix:/run/"a"\\b'),)),
)
EDGE = snapshot_of(
    *SNAPSHOT.endpoints,
    endpoint_row(
        "web/http",
        slot=5,
        distribution="five-tuple",
        targets=tuple(TargetRow(f"10.0.0.{n}:80", slot=n, instance=f"web_IN_{n}") for n in (4, 5)),
    ),
)
HTTP = {"role": "web", "endpoint": "http", "type": "input"}
IN = {"role": "web", "endpoint": "in", "type": "input"}
API = {"role": "web", "endpoint": "api", "type": "internal"}


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Two workers."""
    with new_ledger(workers=2) as made:
        yield made


def scrape(ledger: Ledger, snapshot: Snapshot = SNAPSHOT) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(render(LedgerCollector(ledger, standing(snapshot))).decode()):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def dialled(ledger: Ledger) -> None:
    for slot in (2, 4):
        add(ledger.worker(0), slot, Count.TARGET_UP, 100 << 1 | 1)


def test_the_names_are_the_promised_ones_and_no_others(ledger: Ledger) -> None:
    dialled(ledger)
    assert set(scrape(ledger)) == NAMES
    assert set(scrape(ledger, EDGE)) == NAMES | OF_AN_EDGES_TARGETS


def test_types_are_what_the_names_say(ledger: Ledger) -> None:
    text = render(LedgerCollector(ledger, standing(EDGE))).decode()
    families = list(text_string_to_metric_families(text))
    assert len(families) > 15
    for family in families:
        if any(sample.name.endswith("_total") for sample in family.samples):
            assert family.type == "counter"
        elif any(sample.name.endswith("_bucket") for sample in family.samples):
            assert family.type == "histogram"
        else:
            assert family.type == "gauge"
    assert text.count("# HELP ") == text.count("# TYPE ") == len(families)


def test_labels_come_from_the_configuration_alone(ledger: Ledger) -> None:
    """However many clients there are: endpoints times the fixed reasons, causes and buckets."""
    dialled(ledger)
    found = scrape(ledger, EDGE)
    more = {
        **{name: {"target"} for name in OF_AN_EDGES_TARGETS},
        "relay_connections_denied_total": {"reason"},
        "relay_connections_would_deny_total": {"reason"},
        "relay_connections_closed_total": {"cause"},
        "relay_connect_duration_seconds_bucket": {"le"},
        "relay_connection_duration_seconds_bucket": {"le"},
        "relay_target_up": {"target"},
        "relay_build_info": {"version", "compiled"},
        "relay_worker_connections": {"worker"},
        "relay_worker_crashes_in_a_row": {"worker"},
        "relay_worker_unserved": {"worker"},
        "relay_worker_unguarded": {"worker"},
        "relay_names_queries_total": {"rcode"},
    }
    for name, samples in found.items():
        own = set() if name in OF_THE_DAEMON else {"role", "endpoint", "type"}
        assert {frozenset(labels) for labels, _ in samples} == {frozenset(own | more.get(name, set()))}, name
    counts = {name: len(samples) for name, samples in found.items()}
    assert counts["relay_connections_denied_total"] == 3 * len(REASONS)
    assert counts["relay_connections_would_deny_total"] == 3 * len(ENVELOPE_REASONS)
    assert counts["relay_connections_closed_total"] == 3 * len(CAUSES)
    assert counts["relay_connect_duration_seconds_bucket"] == 3 * (len(CONNECT_BOUNDS_S) + 1)
    assert counts["relay_connection_duration_seconds_bucket"] == 3 * (len(DURATION_BOUNDS_S) + 1)
    assert counts.pop("relay_names_queries_total") == len(NAMES_RCODES)
    per_worker = ("connections", "crashes_in_a_row", "unserved", "unguarded")
    assert [counts.pop(f"relay_worker_{what}") for what in per_worker] == [2, 2, 2, 2]
    assert all(counts[name] == 1 for name in OF_THE_DAEMON & counts.keys())
    assert all(counts[name] == 2 for name in OF_AN_EDGES_TARGETS), "one for each target of the edge"


def test_every_series_is_unique(ledger: Ledger) -> None:
    for name, samples in scrape(ledger, EDGE).items():
        series = [tuple(sorted(labels.items())) for labels, _ in samples]
        assert len(set(series)) == len(series), name


def test_each_endpoint_has_its_own_numbers_over_all_workers(ledger: Ledger) -> None:
    for slot, factor in ((4, 1), (2, 1000)):
        for n in (0, 1):
            part = ledger.worker(n)
            add(part, slot, Count.ACCEPTED, 10 * factor)
            add(part, slot, Count.ACTIVE, 9 * factor)
            add(part, slot, Count.HELD, 5 * factor)
            add(part, slot, Count.RECEIVED, 3 * factor)
            add(part, slot, Count.SENT, 4 * factor)
            add(part, slot, Count.CONNECT_FAILURES, factor)
            add(part, slot, Count.DENIED + REASONS.index("roster"), 2 * factor)
            add(part, slot, Count.WOULD_DENY + ENVELOPE_REASONS.index("access"), 3 * factor)
            add(part, slot, Count.CLOSED + CAUSES.index("revoked"), factor)
    found = scrape(ledger)
    for name, value in {
        "relay_connections_accepted_total": 20.0,
        "relay_connections_active": 18.0,
        "relay_connections_held": 10.0,
        "relay_received_bytes_total": 6.0,
        "relay_sent_bytes_total": 8.0,
        "relay_target_connect_failures_total": 2.0,
    }.items():
        assert found[name] == [(IN, value), (API, value * 1000)], name
    assert {labels["reason"]: value for labels, value in found["relay_connections_denied_total"] if value == 4000} == {
        "roster": 4000
    }
    assert sum(value for _, value in found["relay_connections_denied_total"]) == 4004
    assert (API | {"reason": "access"}, 6000.0) in found["relay_connections_would_deny_total"]
    assert sum(value for _, value in found["relay_connections_would_deny_total"]) == 6006
    assert (API | {"cause": "revoked"}, 2000.0) in found["relay_connections_closed_total"]
    assert sum(value for _, value in found["relay_connections_closed_total"]) == 2002


def test_large_counts_are_exact(ledger: Ledger) -> None:
    add(ledger.worker(0), 4, Count.SENT, 2**53 - 1)
    assert scrape(ledger)["relay_sent_bytes_total"][0][1] == 2**53 - 1


def test_histograms_are_cumulative(ledger: Ledger) -> None:
    part = ledger.worker(1)
    for value_s in (0.0001, 0.0005, 0.003, 0.003, 4.0, 100.0):
        part.observe_connect(part.counts_at(4), value_s)
        part.observe_duration(part.counts_at(4), value_s)
    found = scrape(ledger)
    for name, bounds_s in (
        ("relay_connect_duration_seconds", CONNECT_BOUNDS_S),
        ("relay_connection_duration_seconds", DURATION_BOUNDS_S),
    ):
        buckets = [(labels["le"], value) for labels, value in found[f"{name}_bucket"] if labels["endpoint"] == "in"]
        assert [float(le) for le, _ in buckets] == [*bounds_s, float("inf")]
        assert buckets[-1][0] == "+Inf"
        values = [value for _, value in buckets]
        assert values == sorted(values)
        observed = (0.0001, 0.0005, 0.003, 0.003, 4.0, 100.0)
        assert values == [sum(each <= float(le) for each in observed) for le, _ in buckets]
        assert (IN, 6.0) in found[f"{name}_count"]
        assert dict(found[f"{name}_sum"][0][0]) == IN
        assert found[f"{name}_sum"][0][1] == pytest.approx(104.0066)
        assert found[f"{name}_count"][1] == (API, 0.0)


def test_whether_a_target_answers(ledger: Ledger) -> None:
    assert "relay_target_up" not in scrape(ledger), "nothing is claimed before the first attempt"
    add(ledger.worker(0), 4, Count.TARGET_UP, 100 << 1)
    add(ledger.worker(1), 2, Count.TARGET_UP, 100 << 1 | 1)
    assert scrape(ledger)["relay_target_up"] == [
        (IN | {"target": "127.0.0.1:3000"}, 0.0),
        (API | {"target": 'unix:/run/"a"\\b'}, 1.0),
    ]


def test_the_daemons_own(ledger: Ledger) -> None:
    now_ns, wall_ns = time.monotonic_ns(), time.time_ns()
    words = ledger.words
    words[DaemonWord.RELOAD_OK] = 1
    clocks.put_instant(words, DaemonWord.RELOAD_OK_AT_MONOTONIC_NS, now_ns - 3_000_000_000)
    words[DaemonWord.HOLDER_RESTARTS], words[DaemonWord.CONTROL_RESTARTS] = 1, 5
    ledger.worker(0)[Word.RESTARTS], ledger.worker(1)[Word.RESTARTS] = 2, 1
    own = {
        Word.ACCEPT_PAUSES: "relay_accept_pauses_total",
        Word.PIPES: "relay_pipes",
        Word.PIPES_DEGRADED: "relay_pipes_degraded_total",
        Word.PIPES_REFUSED: "relay_pipes_refused_total",
        Word.LOG_DROPPED: "relay_log_lines_dropped_total",
        Word.SOURCES_UNCOUNTED: "relay_sources_uncounted_total",
        Word.FLOWS_ADOPTED: "relay_flows_adopted_total",
    }
    for n, word in enumerate(own, 1):
        ledger.worker(0)[word] = n
        ledger.worker(1)[word] = 10 * n
    for n, slot, active in ((0, 4, 2), (1, 4, 30), (1, 2, 1)):
        add(ledger.worker(n), slot, Count.ACTIVE, active)
    words[DaemonWord.HUNG], ledger.worker(0)[Word.CRASHES], ledger.worker(1)[Word.UNSERVED] = 3, 4, 5
    found = scrape(ledger)
    assert found["relay_hung_total"] == [({}, 3.0)]
    assert found["relay_worker_crashes_in_a_row"] == [({"worker": "0"}, 4.0), ({"worker": "1"}, 0.0)]
    assert found["relay_worker_unserved"] == [({"worker": "0"}, 0.0), ({"worker": "1"}, 5.0)]
    assert found["relay_worker_connections"] == [({"worker": "0"}, 2.0), ({"worker": "1"}, 31.0)]
    assert {name: found[name] for name in own.values()} == {
        name: [({}, 11.0 * n)] for n, name in enumerate(own.values(), 1)
    }
    assert found["relay_config_last_reload_successful"] == [({}, 1.0)]
    assert found["relay_worker_restarts_total"] == [({}, 4.0)]
    assert found["relay_control_restarts_total"] == [({}, 5.0)]
    assert found["relay_build_info"] == [({"version": __version__, "compiled": str(ENGINE.compiled).lower()}, 1.0)]
    [(_, stamp_s)] = found["relay_config_last_reload_success_timestamp_seconds"]
    assert stamp_s == pytest.approx(wall_ns / 1e9 - 3.0)
    [(_, age_s)] = found["relay_roster_age_seconds"]
    assert 3.0 <= age_s <= 3.0 + (time.monotonic_ns() - now_ns) / 1e9
    # From here on a registry tells.
    clocks.put_instant(words, DaemonWord.ROSTER_AT_MONOTONIC_NS, now_ns - 60 * 10**9)
    words[DaemonWord.ROSTER_REJECTED], words[DaemonWord.NAMES_QUERIES + 1] = 2, 7
    found = scrape(ledger)
    [(_, age_s)] = found["relay_roster_age_seconds"]
    assert 60.0 <= age_s <= 60.0 + (time.monotonic_ns() - now_ns) / 1e9
    assert found["relay_roster_rejected_total"] == [({}, 2.0)]
    assert ({"rcode": "NXDOMAIN"}, 7.0) in found["relay_names_queries_total"]


def test_an_edges_targets_have_their_own_numbers_over_all_workers(ledger: Ledger) -> None:
    for n, factor in ((4, 1), (5, 1000)):
        for row in ledger.worker(0).target_counts_at(n):
            for count, units in (
                (TargetCount.ACTIVE, 2),
                (TargetCount.CONNECTED, 3),
                (TargetCount.FAILURES, 4),
                (TargetCount.EJECTIONS, 5),
                (TargetCount.RETRIES, 6),
                (TargetCount.CONNECT_SUM_NS, 250_000_000),
            ):
                ledger.words[row + count] = units * factor
    found = scrape(ledger, EDGE)
    first, second = (HTTP | {"target": f"10.0.0.{n}:80"} for n in (4, 5))
    for name, expected in {
        "relay_target_connections_active": 4.0,
        "relay_target_connections_total": 6.0,
        "relay_target_failures_total": 8.0,
        "relay_target_ejections_total": 10.0,
        "relay_target_retries_total": 12.0,
        "relay_target_connect_seconds_total": 0.5,
    }.items():
        rounded = [(labels, round(value, 6)) for labels, value in found[name]]
        assert rounded == [(first, expected), (second, expected * 1000)], name


def test_whether_an_edges_target_is_up_is_what_its_probes_say(ledger: Ledger) -> None:
    add(ledger.worker(0), 5, Count.TARGET_UP, 100 << 1 | 1)
    assert "relay_target_up" not in scrape(ledger, EDGE), "nobody has asked yet; and a dial says nothing of the set"
    ledger.words[health_at(4)] = Health.DOWN
    assert scrape(ledger, EDGE)["relay_target_up"] == [(HTTP | {"target": "10.0.0.4:80"}, 0.0)]
    ledger.words[health_at(5)] = Health.UP
    assert (HTTP | {"target": "10.0.0.5:80"}, 1.0) in scrape(ledger, EDGE)["relay_target_up"]


@pytest.mark.parametrize(("left_s", "busy"), [(3600, 1.0), (-1, 0.0)])
def test_busy_ends_by_itself(left_s: int, busy: float, ledger: Ledger) -> None:
    assert scrape(ledger)["relay_busy"] == [({}, 0.0)]
    clocks.put_busy(ledger.words, left_s * 10**9)
    assert scrape(ledger)["relay_busy"] == [({}, busy)]


def test_it_renders_by_the_snapshot_in_force(ledger: Ledger) -> None:
    current = standing(SNAPSHOT)
    collector = LedgerCollector(ledger, current)
    assert b'endpoint="api"' in render(collector)
    current.snapshot = snapshot_of(SNAPSHOT.endpoints[0])
    assert b'endpoint="api"' not in render(collector)


def test_sources(ledger: Ledger) -> None:
    common = {"role": "db", "kind": "name", "ttl_s": 5.0, "doubted": False, "trouble": "", "left_out": 2}
    told: Any = [
        {**common, "source": "db.test", "targets": 3, "age_s": 1.5, "failures": 4},
        {**common, "source": "file: t.yaml", "targets": 0, "age_s": None, "failures": 0},
    ]
    text = render(LedgerCollector(ledger, standing(SNAPSHOT), lambda: told)).decode()
    lines = [line for line in text.splitlines() if line.startswith("relay_source_") and "_created" not in line]
    assert lines == [
        'relay_source_age_seconds{role="db",source="db.test"} 1.5',
        'relay_source_targets{role="db",source="db.test"} 3.0',
        'relay_source_targets{role="db",source="file: t.yaml"} 0.0',
        'relay_source_failures_total{role="db",source="db.test"} 4.0',
        'relay_source_failures_total{role="db",source="file: t.yaml"} 0.0',
        'relay_source_left_out{role="db"} 2.0',
    ]
