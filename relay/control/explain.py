"""Why: the verdict on a source and every rule that was looked at for it; who would be cut by a reload; who may reach what.

The same envelope that a worker asks, from the same snapshot.
"""

import ipaddress
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Final

from relay.address import packed_host
from relay.config.compile import compile_snapshot
from relay.config.load import load_service
from relay.config.model import Service
from relay.config.roster import EDGE, Member, Roster
from relay.config.settings import Settings
from relay.config.snapshot import BY_INSTANCE, EndpointRow, Snapshot, TargetRow
from relay.control import answers, done
from relay.control.holds import hold_for_s
from relay.control.in_force import InForce
from relay.control.status import target_status
from relay.envelope.rules import RuleRow
from relay.errors import OperatorError
from relay.ledger.layout import Health, TargetCount, health_at
from relay.ledger.ledger import Ledger
from relay.targets.choose import Ranking, bucket
from relay.targets.health import knows_at, may_be_back, share_of, state_in

# Stands for the address of an instance that only a registry knows, where the file alone is asked: in a network that is
# nobody's, because what goes there is thrown away (RFC 6666).
_SOMEWHERE: Final = "100::"
_BY_ADDRESS: Final = {False: "yes", True: "by address"}
_UNENFORCED: Final = "not enforced"
# What a source is called in a summary: a customer's usual network, so that a thousand of its addresses are one line.
_SUMMARY_BITS: Final = {4: 24, 6: 64}


def explain_in(in_force: InForce, endpoint: str, address: str | None, instance: str | None) -> answers.Explanation:
    """The answer to `GET /v1/explain`, by what is in force. Raises OperatorError."""
    snapshot = in_force.snapshot
    return explain(find_endpoint(snapshot, endpoint), find_source(snapshot, address, instance))


def route_in(in_force: InForce, ledger: Ledger, endpoint: str, client: str) -> answers.RouteAnswer:
    """The answer to `GET /v1/route`, by what is in force. Raises OperatorError."""
    return route(find_endpoint(in_force.snapshot, endpoint), ledger, client)


def find_source(snapshot: Snapshot, address: str | None, instance: str | None) -> str:
    """The address to ask about: as given, or that of an instance in the roster. Raises OperatorError."""
    if instance is not None:
        if (member := snapshot.roster.get(instance)) is not None:
            return member.address
        here = ", ".join(member.id for member in snapshot.roster)
        raise OperatorError(f"no instance {instance} in service {snapshot.service}; it has {here}")
    try:
        return str(ipaddress.ip_address(address or ""))
    except ValueError:
        raise OperatorError(f"`{address}` is not an IP address; write one such as 203.0.113.9") from None


def find_endpoint(snapshot: Snapshot, name: str) -> EndpointRow:
    """The endpoint called `role/endpoint`. Raises OperatorError."""
    for row in snapshot.endpoints:
        if row.name == name:
            return row
    here = ", ".join(row.name for row in snapshot.endpoints) or "none"
    raise OperatorError(
        f"no endpoint `{name}` on {snapshot.instance}, which has {here}; another role's are told by "
        "`relay explain --service FILE`, or by an instance of that role"
    )


