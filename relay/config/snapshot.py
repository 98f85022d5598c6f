"""What one instance does, whole: the immutable value that the data plane works by.

It is plain data, so that it travels to workers as JSON and a new worker can read the one that stands. compile.py makes it.

In the midst of a live upgrade a worker of one version reads what control of another one wrote. So a reader passes over
keys that it does not know, and what is missing has its default. What has its default is not written: then also a version
takes it that knew no such key, and refuses unknown ones. A default never changes. Where a new key must not be passed over,
READABLE_FROM becomes the FORMAT that has it.
"""

import base64
import json
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar

from relay.address import join_host_port, packed_host
from relay.config.roster import Roster
from relay.envelope.rules import Envelope, RuleRow

FORMAT: Final = 7  # of the JSON below
READABLE_FROM: Final = 7  # the oldest FORMAT whose readers do right by it
_OLDEST: Final = 7  # that this program reads
SLOTS_MAX = 1024  # rows of counters that the ledger has
# Behind an endpoint's name, none of which has an @: its ports for single instances, on an edge.
BY_INSTANCE: Final = "@instance"
RELAY: Final = "@relay"  # the row of a machine's `relay_port`, as its endpoint


@dataclass(frozen=True, slots=True)
class TargetRow:
    """A local service: `host` and `port`, or a Unix socket's `path`. `text` is how the file names it.

    With a `port_count` above 1 it is a range that begins at `port`, one port for each of the endpoint's.
    """

    text: str
    host: str = ""
    port: int = 0
    path: str = ""
    port_count: int = 1
    slot: int = -1  # of one of several: row of counters in the ledger; stays the same over reloads
    instance: str = ""  # on an edge, and of a door out: whose address it is
    relay_port: int = 0  # where that instance's relay is talked to; 0: at `port` alone
    weight: int = 1  # of several: its share of new connections; 0: it gets none
    backup: bool = False  # it gets connections only while no other one is to be had
    declared_weight: int | None = None  # what the file says, where `weight` was set by hand
    name: str = ""  # that led to it, which a certificate may be for; empty: the file has its address

    def at(self, offset: int) -> "TargetRow":
        """The one port of the range that is `offset` from its first; the whole range where it has no such port."""
        if not 0 <= offset < self.port_count:
            return self
        port = self.port + offset
        return TargetRow(join_host_port(self.host, port), host=self.host, port=port)

    def includes(self, one: "TargetRow") -> bool:
        """Whether it is this target, or one port of its range."""
        return (self.host, self.path) == (one.host, one.path) and 0 <= one.port - self.port < self.port_count

    def may_be(self, there: "TargetRow") -> bool:
        """Whether a socket whose peer is called `there` may be connected to this target, which is called otherwise."""
        if self.path or there.path:  # a service may have named its socket from its own directory, or past a link
            return bool(self.path and there.path)
        return self.port == there.port and packed_host(self.host) == packed_host(there.host)


@dataclass(frozen=True, slots=True)
class ProbeRow:
    """How the targets of an endpoint are probed, all the time. `path` is empty for tcp.

    `never`: no application is asked, not even one that is down. `relay`: on an edge, the instances' relays are asked, and
    no application; then all that would be asked of it is as its relay asks it, but for how many answers count.
    """

    path: str
    interval_s: float
    timeout_s: float
    kind: Literal["application", "relay", "never"] = "application"
    port: int = 0  # that is asked; 0: the target's own
    send: str = ""  # what is sent first, of tcp; a character is a byte (ISO 8859-1), here and in `expect`
    expect: str = ""  # what the answer begins with, of tcp
    statuses: tuple[int, ...] = ()  # that are good, of http; none: 200 alone
    tls: Literal["auto", "off", "on", "verify"] = "auto"  # auto: http at the own port of an `https` endpoint
    rise: int = 1  # good answers in a row, and it is up
    fall: int = 1  # bad answers in a row, and it is down
    on_down: Literal["keep", "cut"] = "keep"  # the connections to one that goes down

    @property
    def asks_more(self) -> bool:
        """Whether it is not enough that a connection is taken at the target's own port."""
        return bool(self.path or self.port or self.send or self.expect or self.tls in ("on", "verify"))

    @property
    def decides(self) -> bool:
        """Whether its answers alone say how a single target is, and no dial does: they are counted, or much hangs on them."""
        return self.kind == "application" and (self.rise > 1 or self.fall > 1 or self.on_down == "cut")


