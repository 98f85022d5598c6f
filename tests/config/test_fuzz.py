"""Any bytes as a service file: it is read, or every problem is told; nothing else comes of it, and that in time."""

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.roster import Member, Roster
from relay.config.settings import Settings
from relay.errors import ConfigError, Problem
from tests.config.rig import YAML_LINES, YAML_TEXT
from tests.envelope.promises import edited
from tests.harness import examples, heap_set_aside

READ_S: Final = 5.0  # of CPU: a file of some kilobytes takes 20 ms

REPOSITORY: Final = Path(__file__).parents[2]
SAMPLE: Final = (REPOSITORY / "config" / "service.yaml").read_text()
CORPUS: Final = [path.read_text() for path in sorted((REPOSITORY / "tests/corpus/valid").glob("*.yaml"))]
FILES: Final = [SAMPLE, *(text for text in CORPUS if "roles" in text)]


def outcome(content: bytes) -> str:
    """`right`: every instance of it could start. `wrong`, or no YAML at all: it has problems, and each can be shown."""
    began_s = time.thread_time()
    problems: list[Problem] = []
    found = "no YAML"
    try:
        source = parse(content, "service.yaml")
        found = "wrong"
        service = parse_service(source).value
        registered = [Member(name, 0, f"fd00::{number}") for number, name in enumerate(service.counted)]
        roster = Roster.of_service(service, registered)
        for member in roster:
            compile_snapshot(service, Settings(), member.id, generation=1, file="service.yaml", roster=roster)
        found = "right"
    except ConfigError as error:
        problems = error.problems
    took_s = time.thread_time() - began_s
    # What YAML 1.1 takes for the end of a line. What is missing at the end of the file is told of the line after it.
    last = 2 + sum(content.decode(errors="replace").count(end) for end in "\r\n\x85\u2028\u2029")
    for problem in problems:
        assert str(problem).isprintable()
        assert problem.what
        assert problem.fix
        assert 0 <= problem.line <= last
    assert bool(problems) == (found != "right")
    assert took_s < READ_S
    return found


# --- any bytes ------------------------------------------------------------------------------------------------------------


@examples(300)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | (YAML_TEXT | YAML_LINES).map(str.encode))
def test_any_bytes(content: bytes) -> None:
    outcome(content)


# --- a right file with something done to it -------------------------------------------------------------------------------