def explain_file(path: str, to: str, address: str | None, instance: str | None) -> answers.Explanation:
    """`explain` by a service file alone, for any role's endpoint. Raises OperatorError."""
    service = load_service(path, piped=True).value
    role = to.partition("/")[0]
    if role not in service.roles or not service.roles[role].count:
        raise OperatorError(f"no role `{role}` with instances in {path}; `--to` is ROLE/ENDPOINT")
    file = os.path.basename(path)
    if service.roles[role].bare:
        return _explain_bare(service, file, to, address, instance)
    me = Member(role, 0, _SOMEWHERE) if service.roles[role].counted else None
    roster = Roster.of_service(service, me=me)
    snapshot = compile_snapshot(service, Settings(), f"{role}_IN_0", generation=0, file=file, roster=roster)
    row = find_endpoint(snapshot, to)
    answer = explain(row, find_source(snapshot, address, instance))
    endpoint = service.roles[role].endpoints.get(row.endpoint)
    asked = (endpoint.from_roles if endpoint is not None else None) or tuple(service.roles)
    counted = [name for name in asked if name in service.counted]
    if row.type in ("internal", "relay") and counted and answer["verdict"] == "deny":
        raise OperatorError(
            f"the file does not say where the instances of {', '.join(counted)} are, whom {to} admits: a registry does; ask "
            "the relay of an instance that has it, without `--service`"
        )
    if service.roles[role].counted:
        answer["listen"] = f"port {row.listen_port}"
    return answer


def _explain_bare(
    service: Service, file: str, to: str, address: str | None, instance: str | None
) -> answers.Explanation:
    """Of a role without relay: an edge's answer, where there is one that leads there; else nobody is asked."""
    role, _, name = to.partition("/")
    endpoint = service.roles[role].endpoints.get(name.removesuffix(BY_INSTANCE))
    if endpoint is None:
        here = ", ".join(f"{role}/{each}" for each in service.roles[role].endpoints) or "none"
        raise OperatorError(f"no endpoint `{to}`; role `{role}` has {here}")
    if endpoint.type == "input" and service.edge is not None:
        snapshot = compile_snapshot(service, Settings(), f"{EDGE}_IN_0", generation=0, file=file)
        row = next((row for row in snapshot.endpoints if to in (row.name, row.name.removesuffix(BY_INSTANCE))), None)
        if row is not None:
            return explain(row, find_source(snapshot, address, instance))
    roster = Snapshot(0, service.service, "", (), 0.0, "info", roster=Roster.of_service(service))
    return {
        "from": find_source(roster, address, instance),
        "to": to,
        "listen": f"port {endpoint.listen_ports}",
        "edges": [],
        "verdict": "permit",
        "reason": None,
        "enforce": endpoint.enforce,
        "rule": None,
        "looked_at": [],
        "otherwise": "permit",
        "why": "there is no relay on the machines of a bare role, and nobody is refused",
        "per_source": None,
        "bare": True,
    }


def explain(row: EndpointRow, source: str) -> answers.Explanation:
    """The envelope's verdict on a connection from the address `source`, and the rules that were looked at, in order."""
    verdict = row.envelope.decide(ipaddress.ip_address(source).packed)
    last = verdict.rule if verdict.rule is not None else len(row.rules) - 1
    return {
        "from": source,
        "to": row.name,
        "listen": row.listen,
        "edges": list(row.edges),
        "verdict": "permit" if verdict.permit else "deny",
        "reason": None if verdict.permit else row.denied_reason,
        "enforce": row.enforce,
        "rule": None if verdict.rule is None else _rule(row.rules[verdict.rule]),
        "looked_at": [_rule(rule) for rule in row.rules[: last + 1]],
        "otherwise": "permit" if row.permit_unmatched else "deny",
        "why": _why(row, verdict.rule),
        "per_source": None
        if row.per_source is None
        else {"limit": row.per_source, "network": _counted_as(row, source)},
        "bare": row.direct and not row.is_own and row.type != "door",
    }


def _counted_as(row: EndpointRow, source: str) -> str:
    """The network whose connections `limits.per_source` counts together with those of `source`."""
    address = ipaddress.ip_address(packed_host(source))
    bits = row.per_source_ipv4_bits if address.version == 4 else row.per_source_ipv6_bits
    return str(ipaddress.ip_network((address, bits), strict=False))


def _rule(rule: RuleRow) -> answers.RuleAnswer:
    return {"action": "permit" if rule.permit else "deny", "network": rule.network, "source": rule.origin}


