"""What a schema says beside a type.

pydantic asks whatever stands beside one in `Annotated`: it need not be imported here.
"""

from typing import Any


class Within:
    """Bounds of a number."""

    def __init__(self, minimum: int, maximum: int | None = None) -> None:
        self._bounds = {"minimum": minimum} if maximum is None else {"minimum": minimum, "maximum": maximum}

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        return schema | self._bounds


class Says:
    """A description."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> dict[str, Any]:
        schema: dict[str, Any] = handler(core_schema)
        return schema | {"description": self._text}
