"""Any pool: whom it never chooses, and counts that are exact over any history of connections, reloads and deaths."""

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, Final

from hypothesis import given
from hypothesis import strategies as st

from relay.config.compile import _assign_slots
from relay.config.snapshot import EndpointRow, ProbeRow, TargetRow
from relay.ledger.layout import Health, TargetCount, health_at
from relay.ledger.ledger import Ledger
from relay.targets import why
from relay.targets.health import packed
from relay.targets.pool import Pool
from tests.config.rig import endpoint_row
from tests.harness import examples
from tests.ledger.rig import new_ledger

NOW_NS: Final = 1_000_000_000_000
REFUSED: Final = why.of_error(111)
DISTRIBUTIONS: Final = st.sampled_from(["five-tuple", "source-ip", "least-connections", "round-robin"])
PROBES: Final = st.sampled_from([None, ProbeRow("", 1, 1), ProbeRow("/", 1, 1), ProbeRow("", 1, 1, kind="never")])


@dataclass(frozen=True)
class One:
    """A target, and how it is."""

    weight: int
    backup: bool
    health: int
    ejected: bool
    active: int


ONES: Final = st.lists(
    st.builds(
        One,
        weight=st.sampled_from([0, 1, 2, 256]),
        backup=st.booleans(),
        health=st.sampled_from([Health.UNKNOWN, Health.UP, Health.DOWN]),
        ejected=st.booleans(),
        active=st.integers(0, 3),
    ),
    min_size=1,
    max_size=6,
)


def target_row(text: str, slot: int, **keys: Any) -> TargetRow:
    return TargetRow(text, host=text.partition(":")[0], port=80, slot=slot, **keys)


def row_of(targets: tuple[TargetRow, ...], distribution: str, **keys: Any) -> EndpointRow:
    given: dict[str, Any] = {"targets": targets, "distribution": distribution, "direct": True, **keys}
    return endpoint_row(**given)


@examples(400)
@given(
    ONES, DISTRIBUTIONS, PROBES, st.sampled_from([None, 30.0]), st.integers(0, 63), st.binary(min_size=4, max_size=4)
)
def test_whom_it_never_chooses(
    ones: list[One], distribution: str, probe: ProbeRow | None, slow_s: float | None, tried: int, source: bytes
) -> None:
    rows = tuple(target_row(f"10.0.0.{n}:80", n, weight=one.weight, backup=one.backup) for n, one in enumerate(ones))
    row = row_of(rows, distribution, probe=probe, slow_start_s=slow_s)
    with new_ledger() as ledger:
        pool = Pool(row, ledger.worker(0))
        for n, one in enumerate(ones):
            reason = REFUSED if one.health == Health.DOWN else why.NOTHING
            ledger.words[health_at(n)] = packed(one.health, reason, NOW_NS - n * 10**9)
            pool.enter(n, one.active)
            if one.ejected:
                pool.failed(n, NOW_NS, REFUSED)
        place = pool.choose(source, 5, 80, tried, NOW_NS)
    may = [n for n, one in enumerate(ones) if one.weight and not tried >> n & 1]
    up = [n for n in may if ones[n].health != Health.DOWN]
    ready = [n for n in up if not ones[n].ejected]
    if place is None:
        assert not (up if row.is_judged else may)
        assert not may or not row.dial_proves or tried.bit_count() >= 3, "a dial might have found it to be back"
        return
    assert place in may, "who has no weight, or has failed, gets it"
    assert not (row.is_judged and up) or place in up, "it is down, and another one is not"
    assert not ready or place in ready, "it has failed lately or is down, and another one has not"
    primaries = [n for n in ready if not ones[n].backup]
    assert not (ones[place].backup and primaries), "a backup gets it while another one is ready"


TEXTS: Final = [f"10.0.0.{n}:80" for n in range(3)]
Step = tuple[str, int, int]
STEPS: Final = st.lists(
    st.tuples(
        st.sampled_from(["connect", "connect", "connect", "leave", "fail", "reload", "die"]),
        st.integers(0, 31),
        st.integers(0, 31),
    ),
    min_size=20,
    max_size=60,
)


@dataclass(eq=False)
class Connection:
    """One that is open: by which worker, to which target, and by which of its pools it is counted."""

    worker: int
    text: str
    pool: Pool
    place: int


