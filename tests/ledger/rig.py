"""Ledgers for tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from relay.ledger.layout import Health, State
from relay.ledger.ledger import Ledger, WorkerLedger
from relay.targets.health import own_health


@contextmanager
def new_ledger(workers: int = 1, flows: int = 16) -> Iterator[Ledger]:
    """A ledger of a test's own."""
    ledger = Ledger.create(workers, flows, now_ns=7)
    try:
        yield ledger
    finally:
        os.close(ledger.fd)


def target_up(ledger: Ledger, slot: int = 0) -> bool | None:
    """Whether the last dial was answered, whichever worker made it; None before the first."""
    found = own_health(ledger.words, ledger.worker(0).all_counts_at(slot), proves=True)
    return {Health.UNKNOWN: None, Health.UP: True, Health.DOWN: False}[found.health]


def add(part: WorkerLedger, slot: int, count: int, value: int = 1) -> None:
    part.words[part.counts_at(slot) + count] += value


def begin(part: WorkerLedger, index: int, peer: str = "192.0.2.1:5") -> None:
    part.begin(index, State.DIAL, 3, 40 + index, -1, 1000, peer)
