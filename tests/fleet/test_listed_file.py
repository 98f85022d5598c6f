"""Files in the form of Prometheus' file_sd."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import SourceError
from relay.fleet.listed_file import Entry, entries_of
from tests.config.rig import YAML_LINES, YAML_TEXT


def of(text: str, path: str = "targets.yaml") -> tuple[Entry, ...]:
    return entries_of(text.encode(), path)


def test_yaml_and_json() -> None:
    expected = (
        ("10.0.0.4", 5432), ("10.0.0.5", 0), ("db.test", 5432), ("2001:db8::1", 0), ("2001:db8::2", 80), ("db", 0)
    )  # fmt: skip
    groups = [
        {"targets": ["10.0.0.4:5432", "10.0.0.5", "DB.test:5432"], "labels": {"job": "db"}},
        {"targets": ["2001:DB8::1", "[2001:db8::2]:80", "db."]},
        {"targets": []},
    ]
    assert of(json.dumps(groups), "targets.json") == of(json.dumps(groups)) == expected
    assert of("- targets: [10.0.0.4:5432]\n  labels: {a: &x b, c: *x}\n") == (("10.0.0.4", 5432),)
    assert of("[]") == of("- targets: []\n") == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no list of groups of targets"),
        ("targets: [10.0.0.4:1]", "is no list of groups of targets"),
        ("- 10.0.0.4:1", "has no list of `targets`"),
        ("- targets: 10.0.0.4:1", "has no list of `targets`"),
        ("- targets: [{}]", "a mapping is no target"),
        ("- targets: [10.0.0.4:0]", "`10.0.0.4:0` is no target; write `10.0.0.4:5432`"),
        ("- targets: ['10.0.0.4:']", "is no target"),
        ("- targets: [10.0.0.4:65536]", "is no target"),
        ("- targets: [10.0.0.4:١]", "is no target"),
        ("- targets: [http://db.test:80/]", "is no target"),
        ("- targets: [10.0.0.400:80]", "is no target"),
        ("- targets: ['']", "is no target"),
        ("- targets: [10.0.0.4\n- x", "targets.yaml:3: neither JSON nor YAML"),
        ("- targets: [10.0.0.4:1]\n--- ", "neither JSON nor YAML"),
    ],
)
def test_what_makes_no_sense(text: str, message: str) -> None:
    with pytest.raises(SourceError) as failed:
        of(text)
    assert message in str(failed.value)
    assert str(failed.value).startswith("targets.yaml")


def test_half_of_a_json_file() -> None:
    with pytest.raises(SourceError, match=r"t\.json:1: neither JSON nor YAML"):
        of('[{"targets": ["10.0.0.4:1", ', "t.json")


def test_too_many() -> None:
    with pytest.raises(SourceError, match="lists 1025 targets, and a role has 1024 at most; split it"):
        of(json.dumps([{"targets": ["10.0.0.4:1"] * 1025}]))
    aliases = "- &g\n  targets: [" + ", ".join(["a"] * 1000) + "]\n" + "- *g\n" * 9000
    with pytest.raises(SourceError, match="targets or more"):
        of(aliases)


@given(st.one_of(YAML_TEXT, YAML_LINES, st.binary(max_size=60)))
def test_any_text_is_targets_or_an_error(text: Any) -> None:
    content = text if isinstance(text, bytes) else text.encode()
    for path in ("t.yaml", "t.json"):
        try:
            found = entries_of(content, path)
        except SourceError:
            continue
        assert all(isinstance(host, str) and 0 <= port <= 65535 for host, port in found)
