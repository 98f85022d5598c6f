"""Traffic rules, added up for each endpoint."""

from relay.csdef.definition import Definition, Reference, TrafficRule
from relay.csdef.traffic import allowed_roles


def rule(line: int, *destinations: str, sources: str = "", both: bool = False) -> TrafficRule:
    """`sources`: a letter for each role; none: AllowAllTraffic."""
    return TrafficRule(
        (line, 1),
        tuple(Reference("r", name, (line, 5)) for name in destinations),
        tuple(Reference(name, "", (line, 9)) for name in sources) or None,
        both,
    )


def added(*rules: TrafficRule) -> dict[str, tuple[str, bool, int | None, int]]:
    """Of each endpoint: its roles, whether everyone may, and the lines of the first double and of the first rule."""
    found = allowed_roles(Definition("f", "s", (1, 1), (), (), rules, (), ()))
    return {
        name: ("".join(each.roles), each.everyone, each.both and each.both[0], each.at[0])
        for (_, name), each in found.items()
    }


def test_no_rule_names_nobody() -> None:
    assert added() == {}


def test_roles_add_up_in_the_order_of_writing_and_once() -> None:
    assert added(rule(1, "e", "f", sources="ba"), rule(2, "e", sources="ac")) == {
        "e": ("bac", False, None, 1),
        "f": ("ba", False, None, 1),
    }


def test_everyone_and_some_is_everyone() -> None:
    assert added(rule(1, "e", sources="a"), rule(2, "e"))["e"][:2] == ("a", True)
    assert added(rule(1, "e"), rule(2, "e", sources="a"))["e"][:2] == ("a", True)


def test_both_in_one_rule_is_some() -> None:
    assert added(
        rule(1, "e", sources="a"), rule(2, "e", sources="b", both=True), rule(3, "e", sources="c", both=True)
    ) == {"e": ("abc", False, 2, 1)}
