"""What the discovery API tells, from a service file and a roster."""

from dataclasses import replace

import pytest

from relay.config.roster import Member
from relay.config.values import HostPort
from relay.control import discovery
from relay.control.discovery import Fleet, changes, metrics_of
from relay.errors import UnknownError
from tests.control.rig import SHOP, TEXT, WEB_0, WEB_2, fleet


def test_who_this_machine_is() -> None:
    assert discovery.identity(fleet()) == {
        "service": "shop",
        "instance": "store_IN_0",
        "role": "store",
        "ordinal": 0,
        "address": "10.0.1.4",
    }


def test_roles() -> None:
    web, store, edge = discovery.roles(fleet())
    assert web == {
        "name": "web",
        "kind": "counted",
        "bare": False,
        "count": 3,
        "instances": ["web_IN_0", "web_IN_2"],
        "endpoints": ["http-in", "each", "metrics"],
        "uses": {"db": {"endpoint": "store/postgres", "listen": "127.0.0.1:5432"}},
    }
    assert (store["kind"], store["count"], store["instances"]) == ("listed", 1, ["store_IN_0"])
    assert (edge["name"], edge["count"], edge["instances"]) == ("edge", 2, ["edge_IN_0", "edge_IN_1"])


def test_an_instance() -> None:
    me = replace(WEB_0, down=("each", "of another time"), reasons=("HTTP 503", ""))
    assert discovery.instance(fleet(me), "web_IN_0") == {
        "id": "web_IN_0",
        "role": "web",
        "ordinal": 0,
        "address": "10.0.0.4",
        "name": "",
        "metrics": "10.0.0.4:9464",
        "healthy": False,
        "busy": False,
        "down": ["each", "of another time"],
        "reasons": {"each": "HTTP 503"},
        "self": False,
        "endpoints": [
            {
                "name": "web/http-in",
                "type": "input",
                "protocol": "http",
                "address": "10.0.0.4:8080",
                "ports": {"first": 8080, "last": 8080},
                "healthy": True,
            },
            {
                "name": "web/each",
                "type": "input",
                "protocol": "tcp",
                "address": "10.0.0.4:9000",
                "ports": {"first": 9000, "last": 9000},
                "healthy": False,
            },
            {
                "name": "web/metrics",
                "type": "internal",
                "protocol": "tcp",
                "address": "10.0.0.4:9464",
                "ports": {"first": 9464, "last": 9464},
                "healthy": True,
            },
        ],
    }


def test_why_this_machine_avoids_an_instance_is_told_under_its_id() -> None:
    told = fleet(WEB_0, avoided={"web_IN_0": "its relay: no answer in 5 s"})
    found = discovery.instance(told, "web_IN_0")
    assert (found["healthy"], found["reasons"]) == (False, {"web_IN_0": "its relay: no answer in 5 s"})


def test_an_edge_has_the_public_ports() -> None:
    edge = discovery.instance(fleet(), "edge_IN_1")
    assert {each["name"]: (each["address"], each["ports"]) for each in edge["endpoints"]} == {
        "web/http-in": ("[2001:db8::10]:80", {"first": 80, "last": 80}),
        "web/each@instance": ("[2001:db8::10]:9001", {"first": 9001, "last": 9003}),
    }


def test_instances_of_a_role_and_the_healthy_ones() -> None:
    busy, gone = replace(WEB_0, busy=True), Member("web", 1, "10.0.0.5")
    told = fleet(busy, gone, WEB_2, avoided={"web_IN_1": "HTTP 503"})
    assert [each["id"] for each in discovery.instances(told, "web")] == ["web_IN_0", "web_IN_1", "web_IN_2"]
    assert [each["id"] for each in discovery.instances(told, "web", healthy=True)] == ["web_IN_2"]
    assert [each["id"] for each in discovery.instances(told, "edge")] == ["edge_IN_0", "edge_IN_1"]
    assert len(discovery.instances(told)) == 6
    assert [each["id"] for each in discovery.instances(told) if each["self"]] == ["store_IN_0"]


