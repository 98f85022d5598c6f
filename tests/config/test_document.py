"""Strict YAML: what is typed, where it stands, and that no file gives anything but a Document or its problems."""

import string
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from relay.config import document
from relay.config.document import Document, dotted, parse
from relay.config.reading import read
from relay.errors import ConfigError, Problem
from tests.config.rig import YAML_LINES, YAML_TEXT
from tests.harness import examples

CORPUS = Path(__file__).parents[1] / "corpus"
LOADERS = [pytest.param(yaml.SafeLoader, id="pure")]
if yaml.__with_libyaml__:
    LOADERS.append(pytest.param(yaml.CSafeLoader, id="libyaml"))


@pytest.fixture(params=LOADERS)
def loader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(document, "_LOADER", request.param)


def problems(content: bytes | str) -> list[Problem]:
    with pytest.raises(ConfigError) as caught:
        parse(content.encode() if isinstance(content, str) else content, "f.yaml")
    return caught.value.problems


@pytest.mark.usefixtures("loader")
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("80", 80),
        ("-1", -1),
        ("0", 0),
        ("1.5", 1.5),
        ("true", True),
        ("false", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("22:22", "22:22"),
        ("10:30", "10:30"),
        ("010", "010"),
        ("0x10", "0x10"),
        ("0o10", "0o10"),
        ("1_000", "1_000"),
        ("+80", "+80"),
        ("1e5", "1e5"),
        (".5", ".5"),
        (".inf", ".inf"),
        ("2020-01-01", "2020-01-01"),
        ("no", "no"),
        ("off", "off"),
        ("True", "True"),
        ("'80'", "80"),
        ('"true"', "true"),
        ("'~'", "~"),
        ("[1, two, [3]]", [1, "two", [3]]),
        ("{b: 1}", {"b": 1}),
    ],
)
def test_only_what_can_mean_one_thing_is_typed(text: str, value: object) -> None:
    data = parse(f"a: {text}\n".encode(), "f.yaml").data
    assert data == {"a": value}
    assert type(data["a"]) is type(value)


@pytest.mark.usefixtures("loader")
def test_marks() -> None:
    text = "# first\nroles:\n  web: {port: 80}\n  list:\n    - a\n    - b: c\nempty:\nlast: ü x\nend: 1\n"
    read_back = parse(text.encode(), "f.yaml")
    assert read_back.mark(("roles",), key=True) == (2, 1)
    assert read_back.mark(("roles",)) == (3, 3)
    assert read_back.mark(("roles", "web", "port")) == (3, 15)
    assert read_back.mark(("roles", "web", "port"), key=True) == (3, 9)
    assert read_back.mark(("roles", "list", 1, "b")) == (6, 10)
    assert read_back.mark(("roles", "list", 1), key=True) == (6, 7)  # an item has no key: its value
    assert read_back.mark(("empty",)) == (7, 1)  # nothing is written: its key
    assert read_back.mark(("end",)) == (9, 6)


def test_no_such_path_falls_back_to_the_nearest_parents_key() -> None:
    read_back = parse(b"x: 1\nroles:\n  web:\n    port: 80\n", "f.yaml")
    assert read_back.mark(("roles", "web", "target")) == (3, 3)
    assert read_back.mark(("roles", "web", "target", 0, "deep"), key=True) == (3, 3)
    assert read_back.mark(("nothing",)) == (1, 1)
    assert Document("f.yaml", {}, {}, {}).mark(("a", 0)) == (1, 1)


def test_a_byte_order_mark_is_no_column() -> None:
    assert parse(b"\xef\xbb\xbfa: 1\n", "f.yaml").mark(("a",), key=True) == (1, 1)


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"# a comment\n", b"\xef\xbb\xbf", b"---\n", b"null\n", b"--- ~\n...\n"]
)
def test_nothing_written_is_an_empty_mapping(content: bytes) -> None:
    assert parse(content, "f.yaml").data == {}


@pytest.mark.usefixtures("loader")
def test_both_parsers_read_the_valid_corpus_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    # The pure parser takes no tab after a value; libyaml and the YAML specification do.
    files = [file for file in sorted((CORPUS / "valid").glob("*.yaml")) if file.stem != "tabs-after-values"]
    assert files
    here = [read(str(file)) for file in files]
    monkeypatch.setattr(document, "_LOADER", yaml.SafeLoader)
    assert here == [read(str(file)) for file in files]


@pytest.mark.usefixtures("loader")
def test_a_syntax_problem_comes_with_those_before_it() -> None:
    found = problems("a: 1\na: 2\n? [x]\n: &y 1\nb: 'open\n")
    assert [problem.line for problem in found] == [2, 3, 4, 5]


@pytest.mark.usefixtures("loader")
def test_depth_costs_neither_recursion_nor_time() -> None:
    for text in ("a: " + "[" * 1000, "a: " + "[" * 200_000, "a: " + "{x: " * 1000, "- " * 1000, "? " * 1000):
        assert any("deep" in problem.what for problem in problems(text))


def test_problems_are_one_line_each_whatever_the_name() -> None:
    with pytest.raises(ConfigError) as caught:
        parse(b'"a\\nb": {"a\\nb": !x 1}\n', "evil\nname\x1b[31m")
    assert str(caught.value).count("\n") == 0
    assert "\x1b" not in str(caught.value)


def test_dotted() -> None:
    assert dotted(("roles", "web", "access", 0, "deny")) == "roles.web.access[0].deny"
    assert dotted(()) == ""
    assert dotted(("a\nb", "x" * 100)) == "a\\nb." + "x" * 60 + "…"


@pytest.mark.parametrize("parser", LOADERS)
@examples(400)
@given(text=st.one_of(st.text(max_size=80), YAML_TEXT, YAML_LINES, st.text(alphabet=string.printable, max_size=80)))
@example(text='a: "\\UFFFFFFFF"')
@example(text='a: "\\ud800"')
@example(text="%YAML 1.9999999999999999999999999\n---\na: 1")
@example(text="a: " + "9" * 6000)
@example(text="a: *" + "x" * 2000)
@example(text="? " * 40)
def test_any_text_is_a_source_or_its_problems(parser: type, text: str) -> None:
    before, document._LOADER = document._LOADER, parser
    try:
        checked(text.encode("utf-8", "surrogatepass"))
    finally:
        document._LOADER = before


@examples(300)
@given(content=st.binary(max_size=80))
def test_any_bytes_are_a_source_or_its_problems(content: bytes) -> None:
    checked(content)


def checked(content: bytes) -> None:
    found: list[Problem] = []
    try:
        read_back = parse(content, "f.yaml")
        assert plain(read_back.data)
        assert all(line >= 1 and column >= 1 for line, column in read_back.values.values())
        return
    except ConfigError as error:
        found = error.problems
    assert found
    for problem in found:
        assert problem.line >= 0
        assert problem.column >= 0
        assert problem.what
        assert problem.fix
        assert str(problem).isprintable()


def plain(value: object) -> bool:
    if isinstance(value, dict):
        return all(type(key) is str and plain(item) for key, item in value.items())
    if isinstance(value, list):
        return all(plain(item) for item in value)
    return value is None or type(value) in (str, int, float, bool)
