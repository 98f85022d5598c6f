"""A file's path to its model, or to every problem of the file in an operator's words."""

import copy
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from relay.config.check import check_pair, check_service
from relay.config.document import Document, KeyPath, dotted
from relay.config.fields import FOLLOWS, Rule
from relay.config.lint import lint_service
from relay.config.model import Service
from relay.config.reading import is_there, read, unreadable
from relay.config.schema import service_schema, settings_schema
from relay.config.settings import Settings
from relay.config.wording import nearest, shown
from relay.errors import ConfigError, Problem, RelayBug, UnreadableError, WrongValue

__all__ = [
    "Loaded",
    "check_files",
    "find_settings",
    "kind_of",
    "load_service",
    "load_settings",
    "parse_service",
    "parse_settings",
]

Model = TypeVar("Model", bound=BaseModel)
Unknown = dict[KeyPath, str | None]
"""Where the unknown keys are, and the known key that each most likely misspells."""

# pydantic names a default that fails by its field, not by its key. The fields are an endpoint's.
_KEY_OF_FIELD = {"listen_ports": "port", "dead_s": "dead"}


SERVICE_FILE = "/etc/relay/service.yaml"
"""Where the service is described, unless something else says where."""
SETTINGS_FILE = "/etc/relay/instance.yaml"


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Model]):
    """A file that can be used: its model, what its author should still look at, and its text's data and marks."""

    value: Model
    warnings: tuple[Problem, ...]
    document: Document


def load_service(path: str, *, piped: bool = False) -> Loaded[Service]:
    """The service file at `path`; `piped` lets it be what the command line's caller has opened.

    Raises ConfigError with every problem, warnings among them.
    """
    return parse_service(read(path, piped=piped))


def load_settings(path: str, *, required: bool) -> Loaded[Settings]:
    """The settings file at `path`; the defaults when there is none and it is not `required`. Raises ConfigError."""
    if not required:
        try:
            if not is_there(path):
                return Loaded(Settings(), (), Document(path, {}, {}, {}))
        except UnreadableError as error:
            raise unreadable(error) from None
    return parse_settings(read(path))


def find_settings(path: str | None) -> Loaded[Settings]:
    """The settings at `path`, else where RELAY_SETTINGS says, else the usual file if there is one. Raises ConfigError."""
    named = path or os.environ.get("RELAY_SETTINGS")
    return load_settings(named or SETTINGS_FILE, required=named is not None)


def parse_service(document: Document) -> Loaded[Service]:
    """The service in `document`. Raises ConfigError with every problem, warnings among them."""
    if not document.data:
        raise ConfigError([Problem(document.path, 1, 1, "", "the file is empty", "start it with `version: 1`")])
    service, errors = _validate(Service, document.data)
    unknown = _unknown_keys(errors, service_schema())
    problems = _problems(errors, unknown, document, service_schema())
    if errors:
        # What is right is still checked as a whole, so that one run shows all there is to do.
        service, _ = _validate(Service, _without(document.data, errors, unknown))
    if service is not None:
        problems += check_service(service, document) + lint_service(service, document)
    if service is None or any(problem.severity == "error" for problem in problems):
        raise ConfigError(problems)
    _number_rules(service, document)
    return Loaded(service, tuple(problems), document)


def parse_settings(document: Document) -> Loaded[Settings]:
    """The settings in `document`, which may be empty. Raises ConfigError with every problem."""
    settings, errors = _validate(Settings, document.data)
    unknown = _unknown_keys(errors, settings_schema())
    problems = _problems(errors, unknown, document, settings_schema())
    if settings is None or problems:
        raise ConfigError(problems)
    return Loaded(settings, (), document)


def kind_of(document: Document) -> Literal["service", "settings"]:
    """Which of the two files it is, by its keys (slips of spelling count too); where they do not tell, by its name."""
    kinds: dict[str, Literal["service", "settings"]] = {}
    kinds |= dict.fromkeys(service_schema()["properties"], "service")
    kinds |= dict.fromkeys(settings_schema()["properties"], "settings")
    votes = Counter(kinds[near] for key in document.data if (near := nearest(key, kinds)))
    if votes["service"] != votes["settings"]:
        return max(votes, key=lambda kind: votes[kind])
    return "settings" if os.path.basename(document.path).startswith("instance") else "service"


