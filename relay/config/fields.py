"""The types of the two files' keys: how each is read, and how the JSON Schema describes its text."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, GetJsonSchemaHandler, WithJsonSchema
from pydantic_core import CoreSchema, core_schema

from relay.config import values
from relay.config.values import IPAddress, IPNetwork, Ports
from relay.config.wording import shown
from relay.errors import WrongValue

# The pydantic error type of a problem that only follows from another one, which is reported; load.py leaves it out.
FOLLOWS = "follows"


def text(parse: Callable[[object], object], pattern: str, *examples: str) -> tuple[BeforeValidator, WithJsonSchema]:
    """A key whose value is a text of this pattern."""
    return BeforeValidator(parse), WithJsonSchema({"type": "string", "pattern": pattern, "examples": list(examples)})


def whole(largest: int, example: int) -> tuple[BeforeValidator, WithJsonSchema]:
    """A key whose value is a whole number from 1 to `largest`."""
    schema = {"type": "integer", "minimum": 1, "maximum": largest, "examples": [example]}
    return BeforeValidator(values.whole_number(largest)), WithJsonSchema(schema)


def _weight_schema() -> dict[str, Any]:
    return {"type": "integer", "minimum": 0, "maximum": values.WEIGHT_MAX, "examples": [2]}


def words(*allowed: str) -> tuple[BeforeValidator, WithJsonSchema]:
    """A key whose value is one of these words."""
    return BeforeValidator(values.choice(*allowed)), WithJsonSchema({"type": "string", "enum": list(allowed)})


def several_ports(*examples: int | str) -> tuple[BeforeValidator, WithJsonSchema]:
    """A key whose value is a port or a range of ports."""
    one = {"type": "integer", "minimum": 1, "maximum": 65535}
    schema = {"anyOf": [one, {"type": "string", "pattern": values.PORTS_PATTERN}], "examples": list(examples)}
    return BeforeValidator(values.ports), WithJsonSchema(schema)


def _protocol(value: object) -> str:
    word = value.lower() if isinstance(value, str) else ""
    if word == "udp":
        raise WrongValue(
            f"relay does not forward UDP ({shown(value)}): a datagram has no connection that could be decided on "
            "and cut",
            "write `tcp`, or serve it without relay",
        )
    if word == "any":
        raise WrongValue(
            f"relay forwards TCP on declared ports, not {shown(value)}",
            "write `protocol: tcp` and the ports as a range, such as `port: 8995-8999`",
        )
    return values.choice("tcp", "http", "https")(value)


Protocol = Annotated[Literal["tcp", "http", "https"], BeforeValidator(_protocol)]
Flag = Annotated[bool, BeforeValidator(values.flag)]
Duration = Annotated[float, *text(values.duration, values.DURATION_PATTERN, "15s", "200ms")]
DurationOrOff = Annotated[float | None, *text(values.duration_or_off, values.DURATION_OR_OFF_PATTERN, "4m", "off")]
Connections = Annotated[int | None, *whole(values.CONNECTIONS_MAX, 10_000)]
Port = Annotated[int | None, *whole(65535, 80)]
ListenPorts = Annotated[Ports, *several_ports(8080, "8995-8999")]
InstancePorts = Annotated[Ports | None, *several_ports("10105-10109")]
Weight = Annotated[int, BeforeValidator(values.whole_number(values.WEIGHT_MAX, 0)), WithJsonSchema(_weight_schema())]
Network = Annotated[
    IPNetwork | None, *text(values.network, values.NETWORK_PATTERN, "203.0.113.0/24", "2001:db8::/32", "192.0.2.7")
]
Address = Annotated[IPAddress, *text(values.address, values.ADDRESS_PATTERN, "10.0.0.4")]
RoleName = Annotated[str, *text(values.role_name, values.ROLE_NAME_PATTERN, "web")]
EndpointName = Annotated[str, *text(values.endpoint_name, values.ENDPOINT_NAME_PATTERN, "http-in")]
ListName = Annotated[str, *text(values.endpoint_name, values.ENDPOINT_NAME_PATTERN, "office")]


def absent() -> Any:
    """The default of a field whose validator works it out: unlike `default=None` it stays out of the schema."""
    return None


class Keys(BaseModel):
    """What every mapping of the two files has in common: no unknown key, no change after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, arbitrary_types_allowed=True)


