"""Following a registry: what it tells is brought into force, how this machine does is told, and trouble is said."""

import asyncio
import contextlib
import errno
import os
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from relay.config.roster import Member, Roster
from relay.control import registry_follower
from relay.control.registry_follower import Follower
from relay.errors import IdentityError
from relay.fleet.registry import Etcd, RegistryClient, Seen
from relay.ledger import clocks
from relay.ledger.layout import Count, DaemonWord
from relay.ledger.ledger import Ledger
from relay.targets import why
from tests.config.rig import endpoint_row, snapshot_of
from tests.control.rig import Logged, standing
from tests.fleet.etcds import settings
from tests.harness import HANG_S
from tests.ledger.rig import new_ledger

ONE, OTHER = Member("web", 0, "10.0.0.4"), Member("web", 1, "10.0.0.5")
SNAPSHOT = snapshot_of(endpoint_row("web/api", slot=3), roster=Roster((ONE,)))


class Told(RegistryClient):
    """A registry that says what it is told to say."""

    def __init__(self) -> None:
        super().__init__(Seen())
        self.announced: list[tuple[str, bool, Mapping[str, str]]] = []
        self.said_conflict = self.complains = ""
        self.left: bool | None = None
        self.breaks = False

    @property
    def conflict(self) -> str:
        return self.said_conflict

    @property
    def complaint(self) -> str:
        return self.complains

    def announce(self, metrics: str, busy: bool, down: Mapping[str, str]) -> None:
        self.announced.append((metrics, busy, down))

    def say(self, *members: Member, trouble: str = "", gone: tuple[str, ...] = ()) -> None:
        self._publish(Seen(members, time.monotonic_ns(), trouble, gone))

    async def close(self, leave: bool) -> None:
        self.left = leave
        await super().close(leave)

    def _work(self) -> list[Coroutine[Any, Any, None]]:
        return [self._until_it_breaks()]

    async def _until_it_breaks(self) -> None:
        while not self.breaks:  # noqa: ASYNC110  # what is waited for is in another's hands
            await asyncio.sleep(0.005)
        raise ZeroDivisionError


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    with new_ledger() as made:
        yield made


class Following:
    """A follower at work, and what it has brought into force."""

    def __init__(self, ledger: Ledger) -> None:
        self.registry, self.logged = Told(), Logged()
        self.brought: list[tuple[Member, ...]] = []
        self.gone: tuple[str, ...] = ()
        self.hindrance = ""
        self.follower = Follower(
            self.registry, None, ledger, self.logged.log, standing(SNAPSHOT), self._put, "10.0.0.4:9464"
        )

    async def _put(self, members: tuple[Member, ...], gone: tuple[str, ...]) -> str:
        self.brought.append(members)
        self.gone = gone
        return self.hindrance

    async def until(self, check: Callable[[], bool]) -> None:
        async with asyncio.timeout(HANG_S):
            while not check():  # noqa: ASYNC110  # what is waited for is in another's hands
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def following(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Following]:
    monkeypatch.setattr(registry_follower, "_TICK_S", 0.02)
    monkeypatch.setattr(registry_follower, "_SETTLE_S", 0.01)
    made = Following(ledger)
    task = asyncio.create_task(made.follower.run())
    try:
        yield made
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await made.follower.close(leave=True)
        made.logged.close()


