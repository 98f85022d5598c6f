"""What several tests here open."""

from collections.abc import Iterator

import pytest

from relay.ledger.ledger import Ledger
from tests.ledger.rig import new_ledger


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Three workers, sixteen flows each."""
    with new_ledger(workers=3) as made:
        yield made
