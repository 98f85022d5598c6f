"""With `relay_port` a door out is told at once, on a line, that an instance wants no more connections."""

import os
import signal
from pathlib import Path

from tests.e2e.peers import next_worker
from tests.e2e.test_relay_port import Shop
from tests.harness import dial, echoed, eventually


def lined(shop: Shop) -> None:
    """Wait until the door's machine holds a line to both stores."""
    expected = [("web_IN_0", "line")]
    for store in shop.stores:
        eventually(
            lambda store=store: [(each["who"], each["by"]) for each in store.status()["senders"]] == expected,  # type: ignore[misc]
            "the line is held",
        )


def test_when_the_drain_returns_the_application_may_stop_and_no_door_loses_anything(tmp_path: Path) -> None:
    with Shop(tmp_path) as shop:
        lined(shop)
        for n, store in enumerate(shop.stores):
            with dial(shop.door) as client:
                assert echoed(client) == b"ping"
            drained = store.relay("drain", "--wait", "--timeout", "60s")
            assert (drained.returncode, "not told" in drained.stdout) == (0, False), drained
            before = shop.echoes[n].accepted
            assert all(shop.served() for _ in range(20))
            assert shop.echoes[n].accepted == before, "nobody is sent there"
            assert shop.targets()[n]["health"] == "down"
            assert store.relay("drain", "off").returncode == 0
            eventually(lambda n=n: shop.targets()[n]["health"] == "up", "it is told that, too")  # type: ignore[misc]
        assert [each["failures"] for each in shop.targets()] == [0, 0]


def test_the_line_goes_on_over_a_workers_death_and_a_reload_that_takes_the_port_away_ends_it(tmp_path: Path) -> None:
    with Shop(tmp_path) as shop:
        lined(shop)
        store = shop.stores[0]
        before = store.worker_pid()
        os.kill(before, signal.SIGKILL)
        next_worker(store, before)
        lined(shop)
        assert store.relay("drain", "--wait", "--timeout", "60s").returncode == 0
        assert store.relay("drain", "off").returncode == 0
        store.write_service(shop.file(shop.echoes[0].target, told=False))
        assert store.relay("reload").returncode == 0
        eventually(lambda: store.status()["senders"][0]["by"] is None, "nobody can hold a line there")
        assert all(shop.served() for _ in range(20))
