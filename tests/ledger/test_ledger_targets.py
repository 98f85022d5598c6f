"""Targets and their health in the ledger, and what takes no memory."""

import os

from relay.ledger.layout import (
    SLOTS,
    TARGET_WORDS,
    TARGETS,
    Count,
    DaemonWord,
    Flag,
    State,
    TargetCount,
    Word,
    health_at,
)
from relay.ledger.ledger import Ledger
from relay.ledger.record import by_text
from tests.ledger.rig import add, begin, new_ledger


def test_untouched_pages_cost_no_memory() -> None:
    with new_ledger(workers=2, flows=100_000) as ledger:
        begin(ledger.worker(0), 0)
        list(ledger.flows())
        assert os.fstat(ledger.fd).st_size > 10_000_000
        assert os.fstat(ledger.fd).st_blocks * 512 < 200_000


def test_targets_and_their_health_overlap_nothing(ledger: Ledger) -> None:
    value = 100
    written: dict[int, int] = {}
    for slot in (0, 1, TARGETS - 1):
        places = [health_at(slot)]
        places += [row + count for row in ledger.worker(0).target_counts_at(slot) for count in range(TARGET_WORDS)]
        for place in places:
            assert place not in written
            value += 1
            ledger.words[place] = written[place] = value
    for n in range(ledger.workers):
        part = ledger.worker(n)
        begin(part, 0)
        begin(part, 15)
        for slot in (0, SLOTS - 1):
            add(part, slot, Count.END - 1)
        for word in range(Word.LAYOUT):
            part[word] = 1
    assert {place: ledger.words[place] for place in written} == written
    assert ledger.words[DaemonWord.WORKERS] == 3


def test_a_targets_row_goes_to_its_next_holder_at_nought(ledger: Ledger) -> None:
    part = ledger.worker(1)
    row = part.claim_target(5, "web/in 10.0.0.4:80")
    assert row == part.target_counts_at(5)[1]
    part.words[row + TargetCount.ACTIVE] = 3
    assert part.claim_target(5, "web/in 10.0.0.4:80") == row
    assert ledger.target_total(5, TargetCount.ACTIVE) == 3, "it was its own"
    other = ledger.worker(0).claim_target(5, "web/in 10.0.0.5:80")
    assert (other != row, ledger.target_total(5, TargetCount.ACTIVE)) == (True, 3), "the other workers' rows are theirs"
    part.claim_target(5, "web/in 10.0.0.5:80")
    assert ledger.target_total(5, TargetCount.ACTIVE) == 0


def test_who_a_flow_is_and_where_it_goes(ledger: Ledger) -> None:
    part = ledger.worker(0)
    part.begin(2, State.HEADER, 3, 40, -1, 1000, "[2001:db8:ffff:ffff:ffff:ffff:ffff:ffff]:65535", 9)
    part.identify(2, by_text("192.0.2.1:5"), 0)
    part.flag(2, Flag.CLIENT_RESET)
    part.aim(2, 7)
    [flow] = ledger.flows()
    assert (flow.peer, flow.flags, flow.target_slot) == ("192.0.2.1:5", Flag.CLIENT_RESET, 7)
    assert (flow.state, flow.slot, flow.client_fd, flow.started_ns) == (State.HEADER, 3, 40, 1000)
    part.identify(2, by_text("198.51.100.10:6"), Flag.PROBE)
    part.aim(2, -1)
    [flow] = ledger.flows()
    assert (flow.peer, flow.flags, flow.target_slot) == ("198.51.100.10:6", Flag.CLIENT_RESET | Flag.PROBE, -1)
