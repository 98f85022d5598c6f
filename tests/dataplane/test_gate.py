"""Admission to one endpoint: the envelope, then the limits, and counts that come out even."""

import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay import log as logging
from relay.dataplane.denials import Denials
from relay.dataplane.gate import Gate
from relay.envelope.rules import RuleRow
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import CAUSES, ENVELOPE_REASONS, REASONS, Count
from relay.ledger.ledger import Ledger
from relay.log import Logger
from tests.config.rig import endpoint_row
from tests.harness import examples
from tests.ledger.rig import new_ledger
from tests.logs import waiting

ONE, TWO = "192.0.2.1", "192.0.2.2"
DENY_ONE: dict[str, Any] = {"rules": (RuleRow(False, "192.0.2.1/32", "f:1"),)}


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """A ledger of one worker."""
    with new_ledger() as made:
        yield made


def gate(ledger: Ledger, worker: int = 0, **keys: Any) -> Gate:
    part = ledger.worker(worker)
    return Gate(endpoint_row(slot=2, **keys), part, SourceCounts(part))


@pytest.fixture
def two() -> Iterator[Ledger]:
    """A ledger of two workers."""
    with new_ledger(workers=2) as made:
        yield made


def test_without_limits_everybody_is_let_in_and_counted(ledger: Ledger) -> None:
    made = gate(ledger)
    assert [made.admit(ONE, 5.0) for _ in range(100)] == [None] * 100
    assert ledger.active(2) == 100
    for _ in range(100):
        made.release(ONE, "idle")
    assert ledger.total(2, Count.CLOSED + CAUSES.index("idle")) == 100
    assert ledger.active(2) == 0


@pytest.mark.parametrize(("type_", "reason"), [("input", "access"), ("internal", "roster")])
def test_the_envelope_decides_first(type_: str, reason: str, ledger: Ledger) -> None:
    made = gate(ledger, type=type_, denied_reason=reason, connections=1, rate_per_s=1.0, **DENY_ONE)
    assert [made.admit(ONE, 5.0) for _ in range(5)] == [reason] * 5
    assert made.admit(TWO, 5.0) is None, "the refused ones used nobody's share up"
    assert ledger.active(2) == 1


def test_connections(ledger: Ledger) -> None:
    made = gate(ledger, connections=2)
    assert [made.admit(f"192.0.2.{n}", 5.0) for n in range(3)] == [None, None, "connections"]
    made.release("192.0.2.0", "client_fin")
    assert [made.admit(TWO, 5.0), made.admit(TWO, 5.0)] == [None, "connections"]


def test_per_source(ledger: Ledger) -> None:
    made = gate(ledger, per_source=2)
    assert [made.admit(ONE, 5.0) for _ in range(3)] == [None, None, "per_source"]
    assert made.admit(TWO, 5.0) is None
    made.release(ONE, "client_fin")
    assert [made.admit(ONE, 5.0), made.admit(ONE, 5.0)] == [None, "per_source"]


def test_a_refusal_for_a_limit_uses_nothing_of_the_rate(ledger: Ledger) -> None:
    made = gate(ledger, per_source=1, rate_per_s=2.0)
    assert [made.admit(ONE, 5.0) for _ in range(5)] == [None, *["per_source"] * 4]
    assert [made.admit(TWO, 5.0), made.admit("192.0.2.3", 5.0)] == [None, "rate"]
    assert ledger.active(2) == 2


def test_rate(ledger: Ledger) -> None:
    made = gate(ledger, rate_per_s=4.0)
    assert [made.admit(ONE, 100.5) for _ in range(6)] == [*[None] * 4, "rate", "rate"]
    assert made.admit(ONE, 100.99) == "rate"
    assert [made.admit(ONE, 101.0) for _ in range(5)] == [*[None] * 4, "rate"], "the next second begins anew"
    assert [made.admit(ONE, 9e6) for _ in range(5)] == [*[None] * 4, "rate"], "a quiet month saves nothing up"
    assert ledger.active(2) == 12


def test_a_rate_below_one_a_second(ledger: Ledger) -> None:
    made = gate(ledger, rate_per_s=0.05)
    assert [made.admit(ONE, 600.0 + n) for n in range(5)] == [None, None, None, "rate", "rate"]
    assert made.admit(ONE, 659.9) == "rate"
    assert made.admit(ONE, 660.0) is None


@examples(30)
@given(
    rate_per_s=st.sampled_from([0.05, 0.5, 1.0, 7.0]),
    steps=st.lists(st.tuples(st.floats(0, 20), st.integers(0, 1)), min_size=1, max_size=100),
)
def test_no_stretch_admits_more_than_its_windows_allow(rate_per_s: float, steps: list[tuple[float, int]]) -> None:
    """Over both workers, and none is refused while its window has room."""
    window_s = 1 if rate_per_s >= 1 else 60
    with new_ledger(workers=2) as ledger:
        gates = [gate(ledger, n, rate_per_s=rate_per_s) for n in (0, 1)]
        now_s, admitted = 1000.0, dict[int, int]()
        for step_s, worker in steps:
            now_s += step_s
            window = int(now_s / window_s)
            room = admitted.get(window, 0) < rate_per_s * window_s
            assert (gates[worker].admit(ONE, now_s) is None) == room
            admitted[window] = admitted.get(window, 0) + room


