"""A door looks for the relays of its instances, and what they know is written down."""

import asyncio
import errno
from dataclasses import replace
from typing import Final

import pytest

from relay.config.snapshot import EndpointRow
from relay.control import looking
from relay.control.looking import forget_newcomers
from relay.control.probe import Answer
from relay.ledger.layout import Health, Knows, TargetCount
from relay.ledger.ledger import Ledger
from relay.targets import why
from tests.config.rig import snapshot_of
from tests.control.test_looking import Made, made, other

__all__ = ["made"]

REFUSED: Final = why.of_error(errno.ECONNREFUSED)


def door(relay_port: int = 7400, **keys: object) -> EndpointRow:
    row = other(1, type="door", distribution="least-connections", leads_to="store/pg", **keys)
    return replace(row, targets=(replace(row.targets[0], relay_port=relay_port),))


def knows(ledger: Ledger) -> int:
    return ledger.words[ledger.worker(0).target_counts_at(5)[0] + TargetCount.KNOWS]


def learn(ledger: Ledger, what: int) -> None:
    ledger.words[ledger.worker(0).target_counts_at(5)[0] + TargetCount.KNOWS] = what


class Answers:
    """Stands in for the questions: what they come to, and how many there were at each port."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(looking, "ask_at_relay_port", self.at_relay_port)
        monkeypatch.setattr(looking, "ask_door", self.as_by_a_client)
        monkeypatch.setattr(looking, "_RELAY_S", 0.01)
        self.asked = self.knocked = 0
        self.relay: Answer | None = None
        self.door = Answer(why.NOTHING, 0)

    async def at_relay_port(self, *_: object) -> Answer | None:
        self.asked += 1
        return self.relay

    async def as_by_a_client(self, *_: object) -> Answer:
        self.knocked += 1
        return self.door


async def test_it_is_looked_for_until_it_is_found_and_again_when_it_is_gone(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, row = Answers(monkeypatch), door()
    made.looker.follow(snapshot_of(row))
    await made.until(lambda: answers.asked > 3)
    assert (knows(made.ledger), made.found(row).health, answers.knocked) == (0, Health.UNKNOWN, 0)
    answers.relay = Answer(why.NOTHING, Knows.NAMES)
    await made.until(lambda: knows(made.ledger) == Knows.NAMES)
    await made.until(lambda: made.said() == [])
    asked = answers.asked
    for _ in range(5):
        made.looker.notice()
        await asyncio.sleep(0.01)
    assert answers.asked == asked, "an application that is well is not bothered"
    learn(made.ledger, 0)  # a connection found nobody there
    await made.until(lambda: knows(made.ledger) == Knows.NAMES)


async def test_an_instance_that_wants_no_more_is_down_for_a_door(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, row = Answers(monkeypatch), door()
    learn(made.ledger, Knows.NAMES)
    answers.door = Answer(why.BUSY)
    made.looker.follow(snapshot_of(row))
    made.dialled(row, why.BUSY)
    await made.until(lambda: answers.knocked > 2)
    assert (made.found(row).health, made.found(row).why, knows(made.ledger)) == (Health.DOWN, why.BUSY, Knows.NAMES)
    answers.door = Answer(why.NOTHING, Knows.NAMES)
    await made.until(lambda: made.found(row).health == Health.UP)


async def test_a_door_whose_service_has_no_such_port_asks_nobody(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch)
    made.looker.follow(snapshot_of(door(0)))
    for _ in range(5):
        made.looker.notice()
        await asyncio.sleep(0.01)
    assert answers.asked == 0


async def test_who_is_told_of_the_port_stays_who_it_was(made: Made) -> None:
    before, after = snapshot_of(door(0)), snapshot_of(door(7400))
    learn(made.ledger, Knows.TAKEN)
    forget_newcomers(made.ledger, before, after)
    assert knows(made.ledger) == Knows.TAKEN
    forget_newcomers(made.ledger, None, after)
    assert knows(made.ledger) == 0
