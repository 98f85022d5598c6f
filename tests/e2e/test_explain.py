"""`relay explain` and `relay reload --dry-run`, as they are typed: what they say is what happens, and they do nothing."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from relay.cli.main import main
from tests.conftest import Daemons
from tests.e2e.peers import endpoint, listening, typed
from tests.harness import Daemon, Echo, dial, echoed, eventually, run_relay
from tests.ports import free_port

Capture = pytest.CaptureFixture[str]
RULES = [{"deny": "127.0.0.2"}, {"permit": "127.0.0.0/29"}, {"deny": "0.0.0.0/0"}]


class Shop:
    """A daemon `web_IN_0`: `in` has rules, `trial` has them and audits, `own` admits `app`, `open` everybody."""

    def __init__(self, daemons: Daemons, target: str) -> None:
        self.ports = {name: free_port() for name in ("in", "own", "open", "trial")}
        own = {"type": "internal", "port": self.ports["own"], "target": target, "from": ["app"]}
        self.service: dict[str, Any] = {
            "version": 1,
            "service": "shop",
            "access_lists": {"office": RULES},
            "roles": {
                "web": {
                    "instances": ["127.0.0.1"],
                    "endpoints": {
                        "in": endpoint(self.ports["in"], target, access="office"),
                        "own": own,
                        "open": endpoint(self.ports["open"], target),
                        "trial": endpoint(self.ports["trial"], target, access="office", enforce="audit"),
                    },
                },
                "app": {
                    "instances": ["127.0.0.5", "127.0.0.6"],
                    "endpoints": {
                        "jobs": {"type": "internal", "port": 9000, "target": "127.0.0.1:9001", "from": ["web"]}
                    },
                },
            },
        }
        self.daemon: Daemon = daemons(self.service, {"workers": 2})

    def line_of(self, text: str) -> str:
        """Where the file has it, as `explain` tells it."""
        [line] = [n for n, line in enumerate(self.daemon.service_file.read_text().splitlines(), 1) if text in line]
        return f"service.yaml:{line}"

    def typed(self, *arguments: str) -> "Done":
        """A command to this daemon."""
        return typed(*arguments, "--settings", str(self.daemon.settings_file))

    def explain(self, *arguments: str) -> str:
        """What the command prints when it has an answer."""
        return right(self.typed("explain", *arguments)).stdout

    def explain_json(self, *arguments: str) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(self.explain(*arguments, "--json"))
        return answer

    def write(self, **endpoints: dict[str, Any] | None) -> None:
        """Edit the file: other endpoints of `web`, or none of that name."""
        declared = {**self.service["roles"]["web"]["endpoints"], **endpoints}
        web = {"instances": ["127.0.0.1"], "endpoints": {name: keys for name, keys in declared.items() if keys}}
        self.service = {**self.service, "roles": {**self.service["roles"], "web": web}}
        self.daemon.write_service(self.service)


Done = subprocess.CompletedProcess[str]


def right(done: Done) -> Done:
    assert (done.returncode, done.stderr) == (0, "")
    return done


def wrong(done: Done) -> str:
    """What it says to the one who typed it."""
    assert (done.returncode, done.stdout) == (1, "")
    return done.stderr


def met_by(source: str, port: int) -> str:
    """What a real connection meets: `permit` or `deny`."""
    try:
        with dial(port, source=source) as client:
            return "permit" if echoed(client) == b"ping" else "neither"
    except ConnectionError:
        return "deny"


@pytest.fixture
def shop(daemons: Daemons, echo: Echo) -> Shop:
    """One to change."""
    return Shop(daemons, echo.target)


@pytest.fixture(scope="module")
def standing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """One that nobody changes."""
    with Echo() as echo:
        daemons = Daemons(tmp_path_factory.mktemp("standing"))
        try:
            yield Shop(daemons, echo.target)
        finally:
            daemons.end()


# --- explain: the running daemon ------------------------------------------------------------------------------------------


def test_the_verdict_and_every_rule_up_to_the_one_that_decides(standing: Shop) -> None:
    shop = standing
    listen = f"127.0.0.1:{shop.ports['in']}"
    first, second, last = (
        shop.line_of(text) for text in ("deny: 127.0.0.2", "permit: 127.0.0.0/29", "deny: 0.0.0.0/0")
    )
    assert right(shop.daemon.relay("explain", "--to", "web/in", "--from", "127.0.0.2")).stdout.splitlines() == [
        f"127.0.0.2 is denied (access) to web/in on {listen}: the first rule that matches decides",
        f"  {first}: deny 127.0.0.2/32: matches: decides",
    ]
    assert shop.explain("--to", "web/in", "--from", "127.0.0.3").splitlines() == [
        f"127.0.0.3 may connect to web/in on {listen}: the first rule that matches decides",
        f"  {first}: deny 127.0.0.2/32: does not match",
        f"  {second}: permit 127.0.0.0/29: matches: decides",
        "  (its limits and its protocol may still refuse a connection)",
    ]
    answer = shop.explain_json("--to", "web/in", "--from", "203.0.113.9")
    assert (answer["verdict"], answer["reason"], answer["rule"]["source"]) == ("deny", "access", last)
    assert [rule["source"] for rule in answer["looked_at"]] == [first, second, last]
    # No rule of the list is about IPv6, and a `permit` stands in it.
    assert shop.explain("--to", "web/in", "--from", "2001:db8::1").splitlines()[0].endswith("may not connect")
    assert shop.explain_json("--to", "web/in", "--from", "::ffff:127.0.0.3")["verdict"] == "permit"


def test_an_instance_by_its_id(standing: Shop) -> None:
    shop = standing
    listen = f"127.0.0.1:{shop.ports['own']}"
    assert shop.explain("--to", "web/own", "--as", "app_IN_1").splitlines() == [
        f"127.0.0.6 may connect to web/own on {listen}: the first rule that matches decides",
        "  app_IN_0: permit 127.0.0.5/32: does not match",
        "  app_IN_1: permit 127.0.0.6/32: matches: decides",
        "  (its limits and its protocol may still refuse a connection)",
    ]
    assert shop.explain_json("--to", "web/own", "--as", "web_IN_0")["reason"] == "roster"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("--to", "web/on", "--from", "127.0.0.1"),
            "no endpoint `web/on` on web_IN_0, which has web/in, web/own, web/open, web/trial",
        ),
        (("--to", "app/jobs", "--from", "127.0.0.1"), "another role's are told by `relay explain --service FILE`"),
        (
            ("--to", "web/in", "--as", "app_IN_2"),
            "no instance app_IN_2 in service shop; it has web_IN_0, app_IN_0, app_IN_1",
        ),
        (("--to", "web/in", "--from", "localhost"), "`localhost` is not an IP address"),
        (("--to", "web/in"), "with `--from ADDRESS` or `--as ROLE_IN_N`"),
        (("--from", "127.0.0.1"), "with `--from ADDRESS` or `--as ROLE_IN_N`"),
        (("--to", "web/in", "--from", "127.0.0.1", "--as", "app_IN_0"), "with `--from ADDRESS` or `--as ROLE_IN_N`"),
    ],
)
def test_what_cannot_be_told(standing: Shop, capsys: Capture, arguments: tuple[str, ...], says: str) -> None:
    assert main(["explain", *arguments, "--settings", str(standing.daemon.settings_file)]) == 1
    said = capsys.readouterr()
    assert (said.out, says in said.err) == ("", True), said


def test_it_tells_what_is_in_force_and_not_what_the_file_says(shop: Shop) -> None:
    asked = ("--to", "web/in", "--from", "127.0.0.2")
    before = shop.explain_json(*asked)
    shop.write(**{"in": {**shop.service["roles"]["web"]["endpoints"]["in"], "access": [{"permit": "127.0.0.2"}]}})
    assert shop.explain_json(*asked) == before
    assert met_by("127.0.0.2", shop.ports["in"]) == "deny"
    right(shop.typed("reload"))
    after = shop.explain_json(*asked)
    assert (before["verdict"], after["verdict"]) == ("deny", "permit")
    assert after["rule"]["source"] == shop.line_of("permit: 127.0.0.2")
    assert met_by("127.0.0.2", shop.ports["in"]) == "permit"


def test_its_verdict_is_what_a_connection_meets(standing: Shop) -> None:
    seen = set()
    for source in ("127.0.0.1", "127.0.0.2", "127.0.0.3", "127.0.0.5", "127.0.0.6", "127.0.0.77"):
        for name, port in standing.ports.items():
            code, answer = standing.daemon.ask("GET", f"/v1/explain?to=web/{name}&from={source}")
            expected = "permit" if answer["enforce"] == "audit" else answer["verdict"]
            assert (code, met_by(source, port)) == (200, expected), answer
            seen.add((name, answer["verdict"]))
    both = {(name, verdict) for name in ("in", "own", "trial") for verdict in ("permit", "deny")}
    assert seen == both | {("open", "permit")}
    assert standing.explain_json("--to", "web/trial", "--from", source) == answer
    told = standing.explain("--to", "web/trial", "--from", source)
    assert f"{source} is denied (access) to web/trial" in told
    assert "is let in all the same, and counted: `enforce: audit`" in told


# --- explain: a file --------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A service file; no daemon runs."""
    path = tmp_path / "a service.yaml"
    own = {"type": "internal", "port": 5432, "target": "127.0.0.1:5433", "from": ["web"]}
    rules = {"type": "input", "public_port": 80, "target": "127.0.0.1:1", "access": [{"permit": "2001:db8::/32"}]}
    service = {
        "version": 1,
        "service": "shop",
        "roles": {
            "web": {"instances": ["10.0.0.4", "2001:db8::5"], "endpoints": {"in": rules}},
            "store": {"instances": ["10.0.1.4"], "endpoints": {"pg": own}},
        },
    }
    path.write_text(yaml.safe_dump(service, sort_keys=False))
    return str(path)


