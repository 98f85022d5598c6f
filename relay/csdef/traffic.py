"""NetworkTrafficRules, endpoint by endpoint."""

from dataclasses import dataclass, field

from relay.csdef.definition import Definition
from relay.csdef.read import Place

__all__ = ["TrafficSources", "sources_of"]


@dataclass(slots=True)
class TrafficSources:
    """Who may connect to an endpoint: `roles` (a set that keeps the order of the rules), or, with `everyone`, every role.

    `at` is the first rule that names the endpoint; `both` the first one that has AllowAllTraffic beside a WhenSource.
    """

    at: Place
    roles: dict[str, None] = field(default_factory=dict)
    everyone: bool = False
    both: Place | None = None


def sources_of(definition: Definition) -> dict[tuple[str, str], TrafficSources]:
    """The sources of every endpoint, by role and name, that a rule names. An endpoint that no rule names is open.

    A rule that has both AllowAllTraffic and WhenSource means the roles that it lists: that is what the page on role
    communication says of its own examples. What several rules allow is added up.
    """
    found: dict[tuple[str, str], TrafficSources] = {}
    for rule in definition.rules:
        roles = None if rule.sources is None else dict.fromkeys(each.role for each in rule.sources)
        for destination in rule.destinations:
            sources = found.setdefault((destination.role, destination.endpoint), TrafficSources(destination.at))
            if roles is None:
                sources.everyone = True
            else:
                sources.roles |= roles
            if rule.both and sources.both is None:
                sources.both = rule.at
    return found
