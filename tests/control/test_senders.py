"""Who could send connections here, and who of them knows that none are wanted."""

from typing import Any

import pytest

from relay.config.roster import Member, Roster
from relay.control.senders import senders, told_by_line
from relay.ledger.layout import State
from relay.ledger.ledger import NO_PIPE
from relay.ledger.record import FlowRecord
from tests.config.rig import service

TEXT = """\
version: 1
service: shop
edge: {instances: [198.51.100.10, 198.51.100.11]}
roles:
  web:
    instances: 2
    endpoints:
      in: {type: input, public_port: 80, port: 8080, target: "127.0.0.1:3000"}
    uses:
      db: {endpoint: store/pg, listen: "127.0.0.1:5432"}
  store:
    instances: [10.0.1.4]
    endpoints:
      pg: {type: internal, port: 5432, target: "127.0.0.1:9", from: [web]}
"""
SHOP = service(TEXT)
WEB = [Member("web", 0, "10.0.0.4"), Member("web", 1, "10.0.0.5")]
EDGES = ("198.51.100.10", "198.51.100.11")


def who(instance: str, lines: dict[str, bool] | None = None, registry: bool | None = None) -> list[tuple[Any, ...]]:
    found = senders(SHOP, Roster.of_service(SHOP, WEB), instance, lines or {}, registry)
    return [(each["who"], each["told"], each["by"]) for each in found]


def test_edges_send_to_public_endpoints_and_doors_to_where_they_lead() -> None:
    assert who("web_IN_0") == [("edge_IN_0", False, None), ("edge_IN_1", False, None)]
    assert who("store_IN_0") == [("web_IN_0", False, None), ("web_IN_1", False, None)]
    assert who("edge_IN_0") == []


def test_a_line_tells() -> None:
    lines = {EDGES[0]: True, EDGES[1]: False, "192.0.2.1": True}
    assert who("web_IN_0", lines) == [("edge_IN_0", True, "line"), ("edge_IN_1", False, "line")]
    assert who("store_IN_0", {"10.0.0.5": True}) == [("web_IN_0", False, None), ("web_IN_1", True, "line")]


@pytest.mark.parametrize("told", [True, False])
def test_a_registry_tells_doors_and_no_edge(told: bool) -> None:
    assert who("store_IN_0", registry=told) == [("web_IN_0", told, "registry"), ("web_IN_1", told, "registry")]
    assert who("web_IN_0", registry=told) == [("edge_IN_0", False, None), ("edge_IN_1", False, None)]


def test_either_will_do() -> None:
    found = who("store_IN_0", {"10.0.0.4": False}, registry=True)
    assert found == [("web_IN_0", True, "line"), ("web_IN_1", True, "registry")]


def line(host: str, said: int, heard: int) -> FlowRecord:
    return FlowRecord(0, 0, State.LINE, 0, 5, -1, NO_PIPE, NO_PIPE, 0, -1, 0, heard, said, f"{host}:4711")


@pytest.mark.parametrize(
    ("said", "heard", "told"),
    [
        (0, 0, False),
        (1, 0, False),
        (1, 1, False),
        (2, 1, False),
        (2, 2, True),
        (3, 2, False),
        (3, 3, False),
        (4, 4, True),
    ],
)
def test_who_has_said_the_last_word_back_knows_and_that_must_be_busy(said: int, heard: int, told: bool) -> None:
    assert told_by_line([line("10.0.0.4", said, heard)]) == {"10.0.0.4": told}


def test_of_two_lines_from_one_machine_one_is_enough() -> None:
    """What was written down there stands, whoever wrote it."""
    for lines in ([(2, 2), (2, 0)], [(2, 0), (2, 2)]):
        assert told_by_line([line("10.0.0.4", *each) for each in lines]) == {"10.0.0.4": True}
    assert told_by_line([line("[2001:db8::1]", 2, 2)]) == {"2001:db8::1": True}
    assert told_by_line([]) == {}
