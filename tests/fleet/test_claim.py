"""Numbers by transaction against a real etcd: a thousand at once, the same after a restart, clones, and every refusal."""

import asyncio
import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

import pytest

from relay.config.roster import Member
from relay.errors import IdentityError, RegistryError
from relay.fleet.claim import Claimant
from relay.fleet.claim import claim as take
from relay.fleet.entries import Entry, EntryKeys, claim_value, read_entry
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Compare, Operation, Reply, delete, put
from relay.fleet.identity import Vacancy
from relay.fleet.machine_id import Daemon
from tests.fleet.etcds import EtcdServer, Forwarder, shared

pytestmark = pytest.mark.real("etcd", "etcdctl")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has another one's machine id is told a second after its lease."""
    monkeypatch.setattr("relay.fleet.claim._GONE_S", 1.0)


LONG_S = 120.0  # a bound for hanging


async def claim(client: EtcdClient, me: Claimant, vacancy: Vacancy, count: int) -> int:
    """The number that is taken."""
    return (await take(client, me, vacancy, count)).ordinal


HERE = Daemon.of(os.getpid(), "10.0.0.4")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    yield from shared(tmp_path_factory)


def machine(service: str, n: int, **keys: object) -> Claimant:
    """The machine number `n`: another boot, another address; and a lease that outlasts every test."""
    daemon = replace(HERE, boot=f"boot-{n}")
    me = Claimant(service, f"{n:032x}", daemon, f"10.0.{n // 250}.{n % 250 + 1}", ttl_s=600, hold_s=600)
    return replace(me, **keys)  # type: ignore[arg-type]


async def there(client: EtcdClient, service: str) -> dict[int, Entry]:
    """Who says to be there, by ordinal."""
    keys = EntryKeys(service)
    found = {}
    for each in (await client.range(keys.all_members)).found[0]:
        place = keys.place_of(each.key)
        assert place is not None
        entry = read_entry(place, each.value or b"")
        assert entry is not None
        found[place[1]] = entry
    return found


async def slots(client: EtcdClient, service: str) -> dict[int, bytes]:
    """Who has which number."""
    (found,) = (await client.range(EntryKeys(service).claims("web"))).found
    return {int(each.key.rpartition("/")[2]): each.value or b"" for each in found}


WEB = Vacancy("web")


