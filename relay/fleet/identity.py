"""Which instance this machine is. It comes from the machine, never from the image."""

import errno
import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address

from relay.config.model import Service
from relay.config.roster import EDGE, Member, Roster, split_instance
from relay.config.settings import Settings
from relay.config.values import IPAddress
from relay.errors import IdentityError, OperatorError, WrongValue


@dataclass(frozen=True, slots=True)
class Vacancy:
    """A number of a counted role that this machine is to take, by way of the registry. None: the lowest that is free."""

    role: str
    ordinal: int | None = None


def identify(
    service: Service,
    settings: Settings,
    flag: str | None,
    *,
    registered: Iterable[Member] = (),
    is_local: Callable[[IPAddress], bool] | None = None,
) -> str | Vacancy:
    """The instance id, such as `web_IN_0`: from the flag, RELAY_INSTANCE, `id` in instance.yaml, the roster, or `role`.

    `registered` are those that a registry tells without being asked for a number: a directory's. Raises IdentityError when
    the id is not in the service, or when not exactly one roster address is local.
    """
    roster = Roster.of_service(service, registered)
    given = (
        ("--id", flag),
        ("RELAY_INSTANCE", os.environ.get("RELAY_INSTANCE")),
        ("`id` in instance.yaml", settings.id),
    )
    for told_by, value in given:
        if value:
            return _checked(service, settings, roster, value, told_by)
    test = is_local or address_is_local
    with_relay = [member for member in roster if member.role == EDGE or not service.roles[member.role].bare]
    found = [member.id for member in with_relay if test(ip_address(member.address))]
    if len(found) == 1:
        return found[0]
    if found:
        raise IdentityError(f"this machine has the addresses of {', '.join(found)}; say which one it is with --id")
    if settings.role is not None:
        return _vacancy(service, settings, settings.role, None, "`role` in instance.yaml")
    fix = f", or `role: {service.counted[0]}` into instance.yaml" if service.counted else ""
    raise IdentityError(
        f"no address in the roster of service {service.service} is on an interface of this machine; "
        f"write this machine's address in a role's `instances`{fix}, or say who it is with --id"
    )


def _checked(service: Service, settings: Settings, roster: Roster, instance: str, told_by: str) -> str | Vacancy:
    try:
        role, ordinal = split_instance(instance)
    except WrongValue as error:
        raise IdentityError(f"{told_by}: {error}") from None
    if role in service.roles and service.roles[role].bare:
        raise IdentityError(f"{told_by}: role `{role}` is bare, and there is no relay on its machines")
    if roster.get(instance) is not None:
        return instance
    known = [*service.roles, *([EDGE] if service.edge is not None else [])]
    if role not in known:
        raise IdentityError(f"{told_by}: no role `{role}` in service {service.service}; it has {', '.join(known)}")
    count = service.roles[role].count if role in service.roles else len(roster.of(EDGE))
    if count == 0:
        raise IdentityError(f"{told_by}: role `{role}` has no instances; list their addresses")
    if ordinal >= count:
        raise IdentityError(f"{told_by}: role `{role}` has {count} instances, so the last id is {role}_IN_{count - 1}")
    return _vacancy(service, settings, role, ordinal, told_by)


def _vacancy(service: Service, settings: Settings, role: str, ordinal: int | None, told_by: str) -> Vacancy:
    if role not in service.roles:
        raise IdentityError(
            f"{told_by}: no role `{role}` in service {service.service}; it has {', '.join(service.roles)}"
        )
    if not service.roles[role].counted:
        raise IdentityError(
            f"{told_by}: role `{role}` lists its addresses, and none of them is on an interface of this machine; "
            "write it there"
        )
    if settings.registry is None:
        raise IdentityError(
            f"{told_by}: role `{role}` has a count of instances, and no registry says where they are; "
            "write `registry` into instance.yaml, or list the addresses"
        )
    if settings.registry.directory is not None:
        ordinal = 0 if ordinal is None else ordinal
        name = f"{role}_IN_{ordinal}"
        raise IdentityError(
            f"{told_by}: no file of {settings.registry.directory} says where this machine is; "
            f"write `address: …` into {name}.yaml there"
        )
    return Vacancy(role, ordinal)


def address_is_local(address: IPAddress) -> bool:
    """Whether the address is on an interface here: the kernel lets it be bound (bind(2), EADDRNOTAVAIL).

    With net.ipv4.ip_nonlocal_bind every address is; then several are found, and --id must tell. Raises OperatorError.
    """
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((str(address), 0))
    except OSError as error:
        if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return False
        raise OperatorError(
            f"cannot tell whether {address} is this machine's: {os.strerror(error.errno or 0)}; use --id"
        ) from error
    return True
