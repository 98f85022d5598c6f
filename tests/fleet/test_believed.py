"""How far a registry is believed: garbage, other stores, and the grace of who is missing in them."""

from relay.config.roster import Member
from relay.fleet.believed import Believed, grace_s
from relay.fleet.entries import Entry, EntryKeys, KeyValue

KEYS = EntryKeys("shop")
GRACE_S = 30.0


def entry(ordinal: int, *, address: str = "", value: bytes | None = b"", revision: int = 1) -> KeyValue:
    """What the store has of an instance; or `value` instead."""
    member = Member("web", ordinal, address or f"10.0.0.{ordinal + 1}")
    good = Entry(member, "m", "d").to_value()
    return KeyValue(KEYS.member("web", ordinal), good if value == b"" else value, mod_revision=revision)


def gone(ordinal: int) -> KeyValue:
    return entry(ordinal, value=None)


def leaving(ordinal: int) -> KeyValue:
    """What the store has of one that is about to end its lease."""
    member = Member("web", ordinal, f"10.0.0.{ordinal + 1}")
    return entry(ordinal, value=Entry(member, "m", "d", leaving=True).to_value())


def of(*known: int) -> Believed:
    return Believed(KEYS, GRACE_S, [Member("web", n, f"10.0.0.{n + 1}") for n in known])


def there(believed: Believed, now_s: float = 0.0) -> list[int]:
    return [member.ordinal for member in believed.members(now_s)]


def test_what_is_read_and_what_changes() -> None:
    believed = of()
    assert there(believed) == []
    believed.reread([entry(1), entry(0)], 0.0, keep=False)
    assert there(believed) == [0, 1]
    believed.change([entry(2), gone(0), gone(9)])
    assert there(believed) == [1, 2]
    believed.reread([entry(2)], 0.0, keep=False)
    assert there(believed) == [2]
    believed.change([entry(2, address="10.9.9.9")])
    assert [member.address for member in believed.members(0.0)] == ["10.9.9.9"]


def test_garbage_is_left_out_and_counted_once() -> None:
    believed = of()
    bad = [entry(1, value=b"\xff"), KeyValue("/relay/shop/members/web/x", b"{}"), KeyValue("/elsewhere", b"")]
    for _ in range(2):
        believed.reread([entry(0), *bad], 0.0, keep=False)
    assert there(believed) == [0]
    assert believed.rejected == 3
    believed.change([entry(1, value=b"[]", revision=2)])
    assert believed.rejected == 4
    believed.change([entry(1, revision=3)])
    assert there(believed) == [0, 1]
    assert believed.rejected == 4


def test_garbage_over_a_good_entry_changes_nothing() -> None:
    believed = of(0)
    believed.change([entry(0, value=b"?", revision=5)])
    assert there(believed) == [0]
    believed.reread([entry(0, value=b"?", revision=5)], 0.0, keep=False)
    assert there(believed) == [0]
    assert believed.rejected == 1
    believed.change([gone(0)])
    assert there(believed) == []


def test_who_is_missing_in_another_store_has_a_grace() -> None:
    believed = of(0, 1, 2)
    believed.reread([entry(1)], 100.0, keep=True)
    assert there(believed, 100.0) == [0, 1, 2]
    believed.change([entry(2)])
    assert there(believed, 100.0 + GRACE_S - 0.1) == [0, 1, 2]
    assert there(believed, 100.0 + GRACE_S) == [1, 2]  # number 2 has registered again
    assert there(believed, 1000.0) == [1, 2]


def test_a_full_read_of_the_same_store_ends_no_grace_and_makes_none() -> None:
    believed = of(0, 1)
    believed.reread([entry(1)], 0.0, keep=True)
    believed.reread([entry(2)], 10.0, keep=False)
    assert there(believed, 10.0) == [0, 2]
    assert there(believed, GRACE_S) == [2]


def test_a_grace_begins_anew_with_yet_another_store() -> None:
    believed = of(0)
    believed.reread([], 0.0, keep=True)
    believed.reread([], GRACE_S + 5.0, keep=True)  # they had no chance: the registry was away all the time
    assert there(believed, 2 * GRACE_S) == [0]
    assert there(believed, 2 * GRACE_S + 5.0) == []


def test_who_leaves_during_the_grace_is_gone() -> None:
    believed = of(0, 1)
    believed.reread([], 0.0, keep=True)
    believed.change([entry(0), gone(0)])
    assert there(believed, 1.0) == [1]


def test_one_that_comes_back_by_another_number_is_not_there_twice() -> None:
    believed = of(0, 1)
    believed.reread([entry(5, address="10.0.0.1")], 0.0, keep=True)
    assert [(member.ordinal, member.address) for member in believed.members(0.0)] == [(1, "10.0.0.2"), (5, "10.0.0.1")]