def check_files(paths: Iterable[str]) -> list[Problem]:
    """Every problem of the files, errors and warnings, sorted by place. No problem: an empty list. Raises nothing.

    A file may be what the command line's caller has opened: `/dev/stdin`, a shell's `<(…)`.
    """
    found: list[Problem] = []
    services: list[Service] = []
    settings: list[Loaded[Settings]] = []
    for path in paths:
        try:
            document = read(path, piped=True)
            if kind_of(document) == "service":
                service = parse_service(document)
                services.append(service.value)
                found += service.warnings
            else:
                settings.append(parse_settings(document))
        except ConfigError as error:
            found += error.problems
    if len(services) == 1:  # with several nobody knows which belongs to which
        for each in settings:
            found += check_pair(services[0], each.value, each.document)
    return sorted(found)


def _number_rules(service: Service, document: Document) -> None:
    lists: list[tuple[KeyPath, tuple[Rule, ...]]] = [
        (("access_lists", name), rules) for name, rules in service.access_lists.items()
    ]
    lists += [
        (("roles", role_name, "endpoints", name, "access"), endpoint.access)
        for role_name, role in service.roles.items()
        for name, endpoint in role.endpoints.items()
        if not isinstance(endpoint.access, str)
    ]
    for path, rules in lists:
        for index, rule in enumerate(rules):
            # Nobody else has the rule yet, and its equality and hash leave `line` out.
            object.__setattr__(rule, "line", document.mark((*path, index))[0])


def _validate(model: type[Model], data: dict[str, Any]) -> tuple[Model | None, list[ErrorDetails]]:
    try:
        return model.model_validate(data), []
    except ValidationError as error:
        return None, error.errors(include_url=False)


def _path(error: ErrorDetails) -> KeyPath:
    """The error's place in the file."""
    loc = error["loc"]
    if error["type"] == "extra_forbidden":
        return loc
    if _in_name(error):
        return loc[:-1]
    match loc:
        case ("roles", role, kind, name, field):
            return "roles", role, kind, name, _KEY_OF_FIELD.get(str(field), field)
        case (*above, "timeouts", field):
            return *above, "timeouts", _KEY_OF_FIELD.get(str(field), field)
    return loc


def _in_name(error: ErrorDetails) -> bool:
    """Whether it is the name of a role, a list or an endpoint that is wrong: pydantic puts `[key]` behind it."""
    match error["loc"]:
        case ("roles" | "access_lists", _, "[key]") | ("roles", _, "endpoints" | "uses", _, "[key]"):
            return error["type"] != "extra_forbidden"
    return False


def _without(data: dict[str, Any], errors: list[ErrorDetails], unknown: Unknown) -> dict[str, Any]:
    """The data less every endpoint, or else role, that has an error, and with keys read as what they most likely meant."""
    rest: dict[str, Any] = copy.deepcopy(data) | {"version": 1, "service": "service"}
    for path, near in unknown.items():
        holder = _at(rest, path[:-1])
        value = holder.pop(path[-1])
        match path:
            case ("roles", _, "endpoints" | "uses", _, _, *_) if near is not None and near not in holder:
                holder[near] = value
    meant = _meant(unknown)
    for error in errors:
        path = _path(error)
        if path in unknown or path in meant or path[0] in ("version", "service"):
            continue
        # Half an endpoint would clash with others in ways that its author never wrote.
        match path:
            case ("roles", role, "endpoints" | "uses" as kind, name, *_):
                path = "roles", role, kind, name
            case _:
                path = path[:2]
        holder = _at(rest, path[:-1])
        if isinstance(holder, dict):
            holder.pop(path[-1], None)
    return rest


def _at(data: Any, path: KeyPath) -> Any:
    """The value at `path`; None where there is none."""
    for step in path:
        try:
            data = data[step]
        except (KeyError, IndexError, TypeError):
            return None
    return data


def _unknown_keys(errors: list[ErrorDetails], schema: Any) -> Unknown:
    paths = [error["loc"] for error in errors if error["type"] == "extra_forbidden"]
    return {path: nearest(str(path[-1]), _keys(_schema_at(schema, path[:-1]))) for path in paths}


