"""The sample files and the schemas beside them."""

import json
from pathlib import Path

import jsonschema  # type: ignore[import-untyped]
import pytest

from relay.config.load import load_service, load_settings
from relay.config.reading import read
from relay.config.schema import service_schema, settings_schema
from relay.config.settings import Settings

SAMPLES = Path(__file__).parents[2] / "config"
SCHEMAS = {"service": service_schema, "instance": settings_schema}


@pytest.mark.parametrize("name", SCHEMAS)
def test_the_schema_beside_the_sample_is_the_current_one(name: str) -> None:
    assert json.loads((SAMPLES / f"{name}.schema.json").read_text()) == SCHEMAS[name]()


@pytest.mark.parametrize("name", SCHEMAS)
def test_editors_find_the_schema_and_accept_the_sample(name: str) -> None:
    first = (SAMPLES / f"{name}.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={name}.schema.json"
    schema = json.loads((SAMPLES / f"{name}.schema.json").read_text())
    data = read(str(SAMPLES / f"{name}.yaml")).data
    assert data
    jsonschema.Draft7Validator(schema).validate(data)


def test_the_service_is_a_web_role_and_a_store() -> None:
    loaded = load_service(str(SAMPLES / "service.yaml"))
    assert loaded.warnings == ()
    roles = loaded.value.roles
    assert {name: len(role.instances) for name, role in roles.items()} == {"web": 2, "store": 1}
    assert {name: list(role.endpoints) for name, role in roles.items()} == {
        "web": ["http-in"],
        "store": ["postgres", "redis"],
    }
    assert [rule.action for rule in loaded.value.rules_of(roles["web"].endpoints["http-in"])] == ["deny"]


def test_the_settings_show_every_key() -> None:
    loaded = load_settings(str(SAMPLES / "instance.yaml"), required=True)
    assert loaded.document.data.keys() == settings_schema()["properties"].keys()
    shown = loaded.value.model_dump(exclude={"id", "role", "address", "registry"})
    assert shown == Settings().model_dump(exclude={"id", "role", "address", "registry"})
