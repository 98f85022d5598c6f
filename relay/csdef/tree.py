"""XML as the importer reads it: a file's text to a tree in which every element knows its place.

expat alone, and less than it can do: no document type, so no entity and no second file; a limit on size, depth and
number, so that no file takes more than a moment; one namespace.
"""

from dataclasses import dataclass
from xml.parsers import expat
from xml.parsers.expat import errors

from relay.config.document import SIZE_MAX_BYTES, place_after
from relay.config.wording import brief, printable, shown
from relay.errors import ConfigError, Problem

__all__ = ["Element", "parse_xml"]

# The deepest element of either schema stands at depth 7.
DEPTH_MAX = 32
# Elements and attributes together. 25 endpoints with 50 rules each (the platform's limits) are 7,500; settings,
# which are not imported, may be many more.
NODES_MAX = 50_000

# XML 1.0 appendix F: how a file begins that is in UTF-16. The last two have no mark, and start with `<`.
_UTF16_STARTS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"<\0": "utf-16-le", b"\0<": "utf-16-be"}
_UTF8_BOM = b"\xef\xbb\xbf"

# Between a namespace and a name. No XML file can hold it, so no namespace can look like two.
_SEPARATOR = "\x1f"

_TYPOGRAPHIC_QUOTES = "“”„‟‘’‚‛«»″′"

# expat's errors in an operator's words. The rest is rare, and has expat's own.
_SYNTAX = {
    errors.XML_ERROR_UNCLOSED_TOKEN: ("what opens here is not closed", "write the missing `>`"),
    errors.XML_ERROR_DUPLICATE_ATTRIBUTE: ("an attribute is written twice", "keep one of the two"),
    errors.XML_ERROR_JUNK_AFTER_DOC_ELEMENT: ("something stands behind the end of the document", "remove it"),
    errors.XML_ERROR_MISPLACED_XML_PI: ("`<?xml` is not at the start of the file", "remove what stands before it"),
    errors.XML_ERROR_UNDEFINED_ENTITY: ("an entity that XML does not have", "write the character, or its number"),
    errors.XML_ERROR_UNBOUND_PREFIX: ("a prefix that no `xmlns:` declares", "declare it, or remove it"),
}


@dataclass(frozen=True, slots=True)
class Element:
    """One element. `at` is the line and column (from 1) of its `<`; `text_at` of its first text that is not space.

    `name` and the names of the attributes are without their namespace, which is the document's or none.
    """

    name: str
    at: tuple[int, int]
    attributes: dict[str, str]
    children: tuple["Element", ...]
    text_at: tuple[int, int] | None


def parse_xml(content: bytes, path: str, root: str, namespace: str) -> Element:
    """The document in a file's content, at most 4 MiB, whose outermost element is `root`. Raises ConfigError.

    `path` is only a name. UTF-8 and UTF-16, with or without their mark. What the XML declaration says of the encoding
    does not count: in .NET it is an easy slip to write `encoding="utf-16"` into UTF-8. `namespace` or none is the
    namespace of every element.
    """
    path = printable(path)
    text = _decode(content, path)
    tree = _Tree(path, root, namespace, text.encode("utf-8"))
    document = tree.run()
    if tree.problems:
        raise ConfigError(tree.problems)
    return document


def _decode(content: bytes, path: str) -> str:
    if len(content) > SIZE_MAX_BYTES:
        what = f"is larger than {SIZE_MAX_BYTES // 1024**2} MiB"
        raise ConfigError([Problem(path, 0, 0, "", what, "check that this is the right file")])
    encoding = _UTF16_STARTS.get(content[:2], "utf-8")
    content = content.removeprefix(_UTF8_BOM)
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        place = place_after(content[: error.start].decode(encoding, errors="replace"))
        what = f"byte 0x{content[error.start]:02x} is not {encoding[:6].upper().rstrip('-')}"
        raise ConfigError([Problem(path, *place, "", what, "save it as UTF-8")]) from None


@dataclass(slots=True)
class _Open:
    """An element that is being read."""

    name: str
    at: tuple[int, int]
    attributes: dict[str, str]
    children: list[Element]
    text_at: tuple[int, int] | None = None
    foreign: bool = False


