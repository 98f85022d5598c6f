"""Spans of time on the command line."""

import pytest

from relay.cli.spans import seconds, whole_seconds
from relay.errors import OperatorError


def test_as_the_files_have_them() -> None:
    assert [seconds("--timeout", text) for text in ("300ms", "90s", "10m")] == [0.3, 90.0, 600.0]
    assert [whole_seconds("--for", text) for text in ("300ms", "90s", "1600ms")] == [1, 90, 2]


def test_what_is_none_is_told_with_its_option() -> None:
    with pytest.raises(OperatorError, match=r"^--for: "):
        whole_seconds("--for", "soon")
