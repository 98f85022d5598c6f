"""What stands behind an endpoint on its own machine, as the service file has it: one local service, or several."""

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, Final

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, core_schema

from relay.config import values
from relay.config.fields import Flag, Keys, Weight, text
from relay.config.values import Target
from relay.errors import WrongValue

_EXAMPLES: Final = ("127.0.0.1:3000", "[::1]:3000", "unix:/run/app.sock")


class OneOfSeveral(Keys):
    """One local service of several."""

    address: Annotated[Target, *text(values.target, values.TARGET_PATTERN, *_EXAMPLES)]
    """An address with a port, or `unix:` and a path."""

    weight: Weight = 1
    """Its share of new connections, beside the weights of the others. 0: it gets none."""

    backup: Flag = False
    """`true`: it gets connections only while no other one is to be had."""


class _Item:
    """Reads a target, or a mapping with its weight. Not a union of pydantic's: an error in the mapping has one place."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler.generate_schema(OneOfSeveral))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "pattern": values.TARGET_PATTERN}, handler(schema)]}

    @staticmethod
    def _read(written: Any, validate: Callable[[Any], OneOfSeveral]) -> Target:
        if not isinstance(written, dict):
            return values.target(written)
        keys = validate(written)
        return replace(keys.address, weight=keys.weight, backup=keys.backup)


class _OneOrSeveral:
    """Reads one target, or a list of them. As above."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        items = handler.generate_schema(tuple[Annotated[Target, _Item()], ...])
        return core_schema.no_info_wrap_validator_function(self._read, items)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = {"type": "string", "pattern": values.TARGET_PATTERN, "examples": list(_EXAMPLES)}
        return {"anyOf": [one, handler(schema) | {"minItems": 1}]}

    @staticmethod
    def _read(written: Any, validate: Callable[[Any], tuple[Target, ...]]) -> tuple[Target, ...]:
        if written is None:
            raise WrongValue("is missing", "write `target: 127.0.0.1:3000`")
        if isinstance(written, dict):
            raise WrongValue("a mapping is for one of several targets", "write an address alone, or a list of several")
        if not isinstance(written, list | tuple):
            return (values.target(written),)
        if not written:
            raise WrongValue("names no target", "write at least one, such as `127.0.0.1:3000`")
        found = validate(written)
        _refuse(found)
        return found


def _refuse(several: tuple[Target, ...]) -> None:
    """What cannot be one of several. Raises WrongValue."""
    for place, each in enumerate(several):
        if each.port_count > 1 and len(several) > 1:
            raise WrongValue(f"`{each}` is a range of ports, and one of several targets", "write one port for each")
        if each.host == "localhost" and len(several) > 1:
            what = "`localhost` is two addresses, and one of several targets"
            raise WrongValue(what, f"write `127.0.0.1:{each.port}`, `[::1]:{each.port}`, or both")
        if str(each) in map(str, several[:place]):
            raise WrongValue(f"`{each}` is written twice", "write each target once; `weight` gives one a larger share")
    if not any(each.weight for each in several):
        raise WrongValue("no target has a weight above 0, so nobody would get a connection", "write `weight: 1` at one")


Targets = Annotated[tuple[Target, ...], _OneOrSeveral()]
