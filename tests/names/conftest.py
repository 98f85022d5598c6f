"""What several tests here open."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
import uvloop

from tests.harness import HANG_S


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Awaitable[None]], None]]:
    """Runs a coroutine to its end, on each loop in turn."""

    async def bounded(what: Awaitable[None]) -> None:
        async with asyncio.timeout(HANG_S):
            await what

    with asyncio.Runner(loop_factory=request.param) as runner:
        yield lambda what: runner.run(bounded(what))
