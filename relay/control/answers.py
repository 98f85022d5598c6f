"""What the admin API and the discovery API answer, as types.

The code that makes an answer, the published schema (openapi.py) and the command line all go by these.

Counts are since the daemon started; ages and durations are in seconds.
"""

from typing import Annotated, Literal

from typing_extensions import TypedDict  # typing's own says too little about its keys before Python 3.12

from relay.control.described import Says, Within
from relay.control.senders import ToldStatus
from relay.control.source_status import SourceStatus

Count = Annotated[int, Within(0)]
Port = Annotated[int, Within(1, 65535)]
AddressText = Annotated[str, Says("host:port, or [v6]:port")]
EndpointType = Literal["input", "internal"]
ProtocolName = Literal["tcp", "http", "https"]
Permission = Literal["permit", "deny"]
Looked = Literal["dialled", "probed"] | None


class PortRange(TypedDict):
    """Ports next to each other; one port, where both are the same."""

    first: Port
    last: Port


class Error(TypedDict):
    """What is wrong with a request."""

    error: str


class Refusal(TypedDict):
    """Why nothing was changed; each problem of a file on a line of its own."""

    error: str
    problems: list[str]


# --- discovery ----------------------------------------------------------------------------------------------------------


class Identity(TypedDict):
    """Which instance this machine is."""

    service: str
    instance: str
    role: str
    ordinal: Count
    address: str


class HostsBlock(TypedDict):
    """The service's names as lines for a hosts file."""

    service: str
    block: str


class Use(TypedDict):
    """A door out: where a role's own programs reach another role's endpoint."""

    endpoint: str
    listen: AddressText


class RoleAnswer(TypedDict):
    """A role, and who of it is there. `count`: how many there may be."""

    name: str
    kind: Literal["listed", "counted", "named"]
    bare: bool
    count: Count
    instances: list[str]
    endpoints: list[str]
    uses: dict[str, Use]


class EndpointOfInstance(TypedDict):
    """One endpoint of one instance."""

    name: str
    type: EndpointType
    protocol: ProtocolName
    address: AddressText
    ports: PortRange
    healthy: bool


class InstanceAnswer(TypedDict):
    """One instance. `self`: it is this machine. `reasons`: why it is down: by endpoint, and under its id as found here.

    `name`: the name, service record or file that says it is there; empty: the service file has its address, or a registry.
    """

    id: str
    role: str
    ordinal: Count
    address: str
    name: str
    metrics: AddressText | None
    healthy: bool
    busy: bool
    down: list[str]
    reasons: dict[str, str]
    self: bool
    endpoints: list[EndpointOfInstance]


class InstanceOfEndpoint(TypedDict):
    """One instance that has an endpoint."""

    instance: str
    address: AddressText
    healthy: bool


class InstanceBehindEdge(TypedDict):
    """Where an edge leads to one instance and no other."""

    instance: str
    address: AddressText


class EdgeOfEndpoint(TypedDict):
    """One edge in front of an endpoint."""

    instance: str
    address: AddressText | None
    instances: list[InstanceBehindEdge]
    healthy: bool


EndpointAnswer = TypedDict(
    "EndpointAnswer",
    {
        "name": str,
        "role": str,
        "endpoint": str,
        "type": EndpointType,
        "protocol": ProtocolName,
        "ports": PortRange,
        "public_port": Port | None,
        "instance_ports": PortRange | None,
        "from": list[str] | None,
        "instances": list[InstanceOfEndpoint],
        "edges": list[EdgeOfEndpoint],
    },
)
"""A declared endpoint, and who has it."""

TargetLabels = TypedDict(
    "TargetLabels", {"instance": str, "service": str, "__meta_relay_role": str, "__meta_relay_ordinal": str}
)


class TargetGroup(TypedDict):
    """Whom to scrape: https://prometheus.io/docs/prometheus/latest/http_sd/."""

    targets: list[AddressText]
    labels: TargetLabels


class Everything(TypedDict):
    """The first event of a watch: who is there."""

    service: str
    instances: list[InstanceAnswer]


# --- status -------------------------------------------------------------------------------------------------------------


class ProcessStatus(TypedDict):
    """The keeper."""

    pid: Count


class ControlStatus(TypedDict):
    """The control process. `crashes_in_a_row`: ends at its start; 0 when it has lived for a while."""

    pid: Count
    restarts: Count
    crashes_in_a_row: Count


class WorkerStatus(TypedDict):
    """One worker. `connections`: open now. `hung`: times it was killed for it. `unserved`: addresses without a socket."""

    pid: Count
    holder_pid: Count
    survives_crash: bool
    restarts: Count
    crashes_in_a_row: Count
    hung: Count
    unserved: Count
    connections: Count
    flows_adopted: Count
    generation: Count
    heartbeat_age_s: float
    accept_pauses: Count
    pipes: Count
    pipes_degraded: Count
    pipes_refused: Count
    log_lines_dropped: Count


