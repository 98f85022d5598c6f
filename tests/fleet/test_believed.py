"""How far a registry is believed: garbage, other stores, the grace of who is missing in them, and who is lost."""

from collections.abc import Iterable

from relay.config.roster import Member
from relay.fleet.believed import AWAY_S, GONE_S, Believed, grace_s
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
    """Who is there, but for those who are lost."""
    return [member.ordinal for member in believed.members(now_s) if not member.busy]


def lost(believed: Believed, now_s: float = 0.0) -> list[int]:
    """Who is lost: nobody is sent to them, and nothing is cut for them."""
    return [member.ordinal for member in believed.members(now_s) if member.busy]


def change(believed: Believed, events: Iterable[KeyValue], now_s: float = 0.0, *, sure: bool = True) -> None:
    believed.change(events, now_s, sure=sure)


def look(believed: Believed, *found: KeyValue, now_s: float = AWAY_S) -> None:
    """The store is asked for all who are due, and has these."""
    believed.looked(believed.due(now_s), found, now_s)


def gone_of(believed: Believed) -> tuple[str, ...]:
    """Who is gone when all who are lost have been looked for, and none was found."""
    look(believed)
    return believed.gone(AWAY_S)


def test_what_is_read_and_what_changes() -> None:
    believed = of()
    assert there(believed) == []
    believed.reread([entry(1), entry(0)], 0.0, keep=False)
    assert there(believed) == [0, 1]
    change(believed, [entry(2), gone(0), gone(9)])
    assert there(believed) == [1, 2]
    believed.reread([entry(2)], 0.0, keep=False)
    assert there(believed) == [2]
    change(believed, [entry(2, address="10.9.9.9")])
    assert [member.address for member in believed.members(0.0) if not member.busy] == ["10.9.9.9"]


def test_garbage_is_left_out_and_counted_once() -> None:
    believed = of()
    bad = [entry(1, value=b"\xff"), KeyValue("/relay/shop/members/web/x", b"{}"), KeyValue("/elsewhere", b"")]
    for _ in range(2):
        believed.reread([entry(0), *bad], 0.0, keep=False)
    assert there(believed) == [0]
    assert believed.rejected == 3
    change(believed, [entry(1, value=b"[]", revision=2)])
    assert believed.rejected == 4
    change(believed, [entry(1, revision=3)])
    assert there(believed) == [0, 1]
    assert believed.rejected == 4


def test_garbage_over_a_good_entry_changes_nothing() -> None:
    believed = of(0)
    change(believed, [entry(0, value=b"?", revision=5)])
    assert there(believed) == [0]
    believed.reread([entry(0, value=b"?", revision=5)], 0.0, keep=False)
    assert there(believed) == [0]
    assert believed.rejected == 1
    change(believed, [gone(0)])
    assert there(believed) == []


def test_who_is_missing_in_another_store_has_a_grace() -> None:
    believed = of(0, 1, 2)
    believed.reread([entry(1)], 100.0, keep=True)
    assert there(believed, 100.0) == [0, 1, 2]
    change(believed, [entry(2)])
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
    change(believed, [entry(0), gone(0)])
    assert there(believed, 1.0) == [1]


def test_one_that_comes_back_by_another_number_is_not_there_twice() -> None:
    believed = of(0, 1)
    believed.reread([entry(5, address="10.0.0.1")], 0.0, keep=True)
    assert [(member.ordinal, member.address) for member in believed.members(0.0)] == [(1, "10.0.0.2"), (5, "10.0.0.1")]


def test_all_stay_in_order_as_they_come_and_go() -> None:
    believed, expected = of(), set[int]()
    for n in (7, 0, 10, 3, 9, 2, 7, 100):
        change(believed, [entry(n)])
        expected.add(n)
        assert there(believed) == sorted(expected)
    members = believed.members(0.0)
    change(believed, [entry(3, revision=9), gone(4)])
    assert believed.members(0.0) is members, "nothing has changed: the same value, which is compared at once"
    for n in (10, 0, 100):
        change(believed, [gone(n)])
        expected.remove(n)
        assert there(believed) == sorted(expected)
    believed.reread([entry(2)], 0.0, keep=True)
    change(believed, [gone(9), entry(1)])
    assert there(believed) == [1, 2, 3, 7]


def test_how_long() -> None:
    assert grace_s(2.0) == 30.0
    assert grace_s(60.0) == 180.0


def test_whose_lease_ran_out_is_gone_and_who_leaves_is_not() -> None:
    believed = of(0, 1, 2)
    change(believed, [leaving(0), gone(0), gone(1)])
    assert (there(believed), lost(believed), believed.gone(0.0)) == ([2], [1], ())
    look(believed)
    assert (there(believed), lost(believed), believed.gone(AWAY_S)) == ([2], [], ("10.0.0.2",))
    assert believed.gone(AWAY_S + GONE_S - 0.1) == ("10.0.0.2",)
    assert believed.gone(AWAY_S + GONE_S) == believed.gone(0.0) == (), "it is forgotten for good"


def test_a_mark_that_was_read_is_as_good_as_one_that_was_seen_to_come() -> None:
    believed = of()
    believed.reread([leaving(0), leaving(1), entry(2)], 0.0, keep=False)
    believed.reread([leaving(0), entry(1), entry(2)], 0.0, keep=False)
    change(believed, [gone(0), gone(1), gone(2)])
    assert gone_of(believed) == ("10.0.0.2", "10.0.0.3")


