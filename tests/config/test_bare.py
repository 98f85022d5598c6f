"""Roles without relay on their machines: what the rows of those who lead there say, and what nobody can enforce."""

from typing import Any

import pytest

from relay.config.compile import compile_snapshot
from relay.config.document import parse
from relay.config.load import Loaded, parse_service
from relay.config.model import Service
from relay.config.roster import Member, Roster
from relay.config.settings import Settings
from relay.config.snapshot import EndpointRow
from relay.errors import ConfigError

WEB = """
version: 1
service: shop
edge: {instances: [198.51.100.10]}
relay_port: 7000
roles:
  web:
    instances: [10.0.2.4]
    uses: {db: {endpoint: old/pg, listen: "127.0.0.1:5432"}}
  old:
    bare: true
    instances: INSTANCES
    endpoints:
      http: {type: input, public_port: 80, port: 8080, HTTP}
      pg: {type: internal, port: 5433, PG}
"""


def loaded(instances: str = "[10.0.0.4, 10.0.0.5]", http: str = "", pg: str = "", text: str = WEB) -> Loaded[Service]:
    filled = text.replace("INSTANCES", instances).replace(", HTTP", f", {http}" if http else "")
    return parse_service(parse(filled.replace(", PG", f", {pg}" if pg else "").encode(), "service.yaml"))


def row(instance: str, name: str, *registered: Member, **keys: str) -> EndpointRow:
    service = loaded(**keys).value
    roster = Roster.of_service(service, registered)
    snapshot = compile_snapshot(service, Settings(), instance, generation=1, file="", roster=roster)
    return next(each for each in snapshot.endpoints if each.name == name)


def warnings(**keys: str) -> list[str]:
    return [f"{each.path}: {each.what}" for each in loaded(**keys).warnings]


def test_an_edge_leads_to_the_application_itself() -> None:
    found = row("edge_IN_0", "old/http")
    assert (found.direct, found.is_edge, found.send_proxy, found.dial_from) == (True, False, None, "")
    assert [(each.text, each.instance, each.relay_port) for each in found.targets] == [
        ("10.0.0.4:8080", "old_IN_0", 0),
        ("10.0.0.5:8080", "old_IN_1", 0),
    ]


def test_an_edge_does_for_it_what_its_relay_would() -> None:
    keys = "send_proxy: v1, limits: {connections: 7, per_source: 3, rate: 5/s}, timeouts: {lifetime: 1h, idle: 9s}"
    found = row("edge_IN_0", "old/http", http=keys)
    assert (found.connections, found.per_source, found.rate_per_s, found.send_proxy) == (7, 3, 5.0, "v1")
    assert (found.lifetime_s, found.idle_s) == (3600.0, 9.0)
    assert found.probe is None, "without a probe it is asked only while a dial has failed"
    assert not found.is_judged
    assert row("edge_IN_0", "old/http", http="probe: {}").is_judged


def test_a_door_leads_there_and_does_the_same() -> None:
    keys = "send_proxy: v2, timeouts: {lifetime: 2h, idle: 7s}, probe: {interval: 1s}"
    found = row("web_IN_0", "web/db", pg=keys)
    assert (found.direct, found.send_proxy, found.dial_from, found.protocol) == (True, "v2", "", "tcp")
    assert (found.lifetime_s, found.idle_s, found.is_judged) == (7200.0, 7.0, True)
    assert [each.text for each in found.targets] == ["10.0.0.4:5433", "10.0.0.5:5433"]


def test_both_ip_versions_are_reached() -> None:
    instances = '[10.0.0.4, "2001:db8::5"]'
    for instance, name in (("edge_IN_0", "old/http"), ("web_IN_0", "web/db")):
        assert [each.host for each in row(instance, name, instances=instances).targets] == ["10.0.0.4", "2001:db8::5"]


def test_a_door_has_all_of_them_and_not_some() -> None:
    """A backup would be of no use to a machine that does not have it."""
    many = "[" + ", ".join(f"10.0.{n}.4" for n in range(100, 150)) + "]"
    assert len(row("web_IN_0", "web/db", instances=many).targets) == 50


