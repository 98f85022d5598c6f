"""What reading the two schemas has in common: typed attributes, unknown names, and notes on what is left behind."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Literal

from relay.config.wording import brief, nearest, printable, shown
from relay.csdef.tree import Element
from relay.errors import Problem

__all__ = ["UNKNOWN", "Note", "Place", "Reader", "plural"]

Place = tuple[int, int]
"""Line and column, from 1."""

# A comment names so many; more would hide the line beside them.
_LISTED_MAX = 20
# Longer than any number of the two schemas, and short enough to be read as one.
_DIGITS_MAX = 10

UNKNOWN = "relay does not know this element"


@dataclass(frozen=True, slots=True, order=True)
class Note:
    """One thing that a person must know of the import: a comment in the file, and for all but `note` a line on the screen.

    `left out`: it has no counterpart. `warning`: it was decided for the author, who may decide otherwise.
    """

    file: str
    line: int
    column: int
    kind: Literal["left out", "warning", "note"]
    text: str

    @property
    def comment(self) -> str:
        """The note as the file has it."""
        return self.text if self.kind == "note" else f"{self.kind}: {self.text}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}: {self.kind}: {self.text}"


def _listed(names: list[str]) -> str:
    """The names in the order of writing, each once, cut and on one line."""
    once = [brief(name) for name in dict.fromkeys(names)]
    more = f" and {len(once) - _LISTED_MAX} more" if len(once) > _LISTED_MAX else ""
    return ", ".join(once[:_LISTED_MAX]) + more


def plural(count: int, word: str) -> str:
    """`1 instance`, `2 instances`."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