@dataclass
class History:
    """Two workers of one endpoint, and what their counts ought to be. In the model a row is (worker, slot)."""

    ledger: Ledger
    distribution: str
    before: dict[str, int] = field(default_factory=dict)  # slots of the last snapshot
    row: EndpointRow = field(init=False)
    parts: list[Any] = field(init=False)
    pools: list[Pool] = field(default_factory=list)
    holders: dict[tuple[int, int], str] = field(default_factory=dict)
    open: list[Connection] = field(default_factory=list)
    counted: dict[Connection, tuple[int, int]] = field(default_factory=dict)  # in which row a connection is counted
    failures: Counter[tuple[int, int]] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.parts = [self.ledger.worker(n) for n in range(2)]
        self.reload(0b11, 0)

    def reload(self, which: int, first: int) -> None:
        """These targets from now on, in another order."""
        texts = [text for n, text in enumerate(TEXTS) if which >> n & 1] or TEXTS[:1]
        texts = texts[first % len(texts) :] + texts[: first % len(texts)]
        slots = _assign_slots(
            [("web/in", text) for text in texts], {("web/in", t): s for t, s in self.before.items()}, "f"
        )
        self.before = {text: slot for (_, text), slot in slots.items()}
        self.row = row_of(tuple(target_row(text, self.before[text]) for text in texts), self.distribution)
        self.pools = [self.pool(worker) for worker in range(2)]

    def pool(self, worker: int) -> Pool:
        """A worker's, by the row in force; whoever is new in a row begins at nought."""
        for text, slot in self.before.items():
            if self.holders.get((worker, slot)) != text:
                self.holders[worker, slot] = text
                self.forget(worker, slot)
                del self.failures[worker, slot]
        return Pool(self.row, self.parts[worker])

    def forget(self, worker: int, slot: int) -> None:
        """Nobody is counted there."""
        self.counted = {one: at for one, at in self.counted.items() if at != (worker, slot)}

    def connect(self, worker: int, number: int) -> None:
        pool = self.pools[worker]
        place = pool.choose(bytes((10, 1, 1, number)), number, 80, 0, NOW_NS)
        assert place is not None
        pool.answered(place, 0.001, NOW_NS)
        pool.enter(place, 1)
        one = Connection(worker, pool.targets[place].text, pool, place)
        self.open.append(one)
        self.counted[one] = worker, pool.targets[place].slot

    def leave(self, number: int) -> None:
        one = self.open.pop(number % len(self.open))
        one.pool.enter(one.place, -1)
        self.counted.pop(one, None)

    def fail(self, number: int) -> None:
        """Something is wrong with a target, as one of its connections finds: also of one that left the set long ago."""
        one = self.open[number % len(self.open)]
        one.pool.failed(one.place, NOW_NS, REFUSED)
        slot = one.pool.targets[one.place].slot
        if one.pool in self.pools or self.counted.get(one) == (one.worker, slot):
            self.failures[one.worker, slot] += 1

    def die(self, worker: int, number: int) -> None:
        """A successor takes over: each connection is where its socket says that it is.

        Of some that ended the dead worker had yet to count it.
        """
        for one in [one for one in self.open if one.worker == worker][: number % 3]:
            self.open.remove(one)
        self.parts[worker] = part = self.ledger.worker(worker)
        self.pools[worker] = pool = self.pool(worker)
        pool.recount()
        mine = [one for one in self.open if one.worker == worker]
        slots = {one.pool.targets[one.place].slot for one in mine}
        for slot in slots:
            part.recount_target(slot)
        for slot in slots | set(self.before.values()):
            self.forget(worker, slot)
        for one in mine:
            old = one.pool.targets[one.place]
            place = pool.place_of(replace(old, slot=-1), old.slot)
            assert (None if place is None else pool.targets[place].text) == (
                one.text if one.text in self.before else None
            )
            if place is not None:
                one.pool, one.place = pool, place
                pool.enter(place, 1)
                self.counted[one] = worker, pool.targets[place].slot
            else:
                self.open.remove(one)  # it goes on, and is counted nowhere

    def check(self) -> None:
        """What the ledger says is what it ought to."""
        active = Counter(self.counted.values())
        for worker in range(2):
            for slot in self.before.values():
                at = self.ledger.worker(0).target_counts_at(slot)[worker]
                words = self.ledger.words
                assert words[at + TargetCount.ACTIVE] == active[worker, slot]
                assert words[at + TargetCount.FAILURES] == self.failures[worker, slot]


@examples(400)
@given(DISTRIBUTIONS, STEPS)
def test_counts_are_exact_over_any_history(distribution: str, steps: list[Step]) -> None:
    with new_ledger(workers=2) as ledger:
        history = History(ledger, distribution)
        for what, one, other in steps:
            if what == "connect":
                history.connect(one % 2, other)
            elif what == "reload":
                history.reload(one, other)
            elif what == "die":
                history.die(one % 2, other)
            elif history.open:
                (history.leave if what == "leave" else history.fail)(one)
            history.check()