@dataclass(frozen=True, slots=True)
class EndpointRow:
    """Everything the data plane knows of one endpoint. Limits and the idle timeout are None where there is none.

    It listens on `port_count` ports from `listen_port` on, with one gate and one row of counters.
    """

    name: str  # role/endpoint; of a door out: role/its own name
    slot: int  # row of counters in the ledger; stays the same over reloads
    type: Literal["input", "internal", "door", "relay"]  # `relay`: where other machines' relays talk to this one
    protocol: Literal["tcp", "http", "https"]
    listen_host: str
    listen_port: int
    port_count: int
    targets: tuple[TargetRow, ...]
    rules: tuple[RuleRow, ...]
    permit_unmatched: bool
    denied_reason: Literal["access", "roster"]
    enforce: Literal["strict", "audit"]
    deny: Literal["reset", "drop"]
    drop_filter: str  # the program (hex) that has the kernel drop whom the envelope denies; empty: it drops nobody
    connections: int | None
    per_source: int | None
    rate_per_s: float | None
    connect_s: float
    first_byte_s: float
    idle_s: float | None
    send_proxy: Literal["v1", "v2"] | None
    transparent: bool = False  # dial the target from the client's own address
    many_sources: bool = True  # a loopback target is dialled from other addresses when the usual one has no port left
    edges: tuple[str, ...] = ()  # addresses of the edge: only they connect, and they say who the client is
    # Of several targets. None: they are tried in their order. `instance`: the n-th port leads to the instance with that
    # number.
    distribution: Literal["five-tuple", "source-ip", "least-connections", "round-robin", "instance"] | None = None
    probe: ProbeRow | None = None  # None: a target is looked at while it is down, and not otherwise
    path_behind: str = ""  # on an edge: the Unix socket that the instances' relays lead to
    dial_from: str = ""  # on an edge, and of a door out: this machine's address, which the instances know it by
    leads_to: str = ""  # of a door out: role/endpoint
    keepalive_s: float | None = None  # a peer that is silent for so long is asked whether it is there
    dead_s: float | None = None  # one that is silent for so long is dead
    hold_s: float | None = None  # while no target can be had a connection waits for one so long; None: it does not
    per_source_ipv4_bits: int = 32  # sources that have so many leading bits in common are one for `per_source`
    per_source_ipv6_bits: int = 128
    held_max: int | None = None  # connections that wait at the most, where `connections` is not this machine's to ask
    direct: bool = False  # its several targets are applications, reached without another machine's relay
    slow_start_s: float | None = None  # one of several that has come up has all of its share after so long
    lifetime_s: float | None = None  # a connection is cut after so long, give or take a tenth
    table: bytes = b""  # `rules` compiled (envelope/cidr.py); empty: not compiled

    @property
    def listen(self) -> str:
        """The listening address as `host:port` or `[v6]:port`; a range of ports as `host:first-last`."""
        first = join_host_port(self.listen_host, self.listen_port)
        return first if self.port_count == 1 else f"{first}-{self.listen_port + self.port_count - 1}"

    @property
    def listens(self) -> dict[str, int]:
        """The address of each of its listening sockets, as `host:port`, and that socket's port."""
        ports = range(self.listen_port, self.listen_port + self.port_count)
        return {join_host_port(self.listen_host, port): port for port in ports}

    def target(self, attempt: int) -> TargetRow:
        """The target whose turn it is at this attempt, counted from 0: one after the other, and then the last."""
        return self.targets[min(attempt, len(self.targets) - 1)]

    @property
    def envelope(self) -> Envelope:
        """Who may connect, by its rules."""
        return Envelope.of(self.table, self.rules, permit_unmatched=self.permit_unmatched)

    @property
    def is_edge(self) -> bool:
        """Whether it is an edge's, whose targets are other machines' relays."""
        return self.distribution is not None and self.type != "door" and not self.direct

    @property
    def is_own(self) -> bool:
        """Whether its several targets are services of this machine's own."""
        return self.direct and bool(self.targets) and not self.targets[0].instance

    @property
    def is_judged(self) -> bool:
        """Whether its several targets are asked all the time, so that one that is down gets nobody."""
        return self.is_edge or (self.direct and self.probe is not None and not self.is_let_be)

    @property
    def is_brought(self) -> bool:
        """Whether its clients are brought by other machines' relays, which say first who they are."""
        return bool(self.edges) or self.type == "relay"

    @property
    def endpoint_there(self) -> str:
        """On an edge, and of a door out: the endpoint of its targets, as role/endpoint."""
        return self.leads_to or self.name.removesuffix(BY_INSTANCE)

    @property
    def is_let_be(self) -> bool:
        """Whether its application is never asked, not even while it is down (`probe: false`)."""
        return self.probe is not None and self.probe.kind == "never"

    @property
    def is_decided(self) -> bool:
        """Of a single target: whether probes alone say how it is, and no dial does."""
        return self.probe is not None and self.probe.decides

    @property
    def dial_proves(self) -> bool:
        """Of an endpoint of this machine's own: whether it is enough that the target takes a connection."""
        return self.probe is None or not (self.probe.asks_more or self.probe.decides)

    @property
    def role(self) -> str:
        """The role's name."""
        return self.name.split("/", 1)[0]

    @property
    def endpoint(self) -> str:
        """The endpoint's name inside its role."""
        return self.name.split("/", 1)[1]