def test_a_file_tells_of_every_role_without_a_daemon(file: str) -> None:
    answer = json.loads(
        right(run_relay("explain", "--service", file, "--to", "store/pg", "--as", "web_IN_1", "--json")).stdout
    )
    rule = {"action": "permit", "network": "2001:db8::5/128", "source": "web_IN_1"}
    assert (answer["verdict"], answer["rule"], answer["listen"]) == ("permit", rule, "10.0.1.4:5432")
    told = right(typed("explain", "--service", file, "--to", "web/in", "--from", "10.0.0.4")).stdout
    assert told.startswith("10.0.0.4 is denied (access) to web/in on 10.0.0.4:80: no rule matches")
    lines = Path(file).read_text().splitlines()
    [line] = [number for number, line in enumerate(lines, 1) if "permit" in line]
    assert f"a service.yaml:{line}: permit 2001:db8::/32: does not match" in told


def test_a_file_that_cannot_tell(file: str) -> None:
    assert "no role `shop` with instances" in wrong(
        typed("explain", "--service", file, "--to", "shop/in", "--from", "::1")
    )
    Path(file).write_text("version: 1\nservice: shop\nroles: {}\n")
    assert wrong(typed("explain", "--service", file, "--to", "web/in", "--from", "::1")).startswith(f"{file}:3:")
    assert "cannot be read" in wrong(typed("explain", "--service", f"{file}.no", "--to", "web/in", "--from", "::1"))


