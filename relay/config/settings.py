"""The settings file as a frozen model: `Settings` (instance.yaml, one machine's own)."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidatorFunctionWrapHandler, WithJsonSchema, field_validator
from pydantic_core.core_schema import ValidationInfo

from relay.config import references, values
from relay.config.fields import Duration, Flag, Keys, RoleName, absent, text, words
from relay.config.values import HostPort, IPAddress
from relay.config.wording import shown
from relay.errors import WrongValue


class Metrics(Keys):
    """Where the metrics are."""

    listen: Annotated[HostPort, *text(values.host_port, values.HOST_PORT_PATTERN, "127.0.0.1:9464")] = Field(
        default=HostPort("127.0.0.1", 9464), json_schema_extra={"default": "127.0.0.1:9464"}
    )
    """The address and port that answers `GET /metrics`."""


class Admin(Keys):
    """Where the command line reaches the daemon."""

    socket: Annotated[str, *text(values.unix_path, values.UNIX_PATH_PATTERN, "/run/relay/admin.sock")] = (
        "/run/relay/admin.sock"
    )
    """The path of the admin API's Unix socket."""

    listen: Annotated[HostPort | None, *text(references.loopback, references.LOOPBACK_PATTERN, "127.0.0.1:9465")] = None
    """A loopback address and port where every program of this machine may ask who is in the service. Default: nowhere."""


class Log(Keys):
    """What the daemon writes to standard error."""

    format: Annotated[Literal["json", "text", "auto"], *words("json", "text", "auto")] = "auto"
    """`json`: one object a line. `text`: for people. `auto`: text on a terminal, else json."""

    level: Annotated[Literal["debug", "info", "warning", "error"], *words("debug", "info", "warning", "error")] = "info"
    """The least important line that is still written."""


