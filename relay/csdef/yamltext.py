"""YAML text with comments, which no library here can write. Only what service.yaml needs: keys, scalars, short lists."""

import re
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from relay.config.wording import printable

__all__ = ["Block", "Comment", "Key", "Value", "render", "scalar"]

_WIDTH_CHARS = 120

# What reads as itself without quotes: words, IPv4 addresses and networks with or without ports, ranges, durations.
_PLAIN = re.compile(
    r"/?[A-Za-z][A-Za-z0-9._/-]*|[0-9]+(\.[0-9]+){3}(/[0-9]+)?(:[0-9]+(-[0-9]+)?)?|[0-9]+-[0-9]+|[0-9]+(ms|[smh])"
)
# What would be read as something else than a text, by relay or by an editor that reads YAML 1.1.
_RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n"}


@dataclass(frozen=True, slots=True)
class Comment:
    """A comment on lines of its own."""

    text: str


@dataclass(frozen=True, slots=True)
class Key:
    """`name: value  # comment`. `item`: it begins an item of a list."""

    name: str
    value: "Value"
    comment: str = ""
    item: bool = False


Block: TypeAlias = tuple[Key | Comment, ...]
Value: TypeAlias = str | int | bool | list[str] | dict[str, str | int] | Block


def render(block: Block) -> str:
    """The text of a file that holds `block`."""
    return "".join(f"{line}\n" for line in _lines(block, ""))


def scalar(value: str | int) -> str:
    """The value on one line, so that it is read as what it is."""
    if isinstance(value, int):
        return str(value).lower() if isinstance(value, bool) else str(value)
    if _PLAIN.fullmatch(value) and value.lower() not in _RESERVED:
        return value
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{printable(escaped)}"'


def _lines(block: Block, indent: str) -> Iterator[str]:
    for at, part in enumerate(block):
        if isinstance(part, Comment):
            yield from _comment(part.text, indent)
            continue
        if isinstance(part.value, tuple) and (not indent or (at and len(indent) == 2)):
            yield ""  # between the parts of a file that a reader looks for first
        yield from _key(part, indent)


def _key(key: Key, indent: str) -> Iterator[str]:
    start = f"{indent}{'- ' if key.item else ''}{scalar(key.name)}:"
    comment = f"  # {printable(key.comment).strip()}" if key.comment.strip() else ""
    lines = [start] if isinstance(key.value, tuple) else _wrapped(f"{start} {_flow(key.value)}", indent)
    if comment and (len(lines) > 1 or len(lines[0] + comment) > _WIDTH_CHARS):
        yield from _comment(key.comment, indent)
        comment = ""
    yield from (*lines[:-1], lines[-1] + comment)
    if isinstance(key.value, tuple):
        yield from _lines(key.value, f"{indent}  ")


def _flow(value: str | int | list[str] | dict[str, str | int]) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(scalar, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{scalar(key)}: {scalar(each)}' for key, each in value.items())}}}"
    return scalar(value)


def _wrapped(line: str, indent: str) -> list[str]:
    if len(line) <= _WIDTH_CHARS or not line.endswith("]"):
        return [line]
    return _folded(line, indent, f"{indent}  ")


def _comment(text: str, indent: str) -> list[str]:
    return _folded(printable(text), f"{indent}# ", f"{indent}#   " if text.startswith("* ") else f"{indent}# ")


def _folded(text: str, first: str, rest: str) -> list[str]:
    # What stands in backticks is to be copied, so it stays on one line. No text holds a NUL: `printable` saw to it.
    whole = re.sub("`[^`]*`", lambda code: code[0].replace(" ", "\0"), text.strip())
    lines = textwrap.wrap(
        whole,
        _WIDTH_CHARS,
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [line.replace("\0", " ") for line in lines]
