"""Lanes: every byte once, in order, to its end; and what is held is one pipe."""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest

from relay.dataplane import turns
from relay.dataplane.splice import lanes
from relay.kernel.bare_socket import BareSocket
from relay.ledger.layout import Count, State, Word
from relay.ledger.ledger import NO_PIPE, owner_of
from tests.dataplane.lanes import Bench, connected, new_bench, wait
from tests.dataplane.rig import no_descriptors, reset
from tests.harness import HANG_S

DELAYED_ACK_S: Final = 0.2  # the longest that a kernel puts one off (tcp.h, TCP_DELACK_MAX)


@pytest.fixture
def tcp_bench() -> Iterator[Bench]:
    """A lane over TCP."""
    with new_bench("tcp") as made:
        yield made


def test_a_message_goes_through_in_one_turn(bench: Bench) -> None:
    for message in (b"one", b"two" * 100, b"x"):
        bench.say(message)
        assert bench.turn() == turns.SAME
        assert bench.hear(len(message)) == message
    assert bench.up.held_bytes == 0
    assert bench.up.pipe is None
    assert bench.up.total_bytes == 304
    assert bench.ledger.total(0, Count.RECEIVED) == 304
    assert bench.ledger.total(0, Count.SENT) == 0


def test_the_other_direction_counts_apart(bench: Bench) -> None:
    bench.answer(b"answer")
    assert bench.mover.turn(bench.down) == turns.SAME
    wait(bench.source)
    assert bench.source.recv(99) == b"answer"
    assert (bench.ledger.total(0, Count.RECEIVED), bench.ledger.total(0, Count.SENT)) == (0, 6)


def test_nothing_to_read(bench: Bench) -> None:
    assert bench.turn() == turns.SAME
    assert not bench.up.eof


def test_the_end_comes_after_the_last_byte(bench: Bench) -> None:
    up, ends = bench.up, []
    bench.say(b"last")
    ends.append((bench.turn(), up.eof, up.done, up.fin))
    bench.source.shutdown(socket.SHUT_WR)
    for _ in range(2):
        wait(bench.inner[0])
        ends.append((bench.turn(), up.eof, up.done, up.fin))
    assert ends == [
        (turns.SAME, False, False, False),
        (turns.CHANGED, True, True, False),
        (turns.SAME, True, True, False),
    ]
    up.finish()
    assert up.fin
    assert bench.hear(99) == b"last", "and then its end"
    bench.answer(b"the other direction lives on")
    assert bench.mover.turn(bench.down) == turns.SAME
    wait(bench.source)
    assert bench.source.recv(99) == b"the other direction lives on"


def test_a_slow_sink_costs_one_pipe_and_gets_everything(bench: Bench) -> None:
    sent = bench.fill()
    pipe = bench.up.pipe
    assert pipe is not None
    assert 0 < bench.up.held_bytes <= pipe.size_bytes
    assert bench.mover._scratch is not pipe
    assert bench.ledger.worker(0)[Word.PIPES] == 2
    bench.source.shutdown(socket.SHUT_WR)
    arrived = 0
    while not bench.up.done:
        arrived += len(bench.read())
        bench.turn()
    assert arrived + len(bench.hear(sent - arrived)) == sent
    assert sent == bench.up.total_bytes == bench.ledger.total(0, Count.RECEIVED)
    assert bench.up.pipe is None
    assert bench.ledger.worker(0)[Word.PIPES] == 2, "an empty pipe goes back and is used again"


def test_a_lane_that_holds_bytes_reads_no_more(bench: Bench) -> None:
    before, now = 0, bench.fill()
    while now != before:
        time.sleep(DELAYED_ACK_S)  # what is acknowledged late makes room
        before, now = now, now + bench.fill()
    held = bench.up.held_bytes
    assert bench.write(b"x" * 100_000) == 0, "the kernel's buffers are full: backpressure"
    assert [bench.turn() for _ in range(5)] == [turns.SAME] * 5
    assert bench.up.held_bytes == held


