"""Columns that line up, spans of time and sizes in a person's words."""

import pytest

from relay.cli.columns import age, size, table


@pytest.mark.parametrize(
    ("age_s", "size_bytes", "words"),
    [
        (0.0, 0, ("0.0s", "0B")),
        (59.9, 1023, ("59.9s", "1023B")),
        (60.0, 1024, ("1.0m", "1.0KiB")),
        (3600.0, 1024**2, ("1.0h", "1.0MiB")),
        (86400.0, 1024**4, ("1.0d", "1.0TiB")),
        (864000.0, 5000 * 1024**4, ("10.0d", "5000.0TiB")),
    ],
)
def test_ages_and_sizes(age_s: float, size_bytes: int, words: tuple[str, str]) -> None:
    assert (age(age_s), size(size_bytes)) == words


def test_an_age_without_a_fraction() -> None:
    assert [age(each, whole=True) for each in (0.4, 61.0, 7300.0)] == ["0s", "1m", "2h"]


def test_a_table_lines_up_and_has_no_trailing_blanks() -> None:
    text = table(("A", "LONG TITLE", "C"), [("wide cell", "x", "y"), ("", "", "")])
    assert text == "A          LONG TITLE  C\nwide cell  x           y\n"