async def test_members_come_into_force_and_are_brought_again(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(ledger, monkeypatch) as made:
        await made.until(lambda: len(made.registry.announced) > 2)
        assert made.brought == [], "a registry that has said nothing yet changes nothing"
        made.registry.say(ONE)
        await made.until(lambda: made.brought[-1:] == [(ONE,)])
        count = len(made.brought)
        await made.until(lambda: len(made.brought) > count + 1)
        made.registry.say(ONE, OTHER)
        await made.until(lambda: made.brought[-1] == (ONE, OTHER))
        assert made.follower.members == (ONE, OTHER)
        made.registry.say(OTHER, gone=(ONE.address,))
        await made.until(lambda: made.brought[-1] == (OTHER,))
        assert made.gone == (ONE.address,)
    assert made.registry.left is True


async def test_the_registry_is_told_how_this_machine_does(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(ledger, monkeypatch) as made:
        told = made.registry.announced
        await made.until(lambda: told[-1:] == [("10.0.0.4:9464", False, {})])
        clocks.put_busy(ledger.words, 10**12)
        await made.until(lambda: told[-1] == ("10.0.0.4:9464", True, {}))
        clocks.put_busy(ledger.words, 0)
        await made.until(lambda: not told[-1][1])
        ledger.words[DaemonWord.DRAIN_UNTIL_NS] = 1
        await made.until(lambda: told[-1][1])
        worker = ledger.worker(0)
        worker.words[worker.counts_at(3) + Count.DIAL_WHY] = why.of_error(errno.ECONNREFUSED)
        worker.words[worker.counts_at(3) + Count.TARGET_UP] = time.monotonic_ns() << 1
        await made.until(lambda: told[-1][2] == {"api": "connection refused"})


async def test_age_and_trouble(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    began_s = time.monotonic()
    async with following(ledger, monkeypatch) as made:
        made.registry.say(ONE)
        await made.until(lambda: ledger.words[DaemonWord.ROSTER_AT_MONOTONIC_NS] == made.registry.current.confirmed_ns)
        status: Any = made.follower.status({})
        assert (status["kind"], status["members"], status["trouble"], status["rejected"]) == ("etcd", 1, "", 0)
        assert 0 <= status["age_s"] <= time.monotonic() - began_s + 0.001  # it is told in milliseconds
        lines: list[dict[str, str]] = []

        def logged(count: int) -> bool:
            lines.extend(made.logged.lines())
            return len(lines) == count

        made.registry.say(ONE, trouble="nobody answers")
        await made.until(lambda: logged(1))
        told = len(made.registry.announced)
        made.registry.say(ONE, trouble="still nobody")
        await made.until(lambda: len(made.registry.announced) > told + 2)
        made.registry.said_conflict = "web_IN_0 at 10.0.0.9 is another machine"
        await made.until(lambda: logged(2))
        assert made.follower.status({})["trouble"] == made.registry.said_conflict
        made.registry.said_conflict = ""
        made.registry.say(ONE)
        await made.until(lambda: logged(3))
    assert [line["message"] for line in lines] == [
        "nobody answers; the last roster stays in force",
        "web_IN_0 at 10.0.0.9 is another machine; the last roster stays in force",
        "the registry answers",
    ]


async def test_what_somebody_should_see_to_is_said_and_hinders_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(ledger, monkeypatch) as made:
        lines: list[str] = []

        def logged(count: int) -> bool:
            lines.extend(line["message"] for line in made.logged.lines())
            return len(lines) == count

        made.registry.say(ONE)
        made.registry.complains = "cannot read /etc/p: no such file"
        await made.until(lambda: logged(1))
        status: Any = made.follower.status({})
        assert (status["trouble"], made.follower.tells) == ("cannot read /etc/p: no such file", True)
        made.registry.say(ONE, trouble="nobody answers")
        await made.until(lambda: logged(2))
        status = made.follower.status({})
        assert status["trouble"] == "nobody answers; cannot read /etc/p: no such file"
        made.registry.say(ONE)
        await made.until(lambda: logged(3))
        made.registry.complains = ""
        await made.until(lambda: logged(4))
    assert lines == [
        "cannot read /etc/p: no such file",
        "nobody answers; the last roster stays in force",
        "the registry answers",
        "etcd's files can be read again",
    ]


async def test_a_roster_that_does_not_come_into_force_is_said(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    async with following(ledger, monkeypatch) as made:
        made.hindrance = "it has more endpoints than there are rows"
        made.registry.say(ONE)
        await made.until(lambda: bool(made.follower.status({})["trouble"]))
        status: Any = made.follower.status({})
        assert status["trouble"] == "it does not come into force: it has more endpoints than there are rows"
        at_ns = ledger.words[DaemonWord.ROSTER_AT_MONOTONIC_NS]
        made.registry.say(ONE, OTHER)
        count = len(made.registry.announced)
        await made.until(lambda: len(made.registry.announced) > count + 2)
        assert ledger.words[DaemonWord.ROSTER_AT_MONOTONIC_NS] == at_ns, "what stands is older than what it says"
        made.hindrance = ""
        await made.until(
            lambda: not made.follower.status({})["trouble"] and ledger.words[DaemonWord.ROSTER_AT_MONOTONIC_NS] > at_ns
        )


async def test_a_mistake_of_ours_costs_nobody_else_anything(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_follower, "_AGAIN_S", 0.05)
    async with following(ledger, monkeypatch) as made:
        made.registry.say(ONE)
        await made.until(lambda: bool(made.brought))
        made.registry.breaks = True
        made.registry.say(ONE, OTHER)
        await made.until(
            lambda: made.follower.status({})["trouble"] == "relay cannot read its answer (ZeroDivisionError)"
        )
        assert any("ZeroDivisionError" in line.get("traceback", "") for line in made.logged.lines())
        made.registry.breaks = False
        await made.until(lambda: made.brought[-1] == (ONE, OTHER) and not made.follower.status({})["trouble"])


async def test_others_know_that_it_is_busy_a_moment_after_the_registry_does(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with following(ledger, monkeypatch) as made:
        assert made.follower.told_busy is False
        now_s = time.monotonic()
        for since_s, known in ((now_s + HANG_S, False), (now_s - registry_follower._HEARD_S, True), (None, False)):
            monkeypatch.setattr(Told, "busy_since_s", since_s)
            assert made.follower.told_busy is known
        made.registry.said_conflict = "another machine has its number"
        assert made.follower.told_busy is None, "it is not told"


@pytest.mark.parametrize(
    ("content", "said"), [("any text", ""), ("", "has no machine id; run"), (None, "machine-id: no such file; run")]
)
def test_a_machine_with_a_number_is_never_without_it_for_others(
    ledger: Ledger, tmp_path: Path, content: str | None, said: str
) -> None:
    """Whatever it is known by, which a program of before took, and whose file may be away: that is tried again."""
    mine = settings(tmp_path, ["http://127.0.0.1:1"])
    file = Path(mine.machine_id)
    file.unlink() if content is None else file.write_text(content)
    logged = Logged()
    with contextlib.closing(logged), pytest.raises(IdentityError, match=said) if said else contextlib.nullcontext():
        registry, _ = registry_follower._registry(mine, standing(SNAPSHOT), os.getpid(), ledger, logged.log)
        assert isinstance(registry, Etcd)
        assert registry._presence is not None