def test_an_endpoint_that_is_down_no_longer_in_the_file_makes_nobody_sick() -> None:
    assert discovery.instance(fleet(replace(WEB_0, down=("removed",))), "web_IN_0")["healthy"] is True


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("web_IN_1", "no instance `web_IN_1` in service shop; did you mean `web_IN_2`? there are web_IN_0, web_IN_2, "),
        ("zzz", "no instance `zzz` in service shop; there are web_IN_0, web_IN_2, store_IN_0, edge_IN_0, edge_IN_1"),
    ],
)
def test_an_instance_that_is_not_there(asked: str, said: str) -> None:
    with pytest.raises(UnknownError) as caught:
        discovery.instance(fleet(), asked)
    assert str(caught.value).startswith(said)


def test_a_role_that_is_not_there() -> None:
    with pytest.raises(UnknownError, match=r"no role `wev` in service shop; did you mean `web`\?"):
        discovery.instances(fleet(), "wev")
    with pytest.raises(UnknownError, match=r"there are web, store$"):
        discovery.endpoints(fleet(), "edge")


def test_of_a_thousand_names_a_message_has_twenty() -> None:
    text = "version: 1\nservice: shop\nroles: {web: {instances: 1000}}\n"
    members = [Member("web", n, f"10.0.{n // 250}.{n % 250}") for n in range(1000)]
    with pytest.raises(UnknownError, match=r"web_IN_19 and 980 more$"):
        discovery.instance(fleet(*members, text=text), "x")


def test_endpoints() -> None:
    http_in, each, metrics, postgres, many = discovery.endpoints(fleet(replace(WEB_0, down=("each",)), WEB_2))
    assert http_in == {
        "name": "web/http-in",
        "role": "web",
        "endpoint": "http-in",
        "type": "input",
        "protocol": "http",
        "ports": {"first": 8080, "last": 8080},
        "public_port": 80,
        "instance_ports": None,
        "from": None,
        "instances": [
            {"instance": "web_IN_0", "address": "10.0.0.4:8080", "healthy": True},
            {"instance": "web_IN_2", "address": "10.0.0.6:8080", "healthy": True},
        ],
        "edges": [
            {"instance": "edge_IN_0", "address": "198.51.100.10:80", "instances": [], "healthy": True},
            {"instance": "edge_IN_1", "address": "[2001:db8::10]:80", "instances": [], "healthy": True},
        ],
    }
    assert [each["healthy"] for each in each["instances"]] == [False, True]
    assert each["instance_ports"] == {"first": 9001, "last": 9003}
    assert each["edges"][0] == {
        "instance": "edge_IN_0",
        "address": None,
        "instances": [
            {"instance": "web_IN_0", "address": "198.51.100.10:9001"},
            {"instance": "web_IN_2", "address": "198.51.100.10:9003"},
        ],
        "healthy": True,
    }
    assert (metrics["from"], metrics["edges"], metrics["public_port"]) == (["web", "store"], [], None)
    assert (postgres["from"], many["ports"]) == (["web"], {"first": 7000, "last": 7002})
    assert [each["name"] for each in discovery.endpoints(fleet(), "store")] == ["store/postgres", "store/range"]


# --- metrics ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "here", "found"),
    [
        ("10.9.9.9:1234", None, "10.9.9.9:1234"),
        ("[2001:db8::9]:1234", None, "[2001:db8::9]:1234"),
        ("0.0.0.0:1234", None, "10.0.0.4:1234"),
        ("", None, "10.0.0.4:9464"),  # by the endpoint, whose target is the default
        ("127.0.0.1:9464", None, "10.0.0.4:9464"),
        ("localhost:9464", None, "10.0.0.4:9464"),
        ("127.0.0.1:9999", None, None),  # no endpoint leads there
        ("", HostPort("127.0.0.1", 9999), None),  # the fleet has its metrics elsewhere, and no endpoint leads there
        ("", HostPort("localhost", 9464), "10.0.0.4:9464"),
        ("what the registry made of it", None, "10.0.0.4:9464"),
    ],
)
def test_where_another_ones_metrics_are(told: str, here: HostPort | None, found: str | None) -> None:
    member = replace(WEB_0, metrics=told)
    assert metrics_of(fleet(member, metrics=here), member) == found


