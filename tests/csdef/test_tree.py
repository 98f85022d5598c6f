"""XML to a tree: where everything stands, what is refused, and how much is read at most."""

import pytest

from relay.config.document import SIZE_MAX_BYTES
from relay.csdef.tree import DEPTH_MAX, NODES_MAX, Element, parse_xml
from relay.errors import ConfigError, Problem

NAMESPACE = "urn:here"


def tree(text: str | bytes) -> Element:
    return parse_xml(text.encode() if isinstance(text, str) else text, "f.xml", "root", NAMESPACE)


def problem(text: str | bytes) -> Problem:
    with pytest.raises(ConfigError) as caught:
        tree(text)
    [found] = caught.value.problems
    assert str(found).isprintable()
    assert found.fix
    return found


def place(text: str | bytes) -> tuple[int, int]:
    found = problem(text)
    return found.line, found.column


def places(element: Element) -> list[tuple[str, tuple[int, int]]]:
    return [(element.name, element.at), *(each for child in element.children for each in places(child))]


TEXT = '<root\n  a="1"\t>\n<!-- é --><b/><c>\n\té<d /></c></root>\n'
PLACES = [("root", (1, 1)), ("b", (3, 11)), ("c", (3, 15)), ("d", (4, 3))]


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(TEXT.encode(), id="utf-8"),
        pytest.param(b"\xef\xbb\xbf" + TEXT.encode(), id="utf-8 with a mark"),
        pytest.param(TEXT.encode("utf-16"), id="utf-16 with a mark"),
        pytest.param(b"\xfe\xff" + TEXT.encode("utf-16-be"), id="utf-16-be with a mark"),
        pytest.param(TEXT.encode("utf-16-le"), id="utf-16-le"),
        pytest.param(TEXT.encode("utf-16-be"), id="utf-16-be"),
        pytest.param(TEXT.replace("\n", "\r\n").encode(), id="CR LF"),
    ],
)
def test_every_element_knows_its_place(content: bytes) -> None:
    found = tree(content)
    assert places(found) == PLACES
    assert found.attributes == {"a": "1"}
    assert found.children[1].text_at == (4, 2)
    assert found.text_at is None


@pytest.mark.parametrize("declared", ["utf-16", "utf-8", "windows-1252", "iso-8859-1", "no-such-encoding", "rot13"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_the_declaration_does_not_count(declared: str, encoding: str) -> None:
    text = f'<?xml version="1.0" encoding="{declared}"?><root a="Größe"/>'
    assert tree(text.encode(encoding)).attributes == {"a": "Größe"}


@pytest.mark.parametrize(
    "text", ['<root xmlns="urn:here"><b/></root>', "<root><b/></root>", '<root><b xmlns="urn:here"/></root>']
)
def test_the_namespace_or_none(text: str) -> None:
    assert [child.name for child in tree(text).children] == ["b"]


def test_attributes_of_other_tools_are_not_seen() -> None:
    text = '<root xmlns="urn:here" xmlns:x="urn:x" x:a="1" xml:space="default" a="2"/>'
    assert tree(text).attributes == {"a": "2"}


def test_another_namespace_is_told_once_where_it_begins() -> None:
    with pytest.raises(ConfigError) as caught:
        tree('<root>\n<b xmlns="urn:b"><c/></b>\n<x:d xmlns:x="urn:d"/></root>')
    assert [str(each) for each in caught.value.problems] == [
        'f.xml:2:1: `b` is of namespace `urn:b`; write `xmlns="urn:here"`',
        'f.xml:3:1: `d` is of namespace `urn:d`; write `xmlns="urn:here"`',
    ]


def test_a_namespace_with_odd_characters() -> None:
    assert "of namespace `a b &\\n`" in problem('<root xmlns="a b &amp;&#10;"/>').what


def test_what_came_before_a_syntax_error_is_told_too() -> None:
    with pytest.raises(ConfigError) as caught:
        tree('<root xmlns="urn:other">\n<')
    assert [each.line for each in caught.value.problems] == [1, 2]


@pytest.mark.parametrize(
    "text",
    [
        "<!DOCTYPE root><root/>",
        '<!DOCTYPE root SYSTEM "file:///etc/passwd"><root/>',
        '<!DOCTYPE root [<!ENTITY a "b">]><root>&a;</root>',
        '<!DOCTYPE root [<!ENTITY % a SYSTEM "http://192.0.2.1/x"> %a;]><root/>',
    ],
)
def test_document_types_are_refused(text: str) -> None:
    for before, at in (("", (1, 1)), ("\n<!-- é <!DOCTYPE -->", (2, 21))):
        found = problem(before + text)
        assert (found.line, found.column) == at
        assert "document type" in found.what


def test_sizes_have_an_end() -> None:
    padding = SIZE_MAX_BYTES - len("<root/>")
    assert tree("<root/>" + " " * padding).name == "root"
    assert "larger than 4 MiB" in problem("<root/>" + " " * (padding + 1)).what


def test_depth_has_an_end() -> None:
    deep = "<root>" + "<a>" * (DEPTH_MAX - 1) + "</a>" * (DEPTH_MAX - 1) + "</root>"
    assert len(places(tree(deep))) == DEPTH_MAX
    found = problem("<root>" + "<a>" * 500_000)
    assert (found.column, found.what) == (7 + 3 * (DEPTH_MAX - 1), "is nested more than 32 deep")


def test_number_has_an_end() -> None:
    many = "<root>" + '<a b=""/>' * (NODES_MAX // 2 - 1) + "<a/></root>"
    assert len(tree(many).children) == NODES_MAX // 2
    assert "more than 50000 elements and attributes" in problem(many.replace("<a/>", '<a b=""/>')).what


@pytest.mark.parametrize(
    ("text", "at"),
    [
        ("<root a='“ is a character'/><", (1, 29)),
        ("<root>\n<b></root>", (2, 4)),
        ("<root>é<b\n", (1, 8)),
        ("<root>\r\n\r\né&é</root>", (3, 2)),
        ("<root>&</root>", (1, 7)),
        ("<root a='&'/>", (1, 10)),
        ("<root>\0</root>", (1, 7)),
        ("<root a='\uffff'/>", (1, 10)),
    ],
)
def test_mistakes_have_a_place(text: str, at: tuple[int, int]) -> None:
    assert place(text) == at


@pytest.mark.parametrize(
    ("content", "at", "what"),
    [
        (b"<root>\n \xff</root>", (2, 2), "byte 0xff is not UTF-8"),
        ("<root>\n é".encode("utf-16") + b"\0", (2, 3), "byte 0x00 is not UTF-16"),
        ("<root>\n é".encode("utf-16-le") + b"\0\xd8x\0", (2, 3), "byte 0x00 is not UTF-16"),
    ],
)
def test_bytes_that_are_no_text(content: bytes, at: tuple[int, int], what: str) -> None:
    found = problem(content)
    assert ((found.line, found.column), found.what) == (at, what)


def test_long_names_are_cut() -> None:
    assert len(str(problem(f"<{'r' * 10_000}/>"))) < 200
    assert len(str(problem(f"<root><{'b' * 10_000}>"))) < 300
    assert len(str(problem(f"<root {'b' * 10_000}=1/>"))) < 200