def test_two_lanes_do_not_mix(tcp_bench: Bench) -> None:
    """One lane holds a pipe; the other works with the next scratch pipe."""
    with contextlib.ExitStack() as stack:
        other_source, inner_source = connected("tcp", stack)
        other_sink, inner_sink = connected("tcp", stack)
        other, _ = lanes(inner_source, inner_sink, tcp_bench.ledger.worker(0).counts_at(1), record=4)
        written, arrived = tcp_bench.fill(), b""
        for n in range(10):
            other_source.send(b"%d" % n)
            wait(inner_source)
            assert tcp_bench.mover.turn(other) == turns.SAME
            wait(other_sink)
            assert other_sink.recv(99) == b"%d" % n
        while len(arrived) < written:
            arrived += tcp_bench.read()
            tcp_bench.turn()
        assert arrived == b"a" * written


def test_no_pipe_means_later(bench: Bench) -> None:
    bench.say(b"patience")
    with no_descriptors():
        assert [bench.turn() for _ in range(3)] == [turns.STARVED] * 3
        assert bench.read() == b""
    assert bench.turn() == turns.SAME
    assert bench.hear(8) == b"patience"


def test_a_lane_keeps_its_pipe_when_there_is_no_next_one(bench: Bench) -> None:
    """The scratch pipe holds one lane's bytes, and no other is to be had: nothing is lost, others wait."""
    bench.say(b"a")
    assert bench.turn() == turns.SAME
    assert bench.hear(1) == b"a"
    with no_descriptors():
        written = bench.fill()
        assert bench.up.held_bytes
        assert bench.mover._scratch is None
        bench.answer(b"answer")
        assert bench.mover.turn(bench.down) == turns.STARVED
        arrived = 0
        bench.source.shutdown(socket.SHUT_WR)
        while not bench.up.done:
            arrived += len(bench.read())
            assert bench.turn() != turns.STARVED, "the pipe that became empty is the next scratch"
        assert arrived + len(bench.hear(written - arrived)) == written
        assert bench.mover.turn(bench.down) == turns.SAME
    wait(bench.source)
    assert bench.source.recv(99) == b"answer"


def test_a_reset_source_is_broken_after_what_it_sent(tcp_bench: Bench) -> None:
    """What had arrived before is read, where the kernel still has it; and the end is no orderly one."""
    reset(tcp_bench.source)
    wait(tcp_bench.inner[0])
    assert tcp_bench.turn() == turns.SOURCE_BROKEN
    assert tcp_bench.up.eof
    assert tcp_bench.up.done
    assert tcp_bench.turn() == turns.SAME


def test_a_broken_sink(bench: Bench) -> None:
    reset(bench.sink)
    wait(bench.inner[1])
    bench.say(b"for nobody")
    assert bench.turn() == turns.SINK_BROKEN
    assert bench.up.held_bytes == 0
    assert bench.ledger.total(0, Count.RECEIVED) == 0
    with contextlib.ExitStack() as stack:
        source, inner_source = connected("tcp", stack)
        sink, inner_sink = connected("tcp", stack)
        other, _ = lanes(inner_source, inner_sink, bench.ledger.worker(0).counts_at(0), record=4)
        source.send(b"mine")
        wait(inner_source)
        assert bench.mover.turn(other) == turns.SAME
        wait(sink)
        assert sink.recv(99) == b"mine", "no byte of the broken lane is left in the scratch pipe"


def test_a_sink_that_breaks_while_bytes_are_held(tcp_bench: Bench) -> None:
    tcp_bench.fill()
    pipe = tcp_bench.up.pipe
    reset(tcp_bench.sink)
    wait(tcp_bench.inner[1])
    assert tcp_bench.turn() == turns.SINK_BROKEN
    tcp_bench.mover.drop(tcp_bench.up)
    assert (tcp_bench.up.pipe, tcp_bench.up.held_bytes) == (None, 0)
    assert pipe is not None
    assert not os.path.exists(f"/proc/self/fd/{pipe.r}"), "bytes of somebody are in it: it is not used again"
    tcp_bench.mover.drop(tcp_bench.up)