class AccessRule(Keys):
    """One access rule: exactly one of `deny` and `permit`."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1, "maxProperties": 1})

    deny: Network = None
    """Clients of this network are refused. Host bits are dropped, with a warning."""

    permit: Network = None
    """Clients of this network may connect, and clients that no rule names may not. Host bits are dropped."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One access rule. `text` is the network as written; `line` (0: not known) is where the file has it.

    Two rules are equal when they decide alike: where and how they are written does not count.
    """

    action: Literal["deny", "permit"]
    network: IPNetwork
    text: str = field(default="", compare=False)
    line: int = field(default=0, compare=False)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(cls._from_keys, handler.generate_schema(AccessRule))

    @classmethod
    def _from_keys(cls, written: Any, validate: Callable[[Any], AccessRule]) -> "Rule":
        keys = validate(written)
        if keys.deny is not None and keys.permit is None:
            return cls("deny", keys.deny, written["deny"])
        if keys.permit is not None and keys.deny is None:
            return cls("permit", keys.permit, written["permit"])
        raise WrongValue(
            "a rule has one action", "write `deny: NETWORK` or `permit: NETWORK`, each as an item of its own"
        )


class _RulesOrName:
    """Reads a list of rules, or the name of one. Not a union of pydantic's: an error in a rule has one place, the rule's."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler.generate_schema(tuple[Rule, ...]))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string", "pattern": values.ENDPOINT_NAME_PATTERN}, handler(schema)]}

    @staticmethod
    def _read(written: Any, validate: Callable[[Any], tuple[Rule, ...]]) -> tuple[Rule, ...] | str:
        if not isinstance(written, str):
            return validate(written)
        try:
            return values.endpoint_name(written)
        except ValueError:
            what = f"{shown(written)} is neither a list of rules nor the name of one"
            raise WrongValue(what, "write `[{deny: 203.0.113.0/24}]`, or a name from `access_lists`") from None


Access = Annotated[tuple[Rule, ...] | str, _RulesOrName()]


class PerSource(Keys):
    """How many connections a source may have open, and what one source is."""

    limit: Annotated[int, *whole(values.CONNECTIONS_MAX, 200)]
    """Open connections at most from one source."""

    ipv4: Annotated[int, *whole(32, 24)] = 32
    """Clients whose IPv4 addresses have so many leading bits in common are one source. 32: each address is."""

    ipv6: Annotated[int, *whole(128, 64)] = 128
    """The same of IPv6. A customer has a whole network there, mostly of 64 bits. 128: each address is a source."""


class _PerSourceOrNumber:
    """Reads such a mapping, or its `limit` alone. As above: an error in the mapping has one place."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler.generate_schema(PerSource))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        number = {"type": "integer", "minimum": 1, "maximum": values.CONNECTIONS_MAX, "examples": [200]}
        return {"anyOf": [number, handler(schema)]}

    @staticmethod
    def _read(written: Any, validate: Callable[[Any], PerSource]) -> PerSource:
        if isinstance(written, dict):
            return validate(written)
        if isinstance(written, list):
            what = f"{shown(written)} is neither a whole number nor a mapping"
            raise WrongValue(what, f"write 1 to {values.CONNECTIONS_MAX}, or `{{limit: 200, ipv4: 32, ipv6: 64}}`")
        return validate({"limit": values.connections(written)})


PerSourceOrNumber = Annotated[PerSource | None, _PerSourceOrNumber()]


@dataclass(frozen=True, slots=True)
class MappingOrFalse:
    """Reads a mapping of such keys, or `false`. As above: an error in the mapping has one place."""

    keys: type[Keys]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_wrap_validator_function(self._read, handler.generate_schema(self.keys))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "boolean", "enum": [False]}, handler(schema)]}

    @staticmethod
    def _read(written: Any, validate: Callable[[Any], Keys]) -> Keys | Literal[False]:
        if written is False:
            return False
        if written is True:
            raise WrongValue("`true` does not say how", "write `{}` for the defaults, its keys, or `false`")
        return validate(written)
