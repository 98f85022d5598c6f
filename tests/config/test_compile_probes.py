"""How each row's targets are probed: by their own machine, by an edge, by a door, with and without a relay before them."""

from dataclasses import replace
from typing import Any

import pytest

from relay.config.compile import DEFAULT_PROBE
from relay.config.roster import Member, Roster
from relay.config.snapshot import EndpointRow, ProbeRow
from tests.config.rig import compiled, service

SERVICE = """\
version: 1
service: shop
edge: {instances: [198.51.100.10]}
roles:
  web:
    instances: [10.0.0.4]
    endpoints:
      in: {type: input, protocol: https, public_port: 80, target: "127.0.0.1:3000", probe: PROBE}
    uses: {db: {endpoint: store/db, listen: "127.0.0.1:5432"}}
  store:
    bare: true
    instances: [10.0.1.4, db.example.com]
    endpoints:
      db: {type: internal, port: 5432, probe: PROBE}
      public: {type: input, public_port: 81, probe: PROBE}
"""
ALL: dict[str, Any] = {
    "port": 8008,
    "path": "/",
    "statuses": (200, 204),
    "tls": "verify",
    "rise": 3,
    "fall": 2,
    "on_down": "cut",
}


def row(instance: str, name: str, probe: str) -> EndpointRow:
    shop = service(SERVICE.replace("PROBE", probe))
    stores = [Member("store", 0, "10.0.1.4"), Member("store", 1, "10.0.1.7", name="db.example.com")]
    roster = Roster.of_service(shop)
    roster = Roster((*(each for each in roster if each.role != "store"), *stores))
    [found] = [each for each in compiled(instance, service=shop, roster=roster).endpoints if each.name == name]
    return found


def test_all_that_is_declared_is_in_the_row() -> None:
    text = "{protocol: http, port: 8008, path: /, expect: [200, 204], tls: verify, rise: 3, fall: 2, on_down: cut}"
    expected = replace(ProbeRow("", 2.0, 5.0), **ALL)
    for instance, name in (("web_IN_0", "web/in"), ("web_IN_0", "web/db"), ("edge_IN_0", "store/public")):
        assert row(instance, name, text).probe == expected
    text = '{send: "PING\\r\\n", expect: +PONG, interval: 1s, timeout: 2s}'
    assert row("web_IN_0", "web/in", text).probe == ProbeRow("", 1.0, 2.0, send="PING\r\n", expect="+PONG")


@pytest.mark.parametrize(
    ("text", "expected"), [("{}", "auto"), ("{tls: true}", "on"), ("{tls: false}", "off"), ("{tls: verify}", "verify")]
)
def test_tls(text: str, expected: str) -> None:
    probe = row("web_IN_0", "web/in", text).probe
    assert probe is not None
    assert probe.tls == expected


def test_a_name_that_led_to_an_instance_is_kept_for_its_certificate() -> None:
    for instance, name in (("web_IN_0", "web/db"), ("edge_IN_0", "store/public")):
        assert [each.name for each in row(instance, name, "{}").targets] == ["", "db.example.com"]


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ("{send: x, rise: 3, fall: 2, tls: true}", {"send": "x", "rise": 3, "fall": 2, "tls": "on"}),
        ("{protocol: http, path: /a, expect: [204]}", {"path": "/a", "statuses": (204,)}),
        ("{port: 8008, rise: 3, fall: 2, on_down: cut}", {"kind": "relay", "port": 8008, "fall": 2, "on_down": "cut"}),
        ("{tls: verify, rise: 2}", {"kind": "relay", "tls": "verify"}),
    ],
)
def test_an_edge_asks_through_a_relay_what_it_can_and_else_takes_its_word(text: str, keys: dict[str, Any]) -> None:
    """A relay's word has its answers counted already; that a relay gives none, it has not."""
    assert row("edge_IN_0", "web/in", text).probe == replace(ProbeRow("", 2.0, 5.0), **keys)


def test_where_the_application_is_not_asked_its_relay_is() -> None:
    found = row("edge_IN_0", "web/in", "false").probe
    assert found is not None
    assert (found.kind, found.asks_more) == ("relay", False)
    for instance, name in (("web_IN_0", "web/in"), ("web_IN_0", "web/db"), ("edge_IN_0", "store/public")):
        found = row(instance, name, "false").probe
        assert found is not None
        assert (found.kind, found.interval_s) == ("never", DEFAULT_PROBE.interval_s)


@pytest.mark.parametrize(
    ("text", "proves", "judged"),
    [
        ("{}", True, True),
        ("false", True, False),
        ("{port: 8008}", False, True),
        ("{send: x}", False, True),
        ("{expect: x}", False, True),
        ("{tls: true}", False, True),
        ("{tls: false}", True, True),
        ("{protocol: http, path: /}", False, True),
        ("{rise: 2}", False, True),
        ("{fall: 2}", False, True),
        ("{on_down: cut}", False, True),
    ],
)
def test_what_a_dial_proves(text: str, proves: bool, judged: bool) -> None:
    """Not even on an edge that takes a relay's word: whoever is down by that must get nobody."""
    assert row("web_IN_0", "web/in", text).dial_proves is proves
    assert row("edge_IN_0", "web/in", text).dial_proves is proves
    for instance, name in (("web_IN_0", "web/db"), ("edge_IN_0", "store/public")):
        assert row(instance, name, text).is_judged is judged
    assert not row("web_IN_0", "web/in", text).is_judged, "one target alone"
