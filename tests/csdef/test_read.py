"""The parts of reading that both files share."""

from collections.abc import Callable

import pytest

from relay.csdef.read import Note, Reader
from relay.csdef.tree import Element, parse_xml
from relay.errors import Problem


def element(text: str) -> Element:
    return parse_xml(text.encode(), "f.xml", "e", "")


class Reading:
    """A reader of one element, and what it found."""

    def __init__(self, text: str) -> None:
        self.problems: list[Problem] = []
        self.reader = Reader("f.xml", self.problems)
        self.element = element(text)

    @property
    def said(self) -> list[str]:
        return [f"{problem.path}: {problem.what}; {problem.fix}" for problem in self.problems]


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("65535", 65535), (" 080\t", 80), ("0000000001", 1), (None, None)]
)
def test_numbers(text: str | None, number: int | None) -> None:
    reading = Reading("<e/>" if text is None else f'<e a="{text}"/>')
    assert reading.reader.number(reading.element, "a", 1, 65535) == number
    assert reading.said == []


@pytest.mark.parametrize(
    "text", ["", "0", "65536", "-1", "+1", "1.0", "1e3", "0x1", "²", "٨", "1 2", "1" * 11, "9" * 5000]
)
def test_no_numbers(text: str) -> None:
    reading = Reading(f'<e a="{text}"/>')
    assert reading.reader.number(reading.element, "a", 1, 65535) == 0
    [said] = reading.said
    assert said.endswith("is no number from 1 to 65535; write one")


@pytest.mark.parametrize("text", ["sourceIP", "SOURCEIP", " sourceip "])
def test_words_whatever_their_case(text: str) -> None:
    reading = Reading(f'<e a="{text}"/>')
    assert reading.reader.word(reading.element, "a", "sourceIP", "none") == "sourceip"
    assert reading.said == []


def test_words_that_are_wrong_or_missing() -> None:
    reading = Reading('<e a="sourceJP" b="x"/>')
    words = ("sourceIP", "none")
    assert [reading.reader.word(reading.element, name, *words) for name in ("a", "b", "c")] == ["", "", ""]
    assert reading.reader.word(reading.element, "c", *words, default="none") == "none"
    assert reading.said == [
        "e.a: `sourceJP` is not known here; did you mean `sourceIP`?",
        "e.b: `x` is not known here; write `sourceIP` or `none`",
        'e.c: is missing; write `c="sourceIP"`',
    ]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ('<e max="9" min="8"/>', (8, 9)),
        ('<e min="8" max="8"/>', (8, 8)),
        ('<e min="9" max="8"/>', (0, 0)),
        ('<e min="9"/>', (0, 0)),
        ('<e min="0" max="9"/>', (0, 0)),
    ],
)
def test_spans(text: str, span: tuple[int, int]) -> None:
    reading = Reading(text)
    assert reading.reader.span(reading.element) == span
    assert bool(reading.said) == (span == (0, 0))


def test_attributes_are_known_misspelt_or_left_out() -> None:
    reading = Reading('<e name="n" localport="1" colour="red"/>')
    reading.reader.attributes(reading.element, "name", "localPort")
    assert reading.said == ["e.localport: is not an attribute of this element; did you mean `localPort`?"]
    assert [str(note) for note in reading.reader.notes] == ["f.xml:1:1: left out: the attribute colour of e n"]


def test_notes_of_a_part_are_apart() -> None:
    reading = Reading("<e/>")
    reading.reader.left_out(reading.element, "one")
    with reading.reader.noted() as inner:
        reading.reader.warning(reading.element, "two")
    reading.reader.left_out(reading.element, "three")
    assert [note.text for note in inner] == ["two"]
    assert [note.text for note in reading.reader.notes] == ["one", "three"]


@pytest.mark.parametrize(
    ("text", "note"),
    [
        ("<e/>", None),
        ("<e><x/></e>", "e: why"),
        ('<e><x name="a"/><y name="b"/><z><x name="c"/><x name="a"/></z></e>', "e (a, c): why"),
        ('<e name="n"/>', "e n: why"),
        ("<e>text</e>", "e: why"),
        (
            "<e>" + "".join(f'<x name="{number}"/>' for number in range(25)) + "</e>",
            f"e ({', '.join(map(str, range(20)))} and 5 more): why",
        ),
    ],
)
def test_parts_are_named_by_what_is_in_them(text: str, note: str | None) -> None:
    reading = Reading(text)
    reading.reader.part_left_out(reading.element, "x", "why")
    assert [each.text for each in reading.reader.notes] == ([] if note is None else [note])


def test_a_note_is_a_comment_and_a_line() -> None:
    note = Note("f.xml", 3, 5, "left out", "that")
    assert (note.comment, str(note)) == ("left out: that", "f.xml:3:5: left out: that")
    assert Note("f.xml", 3, 5, "note", "this").comment == "this"


@pytest.mark.parametrize(
    "read",
    [
        lambda reader, part: reader.children(part, "x"),
        lambda reader, part: reader.leaf(part),
    ],
)
def test_no_element_gets_lost(read: Callable[[Reader, Element], object]) -> None:
    reading = Reading("<e><xx/></e>")
    read(reading.reader, reading.element)
    [said] = reading.said
    assert said.startswith("xx: is not an element of `e`")