@pytest.mark.parametrize(
    ("here", "found"),
    [
        (None, None),
        (HostPort("127.0.0.1", 9464), "127.0.0.1:9464"),
        (HostPort("0.0.0.0", 9464), "10.0.0.4:9464"),
        (HostPort("10.0.0.4", 1), "10.0.0.4:1"),
    ],
)
def test_where_this_machines_own_are(here: HostPort | None, found: str | None) -> None:
    assert metrics_of(fleet(metrics=here, me="web_IN_0"), WEB_0) == found


def test_metrics_behind_one_port_of_a_range() -> None:
    text = TEXT.replace('port: 9464, target: "127.0.0.1:9464"', 'port: 7000-7002, target: "127.0.0.1:9463-9465"')
    assert metrics_of(fleet(text=text), WEB_0) == "10.0.0.4:7001"


def test_whom_prometheus_scrapes() -> None:
    told = discovery.prometheus(fleet(replace(WEB_0, busy=True), WEB_2, metrics=HostPort("127.0.0.1", 9464)))
    assert told[0] == {
        "targets": ["10.0.0.4:9464"],
        "labels": {
            "instance": "web_IN_0",
            "service": "shop",
            "__meta_relay_role": "web",
            "__meta_relay_ordinal": "0",
        },
    }
    assert [each["targets"] for each in told] == [["10.0.0.4:9464"], ["10.0.0.6:9464"], ["127.0.0.1:9464"]]


# --- changes ------------------------------------------------------------------------------------------------------------


def kinds(old: Fleet, new: Fleet) -> list[tuple[str, str]]:
    return [(kind, view["id"]) for kind, view in changes(old, new)]


def test_who_came_and_who_went() -> None:
    assert kinds(fleet(WEB_0), fleet(WEB_2)) == [("left", "web_IN_0"), ("joined", "web_IN_2")]
    assert kinds(fleet(), fleet()) == []


def test_who_has_changed() -> None:
    assert kinds(fleet(WEB_0, WEB_2), fleet(replace(WEB_0, busy=True), WEB_2)) == [("changed", "web_IN_0")]
    assert kinds(fleet(WEB_0), fleet(replace(WEB_0, address="10.0.0.9"))) == [("changed", "web_IN_0")]
    assert kinds(fleet(), fleet(avoided={"web_IN_2": ""})) == [("changed", "web_IN_2")]
    ((_, view),) = changes(fleet(WEB_0), fleet(replace(WEB_0, down=("each",))))
    assert view["down"] == ["each"]


def test_a_file_that_changes_an_endpoint_changes_those_who_have_it() -> None:
    other = fleet(text=TEXT.replace("port: 5432", "port: 6432"))
    assert kinds(fleet(), other) == [("changed", "store_IN_0")]
    same = fleet(text=TEXT + "# a comment\n")
    assert same.service is not SHOP
    assert kinds(fleet(), same) == []


NAMED = """\
version: 1
service: shop
roles:
  store: {instances: [10.0.1.4], uses: {db: {endpoint: db/pg, listen: "127.0.0.1:5432"}}}
  db:
    bare: true
    instances: [db.test, {srv: _pg._tcp.db.test}]
    endpoints: {pg: {type: internal, port: 5432}}
"""


def test_instances_by_name_are_where_the_name_says() -> None:
    there = (
        Member("db", 0, "10.0.2.4", name="db.test"),
        Member("db", 7, "10.0.2.4", port=5433, name="srv: _pg._tcp.db.test"),
    )
    known = fleet(*there, text=NAMED)
    (role,) = [each for each in discovery.roles(known) if each["name"] == "db"]
    assert (role["kind"], role["count"], role["instances"]) == ("named", 1024, ["db_IN_0", "db_IN_7"])
    found = discovery.instances(known, "db")
    assert [(each["name"], each["address"], each["endpoints"][0]["address"]) for each in found] == [
        ("db.test", "10.0.2.4", "10.0.2.4:5432"),
        ("srv: _pg._tcp.db.test", "10.0.2.4", "10.0.2.4:5433"),
    ]
    assert [each["endpoints"][0]["ports"]["last"] for each in found] == [5432, 5433]
    (endpoint,) = discovery.endpoints(known, "db")
    assert [each["address"] for each in endpoint["instances"]] == ["10.0.2.4:5432", "10.0.2.4:5433"]
