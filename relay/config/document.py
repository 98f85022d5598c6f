"""Strict YAML: a file's text to plain data, and where in the file each value stands.

YAML 1.1 as PyYAML reads it turns `22:22` into 1342, `010` into 8 and `no` into false, and lets the last of two equal
keys win. In a file of ports and names each of these is a fault that nobody sees. Here a plain scalar is typed only
where it can mean one thing, and what can mean two is an error.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from relay.config.wording import brief, printable, shown
from relay.errors import ConfigError, Problem

__all__ = ["Document", "KeyPath", "dotted", "parse", "place_after"]

KeyPath = tuple[str | int, ...]
"""The way to a value: the keys and list indexes (from 0) that lead to it from the top."""

# 50,000 access rules take about 1.5 MiB. Past this the file is the wrong one, and reading it would hold up the daemon.
SIZE_MAX_BYTES = 4 * 1024 * 1024
# The deepest key of either file is at depth 8. Past this nothing can be right, and the walk stops being cheap.
DEPTH_MAX = 32
# No number of either file has more than 7 digits; Python itself refuses to read over 4,300.
DIGITS_MAX = 30

_NULLS = ("", "~", "null")
_BOOLS = {"true": True, "false": False}
_INT = re.compile(r"-?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]*)\.[0-9]+")

_UTF8_BOM = b"\xef\xbb\xbf"  # some editors write it; it changes no meaning
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
# YAML 1.1 section 5.1: the characters that may not stand in a file.
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LINE_BREAK = re.compile("\r\n|[\n\r\x85\u2028\u2029]")  # what a YAML 1.1 parser counts as a line
_TAB_INDENT = re.compile(r"^ *\t[ \t]*(?=[^ \t\r\n])", re.MULTILINE)

# libyaml, where PyYAML was built with it, is eight times as fast; both give the same events.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# The scanner's and parser's wordings (libyaml's, then PyYAML's own) in an operator's words. The first match counts.
_SYNTAX: tuple[tuple[str, str, str], ...] = (
    ("mapping values are not allowed", "a `:` where no key can stand", "check the indentation, or quote the value"),
    ("could not find expected ':'", "a key without its `:`", "write `key: value`, with a space after the colon"),
    ("scalar .*end of stream", "the text that opens here is not closed", "write the missing quote"),
    ("scalar .*escape", "an escape that YAML does not have", "use single quotes, or write `\\\\` for a backslash"),
    ("sequence entries are not allowed", "a list item where none can stand", "start the list on a line of its own"),
    ("',' or ']'", "the list that opens here is not closed", "write the missing `,` or `]`"),
    ("',' or '}'", "the mapping that opens here is not closed", "write the missing `,` or `}`"),
    ("node content", "a value is missing here", "write one, or remove what follows"),
    ("block collection", "not an item of the list above", "start it with `- `, or check the indentation"),
    ("block mapping", "not a key of the mapping above", "check the indentation and the quotes"),
    ("incompatible YAML", "another version of YAML", "remove the line that starts with `%YAML`"),
    ("block scalar", "text after `|` or `>`", "write the value on one line, without `|` or `>`"),
)
# Marks those that are found at the end of the line or file, far from where they can be put right.
_OPENS_HERE = "opens here"


@dataclass(frozen=True, slots=True)
class Document:
    """A file's data (only dict, list, str, int, float, bool and None; keys are str) and the place of every value."""

    path: str
    data: dict[str, Any]
    values: dict[KeyPath, tuple[int, int]] = field(repr=False)
    keys: dict[KeyPath, tuple[int, int]] = field(repr=False)
    text: str = field(default="", repr=False)

    def mark(self, path: KeyPath, *, key: bool = False) -> tuple[int, int]:
        """Line and column (from 1) of the value at `path`, or of its key. No such path: its nearest parent's key."""
        if key and path in self.keys:
            return self.keys[path]
        if path in self.values:
            return self.values[path]
        return self.mark(path[:-1], key=True) if path else (1, 1)

    def problem(self, path: KeyPath, what: str, fix: str, *, key: bool = False) -> Problem:
        """What is wrong at `path` (with `key`: with its key), and what to write."""
        return Problem(self.path, *self.mark(path, key=key), dotted(path), what, fix)


def dotted(path: Iterable[str | int]) -> str:
    """A path as messages write it: `roles.web.endpoints.http-in.access[0].deny`."""
    text = ""
    for step in path:
        text += f"[{step}]" if isinstance(step, int) else f".{brief(step)}"
    return text.removeprefix(".")