class Slots(NamedTuple):
    """Places in the ledger: of endpoints by name; of an edge's or a door's targets by endpoint and `TargetRow.text`."""

    endpoints: Mapping[str, int] = MappingProxyType({})
    targets: Mapping[tuple[str, str], int] = MappingProxyType({})

    def to_plain(self) -> dict[str, int]:
        """As plain data: a target as its endpoint's name, a space, and its text."""
        return {**self.endpoints, **{f"{name} {text}": slot for (name, text), slot in self.targets.items()}}

    @classmethod
    def from_plain(cls, plain: Mapping[str, int]) -> Self:
        """What `to_plain` made. No endpoint's name has a space in it."""
        parts = {(name, text): slot for key, slot in plain.items() for name, _, text in [key.partition(" ")]}
        return cls(
            {name: slot for (name, text), slot in parts.items() if not text},
            {key: slot for key, slot in parts.items() if key[1]},
        )


NO_SLOTS: Final = Slots()
"""Nothing has a place yet."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What one instance does, whole. `generation` counts the snapshots of one daemon from 1."""

    generation: int
    service: str
    instance: str
    endpoints: tuple[EndpointRow, ...]
    drain_s: float
    log_level: Literal["debug", "info", "warning", "error"]
    roster: Roster = field(default_factory=Roster)
    file: str = ""  # the service file that it was compiled from, and its text
    text: str = ""
    gone: tuple[str, ...] = ()  # addresses of instances that are not there any more, because their leases ran out
    weights: tuple[tuple[str, str, int], ...] = ()  # set by hand on this machine: see weights.py

    @property
    def slots(self) -> Slots:
        """Places in the ledger: what the next snapshot goes by."""
        targets = (((row.name, each.text), each.slot) for row in self.endpoints for each in row.targets)
        return Slots(
            {row.name: row.slot for row in self.endpoints}, {target: slot for target, slot in targets if slot >= 0}
        )

    def to_json(self) -> bytes:
        """The snapshot as JSON text."""
        raw = {"format": FORMAT, **asdict(replace(self, roster=Roster())), "roster": self.roster.to_plain()}
        if not self.weights:
            del raw["weights"]
        if READABLE_FROM != FORMAT:
            raw["readable_from"] = READABLE_FROM
        for row in raw["endpoints"]:
            row["table"] = base64.b64encode(row["table"]).decode()
            for name, default in _LEFT_OUT.items():
                if row[name] == default:
                    del row[name]
            for name, default in _LEFT_OUT_OF_PROBE.items() if row["probe"] else ():
                if row["probe"][name] == default:
                    del row["probe"][name]
        return json.dumps(raw, separators=(",", ":")).encode()

    def for_workers(self) -> "Snapshot":
        """The same without roster, text, and the rules as they were written: their tables say all that a worker asks.

        Reading 20,000 rules takes 50 ms, for which every connection of a worker would stand still.
        """
        rows = (replace(row, rules=()) if row.table else row for row in self.endpoints)
        return replace(self, endpoints=tuple(rows), roster=Roster(), file="", text="", weights=())

    @classmethod
    def from_json(cls, text: bytes) -> "Snapshot":
        """The snapshot that `to_json` wrote, in this version or another one.

        Raises LaterFormatError for a text of a version to come that must not be read by this one, ValueError for anything
        else that cannot be.
        """
        raw: dict[str, Any] = json.loads(text)
        written = raw.pop("format", None)
        least = raw.pop("readable_from", written)
        if not isinstance(written, int) or not isinstance(least, int) or written < _OLDEST:
            raise ValueError("a snapshot of another version of relay")
        if least > FORMAT:
            raise LaterFormatError("a snapshot of a later version of relay")
        try:
            raw["endpoints"] = tuple(_endpoint_from(row) for row in raw["endpoints"])
            raw["roster"] = Roster.from_plain(raw["roster"])
            raw["gone"] = tuple(raw.get("gone", ()))
            raw["weights"] = tuple((name, target, weight) for name, target, weight in raw.get("weights", ()))
            return _known(cls, raw)
        except (KeyError, TypeError) as error:
            raise ValueError(f"a snapshot that is not whole: {error}") from error


