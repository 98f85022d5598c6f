"""Weights of targets that somebody has set by hand on this machine: they stand in place of the file's. Pure.

A target is named by its text, `10.0.0.4:8080`: an instance's id may be another machine's tomorrow.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Final

from relay.config.snapshot import EndpointRow, TargetRow
from relay.config.values import WEIGHT_MAX

Weights = Mapping[tuple[str, str], int]
"""By the endpoint's name, or the door's, and the target's text."""

NO_WEIGHTS: Final[Weights] = MappingProxyType({})


def weighed(rows: Iterable[EndpointRow], weights: Weights) -> tuple[EndpointRow, ...]:
    """The rows with these weights. Whom nobody has is left out of them."""
    names = {name for name, _ in weights}
    return tuple(
        replace(row, targets=tuple(_weighed(row.name, target, weights) for target in row.targets))
        if row.name in names and row.distribution is not None
        else row
        for row in rows
    )


def _weighed(name: str, target: TargetRow, weights: Weights) -> TargetRow:
    by_hand = weights.get((name, target.text))
    return target if by_hand is None else replace(target, weight=by_hand, declared_weight=target.weight)


def to_plain(weights: Weights) -> tuple[tuple[str, str, int], ...]:
    """As plain data, which a snapshot has too."""
    return tuple((name, target, weight) for (name, target), weight in weights.items())


def from_plain(plain: Iterable[Any]) -> Weights:
    """What `to_plain` made. Raises ValueError or TypeError for anything else."""
    found = {}
    for name, target, weight in plain:
        if not (isinstance(name, str) and isinstance(target, str) and type(weight) is int):
            raise ValueError("no weights")
        if not 0 <= weight <= WEIGHT_MAX:
            raise ValueError(f"a weight of {weight}")
        found[name, target] = weight
    return MappingProxyType(found)
