"""Numbers that stand in two places, for what is compiled and for what is not, are the same."""

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Final

import pytest

from relay.ledger import layout

ROOT: Final = Path(__file__).parents[2]
ENUM: Final = re.compile(r"^cdef enum(?: (\w+))?:$")
MEMBER: Final = re.compile(r"^    ([A-Z][A-Z0-9_]*) = (\d+)$")
DECLARING: Final = [
    pxd
    for pxd in sorted((ROOT / "relay").rglob("*.pxd"))
    if pxd.read_text().startswith("# Declarations only") and "cdef enum" in pxd.read_text()
]


def declared(pxd: Path) -> dict[str, dict[str, int]]:
    """Each enum's numbers by its name; "" is one without a name, whose members are the module's."""
    enums: dict[str, dict[str, int]] = {}
    for line in pxd.read_text().splitlines():
        if begun := ENUM.match(line):
            members = enums[begun[1] or ""] = {}
        elif member := MEMBER.match(line):
            assert member[1] not in members, f"{pxd.name} has {member[1]} twice"
            members[member[1]] = int(member[2])
        else:
            assert not line or line.startswith("#"), f"{pxd.name}: {line!r} is not understood"
    return enums


def said(owner: type | ModuleType) -> dict[str, int]:
    """The numbers of a class, or of a module."""
    numbers = {name: value for name, value in vars(owner).items() if name.isupper() and isinstance(value, int)}
    if owner is layout.Count:
        del numbers["END"]  # how many there are is no counter
    return numbers


@pytest.mark.parametrize("pxd", DECLARING, ids=lambda pxd: pxd.stem)
def test_what_is_declared_for_compiled_modules_is_what_the_module_says(pxd: Path) -> None:
    module = importlib.import_module(".".join(pxd.relative_to(ROOT).with_suffix("").parts))
    enums = declared(pxd)
    assert enums == {name: said(getattr(module, name) if name else module) for name in enums}


def test_which_numbers_are_declared() -> None:
    assert [(pxd.stem, [*declared(pxd)]) for pxd in DECLARING] == [
        ("turns", [""]),
        ("layout", ["State", "Flag", "Count"]),
    ]


def test_a_counter_has_a_word_of_its_own() -> None:
    for numbers in (said(layout.State), said(layout.Count)):
        assert len(set(numbers.values())) == len(numbers)
    assert max(said(layout.Count).values()) < layout.Count.END <= layout.SLOT_WORDS
