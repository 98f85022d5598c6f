"""One declared port of a role as the service file has it: where it listens, what is behind it, who may connect, how much.

The YAML names are the promise; a Python name that differs only adds its unit or avoids a keyword (`connect_s` is
`connect`, `from_roles` is `from`). The docstring under a field is its text in the JSON Schema.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError
from pydantic_core.core_schema import ValidationInfo

from relay.config import values
from relay.config.fields import (
    FOLLOWS,
    Access,
    Connections,
    Duration,
    DurationOrOff,
    Flag,
    InstancePorts,
    Keys,
    ListenPorts,
    MappingOrFalse,
    PerSourceOrNumber,
    Port,
    Protocol,
    RoleName,
    absent,
    text,
    words,
)
from relay.config.probe import Probe
from relay.config.target import Targets
from relay.config.values import Target
from relay.errors import WrongValue


class Limits(Keys):
    """How much an endpoint takes on each instance. A limit left out does not exist."""

    connections: Connections = None
    """Open connections at most, over all clients."""

    per_source: PerSourceOrNumber = None
    """Open connections at most from one client address; or a mapping, with what is counted as one."""

    rate_per_s: Annotated[float | None, *text(values.rate, values.RATE_PATTERN, "500/s", "30/m")] = Field(
        default=None, alias="rate"
    )
    """New connections at most, per second (`500/s`) or per minute (`30/m`)."""


class Timeouts(Keys):
    """How long an endpoint waits."""

    connect_s: Duration = Field(default=5.0, alias="connect", json_schema_extra={"default": "5s"})
    """For the target to take the connection."""

    first_byte_s: Duration = Field(default=10.0, alias="first_byte", json_schema_extra={"default": "10s"})
    """For a client's first bytes, where they must be looked at: `http`, `https`."""

    idle_s: DurationOrOff = Field(default=240.0, alias="idle", json_schema_extra={"default": "4m"})
    """For any byte, in either direction, on an open connection; then it is closed. `off`: for ever."""

    keepalive_s: DurationOrOff = Field(default=15.0, alias="keepalive", json_schema_extra={"default": "15s"})
    """For any sign of life from either side; then the kernel asks that side whether it is there. `off`: it never asks."""

    # Below `keepalive`, which its validator sees.
    dead_s: DurationOrOff = Field(
        default_factory=lambda: "30s", validate_default=True, alias="dead", json_schema_extra={"default": "30s"}
    )
    """For any sign of life, the answer to such a question too; then that side is dead, and the other one is told by a reset.
    Longer than `keepalive`. `off`: nobody is dead before the kernel says so."""

    hold_s: Annotated[float | None, *text(values.duration, values.DURATION_PATTERN, "20s")] = Field(
        default=None, alias="hold"
    )
    """For a target to be had: while there is none, a new connection waits for one so long. Without it, it fails at once."""

    lifetime_s: DurationOrOff = Field(default=None, alias="lifetime", json_schema_extra={"default": "off"})
    """For a connection to end by itself; then, give or take a tenth, it is cut, so that a new one finds new targets. At a
    moment at which nothing moves, if there is one. `off`: it may last for ever."""

    @field_validator("dead_s", mode="after")
    @classmethod
    def _dead_after_keepalive(cls, dead_s: float | None, info: ValidationInfo) -> float | None:
        keepalive_s = info.data.get("keepalive_s")
        if dead_s is not None and keepalive_s is not None and dead_s <= keepalive_s:
            raise WrongValue(
                f"{dead_s:g} s are not longer than `keepalive`, after which a silent side is asked whether it is there",
                f"write `dead: {math.ceil(2 * keepalive_s)}s`, or a shorter `keepalive`",
            )
        return dead_s


