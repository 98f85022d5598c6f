"""Who says `soon` is told at the end of the batch, and nobody who has the descriptor no longer."""

import pytest

from relay.calls import READ
from tests.kernel.rig import Bench, Calling, is_open


def test_whoever_says_soon_is_told_when_everything_else_of_the_batch_is_done(bench: Bench) -> None:
    order: list[str] = []
    (first, to_first), (second, to_second) = bench.pair(), bench.pair()
    asks = Calling(lambda events: order.append(f"soon {events}"))

    def on_first(_events: int) -> None:
        first.recv(9)
        order.append("first")
        bench.poller.watch(third.fileno(), READ, asks)
        bench.poller.soon(third.fileno(), asks)

    def on_second(_events: int) -> None:
        second.recv(9)
        order.append("second")

    third, _ = bench.pair()
    bench.poller.watch(first.fileno(), READ, Calling(on_first))
    bench.poller.watch(second.fileno(), READ, Calling(on_second))
    to_first.send(b"x")
    to_second.send(b"x")
    bench.poller.serve()
    assert order == ["first", "second", f"soon {READ}"], "told once, though nothing came to it"


def test_soon_goes_through_one_stage_after_the_other(bench: Bench) -> None:
    """A stage that was told may hand the descriptor on to the next, which says soon too: in the same batch."""
    told: list[str] = []
    mine, peer = bench.pair()
    later = Calling(lambda _events: told.append("later"))

    def on_earlier(_events: int) -> None:
        told.append("earlier")
        if len(told) == 1:
            mine.recv(9)
            return bench.poller.soon(mine.fileno(), earlier)
        bench.poller.want(mine.fileno(), READ, READ, later)
        return bench.poller.soon(mine.fileno(), later)

    earlier = Calling(on_earlier)
    bench.poller.watch(mine.fileno(), READ, earlier)
    peer.send(b"x")
    bench.poller.serve()
    assert told == ["earlier", "earlier", "later"]


@pytest.mark.parametrize("gone", ["forgotten", "closed", "another's"])
def test_soon_is_nothing_to_whoever_has_the_descriptor_no_longer(bench: Bench, gone: str) -> None:
    told: list[str] = []
    other = bench.pair()[0]
    sock = bench.bare(other)
    mine, peer = bench.pair()
    first = Calling(lambda _events: told.append("first"))

    def on_mine(_events: int) -> None:
        mine.recv(9)
        bench.poller.soon(sock.fd, first)
        if gone == "forgotten":
            bench.poller.forget(sock.fd)
        elif gone == "closed":
            bench.poller.close(sock)
        else:
            bench.poller.want(sock.fd, READ, READ, Calling(lambda _events: told.append("second")))

    bench.poller.watch(sock.fd, READ, first)
    bench.poller.watch(mine.fileno(), READ, Calling(on_mine))
    peer.send(b"x")
    bench.poller.serve()
    assert told == []
    assert is_open(sock) == (gone != "closed")
    sock.close()


def test_what_soon_raises_costs_nobody_else_anything(bench: Bench) -> None:
    told: list[int] = []
    (mine, peer), (good, _), (bad, _) = bench.pair(), bench.pair(), bench.pair()

    def on_bad(_events: int) -> None:
        raise ValueError("a bug")

    breaks, works = Calling(on_bad), Calling(told.append)

    def on_mine(_events: int) -> None:
        mine.recv(9)
        bench.poller.soon(bad.fileno(), breaks)
        bench.poller.soon(good.fileno(), works)

    bench.poller.watch(bad.fileno(), READ, breaks)
    bench.poller.watch(good.fileno(), READ, works)
    bench.poller.watch(mine.fileno(), READ, Calling(on_mine))
    peer.send(b"x")
    bench.poller.serve()
    assert told == [READ]
    assert [handler for handler, _ in bench.errors] == [breaks]
