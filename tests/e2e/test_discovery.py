"""Others are found without logging in to them: by a program here, by the command line, and by Prometheus."""

import contextlib
import http.client
import json
import os
import signal
import threading
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import schemathesis
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from relay.cli.main import main
from relay.control.openapi import document
from tests.control.rig import check_answer
from tests.e2e.fleets import is_applied
from tests.e2e.programs import program, run, serving
from tests.harness import HANG_S, Daemon, Echo, dial, eventually, stop_all, web_and_store
from tests.ports import free_port, free_ports

WEB: Final = "127.0.0.1"  # where Prometheus connects from as well
STORES: Final = ("127.6.0.1", "127.6.0.2")
CONFIG: Final = Path(__file__).parents[2] / "config" / "prometheus.yml"


def shop(port: int, target: str, metrics: str, door: int, stores: tuple[str, ...] = STORES) -> dict[str, Any]:
    """The service; on one machine all loopback addresses are each machine's own, so that its targets differ by machine."""
    metrics_out = {"type": "internal", "port": port + 1, "target": metrics, "from": ["web"]}
    pg = {"type": "internal", "port": port, "target": target, "from": ["web"]}
    return web_and_store([WEB], list(stores), f"127.0.0.1:{door}", {"pg": pg, "metrics": metrics_out})


class Shop:
    """The web instance, which has the discovery port, and its stores: a daemon each."""

    def __init__(self, directory: Path, stores: tuple[str, ...] = STORES) -> None:
        self.port, self.door, self.target = free_port(), free_port(), free_port()
        self.private = free_ports(2, "0.0.0.0")  # at each store's own address
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics = f"127.0.0.1:{free_port()}"
        listen = {"listen": self.url.removeprefix("http://")}
        self.web = self._daemon(directory, "web_IN_0", self.metrics, stores, listen)
        self.stores = [
            self._daemon(directory, f"store_IN_{n}", f"127.0.0.1:{free_port()}", stores, {}) for n in range(len(stores))
        ]

    def _daemon(
        self, directory: Path, instance: str, metrics: str, stores: tuple[str, ...], admin: dict[str, str]
    ) -> Daemon:
        place = directory / instance
        place.mkdir()
        keys = {"workers": 1, "metrics": {"listen": metrics}, "admin": {"socket": str(place / "admin.sock"), **admin}}
        return Daemon(place, self.file(metrics, stores), keys, instance=instance)

    def file(self, metrics: str, stores: tuple[str, ...]) -> dict[str, Any]:
        """The service file of a machine that has its metrics there."""
        return shop(self.private, f"127.0.0.1:{self.target}", metrics, self.door, stores)

    def __enter__(self) -> "Shop":
        with contextlib.ExitStack() as stack:
            stack.enter_context(Echo(("127.0.0.1", self.target)))
            stack.callback(stop_all, (self.web, *self.stores))
            for daemon in (self.web, *self.stores):
                daemon.start(wait=False)
            eventually(lambda: all(map(answers, (self.web, *self.stores))), "all are there")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def get(self, path: str) -> Any:
        """What a program on this machine is told."""
        with urllib.request.urlopen(self.url + path, timeout=HANG_S) as response:
            return json.loads(response.read())


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    """For tests that change nothing."""
    with Shop(tmp_path_factory.mktemp("shop")) as made:
        yield made


def answers(daemon: Daemon) -> bool:
    """Whether its control is there, and all of its ports are."""
    with contextlib.suppress(OSError):
        return is_applied(daemon)
    return False


class Events:
    """A reader of server-sent events, as the standard has them."""

    def __init__(self, port: int, last_event_id: str | None = None) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HANG_S)
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        try:
            self._connection.request("GET", "/v1/watch", headers=headers)
            self.response = self._connection.getresponse()
            assert self.response.status == 200
        except BaseException:
            self._connection.close()
            raise

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *_: object) -> None:
        self.response.close()
        self._connection.close()

    def next(self) -> tuple[str, str, Any]:
        """Id, kind and data of the next one; EOFError at the end."""
        fields: dict[str, str] = {}
        while True:
            line = self.response.readline().decode()
            if not line:
                raise EOFError
            name, _, value = line.rstrip("\n").partition(": ")
            if name:
                fields[name] = value
            elif line == "\n" and "event" in fields:
                return fields["id"], fields["event"], json.loads(fields["data"])


# --- what is told -------------------------------------------------------------------------------------------------------


def test_the_same_on_the_admin_socket_and_on_the_port(there: Shop) -> None:
    for path in ("/v1/identity", "/v1/roles", "/v1/instances?role=store", "/v1/endpoints", "/v1/environment"):
        assert there.web.ask("GET", path) == (200, there.get(path))
    assert there.get("/v1/openapi.json") == document(admin=False)
    assert there.web.ask("GET", "/v1/openapi.json") == (200, document(admin=True))
    for store in there.stores:  # each tells the same of the others, whoever is asked
        _, told = store.ask("GET", "/v1/instances?role=store")
        seen = [{**each, "self": False, "metrics": None} for each in told]
        assert seen == [{**each, "metrics": None} for each in there.get("/v1/instances?role=store")]