def owner(bench: Bench) -> int:
    return bench.part[Word.SCRATCH_OWNER]


def test_the_ledger_knows_whose_bytes_are_where(bench: Bench) -> None:
    bench.say(b"x")
    bench.turn()
    scratch = bench.mover._scratch
    assert scratch is not None
    assert (bench.part[Word.SCRATCH_R], bench.part[Word.SCRATCH_W]) == (scratch.r, scratch.w)
    assert owner(bench) == owner_of(3, 0)
    bench.answer(b"y")
    bench.mover.turn(bench.down)
    assert owner(bench) == owner_of(3, 1)
    bench.part.begin(3, State.SPLICE, 0, bench.up.source_fd, -1, 0, "peer")
    bench.read()
    bench.fill()
    pipe, scratch = bench.up.pipe, bench.mover._scratch
    assert pipe is not None
    assert scratch is not None
    [flow] = bench.part.flows()
    assert (flow.up_pipe, flow.down_pipe) == ((pipe.r, pipe.w), NO_PIPE)
    assert (bench.part[Word.SCRATCH_R], bench.part[Word.SCRATCH_W]) == (scratch.r, scratch.w)
    assert owner(bench) == 0
    while bench.up.held_bytes:
        bench.read()
        bench.turn()
    [flow] = bench.part.flows()
    assert flow.up_pipe == NO_PIPE


def test_dropping_is_in_the_ledger(bench: Bench) -> None:
    bench.part.begin(3, State.SPLICE, 0, bench.up.source_fd, -1, 0, "peer")
    bench.fill()
    bench.mover.drop(bench.up)
    [flow] = bench.part.flows()
    assert flow.up_pipe == NO_PIPE


def test_a_predecessors_bytes_come_first(bench: Bench) -> None:
    bench.say(b"later")
    r, w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    os.write(w, b"sooner ")
    bench.up.adopt(bench.pool.adopt(r, w), 7)
    assert bench.turn() == turns.CHANGED
    assert bench.hear(12) == b"sooner later"
    assert bench.up.total_bytes == 12


def test_urgent_data_passes_in_its_place(tcp_bench: Bench) -> None:
    tcp_bench.say(b"before")
    tcp_bench.source.send(b"!", socket.MSG_OOB)
    tcp_bench.say(b"after")
    deadline_s = time.monotonic() + HANG_S
    while tcp_bench.up.total_bytes < 12 and time.monotonic() < deadline_s:
        tcp_bench.turn()
    assert tcp_bench.hear(12) == b"before!after"


def test_a_reset_is_not_lost_while_looking_for_urgent_data(tcp_bench: Bench) -> None:
    """It comes between the two system calls, and an error is told once: what is read next would be an orderly end."""

    class Reset(BareSocket):
        """The source, reset just now."""

        def setsockopt(self, *_: object) -> None:
            reset(tcp_bench.source)
            wait(tcp_bench.inner[0])

        def recv(self, count: int) -> bytes:
            data: bytes = tcp_bench.inner[0].recv(count)
            return data

    tcp_bench.up.source = Reset(tcp_bench.inner[0].fd)
    assert turns.SOURCE_BROKEN in [tcp_bench.turn() for _ in range(2)]


def test_finishing_towards_a_sink_that_is_gone(tcp_bench: Bench) -> None:
    tcp_bench.source.shutdown(socket.SHUT_WR)
    wait(tcp_bench.inner[0])
    assert tcp_bench.turn() == turns.CHANGED
    reset(tcp_bench.sink)
    wait(tcp_bench.inner[1])
    with contextlib.suppress(ConnectionResetError):
        tcp_bench.inner[1].recv(1)
    tcp_bench.up.finish()
    assert tcp_bench.up.fin