def test_all_stay_in_order_as_they_come_and_go() -> None:
    believed, expected = of(), set[int]()
    for n in (7, 0, 10, 3, 9, 2, 7, 100):
        believed.change([entry(n)])
        expected.add(n)
        assert there(believed) == sorted(expected)
    members = believed.members(0.0)
    believed.change([entry(3, revision=9), gone(4)])
    assert believed.members(0.0) is members, "nothing has changed: the same value, which is compared at once"
    for n in (10, 0, 100):
        believed.change([gone(n)])
        expected.remove(n)
        assert there(believed) == sorted(expected)
    believed.reread([entry(2)], 0.0, keep=True)
    believed.change([gone(9), entry(1)])
    assert there(believed) == [1, 2, 3, 7]


def test_how_long() -> None:
    assert grace_s(2.0) == 30.0
    assert grace_s(60.0) == 180.0


def test_whose_lease_ran_out_is_gone_and_who_leaves_is_not() -> None:
    believed = of(0, 1, 2)
    believed.change([leaving(0), gone(0), gone(1)], gone_until_s=600.0)
    assert there(believed) == [2]
    assert believed.gone(0.0) == ("10.0.0.2",)
    assert believed.gone(599.9) == ("10.0.0.2",)
    assert believed.gone(600.0) == believed.gone(0.0) == (), "it is forgotten for good"


def test_a_mark_that_was_read_is_as_good_as_one_that_was_seen_to_come() -> None:
    believed = of()
    believed.reread([leaving(0), leaving(1), entry(2)], 0.0, keep=False)
    believed.reread([leaving(0), entry(1), entry(2)], 0.0, keep=False)
    believed.change([gone(0), gone(1), gone(2)], gone_until_s=600.0)
    assert believed.gone(0.0) == ("10.0.0.2", "10.0.0.3")


def test_a_mark_is_withdrawn_by_the_next_entry_and_goes_with_its_own() -> None:
    believed = of(0, 1)
    believed.change([leaving(0), entry(0), gone(0), leaving(1), gone(1), entry(1), gone(1)], gone_until_s=600.0)
    assert believed.gone(0.0) == ("10.0.0.1", "10.0.0.2")
    believed.reread([leaving(3)], 0.0, keep=False)
    believed.reread([], 0.0, keep=False)
    believed.change([entry(3, value=b"?"), entry(3), gone(3)], gone_until_s=600.0)
    assert "10.0.0.4" in believed.gone(0.0)


def test_who_is_back_is_not_gone_nor_when_it_leaves_after_that() -> None:
    believed = of(0, 1, 2)
    believed.change([gone(0), gone(1), gone(2)], gone_until_s=600.0)
    believed.change([entry(0), entry(7, address="10.0.0.2")], gone_until_s=600.0)
    assert believed.gone(0.0) == ("10.0.0.3",)
    believed.change([leaving(0), gone(0)], gone_until_s=600.0)
    believed.reread([entry(2)], 0.0, keep=False)
    assert believed.gone(0.0) == ()


def test_a_place_that_is_taken_by_another_address_brings_nobody_back() -> None:
    believed = of(0)
    believed.change([gone(0), entry(0, address="10.9.9.9")], gone_until_s=600.0)
    assert there(believed) == [0]
    assert believed.gone(0.0) == ("10.0.0.1",)


def test_one_that_takes_another_number_is_there_all_the_time() -> None:
    believed = of(0)
    believed.change([entry(5, address="10.0.0.1"), gone(0)], gone_until_s=600.0)
    assert believed.gone(0.0) == ()
    believed.change([gone(5), entry(1, address="10.0.0.1")], gone_until_s=600.0)
    assert believed.gone(0.0) == ()


def test_who_is_only_missing_or_kept_is_not_known_to_be_gone() -> None:
    believed = of(0, 1, 2)
    believed.change([gone(0)], gone_until_s=None)  # the registry was away, and leases say nothing
    believed.reread([entry(2)], 0.0, keep=False)
    assert (there(believed), believed.gone(0.0)) == ([2], ())
    believed.reread([], 0.0, keep=True)
    assert there(believed, GRACE_S) == []
    believed.reread([], 0.0, keep=True)
    believed.change([gone(2), gone(9)], gone_until_s=600.0)
    assert believed.gone(0.0) == ()


def test_one_that_was_kept_and_has_registered_again_can_be_gone() -> None:
    believed = of(0)
    believed.reread([], 0.0, keep=True)
    believed.change([gone(0)], gone_until_s=600.0)
    assert believed.gone(0.0) == ()
    believed.change([entry(0), entry(0, value=b"?"), gone(0)], gone_until_s=600.0)
    assert believed.gone(0.0) == ("10.0.0.1",), "by the address that it was last known by"