def test_the_port_has_nothing_that_does_anything(there: Shop) -> None:
    for method, path in (("POST", "/v1/reload"), ("POST", "/v1/drain?for=0"), ("GET", "/v1/connections")):
        connection = http.client.HTTPConnection("127.0.0.1", there.port, timeout=HANG_S)
        with contextlib.closing(connection):
            connection.request(method, path)
            assert connection.getresponse().status == 404
    assert there.web.status()["generation"] == 1


def test_the_command_line(there: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    def relay(*arguments: str, of: Daemon = there.web) -> tuple[int, str, str]:
        status = main([*arguments, "--settings", str(of.settings_file)])
        return status, *capsys.readouterr()

    _, table, _ = relay("instances")
    assert [line.split()[:3] for line in table.splitlines()] == [
        ["INSTANCE", "ADDRESS", "IS"],
        ["web_IN_0*", WEB, "healthy"],
        ["store_IN_0", STORES[0], "healthy"],
        ["store_IN_1", STORES[1], "healthy"],
    ]
    _, stores, _ = relay("instances", "--role", "store", "--healthy", "--json")
    assert [each["id"] for each in json.loads(stores)] == ["store_IN_0", "store_IN_1"]
    assert relay("resolve", "store/pg") == (0, "".join(f"{store}:{there.private}\n" for store in STORES), "")
    said = "relay: no endpoint `store/pq` in the service; did you mean `store/pg`?\n"
    assert relay("resolve", "store/pq") == (1, "", said)
    status, _, said = relay("instances", "--role", "stor")
    assert status == 1
    assert said.startswith("relay: no role `stor` in service shop; did you mean `store`?")
    assert relay("identity", of=there.stores[1]) == (0, f"store_IN_1 of shop, at {STORES[1]}\n", "")
    status, identity, _ = relay("identity", "--json")
    assert json.loads(identity) == there.get("/v1/identity")


# --- what changes -------------------------------------------------------------------------------------------------------


def test_watching_a_reload_and_a_crash_of_control(tmp_path: Path) -> None:
    with Shop(tmp_path, STORES[:1]) as made:
        with Events(made.port) as events:
            first, kind, roster = events.next()
            assert (kind, [each["id"] for each in roster["instances"]]) == ("roster", ["web_IN_0", "store_IN_0"])
            made.web.write_service(made.file(made.metrics, STORES))
            assert made.web.ask("POST", "/v1/reload")[0] == 200
            joined, kind, store = events.next()
            assert (kind, store["id"], store["address"]) == ("joined", "store_IN_1", STORES[1])
        for daemon, wanted in ((made.web, 200), (made.stores[0], 409)):
            daemon.service_file.write_text("" if wanted == 409 else daemon.service_file.read_text())
            code, value = daemon.ask("POST", "/v1/reload")
            assert code == wanted
            check_answer("post", "/v1/reload", code, value)
        with Events(made.port, first) as events:
            assert events.next() == (joined, kind, store)
            os.kill(made.web.status()["control"]["pid"], signal.SIGKILL)
            with pytest.raises((EOFError, http.client.IncompleteRead, ConnectionResetError)):
                events.next()
        eventually(lambda: answers(made.web), "control answers again")
        with Events(made.port, joined) as events:  # that number was another control process's
            last, kind, roster = events.next()
        assert (kind, len(roster["instances"])) == ("roster", 3)
        assert last.partition("-")[0] != joined.partition("-")[0]


def test_who_does_not_answer_is_not_healthy_here(tmp_path: Path) -> None:
    with Shop(tmp_path, STORES[:1]) as made, Events(made.port) as events, ThreadPoolExecutor() as pool:
        assert events.next()[1] == "roster"
        made.stores[0].stop()
        seen = threading.Event()
        clients = pool.submit(keep_dialling, made.door, seen)
        try:
            _, kind, store = events.next()
        finally:
            seen.set()
            clients.result()
        assert (kind, store["id"], store["healthy"]) == ("changed", "store_IN_0", False)
        made.web.ask("POST", "/v1/drain?for=600")
        while (told := events.next())[2]["id"] == "store_IN_0":  # it may get a connection again after a while
            pass
        assert (told[1], told[2]["id"], told[2]["busy"]) == ("changed", "web_IN_0", True)


def keep_dialling(port: int, until: threading.Event) -> None:
    while not until.wait(0.1):
        with contextlib.suppress(ConnectionError):
            dial(port).close()


# --- what is described --------------------------------------------------------------------------------------------------

PATHS: Final = document(admin=False)["paths"].keys() - {"/v1/watch"}
CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize("mode", schemathesis.GenerationMode, ids=lambda mode: mode.value)
def test_every_answer_is_as_described(there: Shop, mode: schemathesis.GenerationMode) -> None:
    """Requests that fit the document, and such as do not, made by schemathesis."""
    schema = schemathesis.openapi.from_url(f"{there.url}/v1/openapi.json")
    asked: dict[str, set[int]] = {}
    for path in PATHS:
        operation = schema[path]["GET"]
        if mode is schemathesis.GenerationMode.NEGATIVE and not operation.query:
            continue  # nothing of it can be wrong

        @settings(
            max_examples=10, deadline=None, database=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck]
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: schemathesis.Case[Any]) -> None:
            response = case.call_and_validate(checks=CHECKS, timeout=HANG_S)
            asked.setdefault(case.operation.path, set()).add(response.status_code)

        ask()
    if mode is schemathesis.GenerationMode.POSITIVE:
        assert asked.keys() == PATHS
        assert 200 in asked["/v1/instances"]
    else:
        assert asked.keys() == {"/v1/instances", "/v1/endpoints"}
        assert 400 in set().union(
            *asked.values()
        )  # not always: what has no value may be left out, and then all is well


