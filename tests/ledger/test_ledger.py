"""The ledger: what is written is read by everybody, totals add up, and a record is whole or not there."""

import mmap
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.errors import RelayBug
from relay.ledger.layout import (
    CAUSES,
    CAUSES_MAX,
    CONNECT_BOUNDS_S,
    DURATION_BOUNDS_S,
    REASONS,
    SLOTS,
    Count,
    DaemonWord,
    Flag,
    State,
    Word,
)
from relay.ledger.ledger import NO_PIPE, Ledger, WorkerLedger, owner_of
from relay.ledger.record import CLIENT_BYTES, FlowRecord
from tests.harness import HANG_S, examples
from tests.ledger.rig import add, begin, new_ledger


def test_a_new_ledger_is_all_noughts(ledger: Ledger) -> None:
    assert (ledger.workers, ledger.flows_per_worker) == (3, 16)
    assert ledger.words[DaemonWord.STARTED_NS] == 7
    assert list(ledger.flows()) == []
    assert {ledger.total(slot, count) for slot in (0, SLOTS - 1) for count in range(Count.END)} == {0}


def test_words_and_counters_do_not_overlap(ledger: Ledger) -> None:
    """Every word has a value of its own, and keeps it."""
    value = 100
    written: list[tuple[WorkerLedger, str, int, int]] = []
    for n in range(ledger.workers):
        part = ledger.worker(n)
        for word in range(Word.LAYOUT):
            value += 1
            part[word] = value
            written.append((part, "word", word, value))
        for slot in (0, 1, SLOTS - 1):
            for count in range(Count.END):
                value += 1
                add(part, slot, count, value)
                written.append((part, "row", part.counts_at(slot) + count, value))
        part[Word.FLOWS_HIGH] = 0
        for index in (0, 15):
            begin(part, index)
    for part, kind, where, expected in written:
        if not (kind == "word" and where == Word.FLOWS_HIGH):
            assert (part[where] if kind == "word" else part.words[where]) == expected
    assert len(list(ledger.flows())) == 6


def test_no_such_worker(ledger: Ledger) -> None:
    for index in (-1, 3):
        with pytest.raises(RelayBug, match="no worker"):
            ledger.worker(index)


def test_totals_are_over_all_workers(ledger: Ledger) -> None:
    for n in range(3):
        add(ledger.worker(n), 5, Count.SENT, 10**n)
    assert ledger.total(5, Count.SENT) == 111
    assert ledger.total(4, Count.SENT) == ledger.total(5, Count.RECEIVED) == 0


def test_active_is_over_all_workers(ledger: Ledger) -> None:
    add(ledger.worker(0), 1, Count.ACTIVE, 5)
    add(ledger.worker(2), 1, Count.ACTIVE, 2)
    assert (ledger.active(1), ledger.active(0)) == (7, 0)


def test_a_row_is_the_same_for_its_worker_and_for_the_others(ledger: Ledger) -> None:
    rows = tuple(ledger.worker(n).counts_at(5) for n in range(3))
    assert {ledger.worker(n).all_counts_at(5) for n in range(3)} == {rows}
    assert len(set(rows)) == 3
    part = ledger.worker(1)
    part[Word.SCRATCH_OWNER] = 9
    assert part.words[part.word_index(Word.SCRATCH_OWNER)] == 9


def test_a_flow_from_its_beginning_to_its_end(ledger: Ledger) -> None:
    part = ledger.worker(1)
    begin(part, 4, peer="[2001:db8::1]:65535")
    expected = FlowRecord(
        worker=1,
        index=4,
        state=State.DIAL,
        slot=3,
        client_fd=44,
        target_fd=-1,
        up_pipe=NO_PIPE,
        down_pipe=NO_PIPE,
        flags=0,
        started_ns=1000,
        received_bytes=0,
        sent_bytes=0,
        target_slot=-1,
        peer="[2001:db8::1]:65535",
    )
    assert list(ledger.flows()) == [expected]
    part.advance(4, State.SPLICE, 99)
    part.moved(4, 10, 1 << 40)
    expected = replace(expected, state=State.SPLICE, target_fd=99, received_bytes=10, sent_bytes=1 << 40)
    assert list(ledger.flows()) == [expected]
    part.hold(4, 0, (7, 8))
    part.hold(4, 1, (9, 10))
    part.flag(4, Flag.UP_FIN)
    part.flag(4, Flag.CLIENT_RESET)
    expected = replace(expected, up_pipe=(7, 8), down_pipe=(9, 10), flags=Flag.UP_FIN | Flag.CLIENT_RESET)
    assert list(ledger.flows()) == [expected]
    part.hold(4, 0, NO_PIPE)
    part.ending(4, "idle")
    flags = CAUSES.index("idle") << Flag.CAUSE_SHIFT | Flag.UP_FIN | Flag.CLIENT_RESET
    assert list(ledger.flows()) == [replace(expected, state=State.END, up_pipe=NO_PIPE, flags=flags)]
    part.end((4,))
    assert list(ledger.flows()) == []


