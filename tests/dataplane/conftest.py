"""What several tests of the data plane open."""

import contextlib
from collections.abc import Iterator

import pytest


@pytest.fixture
def stack() -> Iterator[contextlib.ExitStack]:
    """What a test opened, closed in reverse."""
    with contextlib.ExitStack() as made:
        yield made
