"""Who is looked at and when, and what is written down and said of it."""

import asyncio
import contextlib
import errno
import socket
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.control import looking
from relay.control.looking import Looker, forget_newcomers
from relay.control.probe import Answer
from relay.ledger.layout import Count, Health, TargetCount
from relay.ledger.ledger import Ledger
from relay.targets import health, why
from tests.config.rig import endpoint_row, snapshot_of
from tests.control.rig import Logged
from tests.harness import HANG_S, Echo
from tests.ledger.rig import new_ledger
from tests.ports import free_port

UP, DOWN, UNKNOWN = Health.UP, Health.DOWN, Health.UNKNOWN
REFUSED = why.of_error(errno.ECONNREFUSED)


class Made:
    """A looker at work, and what it goes by and leads to."""

    def __init__(self, ledger: Ledger, logged: Logged) -> None:
        self.ledger = ledger
        self.looker = Looker(ledger, logged.log)
        self.log = logged.log
        self._logged = logged
        self._lines: list[dict[str, str]] = []

    def dialled(self, row: EndpointRow, fault: int) -> None:
        """A worker dialled an endpoint's own target just now, or the first of several."""
        part = self.ledger.worker(1)
        now = time.monotonic_ns() << 1 | (not fault)
        if row.distribution is None:
            at = part.counts_at(row.slot)
            part.words[at + Count.DIAL_WHY], part.words[at + Count.TARGET_UP] = fault, now
        else:
            at = part.target_counts_at(row.targets[0].slot)[1]
            part.words[at + TargetCount.DIAL_WHY], part.words[at + TargetCount.DIALLED] = fault, now

    def found(self, row: EndpointRow) -> health.TargetHealth:
        if row.distribution is None:
            return health.of_endpoint(self.ledger, row)
        return health.of_target(self.ledger, row, row.targets[0])

    def said(self) -> list[tuple[str, str]]:
        """Every line so far: the event and the reason."""
        self._lines += self._logged.lines()
        return [(line["event"], line.get("reason", "")) for line in self._lines]

    async def until(self, done: Callable[[], Any]) -> None:
        async with asyncio.timeout(HANG_S):
            while not done():  # noqa: ASYNC110  # what is waited for is in another's hands
                await asyncio.sleep(0.005)


@pytest.fixture
async def made(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Made]:
    for name in ("_NOTICE_S", "_DOWN_S", "_FIRST_WITHIN_S"):
        monkeypatch.setattr(looking, name, 0.01)
    logged = Logged()
    with contextlib.closing(logged), new_ledger(workers=2) as ledger:
        found = Made(ledger, logged)
        running = asyncio.create_task(found.looker.run())
        yield found
        running.cancel()
        await found.looker.end()
        assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("look at")]


def own(port: int, **keys: Any) -> EndpointRow:
    target = TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port)
    return endpoint_row("web/api", slot=2, targets=(target,), **keys)


def other(port: int, **keys: Any) -> EndpointRow:
    target = TargetRow(f"127.0.0.1:{port}", host="127.0.0.1", port=port, slot=5, instance="web_IN_0")
    return endpoint_row("web/api", slot=2, targets=(target,), **keys)


async def test_who_is_well_is_not_bothered_and_who_failed_is_asked_until_it_is_back(made: Made) -> None:
    port = free_port()
    row = own(port)
    made.looker.follow(snapshot_of(row))
    made.dialled(row, why.NOTHING)
    await made.until(lambda: made.found(row).dialled and made.found(row).health == UP)
    made.dialled(row, REFUSED)
    await made.until(lambda: made.said() == [("target down", "connection refused")])
    began = made.found(row).since_ns
    await made.until(lambda: not made.found(row).dialled)
    assert (made.found(row).health, made.found(row).since_ns // 10**6) == (DOWN, began // 10**6)
    with Echo(("127.0.0.1", port)) as echo:
        await made.until(lambda: made.found(row).health == UP)
        assert made.said()[-1] == ("target up", "")
        await made.until(lambda: echo.accepted == 1)
        for _ in range(5):
            made.looker.notice()
            await asyncio.sleep(0.01)
        assert echo.accepted == 1


async def test_without_a_probe_the_first_dial_is_no_news(made: Made) -> None:
    row = own(1)
    made.looker.follow(snapshot_of(row))
    made.dialled(row, why.NOTHING)
    made.looker.notice()
    assert made.said() == []
    assert made.found(row).dialled, "that control has taken it in makes it no probe"
    part = made.ledger.worker(0)
    assert health.state_in(part.words[part.counts_at(2) + Count.HEALTH]) == UP, "it stands where others read it"


async def test_one_with_a_probe_is_asked_all_the_time_and_a_dial_does_not_make_it_well(made: Made) -> None:
    row = own(free_port(), probe=ProbeRow("/healthz", 0.01, 5.0))
    with socket.create_server(("127.0.0.1", row.targets[0].port)) as listener:
        listener.setblocking(False)
        loop, answers = asyncio.get_running_loop(), [b"HTTP/1.1 503 No\r\n\r\n"]

        async def serve() -> None:
            while True:
                sock, _ = await loop.sock_accept(listener)
                with sock, contextlib.suppress(OSError):
                    await loop.sock_recv(sock, 4096)
                    await loop.sock_sendall(sock, answers[0])

        serving = asyncio.create_task(serve())
        made.looker.follow(snapshot_of(row))
        await made.until(lambda: made.said() == [("target down", "HTTP 503")])
        made.dialled(row, why.NOTHING)
        assert made.found(row).health == DOWN
        answers[0] = b"HTTP/1.1 200 OK\r\n\r\n"
        await made.until(lambda: made.said()[1:] == [("target up", "")])
        assert not made.found(row).dialled
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)


