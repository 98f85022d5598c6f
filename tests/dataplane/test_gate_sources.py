"""A limit for each source: of all workers together, by address or by network, and never below nought."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from relay.dataplane.gate import Gate
from relay.envelope.rules import RuleRow
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import CAUSES, Count, DaemonWord, Word
from relay.ledger.ledger import Ledger
from tests.config.rig import endpoint_row
from tests.ledger.rig import new_ledger

ONE, TWO = "192.0.2.1", "192.0.2.2"
DENY_ONE: dict[str, Any] = {"rules": (RuleRow(False, "192.0.2.1/32", "f:1"),)}
NETWORKS: dict[str, Any] = {"per_source": 1, "per_source_ipv4_bits": 24, "per_source_ipv6_bits": 64}


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger of one worker."""
    with new_ledger() as made:
        yield made


@pytest.fixture
def two() -> Iterator[Ledger]:
    """A ledger of two workers."""
    with new_ledger(workers=2) as made:
        yield made


def gate(ledger: Ledger, worker: int = 0, **keys: Any) -> Gate:
    part = ledger.worker(worker)
    return Gate(endpoint_row(slot=2, **keys), part, SourceCounts(part))


def test_sources_do_not_share_another_sources_limit(two: Ledger) -> None:
    gates = [gate(two, n, per_source=1) for n in (0, 1)]
    for n in range(500):
        assert gates[n % 2].admit(f"2001:db8::{n:x}", 5.0) is None
    assert gates[0].admit("2001:db8::1", 5.0) == gates[1].admit("2001:db8::1", 5.0) == "per_source"


def test_the_same_source_at_two_endpoints(two: Ledger) -> None:
    gates = [
        Gate(endpoint_row(f"web/{slot}", slot=slot, per_source=1), two.worker(n), SourceCounts(two.worker(n)))
        for n, slot in ((0, 2), (1, 3))
    ]
    assert [each.admit(ONE, 5.0) for each in gates] == [None, None]
    assert [each.admit(ONE, 5.0) for each in gates] == ["per_source", "per_source"]


def test_a_limit_per_source_that_a_reload_brings(two: Ledger) -> None:
    """What is open already counts, in both workers."""
    gates = [gate(two, n) for n in (0, 1)]
    assert [each.admit(ONE, 5.0) for each in gates] == [None, None]
    for each in gates:
        each.declare(replace(each.declared, per_source=3))
    assert [gates[0].admit(ONE, 5.0), gates[0].admit(ONE, 5.0), gates[1].admit(ONE, 5.0)] == [
        None, "per_source", "per_source",
    ]  # fmt: skip
    for each in gates:
        each.declare(replace(each.declared, per_source=None))
    assert gates[1].admit(ONE, 5.0) is None
    for each in gates:
        each.declare(replace(each.declared, per_source=4))
    assert gates[0].admit(ONE, 5.0) == "per_source"
    for each, count in zip(gates, (2, 2), strict=True):
        for _ in range(count):
            each.release(ONE, "client_fin")
    assert [gates[0].admit(ONE, 5.0) for _ in range(5)] == [*[None] * 4, "per_source"]


def test_a_full_table_of_sources_still_counts_in_its_own_worker(two: Ledger) -> None:
    gates = [gate(two, n, per_source=1) for n in (0, 1)]
    sources = [f"2001:db8::{n:x}" for n in range(two.words[DaemonWord.SOURCES_ENTRIES] + 1000)]
    assert {gates[0].admit(source, 5.0) for source in sources} == {None}
    assert {gates[0].admit(source, 5.0) for source in sources} == {"per_source"}
    assert two.worker(0)[Word.SOURCES_UNCOUNTED] >= 1000
    for source in sources:
        gates[0].release(source, "client_fin")
    assert {gates[1].admit(source, 5.0) for source in sources[:100]} == {None}, "what is over is forgotten"
    assert gates[0]._per_source == {}


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.254", True),
        ("192.0.2.1", "192.0.3.1", False),
        ("192.0.2.1", "::ffff:192.0.2.7", True),
        ("::ffff:192.0.2.7", "::ffff:192.0.3.7", False),
        ("2001:db8::1", "2001:db8::ffff:0:0:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("0.0.0.1", "::1", False),
    ],
)
def test_who_is_of_one_network_is_one_source(workers: int, one: str, other: str, same: bool) -> None:
    with new_ledger(workers=workers) as ledger:
        here, there = gate(ledger, 0, **NETWORKS), gate(ledger, workers - 1, **NETWORKS)
        if workers == 1:
            there = here
        assert here.admit(one, 5.0) is None
        assert there.admit(other, 5.0) == ("per_source" if same else None)
        here.release(one, "client_fin")
        assert here.admit(other, 5.0) == (None if same else "per_source")


