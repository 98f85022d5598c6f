"""What several tests here open."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator

import pytest

from tests.fleet.etcds import EtcdServer, shared
from tests.fleet.rig import TTL_S, Fleet


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    yield from shared(tmp_path_factory)


@pytest.fixture
async def fleets() -> AsyncIterator[Callable[..., Fleet]]:
    made: list[Fleet] = []

    def make(service: str, *urls: str, ttl_s: float = TTL_S) -> Fleet:
        made.append(Fleet(service, *urls, ttl_s=ttl_s))
        return made[-1]

    yield make
    for fleet in made:
        await asyncio.gather(*(each.close(False) for each in fleet.made))