def test_the_stream_is_as_described(there: Shop) -> None:
    """It has no end, so that schemathesis cannot ask for it."""
    operation = schemathesis.openapi.from_dict(document(admin=False))["/v1/watch"]["GET"]

    @settings(max_examples=10, deadline=None, database=None, phases=[Phase.generate])
    @given(case=operation.as_strategy())
    def ask(case: schemathesis.Case[Any]) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", there.port, timeout=HANG_S)
        with contextlib.closing(connection):
            query = urllib.parse.urlencode(case.query or {}, errors="replace")
            connection.request("GET", f"/v1/watch?{query}", headers=dict(case.headers or {}))
            response = connection.getresponse()
            assert (response.status, response.headers["Content-Type"]) == (200, "text/event-stream")
            assert response.readline() == b"retry: 2000\n"
            response.close()

    ask()


def test_the_admin_api_answers_as_described(there: Shop) -> None:
    with dial(there.door):
        eventually(lambda: there.web.ask("GET", "/v1/connections")[1], "it is open")
        asked = [
            ("GET", "/v1/status", 200),
            ("GET", "/v1/connections", 200),
            ("GET", "/v1/explain?to=web/db&from=192.0.2.1", 200),
            ("GET", "/v1/explain?to=web/db&as=web_IN_0", 200),
            ("GET", "/v1/explain?to=web/nothing", 400),
            ("GET", "/v1/route?to=web/db&client=192.0.2.1", 200),
            ("GET", "/v1/route?to=web/db&client=nobody", 400),
            ("POST", "/v1/drain?for=0", 200),
            ("POST", "/v1/drain", 400),
            ("POST", "/v1/reload?dry_run=1", 200),
        ]
        for method, resource, status in asked:
            code, value = there.web.ask(method, resource)
            assert code == status, (resource, value)
            check_answer(method.lower(), resource.partition("?")[0], code, value)


# --- Prometheus ---------------------------------------------------------------------------------------------------------


@pytest.mark.real("prometheus", "promtool")
def test_the_shipped_configuration_is_right() -> None:
    assert b"SUCCESS" in run("promtool", "check", "config", str(CONFIG))


@pytest.mark.real("prometheus", "promtool")
def test_prometheus_finds_and_scrapes_all_by_asking_one(there: Shop, tmp_path: Path) -> None:
    """Its own machine's metrics where they are, the stores' through their envelope, by an internal endpoint."""
    shipped = yaml.safe_load(CONFIG.read_text())
    (job,) = shipped["scrape_configs"]
    (discovery,) = job["http_sd_configs"]
    assert discovery["url"] == "http://127.0.0.1:9465/v1/prometheus"
    discovery["url"] = f"{there.url}/v1/prometheus"
    shipped["global"]["scrape_interval"] = discovery["refresh_interval"] = "1s"
    file, port = tmp_path / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(shipped))
    assert b"SUCCESS" in run("promtool", "check", "config", str(file))

    def ask(query: str) -> list[dict[str, str]]:
        url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=HANG_S) as response:
            return [each["metric"] for each in json.loads(response.read())["data"]["result"]]
        return []

    command = [program("prometheus"), f"--config.file={file}", f"--storage.tsdb.path={tmp_path / 'data'}"]
    with serving([*command, f"--web.listen-address=127.0.0.1:{port}"], tmp_path, lambda: ask("vector(1)")):
        up = eventually(lambda: len(found := ask("up == 1")) == 3 and found, "all are scraped")
        assert sorted((each["instance"], each["instance_role"], each["service"]) for each in up) == [
            ("store_IN_0", "store", "shop"),
            ("store_IN_1", "store", "shop"),
            ("web_IN_0", "web", "shop"),
        ]
        accepted = 'relay_connections_accepted_total{role="store", endpoint="metrics"} > 0'
        eventually(
            lambda: {each["instance"] for each in ask(accepted)} == {"store_IN_0", "store_IN_1"},
            "each store has counted a scrape, and was scraped after it",
        )
