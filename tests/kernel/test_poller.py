"""The poller: every ready descriptor gets its handler, whatever another handler does."""

import asyncio
import socket
from collections.abc import Callable

import pytest
import uvloop

from relay.calls import BROKEN, PEER_FIN, READ, WRITE
from relay.kernel.bare_socket import BareSocket
from relay.kernel.poller import UNWATCHED, Handler
from tests.harness import HANG_S
from tests.kernel.rig import Bench, Calling, is_open


def noting(seen: list[int], reads: socket.socket | None = None) -> Handler:
    """A handler that notes its events, and takes what came."""

    def handle(events: int) -> None:
        seen.append(events)
        if reads is not None:
            reads.recv(9)

    return Calling(handle)


def test_only_what_is_ready_is_handled(bench: Bench) -> None:
    on_quiet: list[int] = []
    on_loud: list[int] = []
    quiet, _ = bench.pair()
    loud, peer = bench.pair()
    bench.poller.watch(quiet.fileno(), READ, noting(on_quiet))
    bench.poller.watch(loud.fileno(), READ, noting(on_loud, loud))
    bench.poller.serve()
    assert (on_quiet, on_loud) == ([], [])
    peer.send(b"x")
    bench.poller.serve()
    assert (on_quiet, on_loud) == ([], [READ])


def test_what_becomes_ready_meanwhile_is_handled_in_the_same_turn(bench: Bench) -> None:
    """A chain of messages, each sent by the handler of the one before."""
    links = [bench.pair() for _ in range(5)]
    seen: list[int] = []

    def handler(n: int) -> Handler:
        def handle(_events: int) -> None:
            links[n][0].recv(9)
            seen.append(n)
            if n + 1 < len(links):
                links[n + 1][1].send(b"x")

        return Calling(handle)

    for n, (mine, _) in enumerate(links):
        bench.poller.watch(mine.fileno(), READ, handler(n))
    links[0][1].send(b"x")
    bench.poller.serve()
    assert seen == [0, 1, 2, 3, 4]


def test_one_that_is_always_ready_does_not_keep_the_loop(bench: Bench) -> None:
    mine, _ = bench.pair()
    turns: list[int] = []
    bench.poller.watch(mine.fileno(), WRITE, Calling(turns.append))
    bench.poller.serve()
    assert len(turns) >= 1


def test_a_handler_that_raises_does_not_stop_the_batch(bench: Bench) -> None:
    seen: list[int] = []

    def raising(_events: int) -> None:
        bad.recv(9)
        raise ValueError("mine")

    bad, bad_peer = bench.pair()
    bench.poller.watch(bad.fileno(), READ, Calling(raising))
    bad_peer.send(b"x")
    for _ in range(20):
        mine, peer = bench.pair()
        bench.poller.watch(mine.fileno(), READ, noting(seen, mine))
        peer.send(b"x")
    bench.poller.serve()
    assert seen == [READ] * 20
    [(told, error)] = bench.errors
    assert isinstance(told, Calling)
    assert told.call is raising
    assert str(error) == "mine"


def test_interest_can_change(bench: Bench) -> None:
    mine, peer = bench.pair()
    seen: list[int] = []
    interest = [UNWATCHED]

    def want(after: int) -> None:
        bench.poller.want(mine.fileno(), interest[0], after, Calling(handle))
        interest[0] = after

    def handle(events: int) -> None:
        seen.append(events)
        want(UNWATCHED if events & BROKEN else 0)

    want(READ)
    peer.send(b"x")
    bench.poller.serve()
    bench.poller.serve()
    assert seen == [READ]
    want(READ | WRITE)
    bench.poller.serve()
    assert seen == [READ, READ | WRITE]
    peer.close()
    bench.poller.serve()
    assert len(seen) == 3
    assert seen[2] & BROKEN, "a socket's end is told whatever the interest is, and not at all without one"
    want(READ)
    bench.poller.serve()
    assert len(seen) == 4
    assert bench.errors == []


def test_a_peers_fin_is_told_apart(bench: Bench) -> None:
    mine, peer = bench.pair()
    seen: list[int] = []

    def handle(events: int) -> None:
        seen.append(events)
        bench.poller.forget(mine.fileno())

    bench.poller.watch(mine.fileno(), PEER_FIN, Calling(handle))
    peer.send(b"x")
    bench.poller.serve()
    assert seen == []
    peer.shutdown(socket.SHUT_WR)
    bench.poller.serve()
    assert seen == [PEER_FIN]


def test_what_was_forgotten_is_silent(bench: Bench) -> None:
    mine, peer = bench.pair()
    seen: list[int] = []
    bench.poller.watch(mine.fileno(), READ, Calling(seen.append))
    bench.poller.forget(mine.fileno())
    bench.poller.forget(mine.fileno())
    peer.send(b"x")
    bench.poller.serve()
    assert seen == []
    bench.poller.watch(mine.fileno(), READ, noting(seen, mine))
    bench.poller.serve()
    assert seen == [READ]


