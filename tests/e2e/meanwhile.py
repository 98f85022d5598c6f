"""Relays whose workers are killed, and that are upgraded, while something else happens."""

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from tests.e2e.installed import asked
from tests.harness import Daemon


@contextlib.contextmanager
def killing(relays: Sequence[Daemon], chance: random.Random) -> Iterator[None]:
    """Workers of all of them are killed meanwhile, at random moments."""

    def kill() -> bool:
        status = asked(chance.choice(relays))
        if status is None:
            return False
        time.sleep(chance.uniform(0, 0.3))  # a random moment, which is the point
        os.kill(chance.choice(status["workers"])["pid"], signal.SIGKILL)
        return True

    with _meanwhile(kill, 0.0):
        yield


@contextlib.contextmanager
def upgrading(relays: Sequence[Daemon], chance: random.Random) -> Iterator[None]:
    """All of them are upgraded meanwhile, in a random order."""

    def upgrade() -> bool:
        return chance.choice(relays).ask("POST", "/v1/upgrade")[0] == 202

    with _meanwhile(upgrade, 1.0):
        yield


@contextlib.contextmanager
def _meanwhile(do: Callable[[], bool], every_s: float) -> Iterator[None]:
    """Somebody does that again and again, and at least once; it says whether it was done."""
    over, done = threading.Event(), threading.Event()

    def go_on() -> None:
        while not (over.is_set() and done.is_set()):
            with contextlib.suppress(OSError):  # who is to suffer it is away at the moment
                if do():
                    done.set()
            over.wait(every_s)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
