"""Where a role's instances are, as the service file says it: how many there may be, or where each of them is.

An item is an address. In a role without relay on its machines it may also be a name, a service record (RFC 2782), or a
file in the form of Prometheus' file_sd; then the items are sources of addresses, of none or of many each.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from relay.config import references, values
from relay.config.fields import Flag, Keys, Weight, text
from relay.config.wording import shown
from relay.errors import WrongValue

SOURCES_MAX: Final = 1024
"""Instances of a role whose items are sources: as many targets as one machine's ledger has room for."""


def _address_or_name(value: object) -> str:
    """An address as `str(IPv4Address)` writes it, or a name in lower case."""
    if isinstance(value, str) and value and not _MEANT_AS_ADDRESS.search(value):
        return references.dns_name(value)
    return str(values.address(value))


# Of an address alone; or three numbers and another one, which is mistyped: no name ends like that.
_MEANT_AS_ADDRESS: Final = re.compile(r"[:/%\[\]]|^[0-9.]+$|^([0-9]+\.){3}[0-9A-Fa-f]+$")


_FORMS: Final = [
    {"type": "string", "pattern": values.ADDRESS_PATTERN},
    {"type": "string", "pattern": rf"^{references.NAME_PATTERN}\.?$"},
]
_EXAMPLES: Final = ["10.0.0.4", "db.example.com"]
_WHERE: Final = {"anyOf": _FORMS, "examples": _EXAMPLES}


@dataclass(frozen=True, slots=True)
class AddressOnly:
    """An item as written, of a role whose machines have relay."""

    item: object


class ListedInstance(Keys):
    """One item of a role's `instances`: exactly one of `address`, `srv` and `file`."""

    model_config = ConfigDict(
        json_schema_extra={"oneOf": [{"required": ["address"]}, {"required": ["srv"]}, {"required": ["file"]}]}
    )

    address: Annotated[str | None, BeforeValidator(_address_or_name), WithJsonSchema(_WHERE)] = None
    """An instance's address. In a bare role also a name: each address that it has is an instance."""

    srv: Annotated[
        str | None,
        *text(references.dns_name, rf"^{references.NAME_PATTERN}\.?$", "_postgresql._tcp.example.com"),
    ] = None
    """A service record: each machine and port that it names is an instance. In a bare role."""

    file: Annotated[str | None, *text(references.target_file, r"^[\s\S]+$", "targets.yaml")] = None
    """A file that lists instances, as Prometheus' file_sd has it. One that is not absolute is beside this file. It is read
    again when it changes. In a bare role."""

    weight: Weight = 1
    """Its share of new connections, beside the weights of the others. 0: it gets none."""

    backup: Flag = False
    """`true`: it gets connections only while no other one is to be had."""


@dataclass(frozen=True, slots=True)
class Listed:
    """One item of a role's `instances`. `text` is the address, the name, or the file's path as written."""

    kind: Literal["address", "name", "srv", "file"]
    text: str
    weight: int = 1
    backup: bool = False

    def __str__(self) -> str:
        return self.text if self.kind in ("address", "name") else f"{self.kind}: {self.text}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(cls._read, handler.generate_schema(ListedInstance))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [*_FORMS, handler(schema)], "examples": _EXAMPLES}

    @classmethod
    def _read(cls, written: Any, validate: Callable[[Any], ListedInstance]) -> "Listed":
        if isinstance(written, AddressOnly):
            found = cls._read(written.item, validate)
            if found.kind != "address":
                what = f"`{found}` is no address, and who may say where an instance is, decides who may connect"
                raise WrongValue(what, "write its address; or `bare: true` in its role, if its machines have no relay")
            return found
        if not isinstance(written, dict):
            return cls._at(_address_or_name(written))
        keys = validate(written)
        given = [name for name in ("address", "srv", "file") if getattr(keys, name) is not None]
        if len(given) != 1:
            raise WrongValue("an instance is said in one way", "write one of `address`, `srv` and `file`")
        if keys.address is not None:
            return cls._at(keys.address, keys.weight, keys.backup)
        if keys.srv is not None:
            return cls("srv", keys.srv, keys.weight, keys.backup)
        return cls("file", keys.file or "", keys.weight, keys.backup)

    @classmethod
    def _at(cls, where: str, weight: int = 1, backup: bool = False) -> "Listed":
        is_name = ":" not in where and where.rpartition(".")[2].isdigit() is False
        return cls("name" if is_name else "address", where, weight, backup)


class _ItemsOrCount:
    """Reads a list of instances, or how many there may be. Not a union of pydantic's: an error in an item has one place."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler.generate_schema(tuple[Listed, ...]))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        count = {"type": "integer", "minimum": 1, "maximum": values.INSTANCES_MAX, "examples": [3]}
        return {"anyOf": [count, handler(schema)]}

    @staticmethod
    def _read(written: Any, validate: Callable[[Any], tuple[Listed, ...]]) -> tuple[Listed, ...] | int:
        if isinstance(written, int) and not isinstance(written, bool):
            return values.whole_number(values.INSTANCES_MAX)(written)
        if not isinstance(written, list | tuple):
            what = f"{shown(written)} is neither a list of addresses nor a number of instances"
            raise WrongValue(what, "write `[10.0.0.4]`, or with a registry a number such as `3`")
        return validate(written)


Instances = Annotated[tuple[Listed, ...] | int, _ItemsOrCount()]