def test_a_mark_is_withdrawn_by_the_next_entry_and_goes_with_its_own() -> None:
    believed = of(0, 1)
    change(believed, [leaving(0), entry(0), gone(0), leaving(1), gone(1), entry(1), gone(1)])
    assert gone_of(believed) == ("10.0.0.1", "10.0.0.2")
    believed.reread([leaving(3)], 0.0, keep=False)
    believed.reread([], 0.0, keep=False)
    change(believed, [entry(3, value=b"?"), entry(3), gone(3)])
    assert "10.0.0.4" in gone_of(believed)


def test_who_is_back_is_not_gone_nor_when_it_leaves_after_that() -> None:
    believed = of(0, 1, 2)
    change(believed, [gone(0), gone(1), gone(2)])
    assert len(gone_of(believed)) == 3
    change(believed, [entry(0), entry(7, address="10.0.0.2")])
    assert gone_of(believed) == ("10.0.0.3",)
    change(believed, [leaving(0), gone(0)])
    believed.reread([entry(2)], 0.0, keep=False)
    assert gone_of(believed) == ()


def test_a_place_that_is_taken_by_another_address_brings_nobody_back() -> None:
    believed = of(0)
    change(believed, [gone(0), entry(0, address="10.9.9.9")])
    assert (there(believed), lost(believed)) == ([0], [])
    assert gone_of(believed) == ("10.0.0.1",)


def test_one_that_takes_another_number_is_there_all_the_time() -> None:
    believed = of(0)
    change(believed, [entry(5, address="10.0.0.1"), gone(0)])
    assert lost(believed) == []
    change(believed, [gone(5), entry(1, address="10.0.0.1")])
    assert (lost(believed), gone_of(believed)) == ([], ())


def test_who_is_only_missing_or_kept_is_not_known_to_be_gone() -> None:
    believed = of(0, 1, 2)
    change(believed, [gone(0)], sure=False)  # the registry was away, and leases say nothing
    believed.reread([entry(2)], 0.0, keep=False)
    assert (there(believed), lost(believed)) == ([2], [0, 1])
    assert (gone_of(believed), lost(believed)) == ((), [])
    believed.reread([], 0.0, keep=True)
    assert there(believed, GRACE_S) == []
    believed.reread([], 0.0, keep=True)
    change(believed, [gone(2), gone(9)])
    assert gone_of(believed) == ()


def test_one_that_was_kept_and_has_registered_again_can_be_gone() -> None:
    believed = of(0)
    believed.reread([], 0.0, keep=True)
    change(believed, [gone(0)])
    assert gone_of(believed) == ()
    change(believed, [entry(0), entry(0, value=b"?"), gone(0)])
    assert gone_of(believed) == ("10.0.0.1",), "by the address that it was last known by"


def test_one_that_registers_again_at_once_has_never_left() -> None:
    """The store took its lease away, which had not run out."""
    believed = of(0, 1)
    change(believed, [gone(0)], 100.0)
    assert [(member.ordinal, member.busy) for member in believed.members(100.0)] == [(0, True), (1, False)]
    assert believed.look_s == 100.0 + AWAY_S
    change(believed, [entry(0)], 100.2)
    assert (there(believed), believed.due(200.0)) == ([0, 1], [])
    look(believed, now_s=200.0)
    assert (there(believed), believed.gone(200.0)) == ([0, 1], ())


def test_one_that_the_store_has_again_is_not_gone_though_the_watch_is_late() -> None:
    believed = of(0)
    change(believed, [gone(0)])
    look(believed, entry(0))
    assert (lost(believed), believed.gone(AWAY_S), believed.look_s) == ([0], (), 2 * AWAY_S)
    look(believed, entry(0, address="10.9.9.9"), now_s=2 * AWAY_S)
    assert (lost(believed), believed.gone(2 * AWAY_S)) == ([], ("10.0.0.1",)), "another one is there by its number"


def test_nobody_is_looked_for_before_it_is_time_nor_while_the_store_cannot_be_asked() -> None:
    believed = of(0, 1)
    change(believed, [gone(0)])
    change(believed, [gone(1)], 1.0)
    look(believed, now_s=AWAY_S - 0.1)
    assert lost(believed) == [0, 1]
    look(believed)
    assert (lost(believed), believed.gone(AWAY_S)) == ([1], ("10.0.0.1",))
    believed.postpone(AWAY_S)
    look(believed, now_s=2 * AWAY_S - 0.1)
    assert lost(believed) == [1]
    look(believed, now_s=2 * AWAY_S)
    assert lost(believed) == []


def test_who_is_lost_when_another_store_is_found_has_the_same_grace_as_others() -> None:
    believed = of(0, 1)
    change(believed, [gone(0)])
    believed.reread([], 1.0, keep=True)
    look(believed, now_s=GRACE_S)
    assert (lost(believed), there(believed, 1.0)) == ([0], [1])
    look(believed, now_s=1.0 + GRACE_S)
    assert (lost(believed), believed.gone(1.0 + GRACE_S)) == ([], ()), "it could not say that it is there"


def test_two_that_were_lost_one_after_the_other_at_one_number() -> None:
    believed = of(0)
    change(believed, [gone(0), entry(0, address="10.9.9.9"), gone(0)])
    assert [member.address for member in believed.members(0.0)] == ["10.9.9.9"], "a number has one member"
    assert gone_of(believed) == ("10.0.0.1", "10.9.9.9")
