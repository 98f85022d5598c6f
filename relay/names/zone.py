"""The names of a service, `SERVICE.internal`, and the answer to every question about them. Pure: a packet in, a packet out.

* `web.shop.internal`: the healthy instances of a role, in another order each time;
* `web-0.web.shop.internal`: one instance, healthy or not;
* `_postgres._tcp.store.shop.internal`: where an endpoint is, by name and port (SRV, RFC 2782);
* `4.0.0.10.in-addr.arpa`, and the same under ip6.arpa: whose address that is;
* `shop.internal`: SOA and NS; `ns.shop.internal`: this server.

An instance is healthy when nobody says otherwise: neither itself (busy, or an endpoint down) nor who asked it. Where no
instance is healthy, all are given out: an address that may answer is better than none.
"""

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from random import Random
from typing import TYPE_CHECKING, Any, Final

from relay.config.roster import EDGE, Member, Roster
from relay.names import wire as wire
from relay.names.wire import OWNER, Labels, NotOurs, Query, Unreadable

if TYPE_CHECKING:
    from relay.config.model import Service

TOP: Final = "internal"  # reserved for private use (ICANN board resolution 2024.07.29.06)
NEGATIVE_MAX_S: Final = 5  # for a name that is not there: who joins is found after so long at the most
_LABEL_MAX: Final = 63
_POINTER: Final = 0xC000
_POINTER_MAX: Final = 0x3FFF  # a pointer has 14 bits (RFC 1035 section 4.1.4)
_DATA_AT: Final = 12  # where a record's data begins: after its owner (a pointer), type, class, ttl and length
# Nobody asks this server for a copy of the zone: refresh, retry and expire are what RFC 1912 section 2.2 suggests.
_REFRESH_S, _RETRY_S, _EXPIRE_S = 1200, 180, 1_209_600


@dataclass(frozen=True, slots=True)
class Node:
    """An instance as the zone knows it. `label` is its own part of its name (`web-0`); empty: it has no name."""

    member: Member
    label: str
    wired: bytes  # its whole name as a message has it
    type: int  # A or AAAA
    packed: bytes  # its address
    healthy: bool


@dataclass(slots=True)
class _Set:
    """The records that answer one question. `glue` has for each the machine that its data ends with: name, type, address."""

    records: list[bytes] = field(default_factory=list)
    glue: list[tuple[bytes, int, bytes]] = field(default_factory=list)
    shortest_bytes: int = wire.TCP_MAX_BYTES


