"""What is behind endpoints, for people: how each target is, and which share it has. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from relay.cli.columns import age, table

if TYPE_CHECKING:  # for a reader: a command must not wait for what the types are made with
    from relay.control.answers import EndpointStatus, TargetStatus


def leads_to(endpoint: "EndpointStatus") -> str:
    """What is behind an endpoint: its target, or how many."""
    if endpoint["distribution"] is None:
        return " ".join(endpoint["targets"])
    count = len(endpoint["targets"])
    if count and not endpoint["target_set"][0]["instance"]:
        return f"{count} targets"
    instances = "1 instance" if count == 1 else f"{count} instances"
    return f"{endpoint['leads_to']}: {instances}" if endpoint["leads_to"] else instances


def targets_are(endpoint: "EndpointStatus") -> str:
    """How the target is; of several, how many of them are up."""
    if endpoint["distribution"] is None:
        state = {None: "unknown", True: "up", False: "down"}[endpoint["target_up"]]
        since_s, looked_s = endpoint["target_since_s"], endpoint["target_looked_s"]
        return _is(state, endpoint["target_reason"], since_s, looked_s, endpoint["target_looked"])
    found = [each["health"] for each in endpoint["target_set"]]
    if set(found) <= {"unknown"}:
        return "-"
    unknown = found.count("unknown")
    return f"{found.count('up')} of {len(found)} up" + (f", {unknown} not tried" if unknown else "")


def _is(health: str, reason: str, since_s: float | None, looked_s: float | None, looked: str | None) -> str:
    """How one target is: `up, dialled 3m ago`, or `DOWN for 12s: connection refused`."""
    if health == "down":
        return (
            "DOWN"
            + (f" for {age(since_s, whole=True)}" if since_s is not None else "")
            + (f": {reason}" if reason else "")
        )
    if health == "up":
        return f"up, {looked} {age(looked_s, whole=True)} ago" if looked_s is not None else "up"
    return "-"


def target_sets(endpoints: Sequence["EndpointStatus"]) -> list[str]:
    """Several targets, as a table of their own. Weights are told where one is not as all others are."""
    told = any(weight_of(each) != "1" for _, each in _targets(endpoints))
    rows = [
        (
            endpoint["name"] if each is endpoint["target_set"][0] else "",
            each["instance"],
            each["target"],
            _is(each["health"], each["reason"], each["since_s"], each["looked_s"], each["looked"])
            + (f", ejected for {age(each['ejected_for_s'])}" if each["ejected_for_s"] else ""),
            *([weight_of(each)] if told else []),
            str(each["active"]),
            str(each["connected"]),
            str(each["failures"]),
            str(each["ejections"]),
        )
        for endpoint, each in _targets(endpoints)
    ]
    weight = ("WEIGHT",) if told else ()
    titles = ("ENDPOINT", "INSTANCE", "TARGET", "IS", *weight, "ACTIVE", "CONNECTED", "FAILURES", "EJECTIONS")
    return ["", table(titles, rows)] if rows else []


def _targets(endpoints: Sequence["EndpointStatus"]) -> Iterator[tuple["EndpointStatus", "TargetStatus"]]:
    return ((endpoint, each) for endpoint in endpoints for each in endpoint["target_set"])


def weight_of(told: Mapping[str, Any]) -> str:
    """A target's weight: `3`, `0 by hand (3 in the file)`, `1 backup`, `3 (40 % so far)`."""
    declared = told.get("declared_weight")
    by_hand = told.get("by_hand", declared is not None)
    text = f"{told.get('weight', 1)}" + (f" by hand ({declared} in the file)" if by_hand else "")
    text += " backup" if told.get("backup") else ""
    share = told.get("share", 1)
    return text + (f" ({share:.0%} so far)" if share < 1 else "")


def weights_text(endpoints: Sequence["EndpointStatus"]) -> str:
    """`relay weight` as text."""
    rows = [
        (endpoint["name"], each["instance"], each["target"], weight_of(each), str(each["active"]))
        for endpoint, each in _targets(endpoints)
    ]
    if not rows:
        return "no endpoint has several targets here"
    return table(("ENDPOINT", "INSTANCE", "TARGET", "WEIGHT", "ACTIVE"), rows)


def by_hand(endpoints: Sequence["EndpointStatus"]) -> list[str]:
    """A line for each weight that was set by hand, with what takes it back."""
    return [
        f"WEIGHT: {endpoint['name']}: {each['instance'] or each['target']} has {weight_of(each)} "
        f"(`relay weight {endpoint['name']} {each['instance'] or each['target']} off`)"
        for endpoint, each in _targets(endpoints)
        if each.get("declared_weight") is not None  # which a daemon that is about to be upgraded may not tell
    ]
