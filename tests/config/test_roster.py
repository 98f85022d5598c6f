"""Who is in the service: listed, registered, and who is not believed."""

import json
from dataclasses import replace

import pytest

from relay.config.document import parse
from relay.config.load import parse_service
from relay.config.model import Service
from relay.config.roster import Member, Roster, difference, split_instance

TEXT = """\
version: 1
service: shop
edge: {instances: [198.51.100.10]}
roles:
  web: {instances: 3}
  store: {instances: [10.0.1.4, 10.0.1.5]}
"""
SERVICE: Service = parse_service(parse(TEXT.encode(), "service.yaml")).value
LISTED = [("store_IN_0", "10.0.1.4"), ("store_IN_1", "10.0.1.5"), ("edge_IN_0", "198.51.100.10")]


def pairs(*registered: Member, me: Member | None = None) -> list[tuple[str, str]]:
    """Ids and addresses."""
    return [(each.id, each.address) for each in Roster.of_service(SERVICE, registered, me=me)]


def web(ordinal: int, address: str) -> Member:
    return Member("web", ordinal, address)


def test_what_the_file_lists_is_there() -> None:
    assert pairs() == LISTED


def test_who_is_registered_has_a_place_by_role_and_number() -> None:
    assert pairs(web(2, "10.0.0.6"), web(0, "10.0.0.4")) == [
        ("web_IN_0", "10.0.0.4"),
        ("web_IN_2", "10.0.0.6"),
        *LISTED,
    ]


@pytest.mark.parametrize(
    "stranger",
    [
        Member("api", 0, "10.0.0.9"),
        Member("store", 2, "10.0.1.6"),
        Member("edge", 1, "198.51.100.11"),
        web(3, "10.0.0.9"),
        web(-1, "10.0.0.9"),
        web(1, "10.0.1.4"),
    ],
    ids=str,
)
def test_who_can_have_no_place_is_left_out(stranger: Member) -> None:
    assert pairs(stranger) == LISTED


def test_an_address_and_a_number_have_one_holder() -> None:
    assert pairs(web(0, "10.0.0.4"), web(1, "10.0.0.4"), web(0, "10.0.0.5")) == [("web_IN_0", "10.0.0.4"), *LISTED]


def test_i_am_there_whatever_is_registered() -> None:
    me = web(1, "10.0.0.5")
    assert pairs(me=me)[0] == ("web_IN_1", "10.0.0.5")
    assert pairs(web(1, "10.0.0.9"), web(0, "10.0.0.5"), me=me) == [("web_IN_1", "10.0.0.5"), *LISTED]


def test_asking() -> None:
    roster = Roster.of_service(SERVICE, [web(2, "10.0.0.6"), web(0, "10.0.0.4")])
    assert [member.ordinal for member in roster.of("web")] == [0, 2]
    assert roster.get("web_IN_2") == web(2, "10.0.0.6")
    assert roster.get("web_IN_1") is None


def test_who_wants_connections() -> None:
    member = Member("web", 0, "10.0.0.4", down=("api",))
    assert (member.serves("http"), member.serves("api")) == (True, False)
    assert not Member("web", 0, "10.0.0.4", busy=True).serves("http")


def test_what_differs() -> None:
    old = Roster.of_service(SERVICE, [web(0, "10.0.0.4"), web(1, "10.0.0.5")])
    new = Roster.of_service(SERVICE, [web(1, "10.0.0.9"), web(2, "10.0.0.6")])
    changes = {"joined": ["web_IN_2"], "left": ["web_IN_0"], "changed": ["web_IN_1"]}
    assert difference(old, new) == {**changes, "gone": []}
    assert difference(old, new, ("10.0.0.4", "10.0.0.77")) == {**changes, "gone": ["web_IN_0"]}
    assert difference(old, new, ("10.0.0.5",)) == {**changes, "gone": ["web_IN_1"]}, "it is back by another address"
    assert difference(new, new) == {"joined": [], "left": [], "changed": [], "gone": []}


def test_addresses_at_which_nobody_is() -> None:
    roster = Roster.of_service(SERVICE, [web(0, "10.0.0.4")])
    assert roster.absent(["10.0.0.9", "10.0.0.4", "10.0.1.4", "10.0.0.7"]) == ("10.0.0.7", "10.0.0.9")


def test_json_comes_back_equal() -> None:
    members = [Member("web", 0, "10.0.0.4", "10.0.0.4:9464", True, ("a", "b")), web(1, "10.0.0.5")]
    roster = Roster.of_service(SERVICE, members)
    assert Roster.from_plain(json.loads(json.dumps(roster.to_plain()))) == roster
    with pytest.raises(TypeError):
        Roster.from_plain([{"role": "web", "down": [], "age": 3}])


@pytest.mark.parametrize(
    ("instance", "parts"),
    [("web_IN_0", ("web", 0)), ("a-b_IN_12", ("a-b", 12)), ("a_IN_b_IN_3", ("a_IN_b", 3))],
)
def test_an_instance_id(instance: str, parts: tuple[str, int]) -> None:
    assert split_instance(instance) == parts


@pytest.mark.parametrize("text", ["", "web", "web_IN_", "_IN_0", "web_IN_00", "web_IN_-1", "web_IN_1x", "web_IN_²"])
def test_no_instance_id(text: str) -> None:
    with pytest.raises(ValueError, match="is not an instance id; write ROLE_IN_NUMBER"):
        split_instance(text)


def test_what_one_knows_of_itself() -> None:
    roster = Roster.of_service(SERVICE)
    there = roster.get("store_IN_0")
    assert there is not None
    told = roster.with_own("store_IN_0", True, {"b": "HTTP 503", "a": "connection refused"})
    assert [(each.id, each.down, each.reasons) for each in told if each.busy] == [
        ("store_IN_0", ("a", "b"), ("connection refused", "HTTP 503"))
    ]
    assert len(list(told)) == len(LISTED)
    assert roster.with_own("store_IN_0", False, {}) is roster, "who looks for a change finds none"
    assert told.with_own("store_IN_0", False, {}).get("store_IN_0") == replace(there, busy=True)
    assert roster.with_own("nobody_IN_0", True, {}) is roster