class Reader:
    """Reads the elements of one file. `problems` is where mistakes go; what is wrong is read as "", 0 or None.

    `notes` is where notes go: the document's, but inside `noted()` those of one part of it.
    `homes`: where the elements belong of which nothing may get lost, by their names in lower case, as what to write.
    """

    homes: ClassVar[Mapping[str, str]] = {}

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = printable(file)
        self.problems = problems
        self.notes: list[Note] = []

    @contextmanager
    def noted(self) -> Iterator[list[Note]]:
        """Inside it, notes go to the list that it gives."""
        outer, self.notes = self.notes, []
        yield self.notes
        self.notes = outer

    def problem(self, element: Element, attribute: str, what: str, fix: str) -> None:
        """Report a mistake in `attribute` of `element`; "" for the element as a whole."""
        path = f"{element.name}.{attribute}" if attribute else element.name
        self.problems.append(Problem(self.file, *element.at, brief(path), what, fix))

    def left_out(self, element: Element, text: str) -> None:
        """Note what has no counterpart."""
        self.notes.append(Note(self.file, *element.at, "left out", text))

    def warning(self, element: Element, text: str) -> None:
        """Note what was decided."""
        self.notes.append(Note(self.file, *element.at, "warning", text))

    def part_left_out(self, part: Element, child: str, why: str) -> None:
        """Note a part of the file, and by their names the elements `child` in it; "" for none. An empty part is nothing.

        What would get lost with it and must not is a problem.
        """
        lost = list(self._lost(part))
        for each in lost:
            inside = "" if each is part else f"is inside `{brief(part.name)}`, which relay does not read, and "
            self.problem(each, "", f"{inside or 'is not read here, and '}would get lost", self._home(each.name))
        if lost or not (part.attributes or part.children or part.text_at):
            return
        names = [each.attributes["name"] for each in _inside(part) if each.name == child and "name" in each.attributes]
        self.left_out(part, f"{_title(part)}{f' ({_listed(names)})' if names else ''}: {why}")

    def _lost(self, element: Element) -> Iterator[Element]:
        """The outermost elements in this one, or itself, that have a home elsewhere."""
        if self._home(element.name):
            yield element
            return
        for child in element.children:
            yield from self._lost(child)

    def _home(self, name: str) -> str:
        lower = name.lower()
        return self.homes.get(lower) or (self.homes.get("endpoint", "") if "endpoint" in lower else "")

    def attributes(self, element: Element, *known: str) -> None:
        """Look at the element itself: every attribute but the `known` is noted, or a problem where it misspells one."""
        if element.text_at is not None:
            what = f"text inside `<{element.name}>`, where only elements can stand"
            fix = "remove it, or write the missing `<`"
            self.problems.append(Problem(self.file, *element.text_at, element.name, what, fix))
        for name in element.attributes:
            if name in known:
                continue
            if near := nearest(name, known):
                self.problem(element, name, "is not an attribute of this element", f"did you mean `{near}`?")
            else:
                self.left_out(element, f"the attribute {brief(name)} of {_title(element)}")

    def children(self, element: Element, *known: str) -> list[Element]:
        """The children of known names. For elements of which nothing may get lost: any other is a problem."""
        for child in element.children:
            if child.name not in known:
                near = nearest(child.name, known)
                fix = f"write {' or '.join(f'`{name}`' for name in known)}" if known else "remove it"
                fix = f"did you mean `{near}`?" if near else fix
                self.problem(child, "", f"is not an element of `{element.name}`", fix)
        return [child for child in element.children if child.name in known]

    def leaf(self, element: Element, *known: str) -> None:
        """Look at an element that has attributes only."""
        self.attributes(element, *known)
        self.children(element)

    def misspelt(self, element: Element, known: tuple[str, ...]) -> bool:
        """Whether it is a known element but for its case, which XML tells apart. Such a one is a problem."""
        meant = [name for name in known if name.lower() == element.name.lower()]
        if meant:
            self.problem(element, "", "is not an element here", f"did you mean `{meant[0]}`?")
        return bool(meant)

    def text(self, element: Element, attribute: str) -> str:
        """A text that must be there."""
        text = element.attributes.get(attribute)
        if not text:
            what = "is missing" if text is None else "is empty"
            self.problem(element, attribute, what, f'write `{attribute}="…"`')
        return text or ""

    def number(self, element: Element, attribute: str, low: int, high: int) -> int | None:
        """A whole number from `low` to `high`; None: not there; 0: wrong."""
        text = element.attributes.get(attribute)
        if text is None:
            return None
        digits = text.strip()
        if digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX and low <= int(digits) <= high:
            return int(digits)
        self.problem(element, attribute, f"{shown(text)} is no number from {low} to {high}", "write one")
        return 0

    def needed(self, element: Element, attribute: str, low: int, high: int, example: int) -> int:
        """As `number`; not there is a problem, whose message writes `example`."""
        number = self.number(element, attribute, low, high)
        if number is None:
            self.problem(element, attribute, "is missing", f'write `{attribute}="{example}"`')
        return number or 0

    def port(self, element: Element, attribute: str) -> int:
        """A port that must be there; 0: wrong."""
        return self.needed(element, attribute, 1, 65535, 80)

    def span(self, element: Element) -> tuple[int, int]:
        """The ports of a FixedPortRange; (0, 0): wrong."""
        self.leaf(element, "min", "max")
        low, high = self.port(element, "min"), self.port(element, "max")
        if low > high > 0:
            self.problem(element, "min", f"{low} is above `max`, {high}", "write the smaller port as `min`")
        return (low, high) if 0 < low <= high else (0, 0)

    def word(self, element: Element, attribute: str, *allowed: str, default: str | None = None) -> str:
        """One of the words, whatever its case, in lower case; "": wrong, or not there and no default."""
        text = element.attributes.get(attribute)
        if text is None and default is not None:
            return default
        if text is None:
            self.problem(element, attribute, "is missing", f'write `{attribute}="{allowed[0]}"`')
            return ""
        word = text.strip().lower()
        if word in (each.lower() for each in allowed):
            return word
        near = nearest(word, allowed)
        fix = f"did you mean `{near}`?" if near else f"write {' or '.join(f'`{each}`' for each in allowed)}"
        self.problem(element, attribute, f"{shown(text)} is not known here", fix)
        return ""


def _title(element: Element) -> str:
    name = element.attributes.get("name")
    return f"{brief(element.name)} {brief(name)}" if name else brief(element.name)


def _inside(element: Element) -> Iterator[Element]:
    for child in element.children:
        yield child
        yield from _inside(child)