@pytest.mark.parametrize(("before", "after"), [(500.0, 0.5), (0.5, 500.0), (500.0, 2.0)])
def test_another_rate_after_a_reload(before: float, after: float, ledger: Ledger) -> None:
    """Seconds and minutes are numbered apart: a count of the one says nothing of the other."""
    made = gate(ledger, rate_per_s=before)
    assert made.admit(ONE, 6000.0) is None
    made.declare(replace(made.declared, rate_per_s=after))
    assert made.admit(ONE, 6001.0) is None
    assert made.admit(ONE, 6100.0) is None


@pytest.mark.parametrize("keys", [{"connections": 3}, {"per_source": 3}, {"rate_per_s": 3.0}])
def test_limits_are_the_instances_and_not_a_workers(keys: dict[str, Any], two: Ledger) -> None:
    gates = [gate(two, n, **keys) for n in (0, 1)]
    reason = next(iter(keys)).removesuffix("_per_s")
    answers = [gates[n % 2].admit(ONE, 5.0) for n in range(6)]
    assert answers == [None, None, None, reason, reason, reason]
    assert two.active(2) == 3
    if reason != "rate":
        gates[0].release(ONE, "client_fin")
        assert gates[1].admit(ONE, 5.0) is None
        assert gates[0].admit(ONE, 5.0) == reason


def test_a_row_that_another_endpoint_got_is_left_to_it(ledger: Ledger) -> None:
    """Its connections are still being cut when two reloads follow each other at once."""
    before = gate(ledger)
    assert before.admit(ONE, 5.0) is None
    after = Gate(replace(before.declared, name="web/other"), ledger.worker(0), SourceCounts(ledger.worker(0)))
    before.release(ONE, "revoked")
    assert after.admit(ONE, 5.0) is None
    before.forget()
    assert ledger.active(2) == 1
    after.release(ONE, "client_fin")
    assert ledger.active(2) == 0
    after.denied("rate")
    after.forget()
    assert ledger.total(2, Count.DENIED + REASONS.index("rate")) == 0


def test_another_declaration_counts_at_once_and_the_counts_stay(ledger: Ledger) -> None:
    made = gate(ledger)
    assert [made.admit(ONE, 5.0), made.admit(ONE, 5.0)] == [None, None]
    assert made.permits(ONE)
    made.declare(replace(made.declared, connections=2, **DENY_ONE))
    assert not made.permits(ONE), "a verdict from before is forgotten"
    assert [made.admit(ONE, 5.0), made.admit(TWO, 5.0)] == ["access", "connections"]
    made.declare(replace(made.declared, connections=3, rate_per_s=1.0, rules=()))
    assert [made.admit(TWO, 5.0), made.admit(TWO, 5.0)] == [None, "connections"]
    assert ledger.active(2) == 3


def test_being_let_in_is_counted_when_it_stands_in_the_ledger(ledger: Ledger) -> None:
    made = gate(ledger)
    assert made.admit(ONE, 5.0) is None
    assert ledger.total(2, Count.ACCEPTED) == 0
    made.accepted()
    assert ledger.total(2, Count.ACCEPTED) == 1


def test_an_envelope_that_is_not_enforced_lets_in_and_limits_hold(ledger: Ledger) -> None:
    made = gate(ledger, enforce="audit", per_source=1, **DENY_ONE)
    assert made.audits
    assert not made.permits(ONE), "the verdict is what it would be"
    assert made.keeps(ONE, "")
    assert [made.admit(ONE, 5.0), made.admit(ONE, 5.0)] == [None, "per_source"]
    made.declare(replace(made.declared, enforce="strict"))
    assert (made.audits, made.keeps(ONE, ""), made.keeps(TWO, "")) == (False, False, True)
    assert made.admit(ONE, 5.0) == "access"


@pytest.mark.parametrize("reason", ENVELOPE_REASONS)
def test_what_would_be_refused_is_counted_by_reason(reason: str, ledger: Ledger) -> None:
    gate(ledger, enforce="audit", denied_reason=reason, **DENY_ONE).would_deny()
    counts = [ledger.total(2, Count.WOULD_DENY + n) for n in range(len(ENVELOPE_REASONS))]
    assert counts == [int(name == reason) for name in ENVELOPE_REASONS]
    assert sum(ledger.total(2, Count.DENIED + n) for n in range(len(REASONS))) == 0


