"""The event loop that every process of relay runs on."""

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable

_uvloop: Callable[[], asyncio.AbstractEventLoop] | None = None
with contextlib.suppress(ImportError):
    import uvloop  # here and not where it is used, or each new worker would spend a third of its start on that

    _uvloop = uvloop.new_event_loop


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """uvloop's loop; the stock one where uvloop is not installed, or RELAY_LOOP=asyncio asks for it."""
    if os.environ.get("RELAY_LOOP") == "asyncio":
        return asyncio.new_event_loop
    if _uvloop is None:
        print("relay: uvloop is not installed; using asyncio's own loop", file=sys.stderr)  # noqa: T201
        return asyncio.new_event_loop
    return _uvloop
