"""The command line.

Exit status: 0 done, 1 something must change (said on standard error), 2 misuse, 3 not in time, 70 a bug.
"""

import argparse
import contextlib
import importlib
import json
import os
import sys
import time
import urllib.parse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from relay import ENGINE, __version__
from relay.errors import AdminError, ConfigError, OperatorError, RefusedError
from relay.kernel import surroundings

if TYPE_CHECKING:
    from relay.cli.client import AdminClient

_UPGRADE_S: Final = 60.0  # it takes a second, and half of one more for each worker
_ASK_AGAIN_S: Final = 0.05
_EXEC_USAGE: Final = "relay exec [-h] [--socket PATH] [--settings FILE] -- CMD [ARGS ...]"


def parser() -> argparse.ArgumentParser:
    """The command line's grammar; apart from `main`, so that completions and manual pages can be made from it."""
    top = argparse.ArgumentParser(
        prog="relay",
        description="A network envelope for one machine.",
        formatter_class=argparse.RawDescriptionHelpFormatter,  # the version stays one line, however long
    )
    top.add_argument("--version", action="version", version=f"relay {__version__}, {ENGINE}")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    run = commands.add_parser("run", help="be the daemon: listen on the declared endpoints and forward")
    run.add_argument("--service", metavar="FILE", help="service.yaml (RELAY_SERVICE, /etc/relay/service.yaml)")
    run.add_argument("--settings", metavar="FILE", help="instance.yaml (RELAY_SETTINGS, /etc/relay/instance.yaml)")
    run.add_argument("--id", metavar="ROLE_IN_N", help="which instance this machine is (RELAY_INSTANCE)")

    check = commands.add_parser("check", help="check service and settings files; one line for each error")
    check.add_argument("files", nargs="+", metavar="FILE")

    schema = commands.add_parser("schema", help="print the JSON Schema of service.yaml, or of instance.yaml")
    schema.add_argument("kind", nargs="?", choices=("service", "settings"), default="service")

    emulate = commands.add_parser("emulate", help="run a whole service on this machine, each instance on 127.x.y.z")
    emulate.add_argument("service", metavar="SERVICE_FILE")
    emulate.add_argument("--no-demo", action="store_true", help="no demo services: forward to the targets in the file")

    imported = commands.add_parser(
        "import",
        help="make a service.yaml of a Windows Azure .csdef and .cscfg",
        epilog="Example, for Windows machines that stay as they are, behind a Linux edge: "
        "relay import --bare service.csdef service.cscfg -o service.yaml",
    )
    imported.add_argument("definition", metavar="CSDEF", help="the service definition")
    imported.add_argument("configuration", metavar="CSCFG", nargs="?", help="the service configuration")
    imported.add_argument("-o", "--output", metavar="FILE", help="write to this file, not to standard output")
    imported.add_argument("--force", action="store_true", help="replace FILE if there is one")
    imported.add_argument(
        "--bare", action="store_true", help="the machines get no relay: an edge in front of them is the only one"
    )

    status = commands.add_parser("status", help="what is open, and what it did so far")
    status.add_argument("--json", action="store_true", help="as JSON")
    status.add_argument("--connections", action="store_true", help="list the open connections")
    reload = commands.add_parser("reload", help="read the files again; nothing changes unless they are right")
    reload.add_argument("--dry-run", action="store_true", help="say what would change and who would be cut; do nothing")
    reload.add_argument("--json", action="store_true", help="as JSON")
    explain = commands.add_parser(
        "explain", help="why is this source let in, or not: the rule that decides, with its line"
    )
    explain.add_argument("--from", dest="source", metavar="ADDRESS", help="the client's address")
    explain.add_argument(
        "--as", dest="instance", metavar="ROLE_IN_N", help="the client is this instance of the service"
    )
    explain.add_argument("--to", metavar="ROLE/ENDPOINT", help="where it connects to")
    explain.add_argument(
        "--matrix", action="store_true", help="instead: who may reach what, over the whole service file"
    )
    explain.add_argument("--client", metavar="ADDRESS:PORT", help="instead, on an edge: which instance it would go to")
    explain.add_argument("--service", metavar="FILE", help="ask this file, and not the running daemon")
    explain.add_argument("--json", action="store_true", help="as JSON")
    upgrade = commands.add_parser("upgrade", help="go over to the relay that is installed now; no connection is lost")
    drain = commands.add_parser(
        "drain", help="take this instance out of the edges' rotation; established connections go on"
    )
    drain.add_argument("what", nargs="?", choices=("on", "off"), default="on", help="off: back into rotation")
    drain.add_argument(
        "--for", dest="for_text", metavar="TIME", default="10m", help="until then, if nobody says off (10m)"
    )
    drain.add_argument(
        "--wait", action="store_true", help="return when all who could send have stopped, and nobody is connected"
    )
    drain.add_argument("--timeout", metavar="TIME", help="wait no longer, and exit with 3 then (as long as --for)")
    hold = commands.add_parser("hold", help="have new connections of an endpoint wait, for a planned restart behind it")
    hold.add_argument("--for", dest="for_text", metavar="TIME", default="1m", help="until then, if not released (1m)")
    release = commands.add_parser("release", help="let those go on that `relay hold` has had wait")
    for command in (hold, release):
        command.add_argument("endpoint", metavar="ENDPOINT", help="ROLE/ENDPOINT; or a door out: ROLE/NAME")
    weight = commands.add_parser("weight", help="give a target another share of new connections on this machine")
    weight.add_argument("endpoint", metavar="ENDPOINT", nargs="?", help="ROLE/ENDPOINT; or a door out: ROLE/NAME")
    weight.add_argument("target", metavar="INSTANCE", nargs="?", help="one of its instances or targets")
    weight.add_argument(
        "weight", metavar="N|off", nargs="?", help="0 to 256; off: what the file says. Without: show all"
    )
    instances = commands.add_parser("instances", help="who is in the service, and where")
    instances.add_argument("--role", metavar="ROLE", help="of this role alone, or of `edge`")
    instances.add_argument("--healthy", action="store_true", help="only those that may get new connections")
    resolve = commands.add_parser("resolve", help="where an endpoint is: address:port, one a line")
    resolve.add_argument("endpoint", metavar="ROLE/ENDPOINT")
    resolve.add_argument("--all", dest="everybody", action="store_true", help="not only the healthy instances")
    identity = commands.add_parser("identity", help="which instance this machine is")
    for command in (instances, identity):
        command.add_argument("--json", action="store_true", help="as JSON")
    env = commands.add_parser("env", help="identity, own endpoints and doors out as environment variables")
    env.add_argument(
        "--format",
        choices=("shell", "systemd", "json"),
        default="shell",
        help="for `eval`, for EnvironmentFile=, or JSON",
    )
    names = commands.add_parser("hosts", help="the service's names as a block for a hosts file")
    names.add_argument("--write", action="store_true", help="put the block into the file, or a newer one in its place")
    names.add_argument("--remove", action="store_true", help="take the block out of the file again")
    names.add_argument("--file", metavar="FILE", help="the hosts file; default: `names.hosts` of the settings")
    execute = commands.add_parser("exec", help="run a command that has these variables", usage=_EXEC_USAGE)
    execute.add_argument("argv", metavar="CMD", nargs=argparse.REMAINDER, help="after `--`: the command")
    for command in (
        status, reload, explain, drain, hold, release, weight, upgrade, instances, resolve, identity, env, names, execute
    ):  # fmt: skip
        command.add_argument("--socket", metavar="PATH", help="the admin socket, if the settings do not tell")
        command.add_argument("--settings", metavar="FILE", help="instance.yaml, to find the admin socket in")
    # What a daemon runs before an upgrade; not for people, so without a line in the help.
    commands.add_parser("trial").add_argument("facts")
    return top


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    args = top.parse_args(argv)
    if args.command == "exec":
        # Whether argparse takes the first `--` away depends on Python's version.
        args.argv = args.argv[1:] if args.argv[:1] == ["--"] else args.argv
        if not args.argv:
            top.error("exec: write the command after it: `relay exec -- CMD ARGS…`")
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit status."""
    try:
        surroundings.stand_in()
        status = _run(_parsed(argv))
        sys.stdout.flush()  # what the interpreter would do at its end, too late for the answer below
        return status
    except OperatorError as error:
        print(error if isinstance(error, ConfigError | RefusedError) else f"relay: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # `relay status | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(args: argparse.Namespace) -> int:
    # Each command imports what it needs: `relay check` must not wait for an HTTP server's modules.
    match args.command:
        case "run":
            from relay.daemon import config_files, run

            return run(config_files(args.service, args.settings, args.id))
        case "check":
            return _check(args.files)
        case "schema":
            from relay.config.schema import service_schema, settings_schema

            schema = service_schema() if args.kind == "service" else settings_schema()
            print(json.dumps(schema, indent=2))
            return 0
        case "emulate":
            from relay.cli.emulate import emulate

            return emulate(args.service, demo=not args.no_demo)
        case "import":
            return _import(args)
        case "status":
            from relay.cli.client import AdminClient
            from relay.cli.tables import connections_text, status_text

            client = AdminClient.find(args.socket, args.settings)
            if args.connections:
                connections = client.get("/v1/connections")
                print(json.dumps(connections, indent=2) if args.json else connections_text(connections))
            else:
                status = client.get("/v1/status")
                print(json.dumps(status, indent=2) if args.json else status_text(status))
                if status["troubles"]:  # said on standard error too, for whoever looks at the exit status alone
                    raise OperatorError("not well: " + "; ".join(status["troubles"]))
            return 0
        case "reload":
            from relay.cli.client import AdminClient
            from relay.cli.tables import dry_run_text, reload_text

            client = AdminClient.find(args.socket, args.settings)
            answer = client.post_again("/v1/reload?dry_run=1" if args.dry_run else "/v1/reload")
            text = dry_run_text if args.dry_run else reload_text
            print(json.dumps(answer, indent=2) if args.json else text(answer))
            return 0
        case "explain":
            return _explain(args)
        case "drain":
            from relay.cli.client import AdminClient
            from relay.cli.drain import drain

            return drain(AdminClient.find(args.socket, args.settings), args)
        case "hold" | "release":
            from relay.cli.client import AdminClient

            return _hold(AdminClient.find(args.socket, args.settings), args)
        case "weight":
            from relay.cli.client import AdminClient
            from relay.cli.weight import weight

            return weight(AdminClient.find(args.socket, args.settings), args.endpoint, args.target, args.weight)
        case "upgrade":
            from relay.cli.client import AdminClient

            return _upgrade(AdminClient.find(args.socket, args.settings))
        case "instances" | "resolve" | "identity" | "env" | "hosts" | "exec":
            return _discover(args)
        case "trial":
            daemon = importlib.import_module("relay.daemon")  # all of it: an import that fails must fail here
            daemon.trial(args.facts)
            print(__version__)
            return 0
    raise AssertionError(args.command)


def _discover(args: argparse.Namespace) -> int:
    from relay.cli import discovery
    from relay.cli.client import AdminClient

    try:
        client = AdminClient.find(args.socket, args.settings, discovery=True)
    except OperatorError as error:
        if args.command != "exec":
            raise
        print(f"relay: {error}", file=sys.stderr)
        return discovery.EXIT_OWN
    match args.command:
        case "instances":
            return discovery.show_instances(client, args.role, healthy=args.healthy, as_json=args.json)
        case "resolve":
            return discovery.show_addresses(client, args.endpoint, everybody=args.everybody)
        case "identity":
            return discovery.show_identity(client, as_json=args.json)
        case "env":
            return discovery.show_environment(client, args.format)
        case "hosts":
            from relay.config.load import find_settings

            path = args.file or find_settings(args.settings).value.names.hosts
            return discovery.show_hosts(client, path, write=args.write, remove=args.remove)
        case _:
            return discovery.execute(client, args.argv)


def _explain(args: argparse.Namespace) -> int:
    from relay.cli.tables import explain_text, matrix_text

    if args.matrix:
        from relay.config.load import SERVICE_FILE, load_service
        from relay.control.explain import matrix

        path = args.service or os.environ.get("RELAY_SERVICE") or SERVICE_FILE
        rows = matrix(load_service(path, piped=True).value)
        print(json.dumps(rows, indent=2) if args.json else matrix_text(rows))
        return 0
    if args.client is not None and args.to is not None:
        from relay.cli.client import AdminClient
        from relay.cli.tables import route_text

        query = urllib.parse.urlencode({"to": args.to, "client": args.client})
        answer = AdminClient.find(args.socket, args.settings).get(f"/v1/route?{query}")
        print(json.dumps(answer, indent=2) if args.json else route_text(answer))
        return 0
    if args.to is None or (args.source is None) == (args.instance is None):
        raise OperatorError("say which: `relay explain --to ROLE/ENDPOINT` with `--from ADDRESS` or `--as ROLE_IN_N`")
    if args.service is not None:
        from relay.control.explain import explain_file

        answer = explain_file(args.service, args.to, args.source, args.instance)
    else:
        from relay.cli.client import AdminClient

        asked = {"to": args.to, "from": args.source, "as": args.instance}
        query = urllib.parse.urlencode({key: value for key, value in asked.items() if value is not None})
        answer = AdminClient.find(args.socket, args.settings).get(f"/v1/explain?{query}")
    print(json.dumps(answer, indent=2) if args.json else explain_text(answer))
    return 0


def _hold(client: "AdminClient", args: argparse.Namespace) -> int:
    from relay.cli.spans import whole_seconds
    from relay.cli.tables import hold_text

    for_s = {"for": whole_seconds("--for", args.for_text)} if args.command == "hold" else {}
    asked = {"endpoint": args.endpoint, **for_s}
    print(hold_text(client.post(f"/v1/{args.command}?{urllib.parse.urlencode(asked)}")))
    return 0


def _upgrade(client: "AdminClient") -> int:
    """Ask for it, and wait until every worker runs in the new program."""
    began_s = time.monotonic()
    answer, status = client.post("/v1/upgrade", takes_time=True), {}
    until_s = time.monotonic() + _UPGRADE_S
    while time.monotonic() < until_s:
        with contextlib.suppress(AdminError):  # control is replaced as well
            status = client.get("/v1/status")
            if status.get("upgrade_failed"):  # which the daemon before may not know
                break
            if status["program"] >= answer["program"] and not status["upgrading"]:
                active = sum(endpoint["active"] for endpoint in status["endpoints"])
                took_s = time.monotonic() - began_s
                print(
                    f"relay {answer['from']} is now {status['version']}, after {took_s:.1f} s; {active} connections go on"
                )
                return 0
        time.sleep(_ASK_AGAIN_S)
    if status.get("upgrade_failed"):
        raise AdminError(f"the upgrade to {answer['to']} has not come to its end: {status['upgrade_failed']}")
    raise AdminError(f"the upgrade to {answer['to']} has not come to its end within {_UPGRADE_S:g} s; see the log")


def _check(files: list[str]) -> int:
    from relay.config.load import check_files

    problems = check_files(files)
    for problem in problems:
        print(problem)
    return int(any(problem.severity == "error" for problem in problems))


def _import(args: argparse.Namespace) -> int:
    from relay.config.output import write_file
    from relay.csdef.convert import import_files

    imported = import_files(args.definition, args.configuration, bare=args.bare)
    if args.output is None:
        sys.stdout.buffer.write(imported.text.encode())  # the file's encoding, whatever the terminal's
        sys.stdout.buffer.flush()
    else:
        write_file(args.output, imported.text, replace=args.force)
    said = [note for note in imported.notes if note.kind != "note"]
    for note in said:
        print(note, file=sys.stderr)
    left_out = sum(note.kind == "left out" for note in said)
    print(
        f"left out: {left_out}, warnings: {len(said) - left_out}; each is a comment in {args.output or 'the file'}",
        file=sys.stderr,
    )
    return 0