class Zone:
    """The names of one service at one time. A change of roster or health makes a new one.

    `ports` are the roles, with the first port of each endpoint. `unhealthy` are the ids of instances that do not answer
    (whoever found that out). `address` is where this server listens, `serial` counts changes of the roster, `ttl_s` is how
    long an answer may be remembered (less than a second: not at all). `dice` decides the order of answers.

    `left_out` says, for people, what can have no name: where two differ in no more than case, or `.` and `-`, the one
    written first has it.
    """

    def __init__(
        self,
        service: str,
        ports: Mapping[str, Mapping[str, int]],
        roster: Roster,
        *,
        unhealthy: Collection[str] = (),
        address: str,
        serial: int,
        ttl_s: float,
        dice: Random | None = None,
    ) -> None:
        self.service = service
        self.domain = f"{service}.{TOP}"
        self.left_out: tuple[str, ...] = ()
        self.roles: dict[str, tuple[Node, ...]] = {}  # by label
        self._ttl_s = int(ttl_s)
        self._dice = dice or Random()
        self._apex = _labels(self.domain)
        self._sets: dict[Labels, dict[int, _Set]] = {self._apex: {}}
        self._empty: set[Labels] = set()  # names without records that have names below them
        for role, endpoints in ports.items():
            self._add_role(role, endpoints, roster.of(role), frozenset(unhealthy))
        self._add_apex(address, serial)
        self._soa_data = self._sets[self._apex][wire.SOA].records[0][_DATA_AT:]

    @classmethod
    def of_service(cls, service: "Service", roster: Roster, **keys: Any) -> "Zone":
        """The zone of a service file. `keys` are the constructor's."""
        return cls(service.service, ports_of(service), roster, **keys)

    def full_name(self, node: Node) -> str:
        """`web-0.web.shop.internal`. Of a node with a label."""
        return f"{node.label}.{node.member.role.lower()}.{self.domain}"

    def answer(self, packet: bytes, tcp: bool) -> bytes | None:
        """The answer to a packet; None: silence. Over UDP it says when it is not whole (TC). Raises nothing.

        What even TCP's 65,535 bytes cannot hold, some 4,000 addresses of one role, is a random choice of that size.
        """
        try:
            query = wire.read_query(packet)
        except NotOurs:
            return None
        except Unreadable as error:
            return error.reply
        if query.edns_version:
            return wire.write(query, wire.BADVERS, authoritative=False)
        found = self._sets.get(query.name)
        inside = query.name[-len(self._apex) :] == self._apex
        if (found is None and not inside) or query.class_ != wire.CLASS_IN or query.type in (wire.AXFR, wire.IXFR):
            return wire.write(query, wire.REFUSED, authoritative=False)
        if found is None:
            return wire.write(
                query, wire.NOERROR if query.name in self._empty else wire.NXDOMAIN, (), (self._soa(query, inside),)
            )
        if query.type == wire.ANY and found:
            # RFC 8482 section 4.2: one record that says why there are no others.
            hinfo = wire.record(OWNER, wire.HINFO, self._ttl_s, b"\x07RFC8482\x00")
            return wire.write(query, wire.NOERROR, (hinfo,))
        if query.type not in found:
            return wire.write(query, wire.NOERROR, (), (self._soa(query, inside),))
        return self._write(query, found[query.type], tcp)

    def _write(self, query: Query, found: _Set, tcp: bool) -> bytes:
        """An answer with all records that fit, in a new order; then the addresses of what they name, as far as they fit."""
        room, several = wire.room_bytes(query, tcp=tcp), len(found.records)
        # No more are drawn than may fit, so that a large role costs a UDP answer little more than a small one.
        taken: list[int] = []
        for n in self._dice.sample(range(several), min(several, room // found.shortest_bytes)):
            if (room := room - len(found.records[n])) < 0:
                break
            taken.append(n)
        answers = [found.records[n] for n in taken]
        if len(taken) < several:
            return wire.write(query, wire.NOERROR, answers, truncated=not tcp)
        return wire.write(query, wire.NOERROR, answers, (), self._glue(query, found, taken, room))

    def _glue(self, query: Query, found: _Set, taken: list[int], room: int) -> list[bytes]:
        added: list[bytes] = []
        if not found.glue:
            return added
        end = wire.HEADER_BYTES + len(query.asked)
        for n in taken:
            name, type_, packed = found.glue[n]
            end += len(found.records[n])
            name_at = end - len(name)
            owner = struct.pack("!H", _POINTER | name_at) if name_at <= _POINTER_MAX else name
            added.append(wire.record(owner, type_, self._ttl_s, packed))
            if (room := room - len(added[-1])) < 0:
                return added[:-1]
        return added

    def _soa(self, query: Query, inside: bool) -> bytes:
        """What goes with a negative answer (RFC 2308 section 3). A reverse name is a zone of its own."""
        depth_bytes = sum(1 + len(label) for label in query.name[: -len(self._apex)]) if inside else 0
        owner = struct.pack("!H", _POINTER | wire.HEADER_BYTES + depth_bytes)
        return wire.record(owner, wire.SOA, self._negative_s, self._soa_data)

    @property
    def _negative_s(self) -> int:
        return min(self._ttl_s, NEGATIVE_MAX_S)

    def _add_apex(self, address: str, serial: int) -> None:
        # No role's name starts with a digit, so this one is always free.
        ns = _labels("0ns" if _labels("ns") + self._apex in self._sets else "ns") + self._apex
        rname = wire.wire_name((b"hostmaster", *self._apex))
        times = struct.pack("!IIIII", serial & 0xFFFFFFFF, _REFRESH_S, _RETRY_S, _EXPIRE_S, self._negative_s)
        self._add(self._apex, wire.SOA, wire.wire_name(ns) + rname + times)
        here = ip_address(address)
        type_, wired = wire.A if here.version == 4 else wire.AAAA, wire.wire_name(ns)
        self._add(self._apex, wire.NS, wired, (wired, type_, here.packed))
        self._add(ns, type_, here.packed)

    def _add_role(
        self, role: str, endpoints: Mapping[str, int], members: tuple[Member, ...], unhealthy: Collection[str]
    ) -> None:
        label = role.lower()
        name = _labels(label) + self._apex
        if label in self.roles:
            self._leave_out(f"role {role}", f"`{label}.{self.domain}` is another role's; rename one of the two")
            return
        nodes = []
        for member in members:
            address = ip_address(member.address)
            type_ = wire.A if address.version == 4 else wire.AAAA
            own = f"{label}-{member.ordinal}"
            if len(own) > _LABEL_MAX:
                self._leave_out(
                    f"instance {member.id}", f"`{own}` is longer than {_LABEL_MAX}; shorten its role's name"
                )
                own = ""
            whole = (own.encode(), *name)
            wired = wire.wire_name(whole)
            healthy = member.id not in unhealthy and not member.busy and not set(endpoints).intersection(member.down)
            nodes.append(Node(member, own, wired, type_, address.packed, healthy))
            if own:
                self._add(whole, type_, address.packed)
                self._add(_labels(address.reverse_pointer), wire.PTR, wired)
        self.roles[label] = tuple(nodes)
        self._sets.setdefault(name, {})
        # Of those that are told by names several may have one address, with another port each: a record is there once.
        for type_, packed in dict.fromkeys((node.type, node.packed) for node in _preferred(nodes)):
            self._add(name, type_, packed)
        for endpoint, port in endpoints.items():
            self._add_endpoint(role, endpoint, port, name, nodes, unhealthy)

    def _add_endpoint(
        self, role: str, endpoint: str, port: int, at: Labels, nodes: list[Node], unhealthy: Collection[str]
    ) -> None:
        label = f"_{endpoint.lower().replace('.', '-')}"
        name = (label.encode(), b"_tcp", *at)
        if len(label) > _LABEL_MAX:
            self._leave_out(f"endpoint {role}/{endpoint}", f"`{label}` is longer than {_LABEL_MAX}; shorten its name")
            return
        if name in self._sets:
            fix = f"`{label}._tcp.{role.lower()}.{self.domain}` is another endpoint's; rename one of the two"
            self._leave_out(f"endpoint {role}/{endpoint}", fix)
            return
        self._empty.add(name[1:])
        self._sets[name] = {}
        named = [node for node in nodes if node.label]
        serving = [node for node in named if node.member.id not in unhealthy and node.member.serves(endpoint)]
        for node in serving or named:
            data = struct.pack("!HHH", 0, 0, node.member.port or port) + node.wired
            self._add(name, wire.SRV, data, (node.wired, node.type, node.packed))

    def _add(self, name: Labels, type_: int, data: bytes, *glue: tuple[bytes, int, bytes]) -> None:
        found = self._sets.setdefault(name, {}).setdefault(type_, _Set())
        found.records.append(wire.record(OWNER, type_, self._ttl_s, data))
        found.glue.extend(glue)
        found.shortest_bytes = min(found.shortest_bytes, len(found.records[-1]))

    def _leave_out(self, what: str, why: str) -> None:
        self.left_out = (*self.left_out, f"{what} has no name: {why}")


def ports_of(service: "Service") -> dict[str, dict[str, int]]:
    """Every role of a service file with the first port of each endpoint; an edge has no endpoints of its own."""
    ports = {
        name: {endpoint: each.listen_ports.first for endpoint, each in role.endpoints.items()}
        for name, role in service.roles.items()
    }
    return ports if service.edge is None else ports | {EDGE: {}}


def _preferred(nodes: list[Node]) -> list[Node]:
    """The healthy ones; all of them where none is."""
    return [node for node in nodes if node.healthy] or nodes


def _labels(name: str) -> Labels:
    return tuple(label.encode() for label in name.lower().split("."))