def test_weights_and_backups() -> None:
    instances = "[{address: 10.0.0.4, weight: 3}, {address: 10.0.0.5, backup: true}]"
    found = row("edge_IN_0", "old/http", instances=instances)
    assert [(each.weight, each.backup) for each in found.targets] == [(3, False), (1, True)]


def test_those_that_a_name_leads_to_are_targets_at_their_own_port() -> None:
    found = Member("old", 7, "10.9.9.9", port=9000, weight=2, name="db.example.com")
    [target] = row("edge_IN_0", "old/http", found, instances="[db.example.com]").targets
    assert (target.text, target.instance, target.weight) == ("10.9.9.9:9000", "old_IN_7", 2)


@pytest.mark.parametrize(
    ("told_by", "name"),
    [
        ("db.example.com", "db.example.com"),
        ("srv: _pg._tcp.example.com", ""),
        ("file: t.yaml", ""),
        ("a.example.com, b.example.com", ""),
        ("", ""),
    ],
)
def test_only_a_name_may_be_a_certificates(told_by: str, name: str) -> None:
    found = Member("old", 0, "10.9.9.9", name=told_by)
    assert row("edge_IN_0", "old/http", found, instances="[db.example.com]").targets[0].name == name


@pytest.mark.parametrize("instances", ["[10.0.0.4]", "[db.example.com]"])
def test_who_is_let_in_elsewhere(instances: str) -> None:
    """A bare machine of the service is, where the file has its address; what a name says decides nothing."""
    text = WEB.replace("web:\n", "web:\n    endpoints: {in: {type: internal, port: 1, target: 127.0.0.1:1}}\n")
    service = loaded(instances=instances, text=text).value
    roster = Roster.of_service(service, [Member("old", 0, "10.9.9.9")])
    snapshot = compile_snapshot(service, Settings(), "web_IN_0", generation=1, file="", roster=roster)
    rows = {each.name: [rule.network for rule in each.rules] for each in snapshot.endpoints}
    assert ("10.0.0.4/32" in rows["web/in"]) is (instances == "[10.0.0.4]")
    assert "10.9.9.9/32" not in rows["web/in"]
    assert rows["web/@relay"] == ["10.0.2.4/32", "198.51.100.10/32"], "no relay of a bare machine talks to ours"


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (
            {},
            [
                "roles.old.endpoints.pg.type: nobody enforces it: whoever reaches port 5433 of these machines may connect"
            ],
        ),
        (
            {"pg": "from: [web], limits: {rate: 1/s}"},
            [
                "roles.old.endpoints.pg.from: nobody enforces it: whoever reaches port 5433 of these machines may connect",
                "roles.old.endpoints.pg.limits: a door counts what is its own machine's alone, and has no limits",
            ],
        ),
        (
            {"http": "access: [{deny: 192.0.2.1}]", "pg": "from: [web]"},
            [
                "roles.old.endpoints.http.access: the edge alone enforces it: whoever reaches port 8080 of these machines "
                "goes by",
                "roles.old.endpoints.pg.from: nobody enforces it: whoever reaches port 5433 of these machines may connect",
            ],
        ),
    ],
)
def test_what_nobody_enforces_is_said(keys: dict[str, Any], told: list[str]) -> None:
    assert warnings(**keys) == told


def test_without_an_edge_nobody_listens() -> None:
    text = WEB.replace("edge: {instances: [198.51.100.10]}\n", "").replace("relay_port: 7000\n", "")
    told = "there is no edge, and no relay on these machines: nobody listens on its public port"
    assert f"roles.old.endpoints.http.type: {told}" in warnings(text=text)


def test_a_second_endpoint_on_one_port_is_for_a_further_role() -> None:
    """Nobody moves the application, so another port, which is the remedy elsewhere, would be none."""
    with pytest.raises(ConfigError) as raised:
        loaded(text=WEB.replace("port: 5433", "port: 8080"))
    (problem,) = (each for each in raised.value.problems if each.severity == "error")
    assert problem.path == "roles.old.endpoints.pg.port"
    assert problem.fix == "declare this endpoint in a further bare role that has the same `instances`"
