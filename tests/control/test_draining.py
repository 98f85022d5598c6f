"""Whom `relay drain` tells, and how long who cannot be told is waited for."""

from dataclasses import replace

from relay.config.roster import Member, Roster
from relay.config.snapshot import ProbeRow
from relay.control import draining
from relay.ledger.layout import State
from tests.config.rig import endpoint_row, service, snapshot_of
from tests.control.rig import WEB_0, Truth
from tests.ledger.rig import new_ledger


def test_who_is_told_is_read_off_the_lines_that_are_held() -> None:
    with new_ledger() as ledger:
        truth, part = Truth(ledger), ledger.worker(0)
        assert draining.told(ledger, truth.in_force, None)["senders"] == [
            {"who": "web_IN_0", "told": False, "by": None}
        ]
        part.begin(0, State.DIAL, 3, 40, -1, 1000, f"{WEB_0.address}:5")
        part.moved(0, 2, 2)  # bytes of a connection
        assert draining.told(ledger, truth.in_force, True)["senders"][0]["by"] == "registry"
        part.begin(1, State.LINE, 3, 41, -1, 1000, f"{WEB_0.address}:6")
        for said, heard, told in ((1, 1, False), (2, 1, False), (2, 2, True)):
            part.moved(1, heard, said)
            expected = [{"who": "web_IN_0", "told": told, "by": "line"}]
            assert draining.told(ledger, truth.in_force, None)["senders"] == expected


def test_after_how_long_an_edge_has_found_out_by_itself() -> None:
    text = """\
version: 1
service: shop
edge: {instances: [198.51.100.10]}
roles:
  web:
    instances: 300
    endpoints:
      in: {type: input, public_port: 80, port: 8080, target: "127.0.0.1:1", probe: {interval: 10s, timeout: 1s}}
      other: {type: input, public_port: 81, port: 8081, target: "127.0.0.1:2"}
"""
    shop = service(text)
    own = replace(endpoint_row("web/in"), edges=("198.51.100.10",))
    few, many = (Roster.of_service(shop, [Member("web", n, f"10.0.{n}.1") for n in range(to)]) for to in (2, 250))
    probed = replace(own, probe=ProbeRow("", 10.0, 1.0))
    found = [
        round(draining._untold_s(shop, roster, snapshot_of(*rows)), 3)
        for roster, rows in ((few, (own,)), (many, (own,)), (few, (probed, own)), (few, ()))
    ]
    assert found == [7.2, 7.75, 12.0, 7.2]
    by_relay = service(text.replace("interval: 10s", "port: 8008, interval: 2s"))
    assert round(draining._untold_s(by_relay, many, snapshot_of(own)), 3) == 10.5, "these relays are asked as well"