class Registry(Keys):
    """Who tells which instances of the counted roles are there: etcd, or a directory of files."""

    model_config = ConfigDict(json_schema_extra={"oneOf": [{"required": ["etcd"]}, {"required": ["directory"]}]})

    # Before `etcd`, whose validator sees it.
    directory: Annotated[str | None, *text(references.file, references.FILE_PATTERN, "/etc/relay/instances")] = None
    """A directory with a file for each instance: `web_IN_0.yaml`, with its `address`."""

    etcd: Annotated[
        tuple[Annotated[str, *text(references.url, references.URL_PATTERN, "http://10.0.9.1:2379")], ...],
        BeforeValidator(values.not_empty),
    ] = Field(default_factory=absent, validate_default=True, json_schema_extra={"minItems": 1})
    """The URLs of an etcd cluster's members. Each is tried when another one does not answer."""

    ttl_s: Annotated[float, *text(references.lease, values.DURATION_PATTERN, "10s")] = Field(
        default=10.0, alias="ttl", json_schema_extra={"default": "10s"}
    )
    """An instance that has not been heard of for so long is not there. From 2s."""

    hold_s: Annotated[float, *text(references.lease, values.DURATION_PATTERN, "1h")] = Field(
        default=3600.0, alias="hold", json_schema_extra={"default": "1h"}
    )
    """An instance's number stays its machine's for so long after it was last heard of."""

    username: Annotated[str | None, BeforeValidator(references.word)] = None
    """Who etcd knows this machine as."""

    password_file: Annotated[
        str | None, *text(references.file, references.FILE_PATTERN, "/etc/relay/etcd.password")
    ] = Field(default_factory=absent, validate_default=True)
    """The file that has its password, on the first line."""

    ca: Annotated[str | None, *text(references.file, references.FILE_PATTERN, "/etc/relay/etcd-ca.pem")] = None
    """The certificates that etcd's own is checked against. Default: the system's."""

    cert: Annotated[str | None, *text(references.file, references.FILE_PATTERN, "/etc/relay/etcd-client.pem")] = None
    """This machine's own certificate for etcd."""

    key: Annotated[str | None, *text(references.file, references.FILE_PATTERN, "/etc/relay/etcd-client.key")] = Field(
        default_factory=absent, validate_default=True
    )
    """Its key."""

    state: Annotated[str, *text(references.file, references.FILE_PATTERN, "/var/lib/relay")] = "/var/lib/relay"
    """The directory that keeps the last roster, for a start while the registry is down."""

    @field_validator("etcd", mode="wrap")
    @classmethod
    def _one_of_both(cls, written: object, parse: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        directory = info.data.get("directory")
        if written is not None and directory is not None:
            raise WrongValue("there is one registry, and `directory` is another", "remove one of the two")
        if written is None and directory is None and "directory" in info.data:
            raise WrongValue(
                "is missing", 'write `etcd: ["http://10.0.9.1:2379"]`, or `directory: /etc/relay/instances`'
            )
        return () if written is None else parse(written)

    @field_validator("password_file", "key", mode="wrap")
    @classmethod
    def _both_or_none(cls, written: object, parse: ValidatorFunctionWrapHandler, info: ValidationInfo) -> Any:
        other = {"password_file": "username", "key": "cert"}[str(info.field_name)]
        if written is None and info.data.get(other) is not None:
            raise WrongValue(f"is missing beside `{other}`", "write the path of a file")
        if written is not None and other in info.data and info.data[other] is None:
            raise WrongValue(f"is of no use without `{other}`", "write that too, or remove it")
        return None if written is None else parse(written)


class Names(Keys):
    """How other instances are found by name on this machine."""

    listen: Annotated[HostPort | None, *text(references.name_server, references.LOOPBACK_PATTERN, "127.0.0.153:53")] = (
        None
    )
    """The loopback address and port of a DNS server for `SERVICE.internal`. Default: none."""

    hosts: Annotated[str | None, *text(references.file, references.FILE_PATTERN, "/etc/hosts")] = None
    """A hosts file in which relay keeps a block with the names. Default: none."""

    ttl_s: Duration = Field(default=5.0, alias="ttl", json_schema_extra={"default": "5s"})
    """How long whoever asked may remember an answer."""

    resolvers: tuple[Annotated[HostPort, *text(references.resolver, values.HOST_PORT_PATTERN, "10.0.0.2:53")], ...] = ()
    """The DNS servers that are asked for instances by name. Default: those that `/etc/resolv.conf` names."""


def _metrics_or_false(written: object) -> object:
    if written is False:
        return None
    if isinstance(written, dict):
        return written
    raise WrongValue(f"{shown(written)} is no place for metrics", "write `{listen: 127.0.0.1:9464}`, or `false`")


def _false_for_null(schema: dict[str, Any]) -> None:
    schema["anyOf"] = [{"const": False} if each == {"type": "null"} else each for each in schema["anyOf"]]
    schema["default"] = {"listen": "127.0.0.1:9464"}


class Settings(Keys):
    """One machine's own settings. Every key is optional, and so is the file."""

    id: Annotated[str | None, *text(values.instance_id, values.INSTANCE_ID_PATTERN, "web_IN_0")] = None
    """Which instance this machine is. Default: the one whose roster address is on a local interface."""

    role: RoleName | None = None
    """Which role this machine takes a number of, where the service file has a count of instances and not their addresses."""

    # Before `address`, whose validator sees it.
    unsafe_listen: Flag = False
    """`true`: `address` may be `0.0.0.0` or `::`, so that the endpoints are open on every network of this machine."""

    address: Annotated[
        IPAddress | None, *text(values.listen_address, values.ADDRESS_PATTERN, "10.0.0.4", "0.0.0.0")
    ] = None
    """Where the endpoints listen. Default: the instance's address in the service; of a counted role, the address that this
    machine reaches others from. `0.0.0.0` and `::` mean all, and need `unsafe_listen`."""

    workers: Annotated[
        int | Literal["auto"],
        BeforeValidator(values.workers),
        WithJsonSchema(
            {
                "anyOf": [{"const": "auto"}, {"type": "integer", "minimum": 1, "maximum": values.WORKERS_MAX}],
                "examples": ["auto", 4],
            }
        ),
    ] = "auto"
    """How many processes forward. `auto`: relay decides."""

    metrics: Annotated[Metrics | None, BeforeValidator(_metrics_or_false)] = Field(
        default=Metrics(), json_schema_extra=_false_for_null
    )
    """Where the metrics are; `false`: nowhere."""

    admin: Admin = Admin()
    """Where the command line reaches the daemon."""

    registry: Registry | None = None
    """Who tells which instances of the counted roles are there. Needed where the service file has a count of instances."""

    names: Names = Names()
    """How other instances are found by name on this machine."""

    machine_id: Annotated[str, *text(references.file, references.FILE_PATTERN, "/etc/machine-id")] = "/etc/machine-id"
    """The file that tells this machine from others: what an instance's number belongs to."""

    state: Annotated[str, *text(references.file, references.FILE_PATTERN, "/var/lib/relay")] = "/var/lib/relay"
    """The directory that keeps what outlasts a restart: the weights that were set by hand."""

    log: Log = Log()
    """What the daemon writes to standard error."""

    drain_s: Duration = Field(default=30.0, alias="drain", json_schema_extra={"default": "30s"})
    """How long open connections may go on after the daemon was told to stop."""

    @field_validator("address", mode="after")
    @classmethod
    def _wildcard_only_on_purpose(cls, address: IPAddress | None, info: ValidationInfo) -> IPAddress | None:
        if address is not None and address.is_unspecified and info.data.get("unsafe_listen") is False:
            raise WrongValue(
                f"`{address}` listens on every network of this machine",
                "write one address, or `unsafe_listen: true` beside it",
            )
        return address