def test_other_networks_after_a_reload(two: Ledger) -> None:
    """What is open already counts by them, in both workers."""
    gates = [gate(two, n, per_source=2) for n in (0, 1)]
    assert [gates[n % 2].admit(f"192.0.2.{n}", 5.0) for n in range(3)] == [None] * 3
    for each in gates:
        each.declare(replace(each.declared, per_source_ipv4_bits=24))
    assert [each.admit(TWO, 5.0) for each in gates] == ["per_source"] * 2
    gates[0].release("192.0.2.0", "client_fin")
    gates[0].release("192.0.2.2", "client_fin")
    assert [each.admit("192.0.2.9", 5.0) for each in gates] == [None, "per_source"]
    for each in gates:
        each.declare(replace(each.declared, per_source_ipv4_bits=32))
    assert [each.admit("192.0.2.9", 5.0) for each in gates] == [None, "per_source"]


def test_an_end_that_was_never_counted_in_takes_from_nobody(two: Ledger) -> None:
    """As after an error between two counts; the connection ends all the same, and is counted as ended."""
    made, other = gate(two, 0, **NETWORKS), gate(two, 1, **NETWORKS)
    made.release(ONE, "error")
    assert made.admit(ONE, 5.0) is None
    made.release(TWO, "error")
    assert (other.admit(TWO, 5.0), two.active(2), made._per_source) == ("per_source", 1, {ONE: 1})
    assert two.total(2, Count.CLOSED + CAUSES.index("error")) == 2


def test_a_worker_that_starts_again_counts_its_flows_anew(two: Ledger) -> None:
    before, other = gate(two, 0, per_source=2), gate(two, 1, per_source=2)
    assert [before.admit(ONE, 5.0), before.admit(ONE, 5.0), other.admit(ONE, 5.0)] == [None, None, "per_source"]
    part = two.worker(0)
    SourceCounts(part).clear()
    part.reconcile(2, live=1, ended=["error"])
    after = gate(two, 0, per_source=2)
    after.readmit(ONE)
    assert two.active(2) == 1
    assert [other.admit(ONE, 5.0), other.admit(ONE, 5.0), after.admit(ONE, 5.0)] == [None, "per_source", "per_source"]
    after.release(ONE, "idle")
    assert two.active(2) == 1


def test_ended_connections_leave_nothing(ledger: Ledger) -> None:
    made = gate(ledger, per_source=1)
    for n in range(1000):
        assert made.admit(f"2001:db8::{n:x}", 5.0) is None
    for n in range(1000):
        made.release(f"2001:db8::{n:x}", "client_fin")
    assert made._per_source == {}


def test_a_mapped_address_is_the_ipv4_one_for_envelope_and_limits(two: Ledger) -> None:
    """No listener of ours sees one (`::` says nothing about IPv4); whoever passes one on is not let in by another rule."""
    made, other = (gate(two, n, per_source=1, **DENY_ONE) for n in (0, 1))
    assert made.admit(f"::ffff:{ONE}", 5.0) == "access"
    assert made.admit(f"::ffff:{TWO}", 5.0) is None
    assert other.admit(TWO, 5.0) == "per_source"