class _Tree:
    """Builds the tree from expat's events, with a stack of its own: depth costs no recursion."""

    def __init__(self, path: str, root: str, namespace: str, content: bytes) -> None:
        self.path = path
        self.root = root
        self.namespace = namespace
        self.content = content
        self.problems: list[Problem] = []
        self.open: list[_Open] = [_Open("", (1, 1), {}, [])]
        self.nodes = 0
        # The content is UTF-8 by now, whatever the XML declaration says.
        self.parser = expat.ParserCreate("utf-8", _SEPARATOR)
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text

    def run(self) -> Element:
        """The outermost element. Raises ConfigError where reading on makes no sense; `problems` has the rest."""
        try:
            self.parser.Parse(self.content, True)
        except expat.ExpatError as error:
            raise self._stop(*self._syntax(error)) from None
        return self.open[0].children[0]

    def _at(self) -> tuple[int, int]:
        return self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber + 1

    def _stop(self, at: tuple[int, int], what: str, fix: str) -> ConfigError:
        return ConfigError([*self.problems, Problem(self.path, *at, "", what, fix)])

    def _doctype(self, *_: object) -> None:
        start = self.content.rfind(b"<!DOCTYPE", 0, self.parser.CurrentByteIndex)  # expat points at its end
        at = place_after(self.content[:start].decode("utf-8"))
        raise self._stop(at, "a document type, with which a file can name other files", "remove `<!DOCTYPE …>`")

    def _start(self, full_name: str, attributes: dict[str, str]) -> None:
        at, top = self._at(), self.open[-1]
        self.nodes += 1 + len(attributes)
        if self.nodes > NODES_MAX:
            raise self._stop(
                at, f"has more than {NODES_MAX} elements and attributes", "check that it is the right file"
            )
        if len(self.open) > DEPTH_MAX:
            raise self._stop(at, f"is nested more than {DEPTH_MAX} deep", "check the end tags")
        namespace, _, name = full_name.rpartition(_SEPARATOR)
        if len(self.open) == 1 and name != self.root:
            raise self._stop(at, f"{shown(name)} is not a {shown(self.root)}", "check the order of the two files")
        foreign = namespace not in ("", self.namespace)
        if foreign and not top.foreign:
            fix = f'write `xmlns="{self.namespace}"`'
            self.problems.append(Problem(self.path, *at, "", f"{shown(name)} is of namespace {shown(namespace)}", fix))
        # An attribute with a namespace is another tool's; those of this schema have none.
        own = {key: value for key, value in attributes.items() if _SEPARATOR not in key}
        self.open.append(_Open(name, at, own, [], foreign=foreign or top.foreign))

    def _end(self, _: str) -> None:
        done = self.open.pop()
        element = Element(done.name, done.at, done.attributes, tuple(done.children), done.text_at)
        self.open[-1].children.append(element)

    def _text(self, text: str) -> None:
        if self.open[-1].text_at is None and not text.isspace():
            line, column = self._at()  # expat gives each line break by itself
            self.open[-1].text_at = (line, column + len(text) - len(text.lstrip()))

    def _syntax(self, error: expat.ExpatError) -> tuple[tuple[int, int], str, str]:
        """Where the text is not XML, what it is instead, and what to write."""
        at, message = (error.lineno, error.offset + 1), errors.messages[error.code]
        top = self.open[-1]
        match message:
            case errors.XML_ERROR_NO_ELEMENTS if len(self.open) == 1:
                return at, "the file holds no element", "check that this is the right file"
            case errors.XML_ERROR_NO_ELEMENTS:
                return top.at, f"`<{brief(top.name)}>` is not closed", f"write `</{brief(top.name)}>`"
            case errors.XML_ERROR_TAG_MISMATCH:
                what = f"this end tag does not close `<{brief(top.name)}>` of line {top.at[0]}"
                at = (at[0], at[1] - len("</"))  # expat points at the name
                return at, what, f"write `</{brief(top.name)}>` before it, or correct one of the two"
            case errors.XML_ERROR_INVALID_TOKEN:
                return self._token(at)
        what, fix = _SYNTAX.get(message, (f"is not XML: {message}", "check this line and the one above"))
        return at, what, fix

    def _token(self, at: tuple[int, int]) -> tuple[tuple[int, int], str, str]:
        """What it is that expat stopped at, from the text around it."""
        index = self.parser.ErrorByteIndex
        before = self.content[:index].decode("utf-8", errors="replace")
        char = self.content[index:].decode("utf-8", errors="replace")[:1]
        if char and char in _TYPOGRAPHIC_QUOTES:
            return at, f"the typographic quote {shown(char)}", 'write straight quotes: `"`'
        if not char.isprintable() and not char.isspace():
            return at, f"the control character {printable(char)}", "remove it, and save the file as UTF-8"
        name = before[before.rfind("&") + 1 :]
        if before.endswith(f"&{name}") and (name.isalnum() or not name):
            return (at[0], at[1] - len(name) - 1), "an `&` that stands for itself", "write `&amp;`"
        if char == "<" and before[-1:] != "<":
            return at, "`<` inside a value", "write the missing quote, or `&lt;`"
        tag = before[before.rfind("<") + 1 :]
        if char == "=" and tag.isalnum():
            return at, f"`{brief(tag)}=` runs an element and an attribute together", "write a space between the two"
        if before[-1:] in ('"', "'"):
            return at, "two attributes run together", "write a space between the two"
        if before[-1:] == "=":
            return at, "a value without quotes", f'write `{brief(tag.split()[-1])}"…"`'
        return at, f"{shown(char)} cannot stand here", "check the quotes and the `<` and `>` before it"
