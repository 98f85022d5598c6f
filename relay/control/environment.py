"""Identity, own endpoints and doors out as environment variables, for programs that nobody will change. Pure."""

import re
import shlex
from collections.abc import Iterator, Mapping
from ipaddress import ip_address

from relay.address import join_host_port
from relay.config.model import Service
from relay.config.roster import EDGE, Member
from relay.config.snapshot import EndpointRow, Snapshot
from relay.errors import ClashError


def variables(service: Service, snapshot: Snapshot) -> dict[str, str]:
    """The variables of this machine by name. Raises ClashError where two names of the file become one variable."""
    me = snapshot.roster.get(snapshot.instance)
    assert me is not None, "a machine is always in its own roster"
    found = {
        # RELAY_SERVICE and RELAY_INSTANCE are what `relay run` reads; the former is a path, the latter says the same there.
        "RELAY_SERVICE_NAME": service.service,
        "RELAY_INSTANCE": me.id,
        "RELAY_ROLE": me.role,
        "RELAY_ORDINAL": str(me.ordinal),
        "RELAY_ADDRESS": me.address,
    }
    owners: dict[str, str] = {}
    for row in snapshot.endpoints:
        if row.type == "relay":  # no program's
            continue
        owner = f"{'door' if row.type == 'door' else 'endpoint'} `{_name(row, me)}`"
        for variable, value in _of_row(service, row, me):
            if variable in owners:
                fix = "rename one of the two in the service file"
                raise ClashError(f"{owners[variable]} and {owner} would both be {variable}; {fix}")
            owners[variable] = owner
            found[variable] = value
    return found


def _of_row(service: Service, row: EndpointRow, me: Member) -> Iterator[tuple[str, str]]:
    kind = "DOOR" if row.type == "door" else "ENDPOINT"
    variable = f"RELAY_{kind}_{re.sub('[^A-Z0-9]', '_', _name(row, me).upper())}"
    # Where it listens on every address, others find it at the one in the roster.
    host = me.address if ip_address(row.listen_host).is_unspecified else row.listen_host
    yield variable, join_host_port(host, row.listen_port)
    yield f"{variable}_HOST", host
    yield f"{variable}_PORT", str(row.listen_port)
    if row.type != "door" and me.role != EDGE:
        targets = service.roles[me.role].endpoints[row.endpoint].targets
        yield f"{variable}_TARGET", ",".join(map(str, targets))


def _name(row: EndpointRow, me: Member) -> str:
    """An edge has the endpoints of every role."""
    return row.name if me.role == EDGE else row.endpoint


# --- as text ------------------------------------------------------------------------------------------------------------


def shell_text(found: Mapping[str, str]) -> str:
    """Lines for `eval` in a POSIX shell."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in found.items())


def systemd_text(found: Mapping[str, str]) -> str:
    r"""Lines for `EnvironmentFile=` (systemd.exec(5)): inside double quotes, a backslash goes before \, ", ` and $."""
    quoted = {name: re.sub(r'[\\"`$]', r"\\\g<0>", value) for name, value in found.items()}
    return "".join(f'{name}="{value}"\n' for name, value in quoted.items())