def test_who_may_reach_what(file: str) -> None:
    table = [line.split() for line in right(typed("explain", "--matrix", "--service", file)).stdout.splitlines()]
    assert table == [
        ["ENDPOINT", "TYPE", "OUTSIDE", "FROM", "web", "FROM", "store"],
        ["web/in", "input", "only", "1", "network", "some", "no"],
        ["store/pg", "internal", "no", "yes", "no"],
    ]
    rows = json.loads(right(run_relay("explain", "--matrix", "--json", RELAY_SERVICE=file)).stdout)
    assert [(row["endpoint"], row["outside"], row["roles"]) for row in rows] == [
        ("web/in", "only 1 network", {"web": "some", "store": "no"}),
        ("store/pg", "no", {"web": "yes", "store": "no"}),
    ]


# --- reload --dry-run -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def unchanged(daemon: Daemon) -> Iterator[None]:
    """Asserts that nothing happens meanwhile: not a port, not a generation, not a connection, not a failed reload."""

    def stands() -> dict[str, Any]:
        status = daemon.status()
        return {
            "generation": status["generation"],
            "reload": status["reload"],
            "endpoints": [(each["name"], each["active"], each["closed"]) for each in status["endpoints"]],
            "ports": {address for address in listening() if address in declared(status)},
        }

    def declared(status: dict[str, Any]) -> set[str]:
        return {each["listen"] for each in status["endpoints"]}

    before = stands()
    assert before["ports"] == declared(daemon.status())
    yield
    assert stands() == before