def _why(row: EndpointRow, rule: int | None) -> str:
    if rule is not None:
        return "the first rule that matches decides"
    if row.type == "internal":
        return "an internal endpoint admits the instances of its roles and nobody else"
    if row.type == "door":
        return "a door out is for this machine alone"
    if row.type == "relay":
        return "the machines of this service and nobody else"
    if not row.rules:
        return "an input endpoint without rules admits everyone"
    if row.permit_unmatched:
        return "no rule matches; with `deny` rules alone, everyone else may connect"
    return "no rule matches; a `permit` stands in the list, so everyone else may not connect"


def route(row: EndpointRow, ledger: Ledger, client: str) -> answers.RouteAnswer:
    """Where an edge would send `client` (`address`, or `address:port`) for an endpoint, and why. Raises OperatorError.

    One that is down is tried where all are, if a connection finds out whether it is. By the same ranking and health as a
    worker. Which targets a worker has met a failure of, that worker alone knows.
    """
    if row.distribution is None or row.distribution == "instance":
        raise OperatorError(f"{row.name} has one target for each port here; an edge spreads connections over several")
    if row.distribution == "round-robin":
        raise OperatorError(
            f"{row.name} goes by `round-robin`: a connection gets the next target, whoever the client is"
        )
    address, port = _client(client)
    if port is None and row.distribution == "five-tuple":
        raise OperatorError("`five-tuple` goes by the client's port as well; write `--client ADDRESS:PORT`")
    order = _order(row, ledger, bucket(row.distribution, address, port or 0, row.listen_port))
    ready = _ready(row, ledger, [target for target in order if target.weight])
    return {
        "to": row.name,
        "client": client,
        "distribution": row.distribution,
        "target": ready[0].text if ready else None,
        "instance": ready[0].instance if ready else None,
        "waits": not ready and bool(row.hold_s or hold_for_s(ledger, row)),
        "order": [target_status(ledger, row, target) for target in order],
    }


def _order(row: EndpointRow, ledger: Ledger, bucket: int) -> list[TargetRow]:
    """The targets as this bucket has them, and then those without a weight."""
    shares = [target.weight * share_of(ledger, row, target) for target in row.targets]
    ranked = [row.targets[n] for n in Ranking([target.text for target in row.targets], shares).order(bucket)]
    return ranked + [target for target in row.targets if not target.weight]


def _ready(row: EndpointRow, ledger: Ledger, ranked: list[TargetRow]) -> list[TargetRow]:
    """Those of them that may get a connection now, the next one first."""
    words, part = ledger.words, ledger.worker(0)
    up = [target for target in ranked if state_in(words[health_at(target.slot)]) != Health.DOWN]
    ready = up if row.is_judged else up or ranked
    for target in ranked if not ready else ():
        knows = row.direct or words[knows_at(part, target.slot)]
        if may_be_back(words[health_at(target.slot)], knows, proves=row.dial_proves):
            ready.append(target)
    ready = [target for target in ready if not target.backup] or ready
    if row.distribution == "least-connections":
        active = {each.slot: ledger.target_total(each.slot, TargetCount.ACTIVE) for each in ready}
        ready.sort(key=lambda each: (active[each.slot] + 1) / (each.weight * share_of(ledger, row, each)))
    return ready


def _client(text: str) -> tuple[bytes, int | None]:
    try:
        return ipaddress.ip_address(text.strip("[]")).packed, None
    except ValueError:
        host, _, port = text.rpartition(":")
        try:
            if not 0 <= (number := int(port)) <= 65535:
                raise ValueError(port)
            return ipaddress.ip_address(host.strip("[]")).packed, number
        except ValueError:
            raise OperatorError(f"`{text}` is no client; write an address, or `ADDRESS:PORT`") from None


