"""What DNS or a file says is no reason to lead a machine to itself, or to fail what others need."""

from collections.abc import Sequence

import pytest

from relay.config.model import Service
from relay.config.named import left_out
from relay.config.roster import Member, Roster
from relay.config.settings import Settings
from relay.config.snapshot import NO_SLOTS, SLOTS_MAX, Slots, Snapshot
from tests.config.rig import compiled, service

EDGE_TEXT = """\
version: 1
service: shop
edge: {instances: [198.51.100.10, 198.51.100.11]}
roles:
  db:
    bare: true
    instances: [db.test, {file: t.yaml}]
    endpoints: {pg: {type: input, public_port: 5432, port: 5432}}
  plain: {bare: true, instances: [10.0.3.1], endpoints: {http: {type: input, public_port: 80, port: 80}}}
"""
DOOR_TEXT = """\
version: 1
service: shop
roles:
  web:
    instances: [10.0.0.4]
    endpoints: {own: {type: internal, port: 5433, target: "127.0.0.1:1"}}
    uses: {db: {endpoint: db/pg, listen: "127.0.0.1:5432"}}
  db: {bare: true, instances: [db.test], endpoints: {pg: {type: internal, port: 5432}}}
"""


def of(
    text: str, me: str, members: Sequence[Member], slots: Slots = NO_SLOTS, **keys: object
) -> tuple[Service, Snapshot]:
    made = service(text)
    settings = Settings.model_validate(keys)
    return made, compiled(me, service=made, roster=Roster.of_service(made, members), slots=slots, settings=settings)


def targets(snapshot: Snapshot, name: str) -> list[str]:
    (row,) = (each for each in snapshot.endpoints if each.name == name)
    return [target.text for target in row.targets]


def members(*places: tuple[str, int]) -> list[Member]:
    return [Member("db", n, address, port=port, name="db.test") for n, (address, port) in enumerate(places)]


def test_an_edge_is_not_led_to_edges() -> None:
    there = members(
        ("198.51.100.10", 0), ("198.51.100.11", 80), ("198.51.100.10", 81), ("10.0.0.4", 0), ("127.0.0.1", 0)
    )
    made, snapshot = of(EDGE_TEXT, "edge_IN_0", there)
    assert targets(snapshot, "db/pg") == ["198.51.100.10:81", "10.0.0.4:5432", "127.0.0.1:5432"]
    assert [(each.role, each.endpoint, each.target, each.why) for each in left_out(made, snapshot)] == [
        ("db", "db/pg", "db_IN_0 at 198.51.100.10 port 5432", "that is this machine itself"),
        ("db", "db/pg", "db_IN_1 at 198.51.100.11 port 80", "that is this machine itself"),
    ]


def test_where_it_listens_everywhere_loopback_is_itself_too() -> None:
    there = members(("127.0.0.1", 0), ("::1", 0), ("198.51.100.10", 0), ("10.0.0.4", 0))
    _, snapshot = of(EDGE_TEXT, "edge_IN_0", there, address="0.0.0.0", unsafe_listen=True)
    assert targets(snapshot, "db/pg") == ["10.0.0.4:5432"]


def test_a_door_is_not_led_to_itself() -> None:
    there = members(("127.0.0.1", 0), ("10.0.0.4", 5433), ("10.0.0.4", 0), ("127.0.0.1", 5434))
    _, snapshot = of(DOOR_TEXT, "web_IN_0", there)
    assert targets(snapshot, "web/db") == ["10.0.0.4:5432", "127.0.0.1:5434"]


def test_addresses_of_the_file_are_its_own_affair() -> None:
    text = EDGE_TEXT.replace("10.0.3.1", "198.51.100.10")
    _, snapshot = of(text, "edge_IN_0", ())
    assert targets(snapshot, "plain/http") == ["198.51.100.10:80"]


def many(first: int, count: int) -> list[Member]:
    return [Member("db", n, f"10.1.{n // 256}.{n % 256}", name="db.test") for n in range(first, first + count)]


def test_of_more_targets_than_a_machine_can_have_those_that_are_there_stay() -> None:
    _, before = of(EDGE_TEXT, "edge_IN_0", many(1, SLOTS_MAX - 1))
    assert len(targets(before, "db/pg")) == SLOTS_MAX - 1
    made, after = of(EDGE_TEXT, "edge_IN_0", many(0, SLOTS_MAX), before.slots)
    assert targets(after, "plain/http") == ["10.0.3.1:80"]
    assert targets(after, "db/pg") == targets(before, "db/pg")
    (missing,) = left_out(made, after)
    assert (missing.target, missing.why) == ("db_IN_0 at 10.1.0.0 port 5432", "a machine has 1024 targets at most")


@pytest.mark.parametrize("count", [SLOTS_MAX, SLOTS_MAX - 1, 5])
def test_from_nothing_the_first_ones_have_room(count: int) -> None:
    made, snapshot = of(EDGE_TEXT, "edge_IN_0", many(0, count))
    expected = [f"10.1.{n // 256}.{n % 256}:5432" for n in range(min(count, SLOTS_MAX - 1))]
    assert targets(snapshot, "db/pg") == expected
    assert len(list(left_out(made, snapshot))) == count - len(expected)
