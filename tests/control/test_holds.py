"""Holding an endpoint's new connections by hand."""

import contextlib
import time
from collections.abc import Iterator

import pytest

from relay.control.holds import hold, hold_for_s
from relay.errors import OperatorError
from relay.ledger.layout import Count
from tests.config.rig import endpoint_row, snapshot_of
from tests.control.rig import Logged, standing
from tests.ledger.rig import new_ledger

IN = endpoint_row(name="web/in", slot=3)
BY_INSTANCE = endpoint_row(name="web/in@instance", slot=4)
DOOR = endpoint_row(name="web/db", slot=5, type="door")
HERE = standing(snapshot_of(IN, BY_INSTANCE, DOOR))


@pytest.fixture
def logged() -> Iterator[Logged]:
    with contextlib.closing(Logged()) as made:
        yield made


def test_it_stands_in_the_ledger_until_its_time_is_over_or_it_is_released(logged: Logged) -> None:
    with new_ledger(workers=2) as ledger:
        ledger.words[ledger.worker(1).counts_at(3) + Count.HELD] = 2
        answer = hold(ledger, HERE, logged.log, "web/in", 60.0)
        assert answer == {"endpoint": "web/in", "hold_for_s": 60.0, "held": 2}
        left_s = [hold_for_s(ledger, row) for row in (IN, BY_INSTANCE, DOOR)]
        assert 0 < left_s[0] <= 60.0
        assert 0 < left_s[1] <= 60.0
        assert left_s[2] == 0
        until_ns = ledger.words[ledger.worker(0).counts_at(3) + Count.HOLD_UNTIL_NS]
        assert abs(until_ns - time.monotonic_ns() - 60e9) < 60e9
        assert hold(ledger, HERE, logged.log, "web/in", 0.0)["hold_for_s"] == 0
        assert (hold_for_s(ledger, IN), hold_for_s(ledger, BY_INSTANCE)) == (0, 0)
        assert [(line["event"], line["endpoint"]) for line in logged.lines()] == [
            ("hold", "web/in"), ("release", "web/in"),
        ]  # fmt: skip


def test_a_door_is_held_by_its_name(logged: Logged) -> None:
    with new_ledger() as ledger:
        hold(ledger, HERE, logged.log, "web/db", 1.0)
        assert (hold_for_s(ledger, DOOR) > 0, hold_for_s(ledger, IN)) == (True, 0)


def test_an_endpoint_that_is_not_there_is_answered_by_those_that_are(logged: Logged) -> None:
    with new_ledger() as ledger, pytest.raises(OperatorError, match=r"no endpoint `web/http` on .* web/in, .*web/db"):
        hold(ledger, HERE, logged.log, "web/http", 1.0)
