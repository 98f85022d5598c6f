"""Which event loop."""

import asyncio

import pytest

from relay.kernel.loop import loop_factory


def test_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RELAY_LOOP", raising=False)
    assert loop_factory().__module__ == "uvloop"
    monkeypatch.setenv("RELAY_LOOP", "asyncio")
    assert loop_factory() is asyncio.new_event_loop