def _meant(unknown: Unknown) -> set[KeyPath]:
    return {(*path[:-1], near) for path, near in unknown.items() if near is not None}


def _problems(errors: list[ErrorDetails], unknown: Unknown, document: Document, schema: Any) -> list[Problem]:
    """One problem for each mistake: pydantic's errors in plain words, and the keys that were left empty."""
    found = [document.problem(path, *_unknown(path, near, schema), key=True) for path, near in unknown.items()]
    nulls = {
        path for path in _nulls(document.data, ()) if not any(path[:end] in unknown for end in range(len(path) + 1))
    }
    found += [document.problem(path, *_empty(path, schema)) for path in nulls]
    misspelt = {path for path in _meant(unknown) if path not in document.values}  # not missing, but under another name
    for error in errors:
        path = _path(error)
        if error["type"] != FOLLOWS and path not in unknown and path not in nulls and path not in misspelt:
            found.append(document.problem(path, *_wording(error, path, schema), key=_in_name(error)))
    return found


def _nulls(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """Where nothing is written. No key of either file can have no value."""
    if value is None:
        yield path
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _nulls(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _nulls(item, (*path, index))


def _empty(path: KeyPath, schema: Any) -> tuple[str, str]:
    needed = path and path[-1] in _schema_at(schema, path[:-1]).get("required", ())
    example = _example(schema, _schema_at(schema, path))
    return "is empty", f"write a value such as `{example}`" + ("" if needed else ", or remove the key")


def _unknown(path: KeyPath, near: str | None, schema: Any) -> tuple[str, str]:
    listed = ", ".join(f"`{key}`" for key in _keys(_schema_at(schema, path[:-1])))
    return f"unknown key {shown(path[-1])}", f"did you mean `{near}`?" if near else f"the keys here are {listed}"


def _wording(error: ErrorDetails, path: KeyPath, schema: Any) -> tuple[str, str]:
    """What is wrong with a value, and what to write."""
    part = _schema_at(schema, path)
    match error["type"]:
        case "value_error":
            wrong = error["ctx"]["error"]
            assert isinstance(wrong, WrongValue), wrong
            return wrong.what, wrong.remedy
        case "missing":
            return "is missing", f"write `{path[-1]}: {_example(schema, part)}`"
        case "tuple_type":
            return f"{shown(error['input'])} is not a list", f"write `{_example(schema, part)}`"
        case "dict_type":
            return f"{shown(error['input'])} is not a mapping", "write names with keys below them"
        case "model_type":
            keys = ", ".join(f"`{key}`" for key in _keys(part))
            return f"{shown(error['input'])} is not a mapping", f"write one or more of the keys {keys}"
        case other:
            raise RelayBug(f"no wording for pydantic's error {other} at {dotted(path)}")


def _schema_at(schema: Any, path: KeyPath) -> Any:
    """The part of a JSON Schema of model.py that describes the value at `path`; {} where it describes nothing."""
    part = _resolved(schema, schema)
    for step in path:
        if isinstance(step, int):
            part = next((each["items"] for each in (part, *part.get("anyOf", ())) if "items" in each), {})
        else:
            part = part.get("properties", {}).get(step) or part.get("additionalProperties") or {}
        part = _resolved(schema, part)
    return part


def _resolved(schema: Any, part: Any) -> Any:
    for choice in part.get("anyOf", ()):
        if "$ref" in choice:
            part = choice
    return schema["definitions"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part


def _keys(part: Any) -> list[str]:
    return list(part.get("properties", {}))


def _example(schema: Any, part: Any) -> str:
    """How a value of this part of the schema may look, as YAML on one line."""
    if "const" in part:
        return str(part["const"])
    if "enum" in part:
        return str(part["enum"][0])
    if part.get("examples"):
        return str(part["examples"][0])
    if "anyOf" in part:
        return _example(schema, part["anyOf"][-1])
    if part.get("type") == "array":
        item = _resolved(schema, part["items"])
        return f"[{_example(schema, item)}]"
    keys = part.get("required") or _keys(part)[:1] or ["name"]
    return "{" + ", ".join(f"{key}: …" for key in keys) + "}"
