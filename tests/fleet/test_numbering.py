"""Numbers of instances by name: the lowest that is free, and kept as long as the address stays."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.config.instances import SOURCES_MAX
from relay.config.model import Role
from relay.config.roster import Member
from relay.fleet.numbering import Key, everybody, known, numbered, own_port, sources_of
from relay.fleet.places import Place
from tests.config.rig import service
from tests.harness import examples

NAME: Key = ("name", "db.test")
SRV: Key = ("srv", "_pg._tcp.test")
FILE: Key = ("file", "a, b.yaml")
ENDPOINT = {"pg": {"type": "internal", "port": 5432}}


def role(*items: Any, endpoints: Mapping[str, Any] = ENDPOINT) -> Role:
    return Role.model_validate({"bare": True, "instances": list(items), "endpoints": endpoints})


def at(*texts: str, port: int = 0) -> tuple[Place, ...]:
    return tuple(Place.of(text, port) for text in texts)


def test_the_lowest_free_numbers_in_the_order_of_the_file() -> None:
    mixed = role("10.0.0.9", "db.test", "10.0.0.8")
    found, too_many = numbered("db", mixed, {NAME: at("10.0.0.2", "10.0.0.1")}, ())
    assert too_many == 0
    assert [(member.id, member.address, member.name) for member in found] == [
        ("db_IN_0", "10.0.0.9", ""),
        ("db_IN_1", "10.0.0.2", "db.test"),
        ("db_IN_2", "10.0.0.1", "db.test"),
        ("db_IN_3", "10.0.0.8", ""),
    ]


def test_a_number_stays_with_its_address_and_a_free_one_is_given_again() -> None:
    items = role("db.test")
    before, _ = numbered("db", items, {NAME: at("10.0.0.1", "10.0.0.2", "10.0.0.3")}, ())
    found, _ = numbered("db", items, {NAME: at("10.0.0.0", "10.0.0.3", "10.0.0.4")}, before)
    assert {member.address: member.ordinal for member in found} == {"10.0.0.3": 2, "10.0.0.0": 0, "10.0.0.4": 1}


def test_members_of_others_keep_no_number() -> None:
    before = [Member("web", 5, "10.0.0.1"), Member("db", SOURCES_MAX, "10.0.0.1")]
    found, _ = numbered("db", role("db.test"), {NAME: at("10.0.0.1")}, before)
    assert [member.id for member in found] == ["db_IN_0"]


def test_the_same_address_from_two_items_is_one_instance() -> None:
    items = role({"address": "db.test", "weight": 2, "backup": True}, {"srv": "_pg._tcp.test", "weight": 3})
    answers = {NAME: at("10.0.0.1", "10.0.0.2"), SRV: (*at("10.0.0.1", port=5432), *at("10.0.0.2", port=5433))}
    found, _ = numbered("db", items, answers, ())
    assert found == (
        Member("db", 0, "10.0.0.1", weight=2, port=5432, name="db.test, srv: _pg._tcp.test"),
        Member("db", 1, "10.0.0.2", weight=2, backup=True, name="db.test"),
        Member("db", 2, "10.0.0.2", weight=3, port=5433, name="srv: _pg._tcp.test"),
    )


def test_weights() -> None:
    places = (
        Place.of("10.0.0.1", share=1),
        Place.of("10.0.0.2", share=128),
        Place.of("10.0.0.3", share=256, backup=True),
    )
    given = {
        weight: numbered("db", role({"srv": "_pg._tcp.test", "weight": weight}), {SRV: places}, ())[0]
        for weight in (0, 1, 2)
    }
    assert [member.weight for member in given[0]] == [0, 0, 0]
    assert [member.weight for member in given[1]] == [1, 128, 256]
    assert [member.weight for member in given[2]] == [1, 128, 256], "in the same proportions, as far as 256 has them"
    assert [member.backup for member in given[1]] == [False, False, True]


def test_more_than_there_can_be() -> None:
    many = tuple(Place.of(f"10.1.{n // 256}.{n % 256}") for n in range(SOURCES_MAX + 5))
    before, too_many = numbered("db", role("db.test"), {NAME: many[5:]}, ())
    assert (len(before), too_many) == (SOURCES_MAX, 0)
    found, too_many = numbered("db", role("db.test"), {NAME: many}, before)
    assert (found, too_many) == (before, 5), "those that are there stay, though others come first"


def test_the_port_of_the_only_endpoint() -> None:
    two = {**ENDPOINT, "other": {"type": "internal", "port": 5433}}
    assert (own_port(role("db.test")), own_port(role("db.test", endpoints=two))) == (5432, 0)
    assert own_port(role("db.test", endpoints={})) == 0


def test_a_port_that_is_told_stays_when_the_endpoint_goes_to_another_one() -> None:
    before_items, after_items = (
        role("db.test", {"srv": "_pg._tcp.test"}, endpoints={"pg": {"type": "internal", "port": port}})
        for port in (5432, 6432)
    )
    answers = {NAME: at("10.0.0.1", "10.0.0.2"), SRV: at("10.0.0.2", "10.0.0.3", port=5432)}
    before, _ = numbered("db", before_items, answers, ())
    assert [(member.address, member.port) for member in before] == [
        ("10.0.0.1", 0),
        ("10.0.0.2", 5432),
        ("10.0.0.3", 5432),
    ]
    for told in (answers, known(before_items, before)):
        found, _ = numbered("db", after_items, told, before)
        assert {(member.address, member.port): member.ordinal for member in found} == {
            ("10.0.0.1", 0): 0,
            ("10.0.0.2", 5432): 1,
            ("10.0.0.3", 5432): 2,
            ("10.0.0.2", 0): 3,
        }


def test_sources_are_there_once() -> None:
    assert list(sources_of(role("10.0.0.1", "db.test", {"address": "db.test", "weight": 2}))) == [NAME]


def test_each_is_believed_of_its_own_roles() -> None:
    shop = service(
        "version: 1\nservice: shop\nroles:\n  db: {bare: true, instances: [db.test]}\n  web: {instances: 2}\n"
    )
    mine, others = Member("db", 0, "10.0.0.1"), Member("web", 0, "10.0.0.2")
    forged = [replace(each, address="10.9.9.9", ordinal=1) for each in (mine, others)]
    assert everybody(shop, [others, forged[0]], [mine, forged[1]]) == (others, mine)


PLACES = st.lists(
    st.builds(
        Place.of,
        st.sampled_from([f"10.0.0.{n}" for n in range(12)]),
        st.sampled_from([0, 5432, 5433]),
        st.integers(1, 256),
        st.booleans(),
    ),
    max_size=10,
)
PLAIN = st.lists(st.builds(Place.of, st.sampled_from([f"10.0.0.{n}" for n in range(12)])), max_size=10)
WEIGHTS = st.sampled_from([1, 2, 256])


@st.composite
def steps(draw: st.DrawFn) -> tuple[Role, list[dict[Key, list[Place]]]]:
    items: list[Any] = [
        {"address": "db.test", "weight": draw(WEIGHTS), "backup": draw(st.booleans())},
        {"srv": "_pg._tcp.test", "weight": draw(WEIGHTS)},
        {"file": "a, b.yaml"},
        "10.0.0.3",
    ]
    answers = st.fixed_dictionaries({NAME: PLAIN, SRV: PLACES, FILE: PLAIN})
    return role(*draw(st.permutations(items))), draw(st.lists(answers, min_size=1, max_size=6))


def reached(member: Member) -> tuple[str, int]:
    """Where its only endpoint is."""
    return member.address, member.port or 5432


@examples(200)
@given(steps())
def test_any_answers(given_: tuple[Role, list[dict[Key, list[Place]]]]) -> None:
    """No number twice, none changes while its address stays, new ones are the lowest; and a new control finds the same."""
    items, answers = given_
    before: tuple[Member, ...] = ()
    for each in answers:
        found, too_many = numbered("db", items, each, before)
        numbers = {reached(member): member.ordinal for member in found}
        assert len(set(numbers.values())) == len(found)
        assert too_many == 0
        kept = {reached(member): member.ordinal for member in before if reached(member) in numbers}
        assert kept.items() <= numbers.items()
        fresh = sorted(number for where, number in numbers.items() if where not in kept)
        free = [number for number in range(40) if number not in kept.values()]
        assert fresh == free[: len(fresh)]
        assert all(1 <= member.weight <= 256 for member in found)
        assert numbered("db", items, known(items, found), found)[0] == found
        before = found


@pytest.mark.parametrize("text", ["db.test, file: a, b.yaml", "file: a, b.yaml", "srv: _pg._tcp.test, db.test"])
def test_a_member_of_several_sources_is_known_to_each(text: str) -> None:
    items = role("db.test", {"srv": "_pg._tcp.test"}, {"file": "a, b.yaml"})
    found = known(items, [Member("db", 0, "10.0.0.1", name=text)])
    expected = {key for key, item in sources_of(items).items() if str(item) in text}
    assert set(found) == expected