def parse(content: bytes, path: str) -> Document:
    """The data of a file's content, at most 4 MiB of UTF-8. `path` is only a name. An empty file gives an empty mapping.

    Raises ConfigError with every problem that can be told apart.
    """
    path = printable(path)
    text = _decode(content, path)
    walk = _Walk(path)
    walk.problems += _unprintable(text, path)
    if not walk.problems:
        walk.problems += _tabs(text, path)
    if not walk.problems:
        walk.run(text)
    if walk.problems:
        raise ConfigError(walk.problems)
    return Document(path, walk.root if walk.root is not None else {}, walk.values, walk.keys, text)


def _decode(content: bytes, path: str) -> str:
    def refuse(what: str, fix: str, line: int = 0, column: int = 0) -> ConfigError:
        return ConfigError([Problem(path, line, column, "", what, fix)])

    if len(content) > SIZE_MAX_BYTES:
        raise refuse(f"is larger than {SIZE_MAX_BYTES // 1024**2} MiB", "check that this is the right file")
    if content.startswith(_UTF16_BOMS):
        raise refuse("is in UTF-16", "save it as UTF-8")
    content = content.removeprefix(_UTF8_BOM)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        line, column = place_after(content[: error.start].decode("utf-8"))
        raise refuse(f"byte 0x{content[error.start]:02x} is not UTF-8", "save it as UTF-8", line, column) from None


def place_after(before: str) -> tuple[int, int]:
    """Line and column of what follows `before`."""
    return before.count("\n") + 1, len(before) - (before.rfind("\n") + 1) + 1


def _unprintable(text: str, path: str) -> list[Problem]:
    found = _UNPRINTABLE.search(text)
    if found is None:
        return []
    what = f"the control character {ascii(found[0])[1:-1]}"
    return [Problem(path, *place_after(text[: found.start()]), "", what, "remove it, and save the file as UTF-8")]


def _tabs(text: str, path: str) -> list[Problem]:
    """One problem for all lines that a tab indents: they are one slip of one editor."""
    found = list(_TAB_INDENT.finditer(text))
    if not found:
        return []
    more = f", and on {len(found) - 1} more line{'s' if len(found) > 2 else ''}" if len(found) > 1 else ""
    where = place_after(text[: text.index("\t", found[0].start())])
    return [Problem(path, *where, "", f"a tab in the indentation{more}", "indent with spaces")]


@dataclass(slots=True)
class _Collection:
    """A mapping or list that is being read. A mapping whose `key` is None waits for its next key."""

    path: KeyPath
    data: Any
    key: str | None = None
    is_key: bool = False


