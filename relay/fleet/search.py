"""Looking for instances that are lost (believed.py): a fresh read says who has come back, before anything is cut for them."""

import asyncio
import time
from collections.abc import Callable
from random import uniform
from typing import Final

from relay.config.roster import Member
from relay.errors import RegistryError
from relay.fleet.believed import Believed
from relay.fleet.entries import EntryKeys, KeyValue
from relay.fleet.etcd import EtcdClient
from relay.fleet.gateway import Reply, get
from relay.fleet.presence import backoff_s

_ASKED_MAX: Final = 100  # a transaction of etcd's has at most 128 operations (--max-txn-ops)
_SPREAD_S: Final = 0.5  # so that a thousand machines do not all ask for the same one in the same moment


class Search:
    """Looks for those whom `believed` has lost. `run` goes on until it is cancelled; wake it when somebody may be."""

    def __init__(
        self,
        client: EtcdClient,
        keys: EntryKeys,
        believed: Believed,
        ttl_s: float,
        is_other: Callable[[Reply], bool],
        found: Callable[[], None],
    ) -> None:
        """`is_other`: whether an answer is of another store, which knows nobody yet. `found`: called when it has looked."""
        self._client, self._keys, self._believed, self._ttl_s = client, keys, believed, ttl_s
        self._is_other, self._found = is_other, found
        self._failures = 0
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Somebody may be lost."""
        if self._believed.look_s is not None:
            self._woken.set()

    async def run(self) -> None:
        """Look for each when it is time."""
        while True:
            at_s = self._believed.look_s
            if at_s is None:
                self._woken.clear()
                await self._woken.wait()
                continue
            await asyncio.sleep(max(0.0, at_s - time.monotonic()) + uniform(0.0, _SPREAD_S))
            if due := self._believed.due(time.monotonic())[:_ASKED_MAX]:
                await self._look_for(due)

    async def _look_for(self, due: list[Member]) -> None:
        try:
            # A read within a transaction is linearizable: https://etcd.io/docs/v3.4/learning/api_guarantees/
            asked = [get(self._keys.member(member.role, member.ordinal)) for member in due]
            answer = await self._client.txn((), [get(self._keys.store), *asked])
        except RegistryError:
            self._failures += 1
            await asyncio.sleep(backoff_s(self._failures, self._ttl_s))
            return
        if self._failures or self._is_other(answer):
            self._failures = 0
            self._believed.postpone(time.monotonic())
            return
        found: list[KeyValue] = [each for some in answer.found[1:] for each in some]
        self._believed.looked(due, found, time.monotonic())
        self._found()
