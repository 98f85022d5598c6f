"""What several tests of the kernel's folder begin from."""

from collections.abc import Iterator

import pytest

from tests.kernel.rig import Bench


@pytest.fixture
def bench() -> Iterator[Bench]:
    """A poller and its surroundings."""
    made = Bench()
    try:
        yield made
    finally:
        made.end()