class LaterFormatError(ValueError):
    """A snapshot of a later version of relay, with something in it that must not be passed over."""


_Row = TypeVar("_Row")


def _known(kind: type[_Row], raw: Mapping[str, Any]) -> _Row:
    """One of these values, of the keys that it has. Raises TypeError where one is missing that has no default."""
    names: Iterable[str] = kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind(**{name: raw[name] for name in names if name in raw})


def _endpoint_from(raw: dict[str, Any]) -> EndpointRow:
    raw["targets"] = tuple(_known(TargetRow, row) for row in raw["targets"])
    raw["rules"] = tuple(_known(RuleRow, row) for row in raw["rules"])
    raw["edges"] = tuple(raw["edges"])
    raw["probe"] = _probe_from(raw["probe"]) if raw["probe"] else None
    raw["table"] = base64.b64decode(raw["table"])
    return _known(EndpointRow, raw)


def _probe_from(raw: dict[str, Any]) -> ProbeRow:
    return _known(ProbeRow, raw | {"statuses": tuple(raw.get("statuses", ()))})


_EVER: Final = ("edges", "probe", "table")  # which the readers of FORMAT 7 do not take for granted
_LEFT_OUT: Final = {
    each.name: each.default for each in fields(EndpointRow) if each.default is not MISSING and each.name not in _EVER
}
_LEFT_OUT_OF_PROBE: Final = {
    each.name: each.default for each in fields(ProbeRow) if each.default is not MISSING and each.name != "kind"
}
