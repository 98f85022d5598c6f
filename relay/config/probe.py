"""How targets are probed, as the service file has it."""

from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidatorFunctionWrapHandler, WithJsonSchema, field_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from relay.config import values
from relay.config.fields import FOLLOWS, Duration, Keys, Port, absent, text, whole, words
from relay.config.wording import shown
from relay.errors import WrongValue

_SPOKEN_MAX_BYTES: Final = 1024  # no protocol's greeting is longer, and it is kept for each endpoint
_SPOKEN: Final = {"type": "string", "minLength": 1, "maxLength": _SPOKEN_MAX_BYTES, "pattern": r"^[\x00-\xFF]*$"}
_STATUSES: Final = range(200, 600)  # RFC 9110 section 15, of those that end an answer
_STATUS: Final = {"type": "integer", "minimum": _STATUSES.start, "maximum": _STATUSES.stop - 1}
_LIST: Final[JsonDict] = {"type": "array", "description": "The statuses that are good."}
_TEXT: Final[JsonDict] = {"type": "string", "description": "What the answer begins with."}
_IN_A_ROW_MAX: Final = 100  # minutes at the default interval: what is longer is a slip


def _spoken(value: object) -> str:
    """What is sent or expected. Each character is one byte, so that a protocol that is no text can be written too."""
    if not isinstance(value, str):
        raise WrongValue(f"{shown(value)} is not a text", f'write it in double quotes, such as "{_example(value)}"')
    if not value:
        raise WrongValue("is an empty text", 'write one such as "PING\\r\\n", or remove the key')
    if (beyond := next((each for each in value if ord(each) > 0xFF), None)) is not None:
        raise WrongValue(f"{shown(beyond)} is more than one byte", 'write each of its bytes, such as "\\xE2"')
    if len(value) > _SPOKEN_MAX_BYTES:
        raise WrongValue(f"it has {len(value)} bytes", f"write at most {_SPOKEN_MAX_BYTES}")
    return value


def _example(value: object) -> str:
    return str(value) if type(value) is int and abs(value) < 10**9 else "PING\\r\\n"


def _statuses(value: object) -> tuple[int, ...]:
    """A list of the statuses that are good."""
    if not isinstance(value, list | tuple):
        fix = f"write `[{value}]`" if type(value) is int and value in _STATUSES else "write one such as `[200, 204]`"
        raise WrongValue(f"{shown(value)} is not a list of statuses", fix)
    if not value:
        raise WrongValue("names no status", "write at least one, such as `[200]`, or remove it")
    for each in value:
        if type(each) is not int or each not in _STATUSES:
            raise WrongValue(f"{shown(each)} is no status of an answer", "write whole numbers from 200 to 599")
    return tuple(value)


def _tls(value: object) -> bool | Literal["verify"]:
    if isinstance(value, bool):
        return value
    if value != "verify":
        raise WrongValue(f"{shown(value)} is not known here", "write `true`, `verify` or `false`")
    return "verify"


class Probe(Keys):
    """How it is found out, all the time, whether the application is well: by its own machine, by way of that machine's relay
    by every edge, and of a bare role by whoever leads to it."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"protocol": {"const": "http"}}, "required": ["protocol"]},
            "then": {"required": ["path"], "properties": {"send": False, "expect": _LIST}},
            "else": {"properties": {"path": False, "expect": _TEXT}},
        }
    )

    # Before `path`, `send` and `expect`, whose validators see it.
    protocol: Annotated[Literal["tcp", "http"], *words("tcp", "http")] = "tcp"
    """`tcp`: the application takes the connection, and answers as `expect` says. `http`: it answers `GET path`."""

    port: Port = None
    """The port that is asked, where it is not the target's own. Of a Unix socket: a port of 127.0.0.1. An edge does not reach
    it, and takes the word of the instance's relay."""

    path: Annotated[str | None, *text(values.probe_path, values.PROBE_PATH_PATTERN, "/healthz")] = Field(
        default_factory=absent, validate_default=True
    )
    """What an `http` probe asks for."""

    send: Annotated[str | None, BeforeValidator(_spoken), WithJsonSchema(_SPOKEN | {"examples": ["PING\r\n"]})] = None
    """What a `tcp` probe sends first. Each character is one byte. Without `expect` any answer will do."""

    expect: Annotated[
        tuple[int, ...] | str | None,
        WithJsonSchema(
            {"anyOf": [_SPOKEN, {"type": "array", "items": _STATUS, "minItems": 1}], "examples": ["+PONG", [200, 204]]}
        ),
    ] = None
    """Of an `http` probe: a list of the statuses that are good, by default 200 alone. Of a `tcp` probe: what the answer
    begins with, after `send`, or by itself. Each character is one byte."""

    tls: Annotated[
        bool | Literal["verify"] | None, BeforeValidator(_tls), WithJsonSchema({"enum": ["verify", True, False]})
    ] = None
    """`true`: by TLS, whoever it is. `verify`: only with a certificate that an authority which the machine trusts has signed,
    for the name by which the instance was found, or else for the address that is asked. `false`: without TLS. By default an
    `http` probe at the own port of an `https` endpoint is by TLS, and no other."""

    interval_s: Duration = Field(default=2.0, alias="interval", json_schema_extra={"default": "2s"})
    """From one probe to the next, give or take a tenth. One that is down is asked every second, if not more often."""

    timeout_s: Duration = Field(default=5.0, alias="timeout", json_schema_extra={"default": "5s"})
    """Who gives no answer for so long has failed a probe. A wrong answer is as bad at once."""

    rise: Annotated[int, *whole(_IN_A_ROW_MAX, 3)] = 1
    """So many good answers in a row and one that is down is up."""

    fall: Annotated[int, *whole(_IN_A_ROW_MAX, 2)] = 1
    """So many bad answers in a row and one that is up is down, and gets no new connections from an edge."""

    on_down: Annotated[Literal["keep", "cut"], *words("keep", "cut")] = "keep"
    """What becomes of the connections to one that goes down. `keep`: they go on. `cut`: they end, and none stays there."""

    @field_validator("path", mode="wrap")
    @classmethod
    def _path_of_http(cls, written: object, parse: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        kind = info.data.get("protocol")
        if written is None and kind == "http":
            raise WrongValue("is missing", "write what to ask for, such as `path: /healthz`")
        if written is not None and kind == "tcp":
            raise WrongValue("a tcp probe asks for nothing", "remove it, or write `protocol: http`")
        return None if written is None else parse(written)

    @field_validator("send", mode="before")
    @classmethod
    def _send_of_tcp(cls, written: object, info: ValidationInfo) -> object:
        if info.data.get("protocol") == "http":
            raise WrongValue("an http probe sends a request for its `path`", "remove it, or write `protocol: tcp`")
        return written

    @field_validator("expect", mode="before")
    @classmethod
    def _expect_by_protocol(cls, written: object, info: ValidationInfo) -> object:
        match info.data.get("protocol"):
            case "http":
                return _statuses(written)
            case "tcp" if isinstance(written, list | tuple):
                what, fix = "a list is of statuses, and a tcp probe expects a text", "write one, or `protocol: http`"
                raise WrongValue(what, fix)
            case "tcp":
                return _spoken(written)
        raise PydanticCustomError(FOLLOWS, "cannot be told before `protocol` is right")

    @property
    def of_own_machine(self) -> bool:
        """Whether nobody but an instance's own relay can ask so: to other machines nothing but endpoints is open.

        And a certificate is for where the application is asked, which is another place from there than from here.
        """
        return self.port is not None or self.tls == "verify"
