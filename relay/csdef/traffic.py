"""NetworkTrafficRules, endpoint by endpoint."""

from dataclasses import dataclass, field

from relay.csdef.definition import Definition
from relay.csdef.read import Place

__all__ = ["AllowedRoles", "allowed_roles"]


@dataclass(slots=True)
class AllowedRoles:
    """Who may connect to an endpoint: `roles` (a set that keeps the order of the rules), or, with `everyone`, every role.

    `at` is the first rule that names the endpoint; `both` the first one that has AllowAllTraffic beside a WhenSource.
    """

    at: Place
    roles: dict[str, None] = field(default_factory=dict)
    everyone: bool = False
    both: Place | None = None


def allowed_roles(definition: Definition) -> dict[tuple[str, str], AllowedRoles]:
    """Who may connect to every endpoint, by role and name, that a rule names. An endpoint that no rule names is open.

    A rule that has both AllowAllTraffic and WhenSource means the roles that it lists: that is what the page on role
    communication says of its own examples. What several rules allow is added up.
    """
    found: dict[tuple[str, str], AllowedRoles] = {}
    for rule in definition.rules:
        roles = None if rule.from_roles is None else dict.fromkeys(each.role for each in rule.from_roles)
        for destination in rule.destinations:
            allowed = found.setdefault((destination.role, destination.endpoint), AllowedRoles(destination.at))
            if roles is None:
                allowed.everyone = True
            else:
                allowed.roles |= roles
            if rule.both and allowed.both is None:
                allowed.both = rule.at
    return found