class RegistryStatus(TypedDict):
    """What is known of the registry. `age_s`: since it was last heard; null: never. `roles`: there, and expected."""

    kind: Literal["etcd", "directory"]
    members: Count
    age_s: float | None
    trouble: str
    rejected: Count
    left_out: list[str]
    roles: dict[str, list[Count]]


class ReloadStatus(TypedDict):
    """The last reload. `last_success_timestamp`: seconds since 1970."""

    last_successful: bool
    last_success_timestamp: float
    failed: Count


class TargetStatus(TypedDict):
    """One of several targets: how it is, and what connections met.

    `reason`: why it is down. `since_s`: so long it is so. `looked_s`: so long ago that was found last, by what `looked` says.
    `weight`: its share beside the others' weights; `declared_weight`: the file's, where it was set by hand; `share`: what
    part of it it has now, as `slow_start` goes.
    """

    target: AddressText
    instance: str
    health: Literal["unknown", "up", "down"]
    reason: str
    since_s: float | None
    looked_s: float | None
    looked: Looked
    active: Count
    connected: Count
    failures: Count
    ejections: Count
    retries: Count
    ejected_for_s: float
    mean_connect_s: float | None
    weight: Count
    declared_weight: Count | None
    share: float
    backup: bool


class EndpointStatus(TypedDict):
    """One endpoint, a door out, or the port of this machine's relay (`relay`), as it is at work.

    `target_up`: of several, whether one is. `target_reason` and those that follow: as in a target's own status; of several
    each has its own, in `target_set`. `held`: of the active, who wait for a target; `hold_for_s`: new ones do, by hand.
    """

    name: str
    type: Literal["input", "internal", "door", "relay"]
    protocol: ProtocolName
    listen: AddressText
    leads_to: str
    distribution: Literal["five-tuple", "source-ip", "least-connections", "round-robin", "instance"] | None
    targets: list[str]
    target_set: list[TargetStatus]
    target_up: bool | None
    target_reason: str
    target_since_s: float | None
    target_looked_s: float | None
    target_looked: Looked
    active: Count
    held: Count
    hold_for_s: float
    accepted: Count
    denied: dict[str, Count]
    enforce: Literal["strict", "audit"]
    deny: Literal["reset", "drop"]
    would_deny: dict[str, Count]
    closed: dict[str, Count]
    received_bytes: Count
    sent_bytes: Count
    connect_failures: Count


class Status(ToldStatus):
    """What is open, and what it did so far. `hung`: processes killed for it. `troubles`: with relay's own processes.

    `engine_reason`: why the engine is interpreted.
    """

    version: str
    engine: Literal["compiled", "interpreted"]
    engine_reason: str
    service: str
    instance: str
    generation: Count
    uptime_s: float
    keeper: ProcessStatus
    program: Count
    upgrading: bool
    upgrade_failed: str
    draining: bool
    control: ControlStatus
    workers: list[WorkerStatus]
    worker_restarts: Count
    hung: Count
    troubles: list[str]
    busy_for_s: float
    reload: ReloadStatus
    registry: RegistryStatus | None
    sources: list[SourceStatus]
    endpoints: list[EndpointStatus]


class Connection(TypedDict):
    """One open connection. Byte counts are at most a second old."""

    endpoint: str
    peer: str
    state: str
    age_s: float
    received_bytes: Count
    sent_bytes: Count
    worker: Count


# --- why ----------------------------------------------------------------------------------------------------------------


class RuleAnswer(TypedDict):
    """One rule. `source`: where it is written, or whose address it is."""

    action: Permission
    network: str
    source: str


class SourceShare(TypedDict):
    """At most `limit` open connections from all of `network` together."""

    limit: int
    network: str


Explanation = TypedDict(
    "Explanation",
    {
        "from": str,
        "to": str,
        "listen": AddressText,
        "edges": list[str],
        "verdict": Permission,
        "reason": str | None,
        "enforce": Literal["strict", "audit"],
        "rule": RuleAnswer | None,
        "looked_at": list[RuleAnswer],
        "otherwise": Permission,
        "why": str,
        "per_source": SourceShare | None,
        "bare": bool,
    },
)
"""The envelope's verdict on a source, and the rules that were looked at, in order.

`bare`: it is an edge's, or nobody's; on the machines themselves there is no relay.
"""


class RouteAnswer(TypedDict):
    """Where an edge would send a client. Without a target it `waits` for one, or is refused."""

    to: str
    client: str
    distribution: str
    target: AddressText | None
    instance: str | None
    waits: bool
    order: list[TargetStatus]


class Reach(TypedDict):
    """Who may reach one endpoint: from outside, in words, and of each role."""

    endpoint: str
    type: EndpointType
    outside: str
    roles: dict[str, str]
