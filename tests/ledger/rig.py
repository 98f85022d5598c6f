"""Ledgers for tests."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from relay.ledger.layout import (
    State,
)
from relay.ledger.ledger import Ledger, WorkerLedger


@contextmanager
def new_ledger(workers: int = 1, flows: int = 16) -> Iterator[Ledger]:
    """A ledger of a test's own."""
    ledger = Ledger.create(workers, flows, now_ns=7)
    try:
        yield ledger
    finally:
        os.close(ledger.fd)


def add(part: WorkerLedger, slot: int, count: int, value: int = 1) -> None:
    part.words[part.counts_at(slot) + count] += value


def begin(part: WorkerLedger, index: int, peer: str = "192.0.2.1:5") -> None:
    part.begin(index, State.DIAL, 3, 40 + index, -1, 1000, peer)