@pytest.mark.parametrize("reason", REASONS)
def test_refusals_are_counted_by_reason(reason: str, ledger: Ledger) -> None:
    gate(ledger).denied(reason)
    assert [ledger.total(2, Count.DENIED + n) for n in range(len(REASONS))] == [int(name == reason) for name in REASONS]


@pytest.mark.parametrize("cause", CAUSES)
def test_ends_are_counted_by_cause(cause: str, ledger: Ledger) -> None:
    made = gate(ledger)
    made.admit(ONE, 5.0)
    made.release(ONE, cause)
    assert [ledger.total(2, Count.CLOSED + n) for n in range(len(CAUSES))] == [int(name == cause) for name in CAUSES]


def test_a_flood_of_sources_costs_bounded_memory(ledger: Ledger) -> None:
    """A hundred thousand of them, refused, counted and noted as the listener does it: the most that they ever cost."""
    made = gate(ledger, rules=(RuleRow(False, "::/1", "f:1"),), per_source=1, rate_per_s=1.0)
    sink, source_end = logging.channel()
    with sink, source_end:
        denials = Denials(Logger(sink, "worker-0", "info"))
        tracemalloc.start()
        try:
            for n in range(100_000):
                source = f"2001:db8:{n >> 8:x}:{n & 0xFF:x}:ffff:ffff:ffff:ffff"
                assert made.admit(source, 5.0) == "access"
                made.denied("access")
                denials.note(made.declared.name, f"[{source}]:5", "access")
            _, most_bytes = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert len(waiting(source_end)) == 10, "lines of the log"
    assert len(made._verdicts) <= 16_384
    assert made._per_source == {}
    assert len(denials._left_out) == 1
    assert most_bytes < 4_000_000
    assert ledger.total(2, Count.DENIED + REASONS.index("access")) == 100_000


def test_the_zone_does_not_count_for_the_envelope(ledger: Ledger) -> None:
    made = gate(ledger, rules=(RuleRow(False, "fe80::1/128", "f:1"),), per_source=1)
    assert made.admit("fe80::1%eth0", 5.0) == made.admit("fe80::1%7", 5.0) == "access"
    assert made.admit("fe80::2%eth0", 5.0) is None


EDGES: dict[str, Any] = {"edges": ("198.51.100.10", "2001:db8::10")}
BY = "198.51.100.10"


def test_behind_an_edge_nobody_else_is_let_in(ledger: Ledger) -> None:
    made = gate(ledger, connections=1, per_source=1, rate_per_s=1.0, **EDGES, **DENY_ONE)
    assert [made.admit(source, 5.0) for source in (ONE, TWO, "198.51.100.11")] == ["roster"] * 3
    assert [made.admit(each, 5.0) for each in ("198.51.100.10", "2001:db8::10", BY)] == [None] * 3, (
        "limits are the client's"
    )
    assert ledger.active(2) == 3
    audit = gate(ledger, enforce="audit", **EDGES)
    assert audit.admit(TWO, 5.0) == "roster", "a header from anybody would be believed"


def test_whom_the_edge_names_is_held_to_rules_and_limits(ledger: Ledger) -> None:
    made = gate(ledger, per_source=1, **EDGES, **DENY_ONE)
    assert [made.admit(BY, 5.0) for _ in range(3)] == [None] * 3
    assert made.identify(BY, ONE, 5.0) == "access"
    assert made.identify(BY, TWO, 5.0) is None
    assert made.identify(BY, TWO, 5.0) == "per_source"
    assert made._per_source == {BY: 2, TWO: 1}, "who is refused is still the edge's"
    assert ledger.active(2) == 3
    made.release(BY, "denied")
    made.release(BY, "denied")
    made.release(TWO, "client_fin")
    assert (made._per_source, ledger.active(2)) == ({}, 0)


def test_a_limit_of_connections_counts_the_one_that_is_named_once(ledger: Ledger) -> None:
    made = gate(ledger, connections=1, **EDGES)
    assert [made.admit(BY, 5.0), made.identify(BY, TWO, 5.0)] == [None, None]
    assert [made.admit(BY, 5.0), made.identify(BY, ONE, 5.0)] == [None, "connections"]


@pytest.mark.parametrize(
    ("source", "via", "brings_nobody", "kept"),
    [
        (TWO, BY, False, True),
        (ONE, BY, False, False),
        (TWO, "", False, False),
        (TWO, "198.51.100.11", False, False),
        (BY, BY, True, True),
        (BY, BY, False, False),  # somebody on the edge's own machine, or whom it does not know
        (BY, "", True, False),
    ],
)
def test_who_may_stay_behind_an_edge(source: str, via: str, brings_nobody: bool, kept: bool, ledger: Ledger) -> None:
    made = gate(ledger, **EDGES, rules=(*DENY_ONE["rules"], RuleRow(False, f"{BY}/32", "f:2")))
    assert made.keeps(source, via, brings_nobody=brings_nobody) is kept
