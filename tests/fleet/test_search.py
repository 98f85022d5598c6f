"""Looking for those who are lost: when, how many at once, and whose word counts."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import pytest

from relay.config.roster import Member
from relay.errors import RegistryError
from relay.fleet import believed as beliefs
from relay.fleet import search
from relay.fleet.believed import Believed
from relay.fleet.entries import Entry, EntryKeys, KeyValue
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Compare, Operation, Reply
from relay.fleet.search import Search
from tests.fleet.rig import LONG_S

KEYS = EntryKeys("shop")
TTL_S = 1.0


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are looked for after a moment."""
    monkeypatch.setattr(beliefs, "AWAY_S", 0.05)
    monkeypatch.setattr(search, "_SPREAD_S", 0.0)


class Scripted(EtcdClient):
    """An etcd that answers with what the script has, one thing after the other, and then always the last one."""

    def __init__(self, *script: str) -> None:
        super().__init__([])
        self._script = list(script)
        self.asked: list[int] = []
        self.said: list[str] = []

    async def txn(
        self, compare: Iterable[Compare], then: Iterable[Operation], otherwise: Iterable[Operation] = ()
    ) -> Reply:
        wanted = list(then)[1:]
        self.asked.append(len(wanted))
        word = self._script.pop(0) if len(self._script) > 1 else self._script[0]
        self.said.append(word)
        if word == "away":
            raise RegistryError("etcd does not answer")
        there = tuple((entry_of(0),) if word == "there" and n == 0 else () for n in range(len(wanted)))
        return Reply("other" if word == "other" else "one", 9, True, ((), *there), ())


def entry_of(n: int) -> KeyValue:
    return KeyValue(KEYS.member("web", n), Entry(member(n), "m", "d").to_value())


def member(n: int) -> Member:
    return Member("web", n, f"10.0.{n // 250}.{n % 250 + 1}")


@contextlib.asynccontextmanager
async def searching(etcd: Scripted, count: int) -> Any:
    """So many are lost, and are looked for there."""
    loop, found = asyncio.get_running_loop(), asyncio.Event()
    believed = Believed(KEYS, 30.0, [member(n) for n in range(count)])
    made = Search(etcd, KEYS, believed, TTL_S, lambda answer: answer.cluster == "other", found.set)
    task = loop.create_task(made.run())
    await asyncio.sleep(0)  # nobody is lost as yet
    believed.change([KeyValue(KEYS.member("web", n), None) for n in range(count)], loop.time(), sure=True)
    made.wake()
    try:
        yield believed, found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    "script",
    [
        ["absent"],
        ["there", "absent"],
        ["away", "away", "absent", "absent"],  # the first word after that is from before anybody could register again
        ["other", "absent", "absent"],
        ["away", "there", "there", "absent"],
    ],
)
async def test_who_is_gone_is_told_by_a_read_after_etcd_could_be_asked_all_the_time(script: list[str]) -> None:
    etcd = Scripted(*script)
    async with asyncio.timeout(LONG_S), searching(etcd, 1) as (believed, found):
        while not believed.gone(0.0):
            assert believed.members(0.0), "until then nothing is cut for it"
            found.clear()
            await found.wait()
    assert etcd.said == [*script] if script[0] != "other" else etcd.said == ["other", "absent"]


async def test_many_are_asked_for_in_transactions_that_etcd_takes() -> None:
    etcd = Scripted("absent")
    async with asyncio.timeout(LONG_S), searching(etcd, 150) as (believed, found):
        while len(believed.gone(0.0)) < 150:
            found.clear()
            await found.wait()
    assert etcd.asked == [100, 50]
