"""The service file as a frozen model: `Service` (service.yaml, the same on every machine).

The YAML names are the promise; a Python name that differs only adds its unit or avoids a keyword. The docstring under a
field is its text in the JSON Schema.
"""

from ipaddress import ip_address
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from relay.config import references, values
from relay.config.endpoint import Endpoint
from relay.config.fields import (
    Duration,
    EndpointName,
    Flag,
    Keys,
    ListName,
    Port,
    RoleName,
    Rule,
    text,
)
from relay.config.instances import SOURCES_MAX, AddressOnly, Instances, Listed
from relay.config.values import HostPort, IPAddress
from relay.errors import WrongValue


class Door(Keys):
    """A door out: a port of this machine alone that leads to another role's endpoint."""

    endpoint: Annotated[tuple[str, str], *text(references.endpoint, references.ENDPOINT_PATTERN, "store/postgres")]
    """Where it leads to: a role of this service, and an endpoint that admits this role. A healthy instance is chosen."""

    listen: Annotated[HostPort, *text(references.loopback, references.LOOPBACK_PATTERN, "127.0.0.1:5432")]
    """The loopback address and port that programs on this machine connect to."""

    connect_s: Duration = Field(default=5.0, alias="connect", json_schema_extra={"default": "5s"})
    """For some instance to take the connection."""


class Role(Keys):
    """The instances that do one job, the endpoints that each of them has, and what it uses of others."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"bare": {"const": True}}, "required": ["bare"]},
            "then": {"properties": {"uses": False}},
            "else": {"properties": {"endpoints": {"additionalProperties": {"required": ["target"]}}}},
        }
    )

    bare: Flag = False
    """`true`: there is no relay on the role's machines. The edge, and doors of other roles, reach each of its endpoints at
    its `port`, and nobody there enforces who may connect."""

    listed: Instances = Field(alias="instances")
    """The address of each instance: the first of role `web` is `web_IN_0`, the next `web_IN_1`. Or, with a registry, how
    many there may be: each takes the lowest number that is free. In a bare role also names, service records and files: each
    address that they give is an instance, and has the lowest number that is free as long as it stays."""

    endpoints: dict[EndpointName, Endpoint] = Field(default_factory=dict)
    """The role's endpoints by name. Nothing else of it can be reached through relay."""

    uses: dict[EndpointName, Door] = Field(default_factory=dict)
    """Doors out by name: what programs on its instances reach on a port of their own machine."""

    @property
    def counted(self) -> bool:
        """Whether a registry tells where its instances are."""
        return isinstance(self.listed, int)

    @field_validator("listed", mode="before")
    @classmethod
    def _addresses_unless_bare(cls, written: object, info: ValidationInfo) -> object:
        if info.data.get("bare") is not False or not isinstance(written, list):
            return written
        return [AddressOnly(each) for each in written]

    @field_validator("endpoints", mode="before")
    @classmethod
    def _targets_unless_bare(cls, written: object, info: ValidationInfo) -> object:
        if info.data.get("bare") is not False or not isinstance(written, dict):
            return written
        return {name: {"target": None} | each if isinstance(each, dict) else each for name, each in written.items()}

    @property
    def items(self) -> tuple[Listed, ...]:
        """What `instances` lists; nothing for a counted role."""
        return () if isinstance(self.listed, int) else self.listed

    @property
    def named(self) -> bool:
        """Whether some of its instances are where a name, a service record or a file says."""
        return any(each.kind != "address" for each in self.items)

    @property
    def count(self) -> int:
        """How many instances there are, or may be."""
        if isinstance(self.listed, int):
            return self.listed
        return SOURCES_MAX if self.named else len(self.listed)

    @property
    def instances(self) -> tuple[IPAddress, ...]:
        """The addresses that the file lists; none for a counted role."""
        return tuple(ip_address(each.text) for each in self.items if each.kind == "address")


class Edge(Keys):
    """The machines that listen on the public ports and spread connections over the instances."""

    instances: Annotated[
        tuple[Annotated[IPAddress, *text(values.address, values.ADDRESS_PATTERN, "198.51.100.10")], ...],
        BeforeValidator(values.not_empty),
    ] = Field(json_schema_extra={"minItems": 1})
    """The address of each of them, where it listens and from where the instances are reached: `edge_IN_0`, `edge_IN_1`."""


class Service(Keys):
    """A whole service: the file that every machine of it has unchanged."""

    version: Annotated[Literal[1], BeforeValidator(values.version)]
    """The format of this file: 1."""

    service: Annotated[str, *text(values.service_name, values.SERVICE_NAME_PATTERN, "shop")]
    """The service's name: a DNS label in lower case."""

    edge: Edge | None = None
    """The machines that carry the public ports. Without any, clients reach the instances themselves."""

    relay_port: Port = None
    """The port where the relays of this service talk to each other, open on every instance to the service's own machines
    alone. Doors out and the edge use it. Without it they go to each endpoint's port."""

    access_lists: dict[ListName, tuple[Rule, ...]] = Field(default_factory=dict)
    """Lists of access rules by name, for endpoints that share one."""

    roles: dict[RoleName, Role] = Field(json_schema_extra={"minProperties": 1})
    """The roles of the service by name."""

    @field_validator("roles", mode="before")
    @classmethod
    def _some_role(cls, written: object) -> object:
        # pydantic's own `min_length` counts what is left of the roles, and would call a wrong one none at all.
        if written == {}:
            raise WrongValue("is empty", "write at least one role")
        return written

    @property
    def counted(self) -> tuple[str, ...]:
        """The roles of which a registry tells where their instances are."""
        return tuple(name for name, role in self.roles.items() if role.counted)

    @property
    def named(self) -> tuple[str, ...]:
        """The roles some of whose instances are where a name, a service record or a file says."""
        return tuple(name for name, role in self.roles.items() if role.named)

    def rules_of(self, endpoint: Endpoint) -> tuple[Rule, ...]:
        """The endpoint's access rules: its own, or those of the list that it names. KeyError: there is no such list."""
        return self.access_lists[endpoint.access] if isinstance(endpoint.access, str) else endpoint.access
