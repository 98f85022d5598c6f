"""The admin API and the discovery API as an OpenAPI 3.1 document. Its schemas are those of the types in answers.py."""

from functools import cache
from typing import Any, Final

from pydantic import TypeAdapter

from relay import __version__
from relay.control import answers, done

_Schema = dict[str, Any]

_TEXT: Final[_Schema] = {"type": "string"}

_DISCOVERY: Final[tuple[Any, ...]] = (
    answers.Error,
    answers.Identity,
    answers.HostsBlock,
    answers.RoleAnswer,
    answers.InstanceAnswer,
    answers.EndpointAnswer,
    answers.TargetGroup,
)
_ADMIN: Final[tuple[Any, ...]] = (
    answers.Refusal,
    answers.Status,
    answers.Connection,
    answers.Explanation,
    answers.RouteAnswer,
    done.Busy,
    done.Hold,
    done.Weighed,
    done.Reloaded,
    done.WouldReload,
    done.Upgrading,
)


def _schemas(types: tuple[Any, ...]) -> dict[str, _Schema]:
    """The schemas of these types and of all that they are made of, by name."""
    adapters = [(each.__name__, "serialization", TypeAdapter(each)) for each in types]
    _, found = TypeAdapter.json_schemas(adapters, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    named: dict[str, _Schema] = found["$defs"]
    return {name: _exact(schema) for name, schema in named.items()}


def _exact(schema: _Schema) -> _Schema:
    """With these properties and no others; and without the titles that pydantic makes of their names."""
    properties = {
        name: {key: value for key, value in each.items() if key != "title"}
        for name, each in schema["properties"].items()
    }
    return {**schema, "properties": properties, "additionalProperties": False}


def _list(of: _Schema) -> _Schema:
    return {"type": "array", "items": of}


def _word(*words: str) -> _Schema:
    return {"type": "string", "enum": list(words)}


def _ref(kind: Any) -> _Schema:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


# Made when somebody asks, once: making it at the start took 30 ms and made 5 MiB of what control shares its own.
@cache
def document(*, admin: bool) -> dict[str, Any]:
    """The document of the discovery API or, with `admin`, of both: what a socket serves is what its document says."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "relay: admin and discovery" if admin else "relay: discovery",
            "version": __version__,
            "description": "Every GET can be a HEAD. What is wrong with a request, `error` says; also where a path (404) "
            "or its method (405) is not there, and on the loopback port where `Host` is another machine's (421).",
        },
        "servers": [{"url": "/"}],
        "paths": _discovery_paths() | (_admin_paths() if admin else {}),
        "components": {"schemas": _schemas(_DISCOVERY + _ADMIN if admin else _DISCOVERY)},
    }


def _discovery_paths() -> dict[str, Any]:
    role = _query("role", _TEXT, "Of this role alone, or of `edge`")
    healthy = _query("healthy", _word("1", "0", "true", "false"), "1: only those that may get new connections")
    last = _query("last_event_id", _TEXT, "As the header, for who cannot set it")
    last_header = {**last, "name": "Last-Event-ID", "in": "header", "description": "The `id` of the last event seen"}
    variables = {"type": "object", "additionalProperties": _TEXT}
    instance = {"name": "id", "in": "path", "required": True, "schema": _TEXT, "example": "web_IN_0"}
    watch = {
        "200": {
            "description": "`roster` with everything, then `joined`, `left` and `changed` with an instance",
            "content": {"text/event-stream": {"schema": _TEXT}},
        },
        "503": _json("There are too many watchers; Retry-After says when to come back", _ref(answers.Error)),
    }
    return {
        "/v1/identity": _get("Which instance this machine is", _ref(answers.Identity)),
        "/v1/roles": _get("The roles, and who of them is there", _list(_ref(answers.RoleAnswer))),
        "/v1/instances": _get("The instances", _list(_ref(answers.InstanceAnswer)), role, healthy, errors=("404",)),
        "/v1/instances/{id}": _get("One instance", _ref(answers.InstanceAnswer), instance, errors=("404",)),
        "/v1/endpoints": _get(
            "The endpoints, and where they are", _list(_ref(answers.EndpointAnswer)), role, errors=("404",)
        ),
        "/v1/watch": {"get": _operation("What changes, as server-sent events", watch, last_header, last)},
        "/v1/prometheus": _get("Whom to scrape, for Prometheus' http_sd", _list(_ref(answers.TargetGroup))),
        "/v1/environment": _get("What `relay env` prints", variables, errors=("409",)),
        "/v1/hosts": _get("What `relay hosts` prints", _ref(answers.HostsBlock)),
        "/v1/openapi.json": _get("This document", {"type": "object"}),
    }


def _admin_paths() -> dict[str, Any]:
    to = _query("to", _TEXT, "ROLE/ENDPOINT")
    address, instance = _query("from", _TEXT, "The client's address"), _query("as", _TEXT, "It is this instance")
    client = _query("client", _TEXT, "ADDRESS:PORT")
    endpoint = {**_query("endpoint", _TEXT, "ROLE/ENDPOINT, or a door out: ROLE/NAME"), "required": True}
    seconds = {**_query("for", {"type": "integer", "minimum": 0}, "Seconds; 0 ends it"), "required": True}
    target = {**_query("target", _TEXT, "One of its targets: an instance, or the target itself"), "required": True}
    weight = {**_query("weight", _TEXT, "A whole number up to 256; `off`: what the file says"), "required": True}
    dry = _query("dry_run", _word("1"), "1: say what would change, and do nothing")
    either = {"oneOf": [_ref(done.Reloaded), _ref(done.WouldReload)]}
    return {
        "/v1/status": _get("What is open, and what it did so far", _ref(answers.Status)),
        "/v1/connections": _get("Every open connection", _list(_ref(answers.Connection))),
        "/v1/explain": _get("The verdict on a source, and why", _ref(answers.Explanation), to, address, instance),
        "/v1/route": _get("Where an edge would send a client", _ref(answers.RouteAnswer), to, client),
        "/v1/drain": _post(_json("How long, and who is connected", _ref(done.Busy)), "200", seconds, refused="400"),
        "/v1/hold": _post(_json("Who waits", _ref(done.Hold)), "200", endpoint, seconds, refused="400"),
        "/v1/release": _post(_json("Who waited", _ref(done.Hold)), "200", endpoint, refused="400"),
        "/v1/weight": _post(_json("Its weight from now on", _ref(done.Weighed)), "200", endpoint, target, weight),
        "/v1/reload": _post(_json("What has changed", either), "200", dry),
        "/v1/upgrade": _post(_json("It tried itself out, and begins", _ref(done.Upgrading)), "202"),
    }


def _get(summary: str, schema: _Schema, *parameters: _Schema, errors: tuple[str, ...] = ()) -> dict[str, Any]:
    told = {"404": "There is no such thing; `error` says which there are", "409": "Two names become one variable"}
    responses = {"200": _json(summary, schema), **{code: _json(told[code], _ref(answers.Error)) for code in errors}}
    return {"get": _operation(summary, responses, *parameters)}


def _post(success: _Schema, code: str, *parameters: _Schema, refused: str = "409") -> dict[str, Any]:
    responses = {code: success}
    if refused == "409":
        responses["409"] = _json("Refused; nothing has changed", _ref(answers.Refusal))
        responses["503"] = _json("An upgrade is replacing control; ask again", _ref(answers.Error))
    return {"post": _operation(success["description"], responses, *parameters)}


def _operation(summary: str, responses: dict[str, Any], *parameters: _Schema) -> dict[str, Any]:
    wrong = _json("The request is not as described here", _ref(answers.Error))
    return {"summary": summary, "parameters": list(parameters), "responses": {"400": wrong, **responses}}


def _json(description: str, schema: _Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: _Schema, description: str) -> _Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