async def test_one_that_is_let_be_is_never_asked(made: Made) -> None:
    with Echo() as echo:
        row = own(int(echo.target.rpartition(":")[2]), probe=ProbeRow("", 0.01, 1.0, "never"))
        made.looker.follow(snapshot_of(row))
        made.dialled(row, REFUSED)
        await made.until(lambda: made.said() == [("target down", "connection refused")])
        for _ in range(5):
            await asyncio.sleep(0.01)
        assert (made.found(row).health, echo.accepted) == (DOWN, 0)
        made.dialled(row, why.NOTHING)
        await made.until(lambda: made.said()[1:] == [("target up", "")])


async def test_an_edge_is_in_a_hurry_after_a_dial_that_failed_and_decides_by_its_probe(made: Made) -> None:
    """One lost packet must not keep clients from the only instance there is."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        row = other(listener.getsockname()[1], distribution="five-tuple", probe=ProbeRow("", 3600.0, 0.5, "relay"))
        made.looker.follow(snapshot_of(row))
        await made.until(lambda: made.said() == [("target up", "")])
        looked_ns = made.found(row).looked_ns
        made.dialled(row, REFUSED)
        assert made.found(row).health == DOWN, "this is what was found last"
        word = made.ledger.words[looking.Subject(row, row.targets[0]).places(made.ledger)[0]]
        assert health.state_in(word) == UP, "by which clients are sent"
        await made.until(lambda: made.found(row).health == UP and made.found(row).looked_ns > looked_ns)
    assert made.said() == [("target up", "")]


async def test_a_doors_target_is_asked_while_it_is_down(made: Made) -> None:
    port = free_port()
    row = other(port, type="door", distribution="least-connections", connect_s=0.2)
    made.looker.follow(snapshot_of(row))
    made.dialled(row, why.RESET)
    await made.until(lambda: made.said() == [("target down", "connection reset by peer")])
    await made.until(lambda: made.found(row).why == REFUSED)
    with Echo(("127.0.0.1", port)):
        await made.until(lambda: made.found(row).health == UP)
    assert made.said()[1:] == [("target up", "")]


async def test_who_cannot_be_asked_stays_as_it_was_and_that_is_said_once(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = 0

    async def cannot(*_: object) -> Answer:
        nonlocal asked
        asked += 1
        return Answer(None)

    monkeypatch.setattr(looking, "ask_own", cannot)
    row = own(1, probe=ProbeRow("", 0.01, 1.0))
    made.looker.follow(snapshot_of(row))
    await made.until(lambda: asked > 2)
    assert (made.found(row).health, [event for event, _ in made.said()]) == (UNKNOWN, ["dial"])


async def test_a_mistake_of_ours_is_told_and_the_target_is_asked_again(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[object] = [ValueError("a bug"), Answer(REFUSED)]

    async def ask(*_: object) -> object:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(looking, "ask_own", ask)
    made.looker.follow(snapshot_of(own(1, probe=ProbeRow("", 0.01, 1.0))))
    await made.until(lambda: ("target down", "connection refused") in made.said())
    assert made.said()[0][0] == "bug"


async def test_a_reload_asks_anew_who_has_changed_and_nobody_else(made: Made) -> None:
    with Echo() as stays, Echo() as goes, Echo() as comes:
        ports = [int(each.target.rpartition(":")[2]) for each in (stays, goes, comes)]
        probe = ProbeRow("", 3600.0, 1.0)
        first = own(ports[0], probe=probe)
        rows = [
            endpoint_row("web/other", slot=3, targets=(TargetRow(str(port), host="127.0.0.1", port=port),), probe=probe)
            for port in ports[1:]
        ]
        before, after = snapshot_of(first, rows[0]), snapshot_of(first, rows[1])
        made.looker.follow(before)
        await made.until(lambda: (stays.accepted, goes.accepted) == (1, 1) and len(made.said()) == 2)
        forget_newcomers(made.ledger, before, after)
        made.looker.follow(after)
        await made.until(lambda: comes.accepted == 1 and len(made.said()) == 3)
        assert (stays.accepted, goes.accepted) == (1, 1)


@pytest.mark.parametrize("distribution", [None, "five-tuple"])
def test_a_newcomer_has_nothing_of_who_was_there_before(distribution: Any) -> None:
    with new_ledger(workers=2) as ledger:
        old, new = own(1), own(2)
        if distribution:
            old, new = other(1, distribution=distribution), other(2, distribution=distribution)
        logged = Logged()
        made = Made(ledger, logged)
        made.dialled(old, REFUSED)
        assert made.found(old).health == DOWN
        forget_newcomers(ledger, snapshot_of(old), snapshot_of(old))
        assert made.found(old).health == DOWN
        forget_newcomers(ledger, snapshot_of(old), snapshot_of(new))
        assert made.found(new) == health.TargetHealth()
        made.dialled(new, REFUSED)
        assert made.found(new).health == DOWN
        logged.close()


async def test_one_that_is_down_is_asked_often_while_somebody_waits_for_it(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_DOWN_S", 1.0)
    probed, bare = endpoint_row(probe=ProbeRow("/", 2.0, 5.0)), endpoint_row()
    at = made.ledger.worker(1).counts_at(bare.slot) + Count.HELD
    for held, down_s in ((0, 1.0), (1, 0.2)):
        made.ledger.words[at] = held
        for row, up_s in ((probed, 2.0), (bare, 2.0)):
            subject = looking.Subject(row, None)
            assert made.looker.interval_s(subject, is_down=True) == down_s
            assert made.looker.interval_s(subject) == up_s


async def test_a_look_that_is_far_off_comes_sooner_when_somebody_waits(made: Made) -> None:
    row = other(free_port(), probe=ProbeRow("", 3600.0, 5.0))
    made.looker.follow(snapshot_of(row))
    [looked] = made.looker._looked.values()
    place, _ = looked.subject.places(made.ledger)
    made.ledger.words[place] = health.packed(DOWN, REFUSED, 1)
    made.looker.notice()
    assert not looked.hurry.is_set()
    made.ledger.words[made.ledger.worker(0).counts_at(row.slot) + Count.HELD] = 1
    made.looker.notice()
    assert looked.hurry.is_set()


@pytest.mark.parametrize(
    ("count", "up_s", "down_s"), [(1, 2.0, 1.0), (150, 2.0, 1.5), (200, 2.0, 2.0), (1000, 10.0, 10.0)]
)
async def test_relays_are_asked_more_seldom_when_there_are_many(
    count: int, up_s: float, down_s: float, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_DOWN_S", 1.0)
    targets = tuple(TargetRow(f"t{n}", host="127.0.0.1", port=1, slot=n, instance=f"web_IN_{n}") for n in range(count))
    row = endpoint_row(targets=targets, distribution="five-tuple", probe=ProbeRow("", 2.0, 5.0, "relay"))
    looker = Looker(made.ledger, made.log)
    looker.follow(snapshot_of(row))
    subject = looking.Subject(row, targets[0])
    assert (looker.interval_s(subject), looker.interval_s(subject, is_down=True)) == (up_s, down_s)
    await looker.end()


async def test_an_instance_that_says_that_it_is_busy_is_down_until_a_look_finds_otherwise(made: Made) -> None:
    with Echo() as echo:
        row = other(echo.port, distribution="five-tuple", probe=ProbeRow("", 3600.0, 60.0))
        made.looker.follow(snapshot_of(row))
        await made.until(lambda: made.found(row).health == UP and echo.accepted == 1)
        made.looker.busy("web_IN_7")
        assert made.found(row).health == UP
        made.looker.busy("web_IN_0")
        assert (made.found(row).health, made.found(row).why) == (DOWN, why.BUSY)
        assert made.said()[-1] == ("target down", "asks for no new connections (`relay drain`)")
        made.looker.hurry("web_IN_7")
        made.looker.hurry("web_IN_0")
        await made.until(lambda: made.found(row).health == UP and echo.accepted == 2)


async def test_what_changes_while_it_is_asked_has_it_asked_again(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    async def ask(*_: object) -> Answer:
        asked.append(1)
        if len(asked) == 2:
            made.looker.hurry("web_IN_0")
        return Answer(why.NOTHING)

    monkeypatch.setattr(looking, "ask_instance", ask)
    made.looker.follow(snapshot_of(other(1, distribution="five-tuple", probe=ProbeRow("", 3600.0, 60.0))))
    await made.until(lambda: len(asked) == 1)
    made.looker.hurry("web_IN_0")
    await made.until(lambda: len(asked) == 3)
