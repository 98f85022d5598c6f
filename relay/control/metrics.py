"""Prometheus metrics: one collector that renders the ledger at each scrape. Labels come from the configuration alone."""

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from relay import ENGINE, __version__
from relay.config.snapshot import EndpointRow
from relay.control.in_force import InForce
from relay.control.source_status import SourceStatus
from relay.control.status import is_busy, survives_crash, worker_connections, worker_restarts
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
)
from relay.ledger.ledger import Ledger
from relay.targets import health

_LABELS = ("role", "endpoint", "type")
_COUNTERS = (
    ("relay_connections_accepted", "Connections that the envelope let in.", Count.ACCEPTED),
    (
        "relay_received_bytes",
        "Bytes from clients that the target took; moves while a connection is open.",
        Count.RECEIVED,
    ),
    ("relay_sent_bytes", "Bytes from the target that clients took; moves while a connection is open.", Count.SENT),
    ("relay_target_connect_failures", "Attempts to connect to a target that failed.", Count.CONNECT_FAILURES),
    (
        "relay_target_other_source",
        "Attempts to connect to a loopback target from another address, as the usual one had no port left.",
        Count.OTHER_SOURCE,
    ),
)
_WORKER_COUNTERS = (
    (
        "relay_accept_pauses",
        "Times accepting paused: no descriptors or memory, or the kernel refused.",
        Word.ACCEPT_PAUSES,
    ),
    ("relay_pipes_degraded", "Pipes that the kernel gave smaller than asked.", Word.PIPES_DEGRADED),
    ("relay_pipes_refused", "Times that no pipe was to be had.", Word.PIPES_REFUSED),
    (
        "relay_sources_uncounted",
        "Times that a source had no place in a worker's table, so that `per_source` held for it there alone.",
        Word.SOURCES_UNCOUNTED,
    ),
    ("relay_log_lines_dropped", "Log lines that were not written because the log did not keep up.", Word.LOG_DROPPED),
    ("relay_flows_adopted", "Established connections that a new worker took over from a dead one.", Word.FLOWS_ADOPTED),
)


_TARGET_COUNTERS = (
    ("relay_target_connections", "Connections that the target took.", TargetCount.CONNECTED, 1),
    ("relay_target_failures", "Attempts to connect to the target that failed.", TargetCount.FAILURES, 1),
    ("relay_target_ejections", "Times that others were tried first, after a failure.", TargetCount.EJECTIONS, 1),
    ("relay_target_retries", "Connections that another target got after this one had failed.", TargetCount.RETRIES, 1),
    ("relay_target_connect_seconds", "Time that the target took to answer, in all.", TargetCount.CONNECT_SUM_NS, 1e-9),
)