class Endpoint(Keys):
    """One declared port of a role, and the local service behind it."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"type": {"const": "internal"}}, "required": ["type"]},
            "then": {
                "required": ["port"],
                "properties": dict.fromkeys(("public_port", "instance_ports", "access", "distribution"), False),
            },
            "else": {
                "anyOf": [{"required": ["public_port"]}, {"required": ["instance_ports", "port"]}],
                "properties": {"from": False},
            },
        }
    )

    # The order counts: a validator below sees the fields above its own, and `type` rules them all.
    type: Annotated[Literal["input", "internal"], *words("input", "internal")]
    """`input`: open to the outside. `internal`: open to the instances of this service only."""

    protocol: Protocol = "tcp"
    """`http` and `https`: a connection whose first bytes are something else is refused. `tcp`: anything goes."""

    instance_ports: InstancePorts = None
    """Ports that the outside knows, one for each instance: the first port leads to instance 0. Unique in the service."""

    public_port: Port = Field(default_factory=absent, validate_default=True)
    """The port that the outside knows. Input endpoints have this or `instance_ports`, or both. Unique in the service."""

    listen_ports: ListenPorts = Field(default_factory=absent, validate_default=True, alias="port")
    """The port that each instance listens on, or a range of ports. Default for an input endpoint: its public port."""

    targets: Targets = Field(default=(), alias="target")
    """The local service that the connections go to: an address or `localhost` with a port, or `unix:` and a path. Behind a
    range of ports: a range of as many, port for port, or one port for all. Or a list of several services that do the same.
    A bare role's endpoint has none: it is reached at its `port`."""

    target_distribution: Annotated[
        Literal["round-robin", "least-connections", "five-tuple", "source-ip"] | None,
        *words("round-robin", "least-connections", "five-tuple", "source-ip"),
    ] = Field(default=None, json_schema_extra={"default": "least-connections"})
    """How connections are spread over several targets of one machine. As `distribution` does it over instances."""

    unsafe_target: Flag = False
    """`true`: a target may be on another machine, where others reach it without relay."""

    access: Access = ()
    """Who may connect to an input endpoint: rules, or the name of a list in `access_lists`. The first rule that matches
    decides. No rule: everyone may. Any `permit`: everyone else may not. Only `deny`: everyone else may."""

    from_roles: tuple[RoleName, ...] | None = Field(default=None, alias="from", json_schema_extra={"minItems": 1})
    """The roles whose instances may connect to an internal endpoint. Default: every role of the service."""

    enforce: Annotated[Literal["strict", "audit"], *words("strict", "audit")] = "strict"
    """`strict`: who may not connect is refused. `audit`: is let in, counted and logged as one who would be refused; for a
    trial of new rules."""

    deny: Annotated[Literal["reset", "drop"], *words("reset", "drop")] = "reset"
    """How the envelope refuses: `reset` at once, or `drop`, as if nobody were there. Limits always reset."""

    limits: Limits = Limits()
    """How much the endpoint takes on each instance."""

    timeouts: Timeouts = Timeouts()
    """How long the endpoint waits."""

    send_proxy: Annotated[Literal["v1", "v2"] | None, *words("v1", "v2")] = None
    """Tell the target who the client is, in a PROXY protocol header of this version. Default: no header."""

    transparent: Flag = False
    """`true`: the target is dialled from the client's own address. Needs CAP_NET_RAW and the routing rules of
    systemd/transparent."""

    source_addresses: Annotated[Literal["auto", "off"], *words("auto", "off")] = "auto"
    """From where a target at an IPv4 loopback address is dialled when all 28,000 ports towards it are taken: `auto`: from
    127.0.0.2 and the ones that follow. `off`: from nowhere else, the connection fails."""

    @field_validator("transparent", mode="after")
    @classmethod
    def _transparent_by_tcp(cls, transparent: bool, info: ValidationInfo) -> bool:
        if transparent and any(target.kind == "unix" for target in info.data.get("targets", ())):
            raise WrongValue("a Unix socket knows no client addresses", "remove it, or write `send_proxy: v2`")
        return transparent

    probe: Annotated[Probe | Literal[False] | None, MappingOrFalse(Probe)] = None
    """How it is found out, all the time, whether the application is well. Without it the application is asked only while it
    is down, every second: from the connection that failed until it takes one again. `false`: it is never asked."""

    @field_validator("probe", mode="after")
    @classmethod
    def _verified_by_address(cls, probe: Probe | Literal[False] | None, info: ValidationInfo) -> Any:
        path = next((target for target in info.data.get("targets", ()) if target.kind == "unix"), None)
        if path is not None and probe and probe.tls == "verify" and probe.port is None:
            what = f"`tls: verify` is by an address, and `{path}` has none that a certificate could be for"
            raise WrongValue(what, "write `tls: true`, or the `port` of 127.0.0.1 where it is asked")
        return probe

    distribution: Annotated[
        Literal["five-tuple", "source-ip", "least-connections", "round-robin"],
        *words("five-tuple", "source-ip", "least-connections", "round-robin"),
    ] = "five-tuple"
    """How the edge spreads connections over instances, each by its weight. `five-tuple`: by a hash of both addresses and
    ports. `source-ip`: the same client always to the same instance. `least-connections`: to the one that has the fewest
    from this edge. `round-robin`: to one after the other."""

    slow_start_s: Annotated[float | None, *text(values.duration, values.DURATION_PATTERN, "30s")] = Field(
        default=None, alias="slow_start"
    )
    """Of several targets one that has come up gets only a part of its share at first, and all of it after so long."""

    @field_validator("distribution", mode="before")
    @classmethod
    def _of_input(cls, written: object, info: ValidationInfo) -> object:
        if info.data.get("type") == "internal":
            raise WrongValue("an internal endpoint is not behind the edge", "remove it, or write `type: input`")
        return written

    @field_validator("instance_ports", mode="before")
    @classmethod
    def _instance_ports_of_input(cls, written: object, info: ValidationInfo) -> object:
        if info.data.get("type") == "internal":
            raise WrongValue("an internal endpoint has no public ports", "write `port`, or `type: input`")
        return written

    @field_validator("public_port", mode="wrap")
    @classmethod
    def _public_port_of_input(cls, written: object, parse: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        kind = info.data.get("type")
        if written is not None and kind == "internal":
            raise WrongValue("an internal endpoint has no public port", "write `port`, or `type: input`")
        if written is not None:
            return parse(written)
        if kind == "input" and "instance_ports" not in info.data:
            raise PydanticCustomError(FOLLOWS, "may be missing, once `instance_ports` is right")
        if kind == "input" and info.data["instance_ports"] is None:
            raise WrongValue("is missing", "write the port that the outside knows, such as `public_port: 80`")
        return None

    @field_validator("listen_ports", mode="wrap")
    @classmethod
    def _port_or_public_port(cls, written: object, parse: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        if written is not None:
            return parse(written)
        if info.data.get("public_port") is not None:
            return parse(info.data["public_port"])
        if info.data.get("type") == "internal" or info.data.get("instance_ports") is not None:
            raise WrongValue("is missing", "write the port that each instance listens on, such as `port: 5432`")
        # `type` or `public_port` has its own problem already: one mistake, one problem.
        raise PydanticCustomError(FOLLOWS, "cannot be told before the keys above it are right")

    @field_validator("targets", mode="after")
    @classmethod
    def _targets_as_long_as_ports(cls, targets: tuple[Target, ...], info: ValidationInfo) -> tuple[Target, ...]:
        for target in targets:
            count = len(info.data["listen_ports"]) if "listen_ports" in info.data else target.port_count
            if target.port_count not in (1, count):
                raise WrongValue(
                    f"`{target}` has {target.port_count} ports, and the endpoint has {count}",
                    "write as many, or one for all",
                )
        return targets

    @field_validator("target_distribution", mode="after")
    @classmethod
    def _of_several(cls, distribution: str | None, info: ValidationInfo) -> str | None:
        if distribution is not None and len(info.data.get("targets", (None, None))) < 2:
            raise WrongValue(
                "there is one target, which gets every connection", "remove it, or write a list of targets"
            )
        return distribution

    @field_validator("access", mode="before")
    @classmethod
    def _access_of_input(cls, written: object, info: ValidationInfo) -> object:
        if info.data.get("type") == "internal":
            raise WrongValue("an internal endpoint has no access rules", "write `from` with the roles that may connect")
        return written

    @field_validator("from_roles", mode="before")
    @classmethod
    def _from_of_internal(cls, written: object, info: ValidationInfo) -> object:
        if info.data.get("type") == "input":
            raise WrongValue("an input endpoint is open to the outside", "write `access` rules, or `type: internal`")
        if written == []:
            raise WrongValue("names no role", "write the roles that may connect, or remove it to admit every role")
        return written

    def target_port(self, port: int, target: Target) -> int:
        """The port of this one of its targets that connections to `port`, one of the endpoint's, lead to."""
        return target.port + (port - self.listen_ports.first if target.port_count > 1 else 0)
