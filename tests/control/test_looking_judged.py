"""Whom probes alone decide about, and who is asked directly: what dials change then, and how answers are counted."""

from dataclasses import replace
from typing import Any, Final

import pytest

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.control import looking
from relay.control.looking import Subject, forget_newcomers
from relay.control.probe import Answer
from relay.ledger.layout import Health
from relay.targets import health, why
from tests.config.rig import snapshot_of
from tests.control import test_looking
from tests.control.test_looking import DOWN, REFUSED, UP, Made, other, own
from tests.harness import Echo
from tests.ports import free_port

made = test_looking.made
PROBE: Final = ProbeRow("", 3600.0, 5.0)  # nobody is asked again, unless he is hurried
OFTEN: Final = ProbeRow("", 0.01, 5.0)


def alone(port: int = 1, *, door: bool = False, **keys: Any) -> EndpointRow:
    """One of several that no other relay stands before."""
    kind = {"type": "door"} if door else {}
    return other(port, distribution="least-connections", direct=True, **kind | keys)


class Answers:
    """What is found, question by question; the last of it again and again. In place of every way to ask."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *faults: int) -> None:
        self.asked: list[str] = []
        self.faults = list(faults)
        for name in ("ask_own", "ask_direct", "ask_instance", "ask_door", "ask_at_relay_port"):
            monkeypatch.setattr(looking, name, self._by(name))

    async def one_more(self, made: Made) -> None:
        """Until one more question was asked."""
        before = len(self.asked)
        await made.until(lambda: len(self.asked) > before)

    def _by(self, name: str) -> Any:
        async def ask(*_: object) -> Answer:
            self.asked.append(name)
            return Answer(self.faults.pop(0) if len(self.faults) > 1 else self.faults[0])

        return ask


@pytest.mark.parametrize(
    ("row", "judged", "asked"),
    [
        (other(1, distribution="five-tuple", probe=PROBE), True, "ask_instance"),
        (other(1, distribution="five-tuple", probe=replace(PROBE, kind="relay")), True, "ask_instance"),
        (other(1, type="door", distribution="least-connections"), False, "ask_door"),
        (alone(probe=PROBE), True, "ask_direct"),
        (alone(door=True, probe=PROBE), True, "ask_direct"),
        (alone(), False, "ask_direct"),
        (alone(door=True), False, "ask_direct"),
        (alone(probe=replace(PROBE, kind="never")), False, "ask_direct"),
        (own(1), False, "ask_own"),
        (own(1, probe=PROBE), False, "ask_own"),
        (own(1, probe=replace(PROBE, path="/")), False, "ask_own"),
        (own(1, probe=replace(PROBE, rise=2)), True, "ask_own"),
        (own(1, probe=replace(PROBE, fall=2)), True, "ask_own"),
        (own(1, probe=replace(PROBE, on_down="cut")), True, "ask_own"),
        (own(1, probe=replace(PROBE, kind="never")), False, "ask_own"),
    ],
)
async def test_who_is_judged_and_how_each_is_asked(
    row: EndpointRow, judged: bool, asked: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(monkeypatch, REFUSED)
    subject = Subject(row, row.targets[0] if row.distribution else None)
    assert subject.is_judged is judged
    made.dialled(row, REFUSED)  # a door's instance is asked as an application is only while it is down
    assert await subject.ask(made.ledger) == Answer(REFUSED)
    assert answers.asked == [asked]


@pytest.mark.parametrize("row", [own(1), alone(), alone(door=True)], ids=["own", "alone", "door"])
async def test_answers_are_counted(row: EndpointRow, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, why.NOTHING, REFUSED, why.NOTHING, REFUSED, REFUSED, why.NOTHING, REFUSED)
    row = replace(row, probe=replace(OFTEN, rise=3, fall=2))
    made.looker.follow(snapshot_of(row))
    await made.until(lambda: len(made.said()) == 2)
    assert (made.said(), made.found(row).why) == ([("target up", ""), ("target down", "connection refused")], REFUSED)
    assert len(answers.asked) >= 5, "one bad answer alone was nothing"
    answers.faults[:] = [why.NOTHING, why.NOTHING, REFUSED, why.NOTHING]
    before = len(answers.asked)
    await made.until(lambda: len(made.said()) == 3)
    assert made.said()[-1] == ("target up", "")
    assert len(answers.asked) - before >= 6, "two good ones alone were nothing, nor did they count later"


@pytest.mark.parametrize(
    "row",
    [
        own(1, probe=replace(PROBE, fall=2)),
        own(1, probe=replace(PROBE, on_down="cut")),
        alone(probe=PROBE),
        alone(door=True, probe=PROBE),
    ],
    ids=["own-counted", "own-cut", "alone", "door"],
)
async def test_a_dial_that_failed_has_one_that_is_judged_asked_at_once_and_says_nothing_itself(
    row: EndpointRow, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = Answers(monkeypatch, why.NOTHING)
    made.looker.follow(snapshot_of(row))
    await made.until(lambda: made.said() == [("target up", "")])
    asked = len(answers.asked)
    made.dialled(row, REFUSED)
    place, _ = Subject(row, row.targets[0] if row.distribution else None).places(made.ledger)
    assert health.state_in(made.ledger.words[place]) == UP
    await made.until(lambda: len(answers.asked) > asked)
    assert (made.said(), health.state_in(made.ledger.words[place])) == ([("target up", "")], UP)
    answers.faults[:] = [REFUSED]
    assert row.probe is not None
    for _ in range(row.probe.fall):
        made.dialled(row, REFUSED)
        await answers.one_more(made)
    await made.until(lambda: made.said()[1:] == [("target down", "connection refused")])
    made.dialled(row, why.NOTHING)
    for _ in range(5):
        made.looker.notice()
    assert made.found(row).health == DOWN, "that a connection was taken does not prove it"


async def test_of_one_target_that_counts_nothing_a_dial_decides_as_ever(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    Answers(monkeypatch, why.NOTHING)
    row = own(1, probe=PROBE)
    made.looker.follow(snapshot_of(row))
    await made.until(lambda: made.said() == [("target up", "")])
    made.dialled(row, REFUSED)
    await made.until(lambda: ("target down", "connection refused") in made.said())


@pytest.mark.parametrize("door", [False, True])
async def test_one_without_a_probe_that_is_asked_directly_is_asked_while_it_is_down(door: bool, made: Made) -> None:
    port = free_port()
    row = alone(port, door=door)
    made.looker.follow(snapshot_of(row))
    made.dialled(row, why.RESET)
    await made.until(lambda: made.said() == [("target down", "connection reset by peer")])
    await made.until(lambda: made.found(row).why == REFUSED)
    with Echo(("127.0.0.1", port)) as echo:
        await made.until(lambda: made.found(row).health == UP)
        await made.until(lambda: bool(echo.accepted))  # the kernel had taken it before its program did
        for _ in range(5):
            made.looker.notice()
        assert echo.accepted == 1, "and not while it is well"
    assert made.said()[1:] == [("target up", "")]


async def test_a_line_of_the_log_names_no_instance_where_there_is_none(made: Made) -> None:
    target = TargetRow("127.0.0.1:1", host="127.0.0.1", port=1, slot=5)
    for each, expected in ((target, False), (replace(target, instance="web_IN_0"), True)):
        assert ("instance" in looking._facts(Subject(alone(), each))) is expected


async def test_another_share_of_the_connections_makes_nobody_a_newcomer(made: Made) -> None:
    row = alone()
    before = snapshot_of(row)
    after = snapshot_of(replace(row, targets=(replace(row.targets[0], weight=0, backup=True, declared_weight=1),)))
    made.dialled(row, REFUSED)
    forget_newcomers(made.ledger, before, after)
    assert made.found(row).health == DOWN
    assert Subject(row, row.targets[0]).key == Subject(row, after.endpoints[0].targets[0]).key


def test_who_gets_a_relay_before_it_is_asked_anew() -> None:
    row = alone(probe=PROBE)
    assert Subject(row, row.targets[0]).key != Subject(replace(row, direct=False), row.targets[0]).key


async def test_what_an_earlier_control_process_found_counts(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = Answers(monkeypatch, REFUSED)
    row = own(1, probe=replace(OFTEN, fall=3))
    place, _ = Subject(row, None).places(made.ledger)
    made.ledger.words[place] = health.packed(Health.UP, why.NOTHING, 1)
    made.looker.follow(snapshot_of(row))
    await made.until(lambda: made.said() == [("target down", "connection refused")])
    assert len(answers.asked) >= 3
