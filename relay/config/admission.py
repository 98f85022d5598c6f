"""Who may connect to an endpoint, as rows of an envelope: its own rules, or the addresses of the roles that it admits."""

import ipaddress
from collections.abc import Iterable, Sequence
from typing import Final, Literal

from relay.config.endpoint import Endpoint
from relay.config.model import Service
from relay.config.roster import Roster
from relay.envelope import bpf
from relay.envelope.rules import RuleRow
from relay.errors import WrongValue

# A worker gives all ports of a range their filters in one go, and the kernel compiles each: about 1 µs an instruction, in
# which the worker forwards nothing.
_FILTERS_MAX_BYTES: Final = 65_536 * 8


def envelope_rules(service: Service, roster: Roster, endpoint: Endpoint, file: str) -> tuple[tuple[RuleRow, ...], bool]:
    """The endpoint's rules, and whether a source that none of them names may connect. `file` names the service file."""
    if endpoint.type == "internal":
        return tuple(_roster_rules(service, roster, endpoint)), False
    rules = tuple(
        RuleRow(rule.action == "permit", str(rule.network), f"{file}:{rule.line}")
        for rule in service.rules_of(endpoint)
    )
    # The platform's rule: one permit turns "everyone" into "nobody else".
    return rules, not any(rule.permit for rule in rules)


def drop_filter(rules: Sequence[RuleRow], permit_unmatched: bool, version: Literal[4, 6], port_count: int) -> bytes:
    """The program that drops one IP version's packets from whom these rules deny, for each of so many ports.

    Raises WrongValue with what does not fit.
    """
    room_bytes = min(bpf.PROGRAM_MAX_BYTES, _FILTERS_MAX_BYTES // port_count)
    networks = [(rule.permit, ipaddress.ip_network(rule.network)) for rule in rules]

    def program_of(count: int) -> bytes:
        return bpf.compile_filter(networks[:count], permit_unmatched, version)

    program = program_of(len(networks))
    if len(program) <= room_bytes:
        return program
    fits, too_many = 0, len(networks)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        fits, too_many = (middle, too_many) if len(program_of(middle)) <= room_bytes else (fits, middle)
    where = f"the kernel's filters for {port_count} ports have" if port_count > 1 else "the kernel's filter has"
    raise WrongValue(
        f"{where} room for the first {fits} of these {len(networks)} networks (IPv{version})",
        "write `deny: reset`, or fewer networks",
    )


def _roster_rules(service: Service, roster: Roster, endpoint: Endpoint) -> Iterable[RuleRow]:
    """An internal endpoint admits the addresses of its `from` roles (default: every role), and nobody else.

    Where a role's addresses come from a name or a file that others write, that would decide who may connect: not here.
    """
    roles = endpoint.from_roles if endpoint.from_roles is not None else tuple(service.roles)
    for role_name in roles:
        for member in () if service.roles[role_name].named else roster.of(role_name):
            yield RuleRow(True, str(ipaddress.ip_network(member.address)), member.id)
