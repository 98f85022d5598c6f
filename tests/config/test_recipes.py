"""The recipes: each is right, has only the warnings that its page tells, and stands on the page as it is in the file."""

import json
import re
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from relay.config.load import load_service
from relay.config.reading import read

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "config" / "recipes").iterdir())
PAGE = (ROOT / "docs" / "recipes.md").read_text()
SECTIONS = {
    found[1]: section
    for section in PAGE.split("\n## ")[1:]
    if (found := re.search(r"^\[(\S+)\]\(\.\./config/recipes/\1\)", section, re.MULTILINE))
}


def test_each_file_has_a_section_and_stands_in_the_table() -> None:
    assert sorted(SECTIONS) == [file.name for file in FILES]
    for name in SECTIONS:
        assert PAGE.count(f"[{name}](../config/recipes/{name})") == 2


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_it_has_only_the_warnings_that_are_told(file: Path) -> None:
    told = set(re.findall(r"`(roles\.[\w.-]+)`", SECTIONS[file.name]))
    assert {problem.path for problem in load_service(str(file)).warnings} == told


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_editors_find_the_schema_and_accept_it(file: Path) -> None:
    assert file.read_text().splitlines()[0] == "# yaml-language-server: $schema=../service.schema.json"
    schema = json.loads((file.parent / "../service.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(read(str(file)).data)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_what_the_page_shows_is_the_files_own(file: Path) -> None:
    shown = re.findall(r"```yaml\n(.*?)```", SECTIONS[file.name], re.DOTALL)
    assert shown
    for each in shown:
        assert each in file.read_text()