class LedgerCollector(Collector):
    """Renders the ledger by the snapshot in force."""

    def __init__(
        self, ledger: Ledger, in_force: InForce, sources: Callable[[], Sequence[SourceStatus]] = tuple[SourceStatus]
    ) -> None:
        self._ledger = ledger
        self._in_force = in_force
        self._sources = sources

    def collect(self) -> Iterator[Metric]:
        """Every metric family, for one scrape."""
        rows = self._in_force.snapshot.endpoints
        yield from self._counters(rows)
        yield from self._labelled(rows)
        yield from self._gauges(rows)
        yield from self._targets(rows)
        yield self._histogram(
            "relay_connect_duration_seconds",
            "Time from dialling the target to its answer.",
            rows,
            CONNECT_BOUNDS_S,
            (Count.CONNECT_BUCKETS, Count.CONNECT_SUM_NS),
        )
        yield self._histogram(
            "relay_connection_duration_seconds",
            "Time from accept to close.",
            rows,
            DURATION_BOUNDS_S,
            (Count.DURATION_BUCKETS, Count.DURATION_SUM_NS),
        )
        yield from self._daemon()
        yield from self._of_sources()

    def _counters(self, rows: tuple[EndpointRow, ...]) -> Iterator[Metric]:
        for name, text, count in _COUNTERS:
            family = CounterMetricFamily(name, text, labels=_LABELS)
            for row in rows:
                family.add_metric(_labels(row), self._ledger.total(row.slot, count))
            yield family

    def _labelled(self, rows: tuple[EndpointRow, ...]) -> Iterator[Metric]:
        denied = CounterMetricFamily(
            "relay_connections_denied", "Connections refused, by reason.", labels=(*_LABELS, "reason")
        )
        closed = CounterMetricFamily(
            "relay_connections_closed",
            "Connections that were let in and have ended, by cause.",
            labels=(*_LABELS, "cause"),
        )
        would_deny = CounterMetricFamily(
            "relay_connections_would_deny",
            "Connections that the envelope refuses, let in because it is not enforced (`enforce: audit`).",
            labels=(*_LABELS, "reason"),
        )
        for row in rows:
            for n, reason in enumerate(ENVELOPE_REASONS):
                would_deny.add_metric((*_labels(row), reason), self._ledger.total(row.slot, Count.WOULD_DENY + n))
            for n, reason in enumerate(REASONS):
                denied.add_metric((*_labels(row), reason), self._ledger.total(row.slot, Count.DENIED + n))
            for n, cause in enumerate(CAUSES):
                closed.add_metric((*_labels(row), cause), self._ledger.total(row.slot, Count.CLOSED + n))
        yield denied
        yield would_deny
        yield closed

    def _gauges(self, rows: tuple[EndpointRow, ...]) -> Iterator[Metric]:
        active = GaugeMetricFamily("relay_connections_active", "Connections open now.", labels=_LABELS)
        held = GaugeMetricFamily("relay_connections_held", "Connections that wait for a target now.", labels=_LABELS)
        up = GaugeMetricFamily(
            "relay_target_up",
            "Whether the target is up, by the last probe or attempt to connect; absent before the first.",
            labels=(*_LABELS, "target"),
        )
        ledger = self._ledger
        for row in rows:
            active.add_metric(_labels(row), ledger.active(row.slot))
            held.add_metric(_labels(row), ledger.total(row.slot, Count.HELD))
            if row.distribution:
                found = [(each.text, health.of_target(ledger, row, each).health) for each in row.targets]
            else:
                found = [(each.text, health.of_endpoint(ledger, row).health) for each in row.targets[:1]]
            for text, state in found:
                if state != Health.UNKNOWN:
                    up.add_metric((*_labels(row), text), int(state == Health.UP))
        yield active
        yield held
        yield up

    def _targets(self, rows: tuple[EndpointRow, ...]) -> Iterator[Metric]:
        """Each of several targets."""
        labels = (*_LABELS, "target")
        each = [(_labels(row), target) for row in rows if row.distribution for target in row.targets]
        active = GaugeMetricFamily("relay_target_connections_active", "Connections to the target now.", labels=labels)
        for base, target in each:
            active.add_metric((*base, target.text), self._ledger.target_total(target.slot, TargetCount.ACTIVE))
        yield active
        weight = GaugeMetricFamily(
            "relay_target_weight", "The target's share beside the others' weights.", labels=labels
        )
        for base, target in each:
            weight.add_metric((*base, target.text), target.weight)
        yield weight
        for name, text, count, unit in _TARGET_COUNTERS:
            family = CounterMetricFamily(name, text, labels=labels)
            for base, target in each:
                family.add_metric((*base, target.text), self._ledger.target_total(target.slot, count) * unit)
            yield family

    def _histogram(
        self, name: str, text: str, rows: tuple[EndpointRow, ...], bounds_s: tuple[float, ...], at: tuple[int, int]
    ) -> Metric:
        family = HistogramMetricFamily(name, text, labels=_LABELS)
        buckets, total_ns = at
        for row in rows:
            running = 0
            cumulative = []
            for n, bound in enumerate((*map(str, bounds_s), "+Inf")):
                running += self._ledger.total(row.slot, buckets + n)
                cumulative.append((bound, running))
            family.add_metric(_labels(row), cumulative, self._ledger.total(row.slot, total_ns) / 1e9)
        return family

    def _daemon(self) -> Iterator[Metric]:
        ledger, words = self._ledger, self._ledger.words
        parts = [ledger.worker(n) for n in range(ledger.workers)]
        for name, text, word in _WORKER_COUNTERS:
            yield CounterMetricFamily(name, text, value=sum(part[word] for part in parts))
        connections = GaugeMetricFamily(
            "relay_worker_connections", "Connections open now, of each worker.", labels=("worker",)
        )
        for n in range(ledger.workers):
            connections.add_metric((str(n),), worker_connections(ledger, self._in_force.snapshot, n))
        yield connections
        crashes = GaugeMetricFamily(
            "relay_worker_crashes_in_a_row",
            "Times in a row that the worker, or its holder, ended at its start; 0 when it has lived for a while.",
            labels=("worker",),
        )
        unserved = GaugeMetricFamily(
            "relay_worker_unserved", "Declared addresses for which the worker has no socket.", labels=("worker",)
        )
        for n, part in enumerate(parts):
            crashes.add_metric((str(n),), part[Word.CRASHES])
            unserved.add_metric((str(n),), part[Word.UNSERVED])
        yield crashes
        yield unserved
        yield CounterMetricFamily(
            "relay_hung", "Processes that were killed because they hung.", value=words[DaemonWord.HUNG]
        )
        unguarded = GaugeMetricFamily(
            "relay_worker_unguarded", "Whether a crash of this worker would end its connections.", labels=("worker",)
        )
        for n, part in enumerate(parts):
            unguarded.add_metric((str(n),), int(not survives_crash(part)))
        yield unguarded
        yield GaugeMetricFamily("relay_pipes", "Pipes open now.", value=sum(part[Word.PIPES] for part in parts))
        yield CounterMetricFamily(
            "relay_worker_restarts", "Workers started again after one died.", value=worker_restarts(ledger)
        )
        yield CounterMetricFamily(
            "relay_control_restarts", "Control processes started again.", value=words[DaemonWord.CONTROL_RESTARTS]
        )
        yield GaugeMetricFamily(
            "relay_busy",
            "Whether the edges' probes are refused, so that they send nobody (`relay drain`): 1 or 0.",
            value=is_busy(ledger),
        )
        yield CounterMetricFamily("relay_upgrades", "Live upgrades of this daemon.", value=words[DaemonWord.PROGRAM])
        yield GaugeMetricFamily(
            "relay_config_last_reload_successful",
            "Whether the last reload took: 1 or 0.",
            value=words[DaemonWord.RELOAD_OK],
        )
        yield GaugeMetricFamily(
            "relay_config_last_reload_success_timestamp_seconds",
            "When a configuration was last put in force.",
            value=words[DaemonWord.RELOAD_OK_AT_NS] / 1e9,
        )
        yield GaugeMetricFamily(
            "relay_roster_age_seconds",
            "Since the registry last confirmed who is there; without one, since the service file was last read.",
            value=_roster_age_s(words),
        )
        yield CounterMetricFamily(
            "relay_roster_rejected",
            "Entries of the registry that made no sense, and were left out.",
            value=words[DaemonWord.ROSTER_REJECTED],
        )
        queries = CounterMetricFamily(
            "relay_names_queries", "Questions to the name server, by response code.", labels=("rcode",)
        )
        for n, rcode in enumerate(NAMES_RCODES):
            queries.add_metric((rcode,), words[DaemonWord.NAMES_QUERIES + n])
        yield queries
        build = GaugeMetricFamily(
            "relay_build_info", "The version of relay, and its engine.", labels=("version", "compiled")
        )
        build.add_metric((__version__, "true" if ENGINE.compiled else "false"), 1)
        yield build

    def _of_sources(self) -> Iterator[Metric]:
        """Of names, service records and files that say where instances are; control alone knows of them."""
        if not (found := self._sources()):
            return
        labels = ("role", "source")
        age = GaugeMetricFamily(
            "relay_source_age_seconds", "Since the source's last good answer; absent before the first.", labels=labels
        )
        targets = GaugeMetricFamily(
            "relay_source_targets", "Instances that the source says are there, by what stands.", labels=labels
        )
        failures = CounterMetricFamily(
            "relay_source_failures", "Questions to the source that were not answered, or not as a whole.", labels=labels
        )
        left_out = GaugeMetricFamily(
            "relay_source_left_out", "Addresses of the role that have no place: there are too many.", labels=("role",)
        )
        for each in found:
            at = each["role"], each["source"]
            if each["age_s"] is not None:
                age.add_metric(at, each["age_s"])
            targets.add_metric(at, each["targets"])
            failures.add_metric(at, each["failures"])
        for role, count in {each["role"]: each["left_out"] for each in found}.items():
            left_out.add_metric((role,), count)
        yield from (age, targets, failures, left_out)


def render(collector: LedgerCollector) -> bytes:
    """The scrape's answer in Prometheus' text format. Takes milliseconds: call it off the event loop."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(collector)
    return generate_latest(registry)


def _roster_age_s(words: memoryview) -> float:
    by_registry_ns = clocks.age_ns(words, DaemonWord.ROSTER_AT_MONOTONIC_NS)
    by_file_ns = clocks.age_ns(words, DaemonWord.RELOAD_OK_AT_MONOTONIC_NS)
    return (by_registry_ns if by_registry_ns is not None else by_file_ns or 0) / 1e9


def _labels(row: EndpointRow) -> tuple[str, str, str]:
    return row.role, row.endpoint, row.type