def who_is_cut(flows: Iterable[tuple[str, str]], new: Snapshot, old: Snapshot | None = None) -> list[done.Cut]:
    """Of open connections (endpoint's name, source address), those that `new` no longer allows, most first.

    `old` is the snapshot under which they came: directly, where its endpoint was behind no edge.
    """
    rows = {row.name: row for row in new.endpoints}
    came_directly = {row.name for row in old.endpoints if not row.edges} if old is not None else set()
    envelopes = {name: row.envelope for name, row in rows.items()}
    cut: Counter[tuple[str, str, str]] = Counter()
    for name, source in flows:
        address = ipaddress.ip_address(source.partition("%")[0])
        network = str(ipaddress.ip_network((address, _SUMMARY_BITS[address.version]), strict=False))
        if name not in rows:
            cut[name, network, "the endpoint is closed"] += 1
            continue
        if rows[name].edges and name in came_directly:
            cut[name, network, "it is behind the edge now, and this came directly"] += 1
            continue
        row, verdict = rows[name], envelopes[name].decide(address.packed)
        if not verdict.permit and row.enforce == "strict":
            rule = None if verdict.rule is None else _rule(row.rules[verdict.rule])
            why = "{action} {network}, {source}".format(**rule) if rule else _why(row, None)
            cut[name, network, why] += 1
    return [
        {"endpoint": name, "network": network, "why": why, "connections": count}
        for (name, network, why), count in cut.most_common()
    ]


def matrix(service: Service) -> list[answers.Reach]:
    """Who may reach which endpoint: from outside, in words; and of each role all, some or none of its instances."""
    found: list[answers.Reach] = []
    stand_ins = [Member(name, 0, f"{_SOMEWHERE}{n:x}") for n, name in enumerate(service.counted)]
    roster = Roster.of_service(service, stand_ins)
    for role_name, role in service.roles.items():
        if role.bare:
            found += _matrix_of_bare(service, role_name)
            continue
        if not role.count:
            continue
        snapshot = compile_snapshot(service, Settings(), f"{role_name}_IN_0", generation=0, file="", roster=roster)
        for row in snapshot.endpoints:
            if row.type == "door" or row.type == "relay":
                continue
            envelope = row.envelope
            by_role = {
                name: _share([envelope.decide(_packed(member)).permit for member in roster.of(name)])
                if row.type == "internal" or not each.counted
                else _BY_ADDRESS[bool(row.rules)]
                for name, each in service.roles.items()
            }
            found.append({"endpoint": row.name, "type": row.type, "outside": _outside(row), "roles": by_role})
    return found


def _matrix_of_bare(service: Service, role_name: str) -> Iterator[answers.Reach]:
    """Of a role without relay: what an edge says of the outside, and that nobody enforces anything on its machines."""
    edge = (
        compile_snapshot(service, Settings(), f"{EDGE}_IN_0", generation=0, file="").endpoints if service.edge else ()
    )
    rows = {row.name.removesuffix(BY_INSTANCE): row for row in edge}
    for name, endpoint in service.roles[role_name].endpoints.items():
        row = rows.get(f"{role_name}/{name}")
        outside = _UNENFORCED if row is None else f"{_outside(row)}, by the edge"
        roles = dict.fromkeys(service.roles, _UNENFORCED)
        yield {"endpoint": f"{role_name}/{name}", "type": endpoint.type, "outside": outside, "roles": roles}


def _packed(member: Member) -> bytes:
    return ipaddress.ip_address(member.address).packed


def _share(permits: list[bool]) -> str:
    if not permits:
        return "-"
    return "yes" if all(permits) else "some" if any(permits) else "no"


def _outside(row: EndpointRow) -> str:
    if row.type == "internal":
        return "no"
    if not row.rules:
        return "everyone"
    permits = sum(rule.permit for rule in row.rules)
    if not permits:
        return f"all but {_count(len(row.rules))}"
    return f"only {_count(permits)}" + (
        f", less {_count(len(row.rules) - permits)}" if permits < len(row.rules) else ""
    )


def _count(networks: int) -> str:
    return "1 network" if networks == 1 else f"{networks} networks"
