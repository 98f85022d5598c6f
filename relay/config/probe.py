"""How targets are probed, as the service file has it."""

from typing import Annotated, Any, Literal

from pydantic import Field, ValidatorFunctionWrapHandler, field_validator
from pydantic_core.core_schema import ValidationInfo

from relay.config import values
from relay.config.fields import Duration, Keys, absent, text, words
from relay.errors import WrongValue


class Probe(Keys):
    """How it is found out, all the time, whether the application is well: by its own machine, and by way of that machine's
    relay by every edge."""

    # Before `path`, whose validator sees it.
    protocol: Annotated[Literal["tcp", "http"], *words("tcp", "http")] = "tcp"
    """`tcp`: the application takes the connection. `http`: it answers `GET path` with the status 200."""

    path: Annotated[str | None, *text(values.probe_path, values.PROBE_PATH_PATTERN, "/healthz")] = Field(
        default_factory=absent, validate_default=True
    )
    """What an `http` probe asks for."""

    interval_s: Duration = Field(default=2.0, alias="interval", json_schema_extra={"default": "2s"})
    """From one probe to the next, give or take a tenth. One that is down is asked every second, if not more often."""

    timeout_s: Duration = Field(default=5.0, alias="timeout", json_schema_extra={"default": "5s"})
    """Who gives no answer for so long is down, and gets no new connections from an edge. A wrong answer is as bad at once."""

    @field_validator("path", mode="wrap")
    @classmethod
    def _path_of_http(cls, written: object, parse: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        kind = info.data.get("protocol")
        if written is None and kind == "http":
            raise WrongValue("is missing", "write what to ask for, such as `path: /healthz`")
        if written is not None and kind == "tcp":
            raise WrongValue("a tcp probe asks for nothing", "remove it, or write `protocol: http`")
        return None if written is None else parse(written)
