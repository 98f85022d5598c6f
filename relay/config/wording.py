"""How the files' values are shown in messages, and what was meant by a word that is not known."""

import difflib
from collections.abc import Iterable

SHOWN_CHARS = 60  # of a value quoted in a message: enough to recognise it, and the line still fits a terminal
NUMBER_MAX_BITS = 128  # no value here needs more; Python refuses to print a number of over 4,300 digits


def printable(text: str) -> str:
    """`text` on one line: every character that does not print is written as an escape."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in text)


def brief(text: str) -> str:
    """`text` on one line and cut to `SHOWN_CHARS`."""
    line = printable(text[: SHOWN_CHARS + 1])
    return f"{line[:SHOWN_CHARS]}…" if len(line) > SHOWN_CHARS else line


def shown(value: object) -> str:
    """The value as a message names it: scalars between backticks, cut to `SHOWN_CHARS`; collections by kind."""
    match value:
        case None:
            return "nothing"
        case bool():
            return "`true`" if value else "`false`"
        case str():
            return f"`{brief(value)}`"
        case int() if value.bit_length() > NUMBER_MAX_BITS:
            return "a number of very many digits"
        case int() | float():
            return f"`{value}`"
        case dict():
            return "a mapping"
        case _:
            return "a list"


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` most likely misspells, or None. Case does not count."""
    by_lower = {name.lower(): name for name in known}
    # Longer words are nobody's spelling mistake, and difflib's time grows with their square.
    found = difflib.get_close_matches(word[:SHOWN_CHARS].lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None
