"""The two files' JSON Schemas, which editors use to complete and check as one types."""

from functools import cache
from typing import Any

from pydantic import BaseModel

from relay.config.model import Service
from relay.config.settings import Settings


@cache
def service_schema() -> dict[str, Any]:
    """The JSON Schema (draft-07) of service.yaml's text. A shared value: copy it before changing it."""
    return _schema(Service, "service", "relay service")


@cache
def settings_schema() -> dict[str, Any]:
    """The JSON Schema (draft-07) of instance.yaml's text. A shared value: copy it before changing it."""
    return _schema(Settings, "instance", "relay instance settings")


def _schema(model: type[BaseModel], name: str, title: str) -> dict[str, Any]:
    schema = model.model_json_schema(mode="validation", ref_template="#/definitions/{model}")
    # Editors' YAML servers promise draft-07 and below, where the shared parts stand under this name.
    definitions = schema.pop("$defs", {})
    head = {"$schema": "http://json-schema.org/draft-07/schema#", "$id": f"urn:relay:{name}:1", "title": title}
    return head | {
        key: _tidied(part) for key, part in (schema | {"definitions": definitions}).items() if key != "title"
    }


def _tidied(part: Any) -> Any:
    """The schema as a person would write it, for the editors that show it."""
    if isinstance(part, list):
        return [_tidied(item) for item in part]
    if not isinstance(part, dict):
        return part
    kept = {key: _tidied(value) for key, value in part.items()}
    if isinstance(kept.get("title"), str):  # derived from the key by pydantic, and says no more than the key
        del kept["title"]
    if isinstance(kept.get("description"), str):
        kept["description"] = " ".join(kept["description"].split())
    if "default" in kept and (kept["default"] is None or "$ref" in kept):  # null cannot be written; a $ref has its own
        del kept["default"]
    if {"type": "null"} in kept.get("anyOf", ()):
        kept |= next(each for each in kept.pop("anyOf") if each != {"type": "null"})
    if "patternProperties" in kept:  # which would let any name that does not match through
        [(pattern, value)] = kept.pop("patternProperties").items()
        kept |= {"propertyNames": {"pattern": pattern}, "additionalProperties": value}
    return kept
