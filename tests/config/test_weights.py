"""Weights set by hand: in place of the file's, for those whom they name, and as plain data."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.snapshot import TargetRow
from relay.config.weights import NO_WEIGHTS, from_plain, to_plain, weighed
from tests.config.rig import endpoint_row

WEIGHTS = st.dictionaries(st.tuples(st.text(max_size=9), st.text(max_size=9)), st.integers(0, 256), max_size=9)


def row(name: str = "web/in", distribution: Any = "five-tuple") -> Any:
    targets = (TargetRow("10.0.0.4:80", weight=3, slot=0), TargetRow("10.0.0.5:80", slot=1))
    return endpoint_row(name, targets=targets, distribution=distribution)


def test_they_stand_in_place_of_the_files() -> None:
    [one, other] = weighed([row(), row("web/other")], {("web/in", "10.0.0.4:80"): 0, ("web/in", "10.0.0.9:80"): 7})
    assert [(each.weight, each.declared_weight) for each in one.targets] == [(0, 3), (1, None)]
    assert other == row("web/other")


def test_without_any_all_is_as_it_was() -> None:
    assert weighed([row()], NO_WEIGHTS) == (row(),)


def test_the_same_as_the_files_is_by_hand_too() -> None:
    """The file may change."""
    [found] = weighed([row()], {("web/in", "10.0.0.4:80"): 3})
    assert (found.targets[0].weight, found.targets[0].declared_weight) == (3, 3)


def test_one_target_has_no_share() -> None:
    alone = row(distribution=None)
    assert weighed([alone], {("web/in", "10.0.0.4:80"): 0}) == (alone,)


@given(WEIGHTS)
def test_as_plain_data_and_back(weights: dict[tuple[str, str], int]) -> None:
    assert from_plain(list(map(list, to_plain(weights)))) == weights


@pytest.mark.parametrize(
    "plain", [[["a", "b", 257]], [["a", "b", -1]], [["a", "b", True]], [["a", 1, 1]], [["a"]], [7]]
)
def test_what_is_none(plain: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        from_plain(plain)
