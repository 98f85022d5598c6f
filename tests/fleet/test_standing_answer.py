"""Which answer stands: a good one at once, one that takes away too much only when it stays so."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relay.fleet.places import Place, SourceAnswer, in_order
from relay.fleet.standing_answer import AGAIN_S, DOUBT_S, StandingAnswer
from tests.harness import examples

ALL = tuple(Place.of(f"10.0.0.{n}") for n in range(1, 9))


def says(*numbers: int, unsure: tuple[int, ...] = ()) -> SourceAnswer:
    return SourceAnswer(tuple(Place.of(f"10.0.0.{n}") for n in numbers), 60.0, frozenset(unsure))


def standing(count: int) -> StandingAnswer:
    return StandingAnswer(ALL[:count])


def addresses(found: StandingAnswer) -> list[int]:
    return [int(place.address.rpartition(".")[2]) for place in found.places]


def test_the_first_answer_stands_whatever_it_is() -> None:
    nothing = StandingAnswer()
    assert nothing.hear(says(), 0) == "same"
    assert StandingAnswer().hear(says(1), 0) == "changed"
    assert nothing.hear(says(1), 1) == "changed"


def test_more_others_and_a_few_less_stand_at_once() -> None:
    found = standing(4)
    assert found.hear(says(4, 3, 2, 1), 0) == "same", "the order is the server's whim"
    assert found.hear(says(1, 2, 3), 1) == "changed"
    assert found.hear(says(5, 6), 2) == "changed", "two of three are more than half"
    assert addresses(found) == [5, 6]
    assert found.wait_s(60, 2) == 60


def test_nothing_and_half_are_believed_when_they_stayed_so() -> None:
    for numbers in ((), (1,), (7, 8)):
        found = standing(4)
        assert found.hear(says(*numbers), 100) == "doubted"
        assert (found.is_doubting, found.wait_s(60, 100)) == (True, AGAIN_S)
        assert found.hear(says(*numbers), 100 + DOUBT_S - 1) == "doubted"
        assert found.wait_s(60, 100 + DOUBT_S - 1) == 1
        assert addresses(found) == [1, 2, 3, 4]
        assert found.hear(says(*numbers), 100 + DOUBT_S) == "believed"
        assert (found.is_doubting, addresses(found)) == (False, list(numbers))


def test_one_good_answer_between_ends_the_doubt() -> None:
    found = standing(4)
    found.hear(says(), 0)
    assert found.hear(says(1, 2, 3, 4), 29) == "same"
    assert not found.is_doubting
    assert found.hear(says(), 30) == "doubted"
    assert found.hear(says(), 59) == "doubted"
    assert found.hear(says(), 60) == "believed"


def test_half_says_nothing_of_nothing() -> None:
    found = standing(4)
    found.hear(says(1, 2), 0)
    assert found.hear(says(), 29) == "doubted"
    assert found.hear(says(), 31) == "doubted", "that nothing is left has stayed so for two seconds"
    assert found.hear(says(1, 2), 59) == "believed"


def test_questions_that_fail_change_nothing_and_are_asked_again() -> None:
    found = standing(4)
    found.hear(says(), 0)
    assert found.wait_s(60, 1000) == AGAIN_S, "nothing was heard since"
    assert addresses(found) == [1, 2, 3, 4]


def test_of_a_version_that_was_not_asked_all_stays() -> None:
    six = Place.of("2001:db8::1")
    found = StandingAnswer((*ALL[:2], six))
    assert found.hear(says(1, 2, unsure=(6,)), 0) == "same"
    assert found.hear(says(3, unsure=(6,)), 1) == "changed"
    assert found.places == (Place.of("10.0.0.3"), six)
    assert found.hear(SourceAnswer((), 1, frozenset({4, 6})), 2) == "same"
    assert found.hear(says(3), 3) == "doubted"


def test_another_weight_is_a_change() -> None:
    found = standing(1)
    assert found.hear(SourceAnswer((Place.of("10.0.0.1", share=2),), 1), 0) == "changed"


ANSWERS = st.lists(st.tuples(st.integers(0, 12), st.frozensets(st.sampled_from(ALL))), max_size=40)


@examples(300)
@given(ANSWERS)
def test_any_answers_at_any_times(steps: list[tuple[int, frozenset[Place]]]) -> None:
    """What stands was said; more than half of it stands at once; less only after 30 s in which nothing better was."""
    found, now_s = StandingAnswer(ALL), 0
    heard: list[tuple[int, int]] = []  # when, and how many
    for wait_s, places in steps:
        now_s += wait_s
        before = found.places
        found.hear(SourceAnswer(in_order(places), 1.0), now_s)
        heard.append((now_s, len(places)))
        assert found.places in (before, in_order(places))
        small = bool(before) and 2 * len(places) <= len(before)
        if not small:
            assert found.places == in_order(places)
        elif found.places != before:
            recent = [count for at_s, count in heard if at_s > now_s - DOUBT_S]
            assert all(2 * count <= len(before) and count <= len(places) for count in recent)
            assert any(at_s <= now_s - DOUBT_S for at_s, _ in heard)
        assert found.is_doubting == (small and found.places == before)
        assert 0 < found.wait_s(60.0, now_s) <= (AGAIN_S if found.is_doubting else 60)


@given(st.integers(1, 8), st.integers(0, 4), st.lists(st.floats(0.1, 5), min_size=1, max_size=400))
def test_what_stays_so_is_believed_in_the_end(stands: int, left: int, waits_s: list[float]) -> None:
    found, now_s = standing(stands), 0.0
    answer = SourceAnswer(ALL[:left], 1.0)
    times_s = [now_s := now_s + wait_s for wait_s in waits_s]
    for at_s in times_s:
        found.hear(answer, at_s)
    if 2 * left > stands or times_s[-1] - times_s[0] >= DOUBT_S:
        assert len(found.places) == left
    else:
        assert len(found.places) == stands
    assert all(a <= b for a, b in pairwise(times_s))