# What stands in such a file, and what could be mistaken for it.
TOKENS: Final = (
    *("version", "service", "roles", "access_lists", "instances", "endpoints", "type", "port", "public_port", "target"),
    *("access", "from", "limits", "timeouts", "deny", "permit", "enforce", "uses", "input", "internal", "tcp", "udp"),
    *(
        "10.0.0.4",
        "10.0.0.0/8",
        "::1",
        "::/0",
        "::ffff:10.0.0.4",
        "fe80::1%eth0",
        "127.0.0.1:3000",
        "[::1]:1",
        "unix:/x",
    ),
    *("0", "80", "-1", "65536", "8995-8999", "9-1", "1.5", "1e5", "22:22", "010", "9" * 40, "true", "no", "~", "null"),
    *(
        "{",
        "}",
        "[",
        "]",
        "{}",
        "[]",
        ":",
        "- ",
        "? ",
        ", ",
        "#",
        "'",
        '"',
        "|",
        ">",
        "&a ",
        "*a",
        "!!str ",
        "<<",
        "---",
    ),
    *("\t", "\r", "\0", "\x85", "\u2028", "\ufeff", "é", "\U0001f642", "\\", '"\\ud800"', "%YAML 1.2"),
)


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A right file after a few things that editors, people and merges do."""
    lines = draw(st.sampled_from(FILES)).split("\n")
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(lines) - 1))
        line = lines[at]
        match draw(st.sampled_from(["token", "token", "word", "repeat", "remove", "move", "indent", "dedent", "join"])):
            case "token":
                column = draw(st.integers(0, len(line)))
                lines[at] = line[:column] + draw(st.sampled_from(TOKENS)) + line[column:]
            case "word":
                before, colon, _ = line.partition(":")
                lines[at] = f"{before}{colon} {draw(st.sampled_from(TOKENS))}"
            case "repeat":
                lines[at:at] = lines[at : at + draw(st.integers(1, 6))]
            case "remove":
                del lines[at : at + draw(st.integers(1, 3))]
            case "move":
                lines.insert(draw(st.integers(0, len(lines) - 1)), lines.pop(at))
            case "indent":
                lines[at] = " " * draw(st.integers(1, 4)) + line
            case "dedent":
                lines[at] = line[draw(st.integers(1, 4)) :]
            case "join":
                lines[at : at + 2] = ["".join(lines[at : at + 2])]
        lines = lines or [""]
    return "\n".join(lines).encode()


def test_a_right_file_with_lines_spoilt() -> None:
    seen: Counter[str] = Counter()

    @examples(300)
    @given(spoilt())
    def spoil(content: bytes) -> None:
        seen[outcome(content)] += 1

    spoil()
    assert seen.keys() == {"right", "wrong", "no YAML"}


@examples(300)
@given(st.sampled_from(FILES).flatmap(lambda text: edited(text.encode())))
def test_a_right_file_with_bytes_spoilt(content: bytes) -> None:
    outcome(content)


def test_the_files_are_right() -> None:
    assert [outcome(text.encode()) for text in FILES] == ["right"] * len(FILES)


# --- large files ----------------------------------------------------------------------------------------------------------

HEAD: Final = "version: 1\nservice: s\nroles:\n  web:\n    instances: [10.0.0.4]\n    endpoints:\n"
TARGET: Final = "target: '127.0.0.1:1'"


def listed(before: str, item: str) -> Callable[[int], str]:
    """A list of so many of these."""
    return lambda count: f"{before}[{item * count}]{'}' if '{' in before else ''}\n"


def repeated(head: str, line: str) -> Callable[[int], str]:
    """So many lines, each with its number and a port."""
    return lambda count: head + "".join(line.format(n=n, port=n % 60_000 + 1) for n in range(count))


SHAPES: Final[dict[str, Callable[[int], str]]] = {
    "open brackets": lambda count: "a: " + "[" * count,
    "open lists": lambda count: "- " * count,
    "an open text": lambda count: 'a: "' + "x\n" * count,
    "tabs": lambda count: "a:\n" + "\t" * count,
    "unknown keys": repeated("", "k{n}: 1\n"),
    "keys without values": repeated("", "k{n}:\n"),
    "the same key": repeated("", "a: 1\n"),
    "anchors": repeated("", "k{n}: &a{n} 1\n"),
    "aliases": listed("a: ", "*a,"),
    "one misspelt key": repeated(HEAD, "      e{n}: {{type: input, public_prt: {port}, " + TARGET + "}}\n"),
    "endpoints": repeated(HEAD, "      e{n}: {{type: internal, port: {port}, " + TARGET + "}}\n"),
    "endpoints on the same ports": repeated(HEAD, "      e{n}: {{type: internal, port: 1-1024, " + TARGET + "}}\n"),
    "endpoints in a ring": repeated(HEAD, "      e{n}: {{type: internal, port: {port}, target: '10.0.0.4:{port}'}}\n"),
    "rules": listed(HEAD + "      in: {type: input, public_port: 80, " + TARGET + ", access: ", "{deny: 10.0.0.9},"),
    "wrong rules": listed(HEAD + "      in: {type: input, public_port: 80, " + TARGET + ", access: ", "{deny: x},"),
    "wrong names": listed(HEAD + "      in: {type: internal, port: 80, " + TARGET + ", from: ", "wev,"),
    "the same address": listed("version: 1\nservice: s\nroles:\n  web:\n    instances: ", "10.0.0.4,"),
    "a long address": lambda count: "version: 1\nservice: s\nroles: {web: {instances: ['" + "1." * count + "']}}",
}
SMALL_BYTES: Final = 12_000
TIMES: Final = 8
# What is linear takes 8 times as long for 8 times as much, and what is quadratic 64 times.
LONGER_MAX: Final = 16
# Below this a processor that is shared tells nothing.
MEASURABLE_S: Final = 0.05
TRIES: Final = 5


@pytest.mark.alone
@pytest.mark.parametrize("shape", SHAPES)
def test_the_time_grows_with_the_size_and_not_with_its_square(shape: str) -> None:
    make = SHAPES[shape]
    count = SMALL_BYTES * 1000 // len(make(1000))
    small, large = make(count).encode(), make(TIMES * count).encode()
    # Again where it seems too much: another program may have had the processor's caches meanwhile.
    with heap_set_aside():
        assert any(takes_s(large) < max(LONGER_MAX * takes_s(small), MEASURABLE_S) for _ in range(TRIES))


def takes_s(content: bytes) -> float:
    """CPU time until all is told about it."""
    began_s = time.thread_time()
    outcome(content)
    return time.thread_time() - began_s