@pytest.mark.real("ss")
def test_a_dry_run_says_what_would_be_and_does_nothing(shop: Shop) -> None:
    sources = ("127.0.0.3", "127.0.0.4", "127.0.0.5", "127.0.0.6")
    with contextlib.ExitStack() as stack:
        clients = {source: stack.enter_context(dial(shop.ports["in"], source=source)) for source in sources}
        clients["open"] = stack.enter_context(dial(shop.ports["open"], source="127.0.0.9"))
        for client in clients.values():
            assert echoed(client) == b"ping"
        added = free_port()
        shop.write(
            **{
                "in": {**shop.service["roles"]["web"]["endpoints"]["in"], "access": [{"deny": "127.0.0.4/31"}]},
                "open": None,
                "new": {**shop.service["roles"]["web"]["endpoints"]["open"], "public_port": added},
            }
        )
        with unchanged(shop.daemon):
            said = right(shop.daemon.relay("reload", "--dry-run")).stdout.splitlines()
            would = json.loads(right(shop.typed("reload", "--dry-run", "--json")).stdout)
            assert f"127.0.0.1:{added}" not in listening()
            for client in clients.values():
                assert echoed(client) == b"ping"
        line = shop.line_of("deny: 127.0.0.4/31")
        assert said == [
            f"close web/open on 127.0.0.1:{shop.ports['open']}",
            f"change web/in on 127.0.0.1:{shop.ports['in']} (rules, permit_unmatched)",
            f"open web/new on 127.0.0.1:{added}",
            *[warning for warning in said if "warning" in warning],
            f"cut 2 of web/in from 127.0.0.0/24 (deny 127.0.0.4/31, {line})",
            "cut 1 of web/open from 127.0.0.0/24 (the endpoint is closed)",
            "dry run: 3 open connections would be cut; nothing was done",
        ]
        assert (would["generation"], sum(cut["connections"] for cut in would["cut"])) == (1, 3)

        done = right(shop.typed("reload")).stdout.splitlines()
        assert done == [*said[: len(done) - 1], "generation 2 is in force"]
        for name in ("127.0.0.4", "127.0.0.5", "open"):
            with pytest.raises(ConnectionResetError):
                clients[name].recv(1)
        for name in ("127.0.0.3", "127.0.0.6"):
            assert echoed(clients[name]) == b"ping"
        assert right(shop.typed("reload", "--dry-run")).stdout.splitlines()[-1] == (
            "dry run: nothing would change; nothing was done"
        )


@pytest.mark.real("ss")
def test_a_dry_run_finds_a_port_that_is_another_programs(shop: Shop) -> None:
    port = free_port()  # which stays free when that program has ended
    with socket.create_server(("127.0.0.1", port)):
        shop.write(new={**shop.service["roles"]["web"]["endpoints"]["open"], "public_port": port})
        with unchanged(shop.daemon):
            said = wrong(shop.typed("reload", "--dry-run"))
        assert said.startswith(f"relay: cannot listen on 127.0.0.1:{port} for web/new: ")
        assert "stop that program" in said
    assert right(shop.typed("reload", "--dry-run")).stdout.splitlines()[0] == f"open web/new on 127.0.0.1:{port}"


@pytest.mark.real("ss")
def test_a_dry_run_of_a_file_with_errors(shop: Shop) -> None:
    shop.daemon.service_file.write_text(
        "version: 1\nservice: shop\nroles:\n  web: {instances: [nowhere], endpoint: {}}\n"
    )
    with unchanged(shop.daemon):
        said = wrong(shop.typed("reload", "--dry-run")).splitlines()
    assert [line.startswith(f"{shop.daemon.service_file}:4:") for line in said] == [True, True]
    assert wrong(shop.typed("reload")).splitlines() == said
    eventually(lambda: shop.daemon.status()["reload"]["failed"] == 1, "the real one is a failed one")
