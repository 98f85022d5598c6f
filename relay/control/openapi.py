"""The admin API and the discovery API as an OpenAPI 3.1 document. The tests hold it against the routes and their answers."""

from typing import Any, Final

from relay import __version__

_Schema = dict[str, Any]

_TEXT: Final[_Schema] = {"type": "string"}
_FLAG: Final[_Schema] = {"type": "boolean"}
_COUNT: Final[_Schema] = {"type": "integer", "minimum": 0}
_SECONDS: Final[_Schema] = {"type": "number"}
_PORT: Final[_Schema] = {"type": "integer", "minimum": 1, "maximum": 65535}
_ADDRESS: Final[_Schema] = {"type": "string", "description": "host:port, or [v6]:port"}
_COUNTS: Final[_Schema] = {"type": "object", "additionalProperties": _COUNT}


def _object(**properties: _Schema) -> _Schema:
    """With all of these, and nothing else."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _list(of: _Schema) -> _Schema:
    return {"type": "array", "items": of}


def _word(*words: str) -> _Schema:
    return {"type": "string", "enum": list(words)}


def _or_null(schema: _Schema) -> _Schema:
    return {"oneOf": [schema, {"type": "null"}]}


def _ref(name: str) -> _Schema:
    return {"$ref": f"#/components/schemas/{name}"}


_PORTS: Final = _object(first=_PORT, last=_PORT)
_TYPE: Final = _word("input", "internal")
_PROTOCOL: Final = _word("tcp", "http", "https")

_SCHEMAS: Final[dict[str, _Schema]] = {
    "Error": _object(error=_TEXT),
    "Identity": _object(service=_TEXT, instance=_TEXT, role=_TEXT, ordinal=_COUNT, address=_TEXT),
    "Hosts": _object(service=_TEXT, block=_TEXT),
    "Role": _object(
        name=_TEXT,
        kind=_word("listed", "counted"),
        count=_COUNT,
        instances=_list(_TEXT),
        endpoints=_list(_TEXT),
        uses={"type": "object", "additionalProperties": _object(endpoint=_TEXT, listen=_ADDRESS)},
    ),
    "Instance": _object(
        id=_TEXT,
        role=_TEXT,
        ordinal=_COUNT,
        address=_TEXT,
        metrics=_or_null(_ADDRESS),
        healthy=_FLAG,
        busy=_FLAG,
        down=_list(_TEXT),
        self=_FLAG,
        endpoints=_list(
            _object(name=_TEXT, type=_TYPE, protocol=_PROTOCOL, address=_ADDRESS, ports=_PORTS, healthy=_FLAG)
        ),
    ),
    "Endpoint": _object(
        name=_TEXT,
        role=_TEXT,
        endpoint=_TEXT,
        type=_TYPE,
        protocol=_PROTOCOL,
        ports=_PORTS,
        public_port=_or_null(_PORT),
        instance_ports=_or_null(_PORTS),
        **{"from": _or_null(_list(_TEXT))},
        instances=_list(_object(instance=_TEXT, address=_ADDRESS, healthy=_FLAG)),
        edges=_list(
            _object(
                instance=_TEXT,
                address=_or_null(_ADDRESS),
                instances=_list(_object(instance=_TEXT, address=_ADDRESS)),
                healthy=_FLAG,
            )
        ),
    ),
    "TargetGroup": _object(
        targets=_list(_ADDRESS),
        labels=_object(instance=_TEXT, service=_TEXT, __meta_relay_role=_TEXT, __meta_relay_ordinal=_TEXT),
    ),
    "Environment": {"type": "object", "additionalProperties": _TEXT},
}

_TARGET_STATUS: Final = _object(
    target=_ADDRESS,
    instance=_TEXT,
    health=_word("unknown", "up", "down"),
    active=_COUNT,
    connected=_COUNT,
    failures=_COUNT,
    ejections=_COUNT,
    ejected_for_s=_SECONDS,
    mean_connect_s=_or_null(_SECONDS),
)
_RULE: Final = _object(action=_word("permit", "deny"), network=_TEXT, source=_TEXT)
_CHANGES: Final = {
    "generation": _COUNT,
    "changes": _list(_TEXT),
    "warnings": _list(_TEXT),
    "notes": _list(_TEXT),
}

_ADMIN_SCHEMAS: Final[dict[str, _Schema]] = {
    "Refusal": _object(error=_TEXT, problems=_list(_TEXT)),
    # What is in it grows with relay; these are what it had from the beginning.
    "Status": {
        **_object(
            version=_TEXT,
            service=_TEXT,
            instance=_TEXT,
            generation=_COUNT,
            uptime_s=_SECONDS,
            draining=_FLAG,
            upgrading=_FLAG,
            busy_for_s=_SECONDS,
            program=_COUNT,
            worker_restarts=_COUNT,
            keeper=_object(pid=_COUNT),
            control=_object(pid=_COUNT, restarts=_COUNT),
            workers=_list({"type": "object"}),
            registry=_or_null(
                _object(
                    kind=_TEXT,
                    members=_COUNT,
                    age_s=_or_null(_SECONDS),
                    trouble=_TEXT,
                    rejected=_COUNT,
                    left_out=_list(_TEXT),
                    roles={"type": "object", "additionalProperties": _list(_COUNT)},
                )
            ),
            reload=_object(last_successful=_FLAG, last_success_timestamp=_SECONDS, failed=_COUNT),
            endpoints=_list(_ref("EndpointStatus")),
        ),
        "additionalProperties": True,
    },
    "EndpointStatus": {
        **_object(
            name=_TEXT,
            type=_word("input", "internal", "door"),
            protocol=_PROTOCOL,
            listen=_ADDRESS,
            leads_to=_TEXT,
            targets=_list(_TEXT),
            target_set=_list(_TARGET_STATUS),
            target_up=_or_null(_FLAG),
            active=_COUNT,
            accepted=_COUNT,
            denied=_COUNTS,
            would_deny=_COUNTS,
            closed=_COUNTS,
            received_bytes=_COUNT,
            sent_bytes=_COUNT,
            connect_failures=_COUNT,
        ),
        "additionalProperties": True,
    },
    "Connection": _object(
        endpoint=_TEXT,
        peer=_TEXT,
        state=_TEXT,
        age_s=_SECONDS,
        received_bytes=_COUNT,
        sent_bytes=_COUNT,
        worker=_COUNT,
    ),
    "Explanation": _object(
        **{"from": _TEXT},
        to=_TEXT,
        listen=_ADDRESS,
        edges=_list(_TEXT),
        verdict=_word("permit", "deny"),
        reason=_or_null(_TEXT),
        enforce=_word("strict", "audit"),
        rule=_or_null(_RULE),
        looked_at=_list(_RULE),
        otherwise=_word("permit", "deny"),
        why=_TEXT,
    ),
    "Route": _object(
        to=_TEXT,
        client=_TEXT,
        distribution=_TEXT,
        target=_or_null(_ADDRESS),
        instance=_or_null(_TEXT),
        order=_list(_TARGET_STATUS),
    ),
    "Busy": _object(busy_for_s=_SECONDS, behind_edge=_list(_TEXT), active=_COUNT, told=_FLAG),
    "Reloaded": _object(**_CHANGES),
    "WouldReload": _object(
        **_CHANGES, cut=_list(_object(endpoint=_TEXT, network=_TEXT, why=_TEXT, connections=_COUNT))
    ),
    "Upgrading": _object(**{"from": _TEXT}, to=_TEXT, program=_COUNT),
}


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
        "components": {"schemas": _SCHEMAS | (_ADMIN_SCHEMAS if admin else {})},
    }


def _discovery_paths() -> dict[str, Any]:
    role = _query("role", _TEXT, "Of this role alone, or of `edge`")
    healthy = _query("healthy", _word("1", "0", "true", "false"), "1: only those that may get new connections")
    last = _query("last_event_id", _TEXT, "As the header, for who cannot set it")
    last_header = {**last, "name": "Last-Event-ID", "in": "header", "description": "The `id` of the last event seen"}
    instance = {"name": "id", "in": "path", "required": True, "schema": _TEXT, "example": "web_IN_0"}
    watch = {
        "200": {
            "description": "`roster` with everything, then `joined`, `left` and `changed` with an instance",
            "content": {"text/event-stream": {"schema": _TEXT}},
        },
        "503": _json("There are too many watchers; Retry-After says when to come back", _ref("Error")),
    }
    return {
        "/v1/identity": _get("Which instance this machine is", _ref("Identity")),
        "/v1/roles": _get("The roles, and who of them is there", _list(_ref("Role"))),
        "/v1/instances": _get("The instances", _list(_ref("Instance")), role, healthy, errors=("404",)),
        "/v1/instances/{id}": _get("One instance", _ref("Instance"), instance, errors=("404",)),
        "/v1/endpoints": _get("The endpoints, and where they are", _list(_ref("Endpoint")), role, errors=("404",)),
        "/v1/watch": {"get": _operation("What changes, as server-sent events", watch, last_header, last)},
        "/v1/prometheus": _get("Whom to scrape, for Prometheus' http_sd", _list(_ref("TargetGroup"))),
        "/v1/environment": _get("What `relay env` prints", _ref("Environment"), errors=("409",)),
        "/v1/hosts": _get("What `relay hosts` prints", _ref("Hosts")),
        "/v1/openapi.json": _get("This document", {"type": "object"}),
    }


def _admin_paths() -> dict[str, Any]:
    to = _query("to", _TEXT, "ROLE/ENDPOINT")
    address, instance = _query("from", _TEXT, "The client's address"), _query("as", _TEXT, "It is this instance")
    client = _query("client", _TEXT, "ADDRESS:PORT")
    seconds = {**_query("for", {"type": "integer", "minimum": 0}, "Seconds; 0 ends it"), "required": True}
    dry = _query("dry_run", _word("1"), "1: say what would change, and do nothing")
    either = {"oneOf": [_ref("Reloaded"), _ref("WouldReload")]}
    return {
        "/v1/status": _get("What is open, and what it did so far", _ref("Status")),
        "/v1/connections": _get("Every open connection", _list(_ref("Connection"))),
        "/v1/explain": _get("The verdict on a source, and why", _ref("Explanation"), to, address, instance),
        "/v1/route": _get("Where an edge would send a client", _ref("Route"), to, client),
        "/v1/drain": _post(_json("How long, and who is connected", _ref("Busy")), "200", seconds, refused="400"),
        "/v1/reload": _post(_json("What has changed", either), "200", dry),
        "/v1/upgrade": _post(_json("It tried itself out, and begins", _ref("Upgrading")), "202"),
    }


def _get(summary: str, schema: _Schema, *parameters: _Schema, errors: tuple[str, ...] = ()) -> dict[str, Any]:
    told = {"404": "There is no such thing; `error` says which there are", "409": "Two names become one variable"}
    answers = {"200": _json(summary, schema), **{code: _json(told[code], _ref("Error")) for code in errors}}
    return {"get": _operation(summary, answers, *parameters)}


def _post(success: _Schema, code: str, *parameters: _Schema, refused: str = "409") -> dict[str, Any]:
    answers = {code: success}
    if refused == "409":
        answers["409"] = _json("Refused; nothing has changed", _ref("Refusal"))
    return {"post": _operation(success["description"], answers, *parameters)}


def _operation(summary: str, answers: dict[str, Any], *parameters: _Schema) -> dict[str, Any]:
    wrong = _json("The request is not as described here", _ref("Error"))
    return {"summary": summary, "parameters": list(parameters), "responses": {"400": wrong, **answers}}


def _json(description: str, schema: _Schema) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _query(name: str, schema: _Schema, description: str) -> _Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