@pytest.mark.parametrize("cause", CAUSES)
def test_an_ending_flow_says_why(cause: str, ledger: Ledger) -> None:
    part = ledger.worker(0)
    begin(part, 0)
    part.ending(0, cause)
    [flow] = part.flows()
    assert CAUSES[flow.flags >> Flag.CAUSE_SHIFT] == cause


def test_every_direction_of_every_flow_has_a_name_and_none_is_nobodys() -> None:
    names = [owner_of(record, direction) for record in range(100) for direction in (0, 1)]
    assert len(set(names)) == len(names)
    assert 0 not in names


def test_a_record_is_used_again_from_nought(ledger: Ledger) -> None:
    part = ledger.worker(0)
    begin(part, 0, peer="[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff%interface]:65535")
    [flow] = part.flows()
    assert flow.peer == "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff%interface]:65535"
    part.hold(0, 1, (5, 6))
    part.flag(0, Flag.DOWN_FIN)
    part.moved(0, 5, 6)
    part.end((0,))
    begin(part, 0, peer="1.2.3.4:5")
    [flow] = part.flows()
    assert (flow.peer, flow.received_bytes, flow.sent_bytes, flow.target_fd) == ("1.2.3.4:5", 0, 0, -1)
    assert (flow.up_pipe, flow.down_pipe, flow.flags) == (NO_PIPE, NO_PIPE, 0)


def test_a_client_has_all_the_room_there_is_and_nothing_of_the_one_before(ledger: Ledger) -> None:
    part = ledger.worker(0)
    longest = "x" * CLIENT_BYTES
    begin(part, 1, peer="next door")
    for peer in (longest, "192.0.2.1:5", longest[:-1], ""):
        begin(part, 0, peer=peer)
        assert [flow.peer for flow in part.flows()] == [peer, "next door"]
        part.end((0,))


def test_every_record_of_every_worker(ledger: Ledger) -> None:
    for n in range(3):
        for index in reversed(range(16)):
            begin(ledger.worker(n), index, peer=f"{n}.{index}")
    assert [flow.peer for flow in ledger.flows()] == [f"{n}.{index}" for n in range(3) for index in range(16)]
    assert ledger.worker(0).capacity_flows == 16


def test_records_that_were_never_used_are_not_read(ledger: Ledger) -> None:
    part = ledger.worker(0)
    begin(part, 2)
    assert part[Word.FLOWS_HIGH] == 3
    part.end((2,))
    begin(part, 0)
    assert part[Word.FLOWS_HIGH] == 3
    assert ledger.worker(0)[Word.FLOWS_HIGH] == 3


class Killed(BaseException):
    """What a SIGKILL is to the code it hits: nothing after it happens."""


class _Stores:
    """A view of the memory in which only so many stores are made before the kill comes."""

    def __init__(self, view: memoryview, left: list[int]) -> None:
        self._view = view
        self._left = left

    def __getitem__(self, at: int) -> int:
        return int(self._view[at])

    def __setitem__(self, at: int, value: int) -> None:
        if not self._left[0]:
            raise Killed
        self._left[0] -= 1
        self._view[at] = value


def killed_after(stores: int, part: WorkerLedger, monkeypatch: pytest.MonkeyPatch, call: Callable[[], None]) -> None:
    """Make the call; the kill comes after so many stores."""
    left = [stores]
    with monkeypatch.context() as patch:
        patch.setattr(part, "_words", _Stores(part._words, left))
        patch.setattr(part, "_ints", _Stores(part._ints, left))
        with pytest.raises(Killed):
            call()