async def test_the_lowest_free_number(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        assert [await claim(client, machine("lowest", n), WEB, 5) for n in range(4)] == [0, 1, 2, 3]
        keys = EntryKeys("lowest")
        await client.txn((), [delete(keys.claim("web", 1)), delete(keys.member("web", 1))])
        assert await claim(client, machine("lowest", 9), WEB, 5) == 1
        entry = (await there(client, "lowest"))[1]
        assert (entry.member.address, entry.member.busy, entry.machine) == ("10.0.0.10", True, f"{9:032x}")
        assert (await client.range(keys.queue("web"))).found == ((),)


@pytest.mark.slow
@pytest.mark.alone
async def test_a_thousand_at_once(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Distinct and contiguous; and hardly anybody had to try again."""
    monkeypatch.setattr("relay.fleet.claim._QUEUE_S", 30)  # three times as long, for a machine that is so much slower
    count = 1000
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(EtcdClient([server.url], timeout_s=60)) for _ in range(4)]
        before = (await clients[0].range("/nothing/")).revision
        claims = [claim(clients[n % 4], machine("thousand", n), WEB, count) for n in range(count)]
        async with asyncio.timeout(LONG_S):
            numbers = await asyncio.gather(*claims)
        assert sorted(numbers) == list(range(count))
        entries = await there(clients[0], "thousand")
        assert {number: entries[number].machine for number in numbers} == {
            number: f"{n:032x}" for n, number in enumerate(numbers)
        }
        written = (await clients[0].range("/nothing/")).revision - before
        assert 2 * count <= written <= 2.2 * count  # a place in the queue and a number each


async def test_the_same_number_after_a_restart(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        for n in range(3):
            await claim(client, machine("restart", n), WEB, 5)
        second = machine("restart", 1, ttl_s=30)
        # In the same boot, whose process is gone: at once. In another boot: when the lease of its presence has run out.
        dead = await asyncio.create_subprocess_exec("true")
        await dead.wait()
        keys = EntryKeys("restart")
        await client.txn((), [delete(keys.member("web", 1))])
        await client.txn((), [put(keys.member("web", 1), entry_of(second, replace(HERE, pid=dead.pid)))])
        started_s = time.monotonic()
        async with asyncio.timeout(LONG_S):
            assert await claim(client, replace(second, daemon=HERE), WEB, 5) == 1
        assert time.monotonic() - started_s < second.ttl_s
        await client.txn((), [put(keys.member("web", 1), entry_of(second, HERE), await client.grant(1))])
        rebooted = replace(second, daemon=replace(HERE, boot="another"), ttl_s=2)
        async with asyncio.timeout(LONG_S):
            assert await claim(client, rebooted, WEB, 5) == 1
        assert (await there(client, "restart"))[1].daemon == str(rebooted.daemon)


def entry_of(who: Claimant, daemon: Daemon, ordinal: int = 1) -> bytes:
    """What a daemon on a machine has written."""
    return Entry(Member("web", ordinal, who.address), who.machine, str(daemon)).to_value()


async def test_a_pid_that_another_process_has_now(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        me = machine("reused", 1, daemon=HERE)
        await claim(client, replace(me, daemon=replace(HERE, started_ticks=HERE.started_ticks - 1)), WEB, 5)
        async with asyncio.timeout(LONG_S):
            assert await claim(client, me, WEB, 5) == 0


async def test_a_clone_is_refused(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        first = machine("clone", 1, daemon=HERE, ttl_s=4)
        assert await claim(client, first, WEB, 5) == 0
        (kept,) = (await client.range(EntryKeys("clone").all_members)).found[0]

        async def keep() -> None:
            while await client.keep_alive(kept.lease):  # noqa: ASYNC110
                await asyncio.sleep(0.2)

        keeping = asyncio.ensure_future(keep())
        # On another machine; and in another container of this one. They wait for longer than its lease.
        daemons = [replace(HERE, boot="another"), replace(HERE, pid_namespace=1)]
        clones = [replace(first, daemon=each, address="10.0.0.99", ttl_s=5) for each in daemons]
        try:
            async with asyncio.timeout(LONG_S):
                refused = await asyncio.gather(
                    *(claim(client, each, WEB, 5) for each in clones), return_exceptions=True
                )
        finally:
            keeping.cancel()
        for error in refused:
            assert isinstance(error, IdentityError)
            assert str(error) == (
                "web_IN_0 at 10.0.0.2 has the same machine id as this machine, so one is a clone of the other; on "
                "the clone run `rm -f /etc/machine-id /var/lib/dbus/machine-id && systemd-machine-id-setup` as root, or "
                "put another id into the file that `machine_id` names there"
            )
        assert list(await slots(client, "clone")) == [0]
        assert (await there(client, "clone"))[0].daemon == str(HERE)


async def test_an_earlier_run_of_this_machine_is_no_clone(server: EtcdServer) -> None:
    """Of another boot, or of one that cannot be told; its lease lasts for longer than this one waits."""
    async with EtcdClient([server.url]) as client:
        me = machine("again", 1)
        assert await claim(client, me, WEB, 5) == 0
        with pytest.raises(IdentityError) as caught:
            async with asyncio.timeout(LONG_S):
                await claim(client, replace(me, daemon=replace(HERE, boot="another"), ttl_s=1), WEB, 5)
        assert str(caught.value).startswith(
            "web_IN_0 at 10.0.0.2 is this machine itself: an earlier run of relay stands there until its lease ends"
        )


async def test_two_clones_at_once(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        clones = [machine("twins", 1, daemon=replace(HERE, boot=f"b{n}")) for n in range(2)]
        claims = [asyncio.ensure_future(claim(client, each, WEB, 5)) for each in clones]
        done, waiting = await asyncio.wait(claims, return_when=asyncio.FIRST_COMPLETED, timeout=LONG_S)
        assert [task.result() for task in done] == [0]
        assert len(waiting) == 1  # it stands by, for as long as the other one's lease
        for task in waiting:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert list(await slots(client, "twins")) == [0]


async def test_a_number_is_freed_after_hold(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        assert await claim(client, machine("freed", 1), WEB, 1) == 0
        with pytest.raises(IdentityError, match=r"the one number of role web is held by web_IN_0 \(10\.0\.0\.2\)"):
            await claim(client, machine("freed", 2), WEB, 1)
        revision = (await client.range("/relay/freed/")).revision + 1
        assert await claim(client, machine("freed", 1, hold_s=1, ttl_s=1), WEB, 1) == 0  # and is gone after that
        gone: set[str] = set()
        async with (
            asyncio.timeout(LONG_S),
            contextlib.aclosing(client.watch("/relay/freed/", revision, silence_s=LONG_S)) as stream,
        ):
            async for batch in stream:
                gone |= {each.key for each in batch.events if each.value is None}
                if {EntryKeys("freed").claim("web", 0), EntryKeys("freed").member("web", 0)} <= gone:
                    break
        assert await claim(client, machine("freed", 2), WEB, 1) == 0


async def test_all_numbers_are_taken(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        for n in range(3):
            await claim(client, machine("full", n), WEB, 3)
        await client.txn((), [delete(EntryKeys("full").member("web", 1))])
        with pytest.raises(IdentityError) as caught:
            await claim(client, machine("full", 7), WEB, 3)
        assert str(caught.value) == (
            "all 3 numbers of role web are held by web_IN_0 (10.0.0.1), web_IN_1 (machine 00000000, not there now), "
            "web_IN_2 (10.0.0.3); raise `instances`, or wait until one has been gone for `hold`"
        )
        assert (await client.range(EntryKeys("full").queue("web"))).found == ((),)  # it does not stand in others' way


async def test_a_number_that_is_asked_for(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        assert await claim(client, machine("wanted", 1), Vacancy("web", 2), 5) == 2
        assert await claim(client, machine("wanted", 2), WEB, 5) == 0
        with pytest.raises(IdentityError, match=r"^web_IN_2 \(10\.0\.0\.2\) is held by that machine; ask for another"):
            await claim(client, machine("wanted", 2), Vacancy("web", 2), 5)
        assert await claim(client, machine("wanted", 2), Vacancy("web", 4), 5) == 4
        assert list(await slots(client, "wanted")) == [2, 4]  # the former number is free again
        assert sorted(await there(client, "wanted")) == [2, 4]
        assert await claim(client, machine("wanted", 2), WEB, 3) == 0  # there are fewer numbers now
        assert list(await slots(client, "wanted")) == [0, 2]


async def test_a_number_by_which_somebody_is_there_is_not_free(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        await claim(client, machine("there", 1), WEB, 5)
        await client.txn((), [delete(EntryKeys("there").claim("web", 0))])
        assert await claim(client, machine("there", 2), WEB, 5) == 1
        with pytest.raises(
            IdentityError, match=r"web_IN_0 at 10\.0\.0\.2 is another machine; stop relay there, or ask for"
        ):
            await claim(client, machine("there", 3, ttl_s=1), Vacancy("web", 0), 5)


async def test_garbage_in_the_registry(server: EtcdServer) -> None:
    keys = EntryKeys("garbage")
    async with EtcdClient([server.url]) as client:
        bad = [put(f"{keys.claims('web')}{name}", b"\xff") for name in ("x", "-1", "01", "", "000000")]
        bad += [put(f"{keys.members('web')}{name}", b"{}") for name in ("x", "00", "3", "5")]
        bad += [put(f"{keys.queue('web')}{name}", b"?") for name in ("", "nobody")]
        await client.txn((), bad)
        # Number 0 has an owner that cannot be read; and in the queue two stand before us for ever.
        assert await claim(client, machine("garbage", 1), WEB, 9) == 3
        for number, expected in ((b"x", 4), (b"0", 4), (b"\xff", 4)):
            await client.txn((), [put(keys.number("web", f"{2:032x}"), number)])
            assert await claim(client, machine("garbage", 2), WEB, 9) == expected
            await client.txn((), [delete(keys.claim("web", 4)), delete(keys.member("web", 4))])


async def test_one_that_died_in_the_queue_keeps_nobody_for_long(server: EtcdServer) -> None:
    async with EtcdClient([server.url]) as client:
        lease = await client.grant(1)
        await client.txn((), [put(f"{EntryKeys('line').queue('web')}dead", b"", lease)])
        async with asyncio.timeout(LONG_S):
            assert await claim(client, machine("line", 1), WEB, 1) == 0


async def test_cancelled_anywhere_it_leaves_nothing(server: EtcdServer) -> None:
    """Cancelled after each of its requests in turn: the number is still free, or this machine's."""
    async with Forwarder(server.port) as path, EtcdClient([path.url]) as client, EtcdClient([server.url]) as direct:
        for steps in range(60):
            task = asyncio.ensure_future(claim(client, machine("cancel", 1, daemon=HERE), WEB, 1))
            for _ in range(steps * 3):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            owners = await slots(direct, "cancel")
            assert owners in ({}, {0: claim_value(f"{1:032x}")})
            assert (await direct.range(EntryKeys("cancel").queue("web"))).found == ((),)
        async with asyncio.timeout(LONG_S):
            assert await claim(client, machine("cancel", 1, daemon=HERE), WEB, 1) == 0


class Stutter(EtcdClient):
    """Sends each guarded transaction twice, as when the first answer got lost, and another endpoint is asked."""

    async def txn(
        self, compare: Iterable[Compare], then: Iterable[Operation], otherwise: Iterable[Operation] = ()
    ) -> Reply:
        compare, then = list(compare), list(then)
        if compare:
            await super().txn(compare, then, otherwise)
        return await super().txn(compare, then, otherwise)


async def test_an_answer_that_got_lost(server: EtcdServer) -> None:
    async with Stutter([server.url]) as client:
        for n in range(3):
            assert await claim(client, machine("stutter", n), WEB, 3) == n
        assert await claim(client, machine("stutter", 1), WEB, 3) == 1
        assert list(await slots(client, "stutter")) == [0, 1, 2]


async def test_etcd_does_not_answer() -> None:
    async with EtcdClient(["http://127.0.0.1:1"]) as client:
        with pytest.raises(RegistryError, match=r"etcd does not answer: http://127\.0\.0\.1:1: nobody listens there"):
            await claim(client, machine("dead", 1), WEB, 5)
