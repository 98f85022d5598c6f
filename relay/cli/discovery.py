"""What the command line asks of the discovery API: who is in the service and where; and a program that is told so."""

import json
import os
import signal
import sys
import urllib.parse
from typing import TYPE_CHECKING, Final

from relay.cli.client import AdminClient
from relay.cli.tables import identity_text, instances_text
from relay.config.wording import nearest
from relay.control.environment import shell_text, systemd_text
from relay.errors import OperatorError, UnknownError, os_reason
from relay.names import hosts

if TYPE_CHECKING:
    from relay.control.answers import EndpointAnswer

# As env(1) has them, and whatever else runs another program: of relay's own failure, of a program that cannot be run, and
# of one that is not there. Every other status is the program's.
EXIT_OWN: Final = 125
EXIT_NOT_RUN: Final = 126
EXIT_NOT_FOUND: Final = 127


def show_instances(client: AdminClient, role: str | None, *, healthy: bool, as_json: bool) -> int:
    """Print who is in the service. Raises AdminError."""
    asked = {"role": role, "healthy": "1" if healthy else None}
    query = urllib.parse.urlencode({key: value for key, value in asked.items() if value is not None})
    found = client.get(f"/v1/instances?{query}")
    print(json.dumps(found, indent=2) if as_json else instances_text(found))
    return 0


def show_identity(client: AdminClient, *, as_json: bool) -> int:
    """Print which instance this machine is. Raises AdminError."""
    found = client.get("/v1/identity")
    print(json.dumps(found, indent=2) if as_json else identity_text(found))
    return 0


def show_addresses(client: AdminClient, name: str, *, everybody: bool) -> int:
    """Print where `role/endpoint` is, an address a line: its healthy instances, or `everybody`. Raises OperatorError."""
    found = {endpoint["name"]: endpoint for endpoint in client.get("/v1/endpoints")}
    if name not in found:
        near = nearest(name, found) or next((each for each in found if each.startswith(f"{name}/")), None)
        fix = f"did you mean `{near}`?" if near else f"there are {', '.join(found) or 'none'}"
        raise UnknownError(f"no endpoint `{name}` in the service; {fix}")
    addresses = addresses_of(found[name], everybody=everybody)
    if not addresses:
        there = len(found[name]["instances"])
        more = f"{there} are there: `relay resolve --all {name}`, `relay instances`" if there else "none is there"
        raise OperatorError(f"no healthy instance of {name}; {more}")
    print("\n".join(addresses))
    return 0


def addresses_of(endpoint: "EndpointAnswer", *, everybody: bool) -> list[str]:
    """Where clients connect to an endpoint, as `GET /v1/endpoints` tells it: on an edge, where it is behind one."""
    there = [each for each in endpoint["instances"] if everybody or each["healthy"]]
    if not endpoint["edges"]:
        return [each["address"] for each in there]
    edges = [each for each in endpoint["edges"] if everybody or each["healthy"]]
    if not there:
        return []  # the edge is there, and has nobody to send a client to
    if public := [edge["address"] for edge in edges if edge["address"] is not None]:
        return public
    names = {each["instance"] for each in there}
    return [each["address"] for edge in edges for each in edge["instances"] if each["instance"] in names]


def show_environment(client: AdminClient, form: str) -> int:
    """Print the variables that tell a program of this machine, for a shell, for systemd or as JSON. Raises AdminError."""
    found = client.get("/v1/environment")
    match form:
        case "shell":
            text = shell_text(found)
        case "systemd":
            text = systemd_text(found)
        case _:
            text = json.dumps(found, indent=2) + "\n"
    sys.stdout.write(text)
    return 0


def show_hosts(client: AdminClient, path: str | None, *, write: bool, remove: bool) -> int:
    """Print the names as a block for a hosts file; or put it into the file at `path`, or out of it. Raises OperatorError."""
    found = client.get("/v1/hosts")
    if write and remove:
        raise OperatorError("`--write` and `--remove` are each other's opposite; write one of them")
    if (write or remove) and path is None:
        raise OperatorError("say which file: `--file /etc/hosts`, or `names: {hosts: /etc/hosts}` in instance.yaml")
    if write and path is not None:
        changed = hosts.write(path, found["block"])
    elif remove and path is not None:
        changed = hosts.remove(path, found["service"])
    else:
        sys.stdout.write(found["block"])
        return 0
    print(f"{path}: {'written' if changed else 'nothing to do'}")
    return 0


def execute(client: AdminClient, command: list[str]) -> int:
    """Become `command`, with those variables. Returns only where that fails: the exit status, with the reason said."""
    try:
        environment = {**os.environ, **client.get("/v1/environment")}
    except OperatorError as error:
        print(f"relay: {error}", file=sys.stderr)
        return EXIT_OWN
    # Python ignores these, and what is ignored stays so for the next program.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except (OSError, ValueError) as error:  # ValueError: an empty name
        missing = isinstance(error, FileNotFoundError) or not command[0]
        reason = "command not found" if missing else os_reason(error) if isinstance(error, OSError) else str(error)
        print(f"relay: cannot run `{command[0]}`: {reason}", file=sys.stderr)
        return EXIT_NOT_FOUND if missing else EXIT_NOT_RUN
