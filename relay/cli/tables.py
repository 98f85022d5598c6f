"""Status for people: plain tables. Pure."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from relay.cli.columns import age, size, table
from relay.cli.target_tables import by_hand, leads_to, target_sets, targets_are

if TYPE_CHECKING:  # for a reader: a command must not wait for what the types are made with
    from relay.control.answers import (
        Connection,
        EndpointStatus,
        Explanation,
        Identity,
        InstanceAnswer,
        Reach,
        RegistryStatus,
        RouteAnswer,
        Status,
        WorkerStatus,
    )
    from relay.control.done import Busy, Hold, Reloaded, WouldReload
    from relay.control.source_status import SourceStatus

_RULES_SHOWN: Final = 12  # up to the one that decides: its neighbourhood, and a screen stays a screen
_CUTS_SHOWN: Final = 20


def status_text(status: "Status") -> str:
    """`GET /v1/status` as text."""
    reload = status["reload"]
    state = "draining, up" if status["draining"] else "running"
    busy = f", busy for {age(status['busy_for_s'])} more (`relay drain off` ends it)" if status["busy_for_s"] else ""
    head = [
        f"{status['instance']} of {status['service']}: {state} for {age(status['uptime_s'])}{busy}, "
        f"relay {status['version']}{_engine(status)}",
        f"generation {status['generation']}; last reload "
        + ("took" if reload["last_successful"] else "FAILED: the former configuration is in force, see the log"),
        f"pids: keeper {status['keeper']['pid']}, control {status['control']['pid']}, "
        f"workers {', '.join(_worker(worker) for worker in status['workers'])}; {_restarts(status)}",
    ]
    head += [f"NOT WELL: {trouble}" for trouble in status["troubles"]]
    if status["upgrade_failed"]:
        head.append(f"UPGRADE: it has not come to its end: {status['upgrade_failed']}")
    head += _unguarded(status["workers"])
    head += _registry(status["registry"])
    head += _troubled_sources(status.get("sources", ()))  # a daemon of the program before has none
    if audited := [endpoint["name"] for endpoint in status["endpoints"] if endpoint["enforce"] == "audit"]:
        head.append(f"AUDIT: the envelope of {', '.join(audited)} refuses nobody, it only counts (`enforce: audit`)")
    head += [
        f"HOLD: {each['name']} holds new connections for {age(each['hold_for_s'])} more (`relay release {each['name']}`)"
        for each in status["endpoints"]
        if each["hold_for_s"]
    ]
    head += by_hand(status["endpoints"])
    rows = [
        (
            endpoint["name"],
            endpoint["type"],
            endpoint["protocol"],
            endpoint["listen"],
            leads_to(endpoint),
            targets_are(endpoint),
            str(endpoint["active"]) + (f" ({endpoint['held']} held)" if endpoint["held"] else ""),
            str(endpoint["accepted"]),
            _denied(endpoint),
            size(endpoint["received_bytes"]),
            size(endpoint["sent_bytes"]),
        )
        for endpoint in status["endpoints"]
    ]
    titles = (
        "ENDPOINT",
        "TYPE",
        "PROTOCOL",
        "LISTEN",
        "TARGET",
        "IS",
        "ACTIVE",
        "ACCEPTED",
        "DENIED",
        "RECEIVED",
        "SENT",
    )
    tables = [*target_sets(status["endpoints"]), *_sources(status.get("sources", ()))]
    return "\n".join([*head, "", table(titles, rows), *tables])


def _engine(status: "Status") -> str:
    """Whether the engine is compiled; nothing where a daemon of the program before does not tell."""
    reason = status.get("engine_reason")
    return f", {status['engine']}" + (f" ({reason})" if reason else "") if "engine" in status else ""


def _restarts(status: "Status") -> str:
    """How often processes were started again: workers, and where there is anything to say, control and those that hung."""
    control, hung = status["control"]["restarts"], status["hung"]
    of_control = f", {control} of control" if control else ""
    return f"{status['worker_restarts']} restarts{of_control}" + (
        f"; {hung} were killed because they hung" if hung else ""
    )


def _worker(worker: "WorkerStatus") -> str:
    return f"{worker['pid']} ({worker['connections']} open)"


def _unguarded(workers: "Sequence[WorkerStatus]") -> list[str]:
    return [
        f"NO NET: if worker {n} dies, its {counted_text(worker['connections'])} will; "
        + (
            "the kernel shares no descriptors (see the log: `unshared`)"
            if worker["holder_pid"]
            else "its holder is dead (see the log: `holder died`), and it gets another one"
        )
        for n, worker in enumerate(workers)
        if not worker["survives_crash"]
    ]


def _registry(registry: "RegistryStatus | None") -> list[str]:
    if registry is None:
        return []
    there = ", ".join(f"{name} {count} of {most}" for name, (count, most) in registry["roles"].items())
    said = "it has never been heard of" if registry["age_s"] is None else f"as it said {age(registry['age_s'])} ago"
    told = f"{there}, {said}"
    lines = [f"registry ({registry['kind']}): {told}"]
    if registry["trouble"]:
        lines = [f"REGISTRY ({registry['kind']}): {registry['trouble']}; in force are {told}"]
    if registry["left_out"]:
        why = "the file has no place for them, or their address is another's"
        lines.append(f"LEFT OUT: {', '.join(registry['left_out'])}; {why}")
    return lines


def _troubled_sources(sources: "Sequence[SourceStatus]") -> list[str]:
    """A line for each name, service record or file that says where instances are and does not do well."""
    lines = []
    for each in sources:
        stand = "1 address stands" if each["targets"] == 1 else f"{each['targets']} addresses stand"
        if each["age_s"] is not None:
            stand += f", as it said {age(each['age_s'])} ago"
        if each["trouble"]:
            lines.append(f"SOURCE: {each['source']} of role {each['role']}: {each['trouble']}; {stand}")
        elif each["doubted"]:
            why = "it says that half of them or more are gone, and is not believed yet"
            lines.append(f"SOURCE: {each['source']} of role {each['role']}: {why}; {stand}")
    return lines


def _sources(sources: "Sequence[SourceStatus]") -> list[str]:
    """Names, service records and files that say where instances are, as a table of their own."""
    rows = [
        (
            each["role"],
            each["source"],
            str(each["targets"]),
            "-" if each["age_s"] is None else f"{age(each['age_s'])} ago",
            "-" if each["ttl_s"] is None else age(each["ttl_s"]),
        )
        for each in sources
    ]
    return ["", table(("ROLE", "SOURCE", "ADDRESSES", "ANSWERED", "TTL"), rows)] if rows else []


def route_text(answer: "RouteAnswer") -> str:
    """`GET /v1/route` as text."""
    there = f"{answer['instance']} ({answer['target']})" if answer["instance"] else answer["target"]
    if answer["target"] is None:
        goes = "waits, for no target is up" if answer["waits"] else "is refused: no target is up"
    elif all(each["health"] == "down" for each in answer["order"]):
        goes = f"is tried at {there}, for all are down"
    else:
        goes = f"goes to {there}"
    lines = [f"{answer['client']} {goes}, by {answer['distribution']}; in the order of its hash:"]
    lines += [
        f"  {' '.join(filter(None, (each['instance'], each['target'])))}: {each['health']}, {each['active']} active"
        for each in answer["order"]
    ]
    return "\n".join(lines)


def drain_text(answer: "Busy") -> str:
    """`POST /v1/drain` as text."""
    if not answer["busy_for_s"]:
        return "this instance is in rotation again"
    who = [
        *(["the edges' probes are refused"] if answer["behind_edge"] else []),
        *(["the registry is told, so other machines' doors out and names leave it out"] if answer["told"] else []),
    ]
    how = " and ".join(who) or "NOBODY IS TOLD: no endpoint here is behind an edge, and no registry is told"
    goes = "goes on" if answer["active"] == 1 else "go on"
    return f"for {age(answer['busy_for_s'])} {how}; {counted_text(answer['active'])} {goes}"


def counted_text(connections: int) -> str:
    """So many connections, in words."""
    return "1 connection" if connections == 1 else f"{connections} connections"


def hold_text(answer: "Hold") -> str:
    """`POST /v1/hold`, or `release`, as text."""
    name, who = answer["endpoint"], counted_text(answer["held"])
    if not answer["hold_for_s"]:
        return f"{name} holds nobody any more; {who} waited"
    return f"{name} holds new connections for {age(answer['hold_for_s'])} (`relay release {name}` ends it); {who} wait"


def connections_text(connections: Sequence["Connection"]) -> str:
    """`GET /v1/connections` as text."""
    rows = [
        (
            each["endpoint"],
            each["peer"],
            each["state"],
            age(each["age_s"]),
            size(each["received_bytes"]),
            size(each["sent_bytes"]),
        )
        for each in connections
    ]
    return table(("ENDPOINT", "PEER", "STATE", "AGE", "RECEIVED", "SENT"), rows) if rows else "no open connections"


def explain_text(answer: "Explanation") -> str:
    """`GET /v1/explain` as text."""
    verdict = "may connect" if answer["verdict"] == "permit" else f"is denied ({answer['reason']})"
    lines = [f"{answer['from']} {verdict} to {answer['to']} on {answer['listen']}: {answer['why']}"]
    looked_at = answer["looked_at"]
    before = max(0, len(looked_at) - _RULES_SHOWN)
    if before:
        lines.append(f"  ({before} rules before these do not match either; --json lists them)")
    for n, rule in enumerate(looked_at[before:], before):
        decides = answer["rule"] is not None and n == len(looked_at) - 1
        told = "matches: decides" if decides else "does not match"
        lines.append(f"  {rule['source']}: {rule['action']} {rule['network']}: {told}")
    if answer["verdict"] == "deny" and answer["enforce"] == "audit":
        lines.append("  (and is let in all the same, and counted: `enforce: audit`)")
    if answer["edges"]:
        lines.append(f"  (by way of the edge, {', '.join(answer['edges'])}: directly nobody else connects here)")
    if answer.get("bare") and answer["looked_at"]:
        lines.append("  (at the edge: whoever reaches these machines by another way is asked by nobody)")
    by_nobody = answer.get("bare") and answer["listen"].startswith("port ")
    if answer["verdict"] == "permit" and not by_nobody:
        lines.append("  (its limits and its protocol may still refuse a connection)")
        if (share := answer["per_source"]) is not None:
            lines.append(f"  (of {share['network']} together at most {share['limit']} are open: `limits.per_source`)")
    return "\n".join(lines)


def matrix_text(rows: Sequence["Reach"]) -> str:
    """Who may reach what, as a table."""
    if not rows:
        return "the service has no endpoints"
    roles = list(rows[0]["roles"])
    titles = ("ENDPOINT", "TYPE", "OUTSIDE", *(f"FROM {role}" for role in roles))
    return table(titles, [(row["endpoint"], row["type"], row["outside"], *row["roles"].values()) for row in rows])


def reload_text(answer: "Reloaded") -> str:
    """`POST /v1/reload` as text."""
    done = f"generation {answer['generation']} is in force" + ("" if answer["changes"] else "; nothing changed")
    return "\n".join([*answer["changes"], *answer["warnings"], *answer["notes"], done])


def dry_run_text(answer: "WouldReload") -> str:
    """`POST /v1/reload?dry_run=1` as text."""
    lines = [*answer["changes"], *answer["warnings"], *answer["notes"]]
    cuts = answer["cut"]
    lines += [
        f"cut {each['connections']} of {each['endpoint']} from {each['network']} ({each['why']})"
        for each in cuts[:_CUTS_SHOWN]
    ]
    if len(cuts) > _CUTS_SHOWN:
        lines.append(f"and more from {len(cuts) - _CUTS_SHOWN} other networks; --json lists them")
    count = sum(each["connections"] for each in cuts)
    told = "nothing would change" if not answer["changes"] else f"{count} open connections would be cut"
    return "\n".join([*lines, f"dry run: {told}; nothing was done"])


def identity_text(answer: "Identity") -> str:
    """`GET /v1/identity` as text."""
    return f"{answer['instance']} of {answer['service']}, at {answer['address']}"


def instances_text(instances: Sequence["InstanceAnswer"]) -> str:
    """`GET /v1/instances` as a table; this machine has an asterisk."""
    are_named = any(each.get("name") for each in instances)
    rows = [
        (
            each["id"] + ("*" if each["self"] else ""),
            each["address"],
            *((each.get("name") or "-",) if are_named else ()),
            _health(each),
            each["metrics"] or "-",
            " ".join(f"{port['name']}={port['address']}" for port in each["endpoints"]) or "-",
        )
        for each in instances
    ]
    titles = ("INSTANCE", "ADDRESS", *(("NAME",) if are_named else ()), "IS", "METRICS", "ENDPOINTS")
    return table(titles, rows) if rows else "no such instance is there"


def _health(instance: "InstanceAnswer") -> str:
    if instance["healthy"]:
        return "healthy"
    reasons = instance["reasons"]
    said = [
        *(["busy"] if instance["busy"] else []),
        *(f"DOWN: {name}" + (f" ({reasons[name]})" if name in reasons else "") for name in instance["down"]),
        *([f"DOWN: {reasons[instance['id']]}"] if instance["id"] in reasons else []),
    ]
    return ", ".join(said) or "DOWN: does not answer this machine"


def _denied(endpoint: "EndpointStatus") -> str:
    audit = f"; AUDIT, would deny: {_counts(endpoint['would_deny'])}" if endpoint["enforce"] == "audit" else ""
    return _counts(endpoint["denied"]) + audit


def _counts(counts: dict[str, int]) -> str:
    return " ".join(f"{name}={count}" for name, count in counts.items()) or "0"
