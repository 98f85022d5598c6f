"""YAML text: whatever is written is read back as what it was, and comments are nothing but comments."""

from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from relay.config.document import parse
from relay.csdef.yamltext import Block, Comment, Key, Value, render, scalar
from tests.csdef import PATIENT

TEXTS = st.text() | st.from_regex(r"[-A-Za-z0-9._/:#,\[\]{}&*!|>'\"%@` ]{0,12}", fullmatch=True)
SCALARS = TEXTS | st.integers(0, 10**9) | st.booleans()
COMMENTS = st.text(max_size=200)


def read(text: str) -> Any:
    return parse(text.encode(), "f.yaml").data


@PATIENT
@given(SCALARS)
def test_scalars(value: str | int) -> None:
    found = read(f"a: {scalar(value)}\n")
    assert found == {"a": value}
    assert type(found["a"]) is type(value)
    assert read(f"a: [{scalar(value)}, {scalar(value)}]\n") == {"a": [value, value]}
    assert read(f"a: {{b: {scalar(value)}}}\n") == {"a": {"b": value}}


@PATIENT
@given(TEXTS)
def test_an_editor_reads_the_same(value: str) -> None:
    """YAML 1.1, which takes more for something else than a text than relay does."""
    assert yaml.safe_load(f"a: {scalar(value)}\n") == {"a": value}


@PATIENT
@given(TEXTS, COMMENTS)
def test_names(name: str, comment: str) -> None:
    assert read(render((Key(name, 1, comment), Key(name + "x", (Key("b", 2),), comment)))) == {
        name: 1,
        name + "x": {"b": 2},
    }


FLAT: st.SearchStrategy[Value] = st.one_of(
    SCALARS, st.lists(TEXTS, max_size=40), st.dictionaries(TEXTS, SCALARS, max_size=3)
)
BLOCKS = st.recursive(
    FLAT,
    lambda inner: st.lists(st.tuples(inner, COMMENTS, COMMENTS), min_size=1, max_size=4).map(
        lambda parts: tuple(
            line
            for number, (value, above, behind) in enumerate(parts)
            for line in (Comment(above), Key(f"key{number}", value, behind))
        )
    ),
    max_leaves=10,
)


def plain(value: Value) -> object:
    """The data that a value stands for."""
    if isinstance(value, tuple):
        return {part.name: plain(part.value) for part in value if isinstance(part, Key)}
    return value


@PATIENT
@given(BLOCKS.filter(lambda value: isinstance(value, tuple)))
def test_whole_files(block: Block) -> None:
    text = render(block)
    assert read(text) == plain(block)
    assert all(line == line.rstrip() for line in text.splitlines())


@PATIENT
@given(st.lists(st.tuples(TEXTS, COMMENTS), min_size=1))
def test_items(items: list[tuple[str, str]]) -> None:
    block = tuple(Key("deny", value, comment, item=True) for value, comment in items)
    assert read(render((Key("rules", block),))) == {"rules": [{"deny": value} for value, _ in items]}


def test_the_form() -> None:
    block: Block = (
        Comment("* " + "long " * 30),
        Comment("write `port: 1-1024`, " + "x" * 90 + ", or `port: 1025-2048`"),
        Key("version", 1),
        Key("service", "shop", "Shop"),
        Key(
            "roles",
            (
                Key(
                    "web",
                    (Key("instances", ["10.0.0.1"] * 12, "some"), Key("probe", {"path": "/", "interval": "5s"})),
                ),
                Key("store", (Comment("none"), Key("from", ["web", "null"]))),
            ),
        ),
    )
    assert render(block) == (
        f"# * {'long ' * 22}long\n"
        f"#   {'long ' * 6}long\n"
        f"# write `port: 1-1024`, {'x' * 90}, or\n"
        "# `port: 1025-2048`\n"
        "version: 1\n"
        "service: shop  # Shop\n"
        "\n"
        "roles:\n"
        "  web:\n"
        "    # some\n"
        f"    instances: [{'10.0.0.1, ' * 9}10.0.0.1,\n"
        "      10.0.0.1, 10.0.0.1]\n"
        '    probe: {path: "/", interval: 5s}\n'
        "\n"
        "  store:\n"
        "    # none\n"
        '    from: [web, "null"]\n'
    )


@pytest.mark.parametrize(
    "plain_text",
    [
        "web",
        "10.0.0.4",
        "10.0.0.0/8",
        "127.0.0.1:80",
        "127.0.0.1:80-81",
        "8995-8999",
        "15s",
        "200ms",
        "4m",
        "/healthz",
        "a.b_c-d",
    ],
)
def test_what_needs_no_quotes_has_none(plain_text: str) -> None:
    assert scalar(plain_text) == plain_text
