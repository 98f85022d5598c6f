"""How values are shown."""

from relay.config.wording import SHOWN_CHARS, nearest, shown


def test_shown_is_short_and_on_one_line() -> None:
    assert shown("a\nb\x1b") == r"`a\nb\x1b`"
    assert len(shown("x" * 10_000)) == SHOWN_CHARS + 3
    assert shown(10**5000) == "a number of very many digits"
    kinds: list[object] = [None, True, 1, 1.5, [], {}]
    said = ["nothing", "`true`", "`1`", "`1.5`", "a list", "a mapping"]
    assert [shown(each) for each in kinds] == said


def test_nearest() -> None:
    assert nearest("bnid", ["bind", "port"]) == "bind"
    assert nearest("PORT", ["bind", "port"]) == "port"
    assert nearest("zebra", ["bind", "port"]) is None
    assert nearest("x" * 1_000_000, ["bind"]) is None