@pytest.mark.interpreted
def test_a_half_written_record_is_not_there(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after everything but the state."""
    part = ledger.worker(0)
    begin(part, 0)
    part.end((0,))
    killed_after(0, part, monkeypatch, lambda: begin(part, 0, peer="half"))
    killed_after(1, part, monkeypatch, lambda: begin(part, 7, peer="half"))
    assert (list(ledger.flows()), part[Word.FLOWS_HIGH]) == ([], 8)
    begin(part, 0, peer="whole")
    assert [flow.peer for flow in ledger.flows()] == ["whole"]


@pytest.mark.interpreted
@pytest.mark.parametrize("stores", range(3))
def test_a_flow_that_had_nearly_ended_goes_on_as_it_was(
    stores: int, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That its ends were passed on tells a finished socket from a reset one, so it must not be forgotten before the end."""
    part = ledger.worker(0)
    begin(part, 0)
    part.flag(0, Flag.UP_FIN | Flag.DOWN_FIN)
    killed_after(stores, part, monkeypatch, lambda: part.ending(0, "target_fin"))
    (flow,) = part.flows()
    assert (flow.state, flow.flags & 0xFF) == (State.DIAL, Flag.UP_FIN | Flag.DOWN_FIN)
    part.ending(0, "client_reset")
    (flow,) = part.flows()
    assert (flow.state, CAUSES[flow.flags >> Flag.CAUSE_SHIFT]) == (State.END, "client_reset")


@pytest.mark.parametrize(
    ("accepted", "closed", "live", "ended", "expected"),
    [
        (5, 2, 3, [], {"accepted": 5, "client_fin": 2}),
        (5, 2, 2, ["idle"], {"accepted": 5, "client_fin": 2, "idle": 1}),
        (5, 2, 1, ["idle", "drain"], {"accepted": 5, "client_fin": 2, "idle": 1, "drain": 1}),
        # Its end had been counted before the kill came: not twice.
        (5, 3, 2, ["client_fin"], {"accepted": 5, "client_fin": 3}),
        # Accepted, and killed before there was a record: it is accepted again when it is found.
        (5, 2, 2, [], {"accepted": 4, "client_fin": 2}),
        # A record, and killed before it was counted as accepted.
        (4, 2, 3, [], {"accepted": 5, "client_fin": 2}),
    ],
)
def test_reconcile(
    accepted: int, closed: int, live: int, ended: list[str], expected: dict[str, int], ledger: Ledger
) -> None:
    part, other = ledger.worker(0), ledger.worker(1)
    for each in (part, other):
        add(each, 3, Count.ACCEPTED, accepted)
        add(each, 3, Count.CLOSED + CAUSES.index("client_fin"), closed)
        add(each, 3, Count.ACTIVE, 9)
    part.reconcile(3, live, ended)
    row = part.counts_at(3)
    counts = {cause: part.words[row + Count.CLOSED + n] for n, cause in enumerate(CAUSES)}
    found = {"accepted": part.words[row + Count.ACCEPTED], **{cause: n for cause, n in counts.items() if n}}
    assert found == expected
    assert found["accepted"] == sum(counts.values()) + live
    assert part.words[row + Count.ACTIVE] == 0, "the flows that go on are counted in again, one by one"
    assert other.words[other.counts_at(3) + Count.ACTIVE] == 9, "the other worker's row is its own"


def test_a_cause_of_a_program_to_come_is_an_end_as_well(ledger: Ledger) -> None:
    """Such a program was gone back from: what it counted is still there when it comes again."""
    part = ledger.worker(0)
    add(part, 3, Count.ACCEPTED, 5)
    add(part, 3, Count.CLOSED + CAUSES_MAX - 1, 3)
    part.reconcile(3, 2, ["client_fin"])
    row = part.counts_at(3)
    assert part.words[row + Count.ACCEPTED] == 5
    assert part.words[row + Count.CLOSED + CAUSES_MAX - 1] == 3
    assert sum(part.words[row + Count.CLOSED + n] for n in range(len(CAUSES))) == 0


def test_clear_makes_a_slot_new_in_one_worker(ledger: Ledger) -> None:
    part, other = ledger.worker(0), ledger.worker(1)
    for slot in (2, 3, 4):
        for count in range(Count.END):
            add(part, slot, count, 7)
    add(other, 3, Count.SENT, 1)
    part.clear(3)
    assert [ledger.total(3, count) for count in range(Count.END)] == [int(n == Count.SENT) for n in range(Count.END)]
    assert {ledger.total(slot, count) for slot in (2, 4) for count in range(Count.END)} == {7}


@examples(50)
@given(st.lists(st.floats(0, 1e5), max_size=30), st.lists(st.floats(0, 1e5), max_size=30))
def test_histograms(connects_s: list[float], durations_s: list[float]) -> None:
    with new_ledger(workers=2) as ledger:
        for n, value_s in enumerate(connects_s):
            part = ledger.worker(n % 2)
            part.observe_connect(part.counts_at(1), value_s)
        for n, value_s in enumerate(durations_s):
            part = ledger.worker(n % 2)
            part.observe_duration(part.counts_at(1), value_s)
        for values_s, bounds_s, first, total in (
            (connects_s, CONNECT_BOUNDS_S, Count.CONNECT_BUCKETS, Count.CONNECT_SUM_NS),
            (durations_s, DURATION_BOUNDS_S, Count.DURATION_BUCKETS, Count.DURATION_SUM_NS),
        ):
            counts = [ledger.total(1, first + n) for n in range(len(bounds_s) + 1)]
            below = [sum(counts[: n + 1]) for n in range(len(counts))]
            assert below == [sum(value_s <= bound_s for value_s in values_s) for bound_s in (*bounds_s, float("inf"))]
            assert ledger.total(1, total) / 1e9 == pytest.approx(sum(values_s), abs=1e-6)


def test_names_are_unique() -> None:
    for names in (REASONS, CAUSES):
        assert len(set(names)) == len(names) > 0
    for bounds_s in (CONNECT_BOUNDS_S, DURATION_BOUNDS_S):
        assert list(bounds_s) == sorted(set(bounds_s))


def test_another_layout_is_refused() -> None:
    with new_ledger() as ledger:
        for word in (DaemonWord.VERSION, DaemonWord.MAGIC):
            before = ledger.words[word]
            ledger.words[word] = before + 1
            with pytest.raises(RelayBug, match="layout"):
                Ledger(ledger.fd, mmap.mmap(ledger.fd, 0))
            ledger.words[word] = before
        assert Ledger(ledger.fd, mmap.mmap(ledger.fd, 0)).workers == 1


def test_a_second_process_sees_and_writes_the_same(ledger: Ledger) -> None:
    begin(ledger.worker(2), 1, peer="mine")
    script = (
        "import mmap, sys\n"
        "from relay.ledger.layout import Count, State\n"
        "from relay.ledger.ledger import Ledger\n"
        "ledger = Ledger(int(sys.argv[1]), mmap.mmap(int(sys.argv[1]), 0))\n"
        "print([flow.peer for flow in ledger.flows()])\n"
        "part = ledger.worker(0)\n"
        "part.begin(3, State.LOOK, 1, 9, -1, 5, 'theirs')\n"
        "part.words[part.counts_at(1) + Count.ACTIVE] += 4\n"
    )
    command = [sys.executable, "-c", script, str(ledger.fd)]
    ran = subprocess.run(command, pass_fds=[ledger.fd], capture_output=True, text=True, timeout=HANG_S, check=True)
    assert ran.stdout == "['mine']\n"
    assert [flow.peer for flow in ledger.flows()] == ["theirs", "mine"]
    assert ledger.active(1) == 4


def test_flows_of_one_state_alone() -> None:
    with new_ledger(workers=2) as ledger:
        for n in range(2):
            begin(ledger.worker(n), 0)
            begin(ledger.worker(n), 1)
            ledger.worker(n).advance(1, State.LINE, -1)
        assert [(each.worker, each.index) for each in ledger.flows(State.LINE)] == [(0, 1), (1, 1)]
        assert len(list(ledger.flows())) == 4
