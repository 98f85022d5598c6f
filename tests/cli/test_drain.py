"""`relay drain`, against a daemon that answers as it is told: what is waited for, what is said, and how it ends."""

from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from relay.cli.drain import EXIT_LATE, Waiting, drain
from relay.cli.main import parser
from relay.errors import AdminError, OperatorError


def sender(who: str = "edge_IN_0", *, told: bool = False, by: str | None = "line") -> dict[str, Any]:
    return {"who": who, "told": told, "by": by}


def status(*senders: dict[str, Any], active: int = 0, busy_for_s: float = 600.0) -> dict[str, Any]:
    endpoints = [{"type": "input", "active": active}, {"type": "internal", "active": 0}, {"type": "door", "active": 5}]
    return {"senders": list(senders), "untold_s": 7.0, "endpoints": endpoints, "busy_for_s": busy_for_s}


TOLD = status(sender(told=True))


class Fake:
    """A daemon, and a clock that goes on while somebody rests."""

    def __init__(self, statuses: Iterable[dict[str, Any] | Exception]) -> None:
        self._statuses: Iterator[dict[str, Any] | Exception] = iter(statuses)
        self.posted: list[str] = []
        self.now = 100.0

    def get(self, resource: str) -> Any:
        assert resource == "/v1/status"
        found = next(self._statuses)
        if isinstance(found, Exception):
            raise found
        return found

    def post(self, resource: str) -> Any:
        self.posted.append(resource)
        return {"busy_for_s": 600.0, "behind_edge": ["web/in"], "active": 2, "told": False}

    def rest(self, for_s: float) -> None:
        self.now += for_s


def run(fake: Fake, *arguments: str) -> int:
    return drain(fake, parser().parse_args(["drain", *arguments]), lambda: fake.now, fake.rest)


def test_without_wait_it_asks_and_returns() -> None:
    fake = Fake([])
    assert (run(fake, "--for", "1m"), run(fake, "off")) == (0, 0)
    assert fake.posted == ["/v1/drain?for=60", "/v1/drain?for=0"]


def test_it_returns_when_all_have_stopped_and_nobody_is_connected(capsys: pytest.CaptureFixture[str]) -> None:
    busy = [status(sender(), active=2), status(sender(told=True), active=2), status(sender(told=True), active=1)]
    assert run(Fake([*busy, *[busy[-1]] * 10, TOLD, TOLD]), "--wait") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        "edge_IN_0: being told; 2 connections open",
        "1 connection open",
        "nobody is about to send, and no connection is open",
    ]


def test_one_look_that_finds_nobody_is_too_few() -> None:
    """A connection that an edge brings is counted for the edge, and then for its client."""
    fake = Fake([TOLD, status(sender(told=True), active=1), TOLD, TOLD])
    assert run(fake, "--wait") == 0
    with pytest.raises(StopIteration):
        fake.get("/v1/status")


def test_who_cannot_be_told_is_named_and_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake([status(sender("web_IN_1", by=None))] * 1000)
    assert run(fake, "--wait") == 0
    assert 107.0 <= fake.now <= 107.5
    said = capsys.readouterr().out.splitlines()
    assert said[1:] == [
        "web_IN_1: not told, 7 s are waited",
        "nobody is about to send, and no connection is open; not told: web_IN_1",
    ]


def test_who_has_lost_its_line_is_waited_for_from_then_on() -> None:
    waiting = Waiting()
    silent = status(sender(by=None))
    assert not waiting.see(status(sender()), 0.0)
    assert not waiting.see(silent, 5.0)
    assert not waiting.see(silent, 11.9)
    assert not waiting.see(status(sender()), 12.0), "it is back, and is told"
    assert not waiting.see(silent, 13.0)
    assert not waiting.see(silent, 19.9)
    assert not waiting.see(silent, 20.0)
    assert waiting.see(silent, 20.1)
    assert waiting.untold == ["edge_IN_0"]


@pytest.mark.parametrize(
    ("last", "who"),
    [
        (status(sender(), sender("web_IN_3", by="registry")), "edge_IN_0, web_IN_3: being told"),
        (status(sender(told=True), active=3), "3 connections open"),
        (
            status(*(sender(f"web_IN_{n}") for n in range(10)), active=1),
            "web_IN_7 and 2 more: being told; 1 connection open",
        ),
    ],
)
def test_at_the_timeout_it_says_who_is_still_there(
    last: dict[str, Any], who: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fake = Fake([last] * 1000)
    assert run(fake, "--wait", "--timeout", "2s") == EXIT_LATE == 3
    assert 102.0 <= fake.now < 102.2
    said = capsys.readouterr().err
    assert said.startswith("relay: not within 2s: ")
    assert said.endswith(f"{who}\n")


def test_without_a_timeout_it_waits_as_long_as_for() -> None:
    with pytest.raises(OperatorError, match="10m are over, and not all have stopped: 1 connection open"):
        run(Fake([status(active=1), status(active=1, busy_for_s=0.0)]), "--wait")


def test_control_may_be_started_again_meanwhile() -> None:
    assert run(Fake([status(sender()), *[AdminError("away")] * 20, TOLD, TOLD]), "--wait") == 0
    with pytest.raises(AdminError, match="away"):
        run(Fake([status(sender()), *[AdminError("away")] * 1000]), "--wait")


def test_the_timeout_holds_while_control_is_away(capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake([status(sender()), *[AdminError("away")] * 1000])
    assert run(fake, "--wait", "--timeout", "2s") == EXIT_LATE
    assert 102.0 <= fake.now < 102.2
    assert capsys.readouterr().err == "relay: not within 2s: edge_IN_0: being told\n"


@pytest.mark.parametrize(
    ("arguments", "what"),
    [
        (("--for", "soon"), "--for: "),
        (("--wait", "--timeout", "5"), "--timeout: "),
        (("--timeout", "5s"), "write both"),
        (("off", "--wait", "--timeout", "5s"), "write both"),
    ],
)
def test_what_cannot_be(arguments: tuple[str, ...], what: str) -> None:
    fake = Fake([])
    with pytest.raises(OperatorError, match=what):
        run(fake, *arguments)
    assert fake.posted == []