class _Walk:
    """Builds data and marks from the parser's events, with a stack of its own: depth costs no recursion."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.root: Any = None
        self.problems: list[Problem] = []
        self.values: dict[KeyPath, tuple[int, int]] = {}
        self.keys: dict[KeyPath, tuple[int, int]] = {}
        self.open: list[_Collection] = []
        self.documents = 0

    def run(self, text: str) -> None:
        """Read `text` until its end or the first problem after which the rest cannot be told."""
        try:
            for event in yaml.parse(text, Loader=_LOADER):
                if not self._take(event):
                    return
        except yaml.MarkedYAMLError as error:
            if "nesting depth" in (error.problem or ""):  # libyaml 0.2.6 and later has a limit of its own, 1000
                self._too_deep(_first_too_deep(text))
            else:
                self._syntax(error, text)
            return
        except (yaml.YAMLError, ValueError, OverflowError) as error:
            # PyYAML's own scanner lets the ValueError of a bad escape or version number through.
            self._problem((0, 0), (), f"is not YAML: {printable(str(error))}", "check escapes and `%` lines")
            return
        if self.documents and not isinstance(self.root, dict | None):
            what = f"the file holds {shown(self.root)}, not keys"
            self._problem(self.values[()], (), what, "write lines of the form `key: value`")

    def _take(self, event: Any) -> bool:
        """One event; False when reading on makes no sense."""
        mark = _mark(event)
        match event:
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    self._problem(mark, (), "a second document starts here", "keep one document in the file")
                    return False
            case yaml.AliasEvent():
                self._problem(mark, self._next(), f"the alias `*{event.anchor}`", "write the value out here")
                self._put(None, mark)
            case yaml.ScalarEvent():
                self._untagged(event)
                if self._wants_key():
                    self._key(event, mark)
                else:
                    self._put(self._typed(event), mark, empty=event.value == "")
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self._untagged(event)
                return self._opened({} if isinstance(event, yaml.MappingStartEvent) else [], mark)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                closed = self.open.pop()
                if closed.is_key:
                    self.open[-1].key = ""
        return True

    def _wants_key(self) -> bool:
        return bool(self.open) and isinstance(self.open[-1].data, dict) and self.open[-1].key is None

    def _next(self) -> KeyPath:
        """The path of the value that comes next; while a key is due, that of the mapping."""
        if not self.open:
            return ()
        top = self.open[-1]
        if isinstance(top.data, list):
            return (*top.path, len(top.data))
        return top.path if top.key is None else (*top.path, top.key)

    def _opened(self, data: Any, mark: tuple[int, int]) -> bool:
        path, is_key = self._next(), self._wants_key()
        if len(self.open) >= DEPTH_MAX:
            self._too_deep(mark)
            return False
        if is_key:
            self._problem(mark, path, f"{shown(data)} is used as a key", "write the key as a text")
        else:
            self._put(data, mark)
        self.open.append(_Collection(path, data, is_key=is_key))
        return True

    def _too_deep(self, mark: tuple[int, int]) -> None:
        self._problem(mark, (), f"is nested more than {DEPTH_MAX} deep", "check the brackets and the indentation")

    def _put(self, value: Any, mark: tuple[int, int], *, empty: bool = False) -> None:
        path = self._next()
        # A value that is not there has the place of what follows it, often on another line.
        self.values[path] = self.keys.get(path, mark) if empty else mark
        if not self.open:
            self.root = value
        elif isinstance(self.open[-1].data, list):
            self.open[-1].data.append(value)
        elif self.open[-1].key is None:  # an alias that stands for a key
            self.open[-1].key = ""
        else:
            self.open[-1].data[self.open[-1].key] = value
            self.open[-1].key = None

    def _key(self, event: Any, mark: tuple[int, int]) -> None:
        top, key = self.open[-1], event.value
        path = (*top.path, key)
        top.key = key
        typed = self._typed(event)
        if event.implicit[0] and key == "<<":
            self._problem(mark, path, "merge keys are not read", "write the keys out here")
        elif typed is None:
            self._problem(mark, top.path, "a key is missing before the `:`", "write `key: value`")
        elif not isinstance(typed, str):
            kind = "true or false" if isinstance(typed, bool) else "a number"
            self._problem(
                mark, path, f"the key {shown(key)} is read as {kind}", f'write it in quotes: `"{printable(key)}"`'
            )
        elif path in self.keys:
            what = f"is written twice, first on line {self.keys[path][0]}"
            self._problem(mark, path, what, "keep one of the two")
        self.keys.setdefault(path, mark)

    def _typed(self, event: Any) -> Any:
        """The value of a scalar. Only a plain one that can mean one thing is anything but a text."""
        text = event.value
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _NULLS:
            return None
        if text in _BOOLS:
            return _BOOLS[text]
        if not _INT.fullmatch(text) and not _FLOAT.fullmatch(text):
            return text
        if len(text) > DIGITS_MAX:
            self._problem(_mark(event), self._next(), f"a number of {len(text)} digits", "write a shorter one")
            return 0
        return float(text) if "." in text else int(text)

    def _untagged(self, event: Any) -> None:
        if event.tag is not None:
            tag = event.tag.replace("tag:yaml.org,2002:", "!!", 1)
            self._problem(_mark(event), self._next(), f"the tag {shown(tag)}", "write the plain value, without it")
        if event.anchor is not None:
            what = f"the anchor `&{event.anchor}`"
            self._problem(_mark(event), self._next(), what, "remove it, and write the value out where it is used")

    def _syntax(self, error: yaml.MarkedYAMLError, text: str) -> None:
        mark = error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark is not None else (0, 0)
        wording = f"{error.context or ''} {error.problem or ''}"
        if "cannot start any token" in wording and mark is not None:
            char = _LINE_BREAK.split(text)[mark.line][mark.column : mark.column + 1]
            what = "a tab where a value should start" if char == "\t" else f"{shown(char)} cannot start a value"
            fix = "write spaces" if char == "\t" else "write the value in quotes"
        else:
            found = [(what, fix) for pattern, what, fix in _SYNTAX if re.search(pattern, wording)]
            generic = (f"is not YAML: {printable(error.problem or 'unreadable')}", "check this line and the one above")
            what, fix = found[0] if found else generic
            if _OPENS_HERE in what and error.context_mark is not None:
                place = (error.context_mark.line + 1, error.context_mark.column + 1)
        self._problem(place, (), what, fix)

    def _problem(self, mark: tuple[int, int], path: KeyPath, what: str, fix: str) -> None:
        self.problems.append(Problem(self.path, *mark, dotted(path), what, fix))


def _first_too_deep(text: str) -> tuple[int, int]:
    """Where the collection opens that is one too deep. By PyYAML's own parser, which reads no further than that."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEPTH_MAX:
            return _mark(event)
    return 0, 0


def _mark(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