@pytest.mark.parametrize("ending", ["close", "forget"])
def test_what_an_earlier_handler_ended_is_not_delivered(ending: str, bench: Bench) -> None:
    """Two descriptors ready in one batch; whichever comes first ends the other."""
    one, one_peer = bench.pair()
    two, two_peer = bench.pair()
    seen: list[str] = []

    def handler(name: str, mine: socket.socket, other: socket.socket) -> Handler:
        def handle(_events: int) -> None:
            seen.append(name)
            mine.recv(9)
            if ending == "close":
                bench.poller.close(bench.bare(other))
            else:
                bench.poller.forget(other.fileno())

        return Calling(handle)

    bench.poller.watch(one.fileno(), READ, handler("one", one, two))
    bench.poller.watch(two.fileno(), READ, handler("two", two, one))
    one_peer.send(b"x")
    two_peer.send(b"x")
    bench.poller.serve()
    assert len(seen) == 1
    assert bench.errors == []


def test_closing_waits_for_the_end_of_the_batch(bench: Bench) -> None:
    """So a descriptor's number is not used again while the batch has events of its former holder."""
    sock, peer = bench.pair()
    mine = bench.bare(sock)
    inside: list[tuple[bool, int]] = []

    def handle(_events: int) -> None:
        bench.poller.close(mine)
        fresh, _ = bench.pair()
        inside.append((is_open(mine), fresh.fileno()))

    bench.poller.watch(mine.fd, READ, Calling(handle))
    peer.send(b"x")
    bench.poller.serve()
    [(open_inside, fresh)] = inside
    assert open_inside
    assert fresh != mine.fd
    assert not is_open(mine)


def test_closing_outside_of_a_batch(bench: Bench) -> None:
    sock, _ = bench.pair()
    mine = bench.bare(sock)
    bench.poller.watch(mine.fd, READ, noting([]))
    bench.poller.close(mine)
    assert (is_open(mine), bench.buried) == (True, 0)
    bench.poller.bury()
    assert (is_open(mine), bench.buried) == (False, 1)
    bench.poller.bury()
    bench.poller.serve()
    assert bench.buried == 1, "only closing is told"


def test_a_number_that_is_used_again_has_its_new_handler_alone(bench: Bench) -> None:
    before: list[int] = []
    after: list[int] = []
    sock, _ = bench.pair()
    number = sock.fileno()
    bench.poller.watch(number, READ, noting(before))
    bench.poller.close(bench.bare(sock))
    bench.poller.bury()
    pair = bench.pair()
    assert number in (pair[0].fileno(), pair[1].fileno()), "the kernel gives the lowest free number"
    fresh, peer = pair if pair[0].fileno() == number else reversed(pair)
    bench.poller.watch(number, READ, noting(after, fresh))
    peer.send(b"x")
    bench.poller.serve()
    assert (before, after) == ([], [READ])


@pytest.mark.parametrize("loop_factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_nested_in_an_event_loop(loop_factory: Callable[[], asyncio.AbstractEventLoop], bench: Bench) -> None:
    """Messages between two sockets of the poller, while the loop's own timers run."""
    mine, peer = bench.pair()
    left = [200]
    ticks: list[float] = []

    async def work() -> None:
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def bounce(sock: socket.socket) -> Handler:
            def handle(_events: int) -> None:
                sock.send(sock.recv(9))
                left[0] -= 1
                if not left[0]:
                    bench.poller.forget(sock.fileno())
                    done.set()

            return Calling(handle)

        def tick() -> None:
            ticks.append(loop.time())
            if not done.is_set():
                loop.call_later(0.001, tick)

        for sock in (mine, peer):
            bench.poller.watch(sock.fileno(), READ, bounce(sock))
        loop.add_reader(bench.poller.fileno(), bench.poller.serve)
        loop.call_soon(tick)
        mine.send(b"x")
        async with asyncio.timeout(HANG_S):
            await done.wait()
        loop.remove_reader(bench.poller.fileno())

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(work())
    assert left[0] <= 0
    assert ticks
    assert bench.errors == []


def test_a_socket_that_is_closed_already_or_never_was_is_nobodys(bench: Bench) -> None:
    mine, peer = bench.pair()
    seen: list[int] = []
    bench.poller.watch(mine.fileno(), READ, noting(seen, mine))
    sock, _ = bench.pair()
    other = bench.bare(sock)
    other.close()
    for none in (other, BareSocket(-1)):
        bench.poller.close(none)
    bench.poller.serve()
    peer.send(b"x")
    bench.poller.serve()
    assert (seen, bench.errors) == ([READ], [])
