"""Who has his share of all connections; and a listener that stands back, alone and driven by hand."""

import contextlib
import select
import socket
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.dataplane.share import HUNG_NS, NOBODY, Share, most
from relay.ledger.layout import Word
from relay.ledger.ledger import Ledger
from tests.config.rig import endpoint_row
from tests.dataplane.rig import Rig, no_descriptors, rig_to, tcp_target
from tests.ledger.rig import new_ledger

NOW_NS = 100 * HUNG_NS


@pytest.mark.parametrize(("fewest", "share"), [(0, 3), (1, 4), (2, 5), (3, 8), (90, 109), (10_000, 10_201)])
def test_the_share_is_a_little_more_than_the_fewest_have(fewest: int, share: int) -> None:
    assert most(fewest) == share


@given(st.lists(st.integers(0, 3), min_size=400, max_size=400), st.integers(2, 4))
def test_whoever_is_quickest_none_gets_much_more_than_another(quickest: list[int], workers: int) -> None:
    """400 that stay: each is taken by the quickest worker that has not its share."""
    counts = [0] * workers
    for n, first in enumerate(quickest):
        order = [(first + k) % workers for k in range(workers)]
        at = next(k for k in order if counts[k] < most(min(counts[:k] + counts[k + 1 :])))
        counts[at] += 1
        if (workers, n) == (2, 7):
            assert max(counts) <= 5
    assert max(counts) <= 1.3 * 400 / workers


@pytest.fixture
def ledger() -> Iterator[Ledger]:
    """Three workers."""
    with new_ledger(workers=3) as made:
        yield made


def test_each_worker_tells_and_sees_the_others(ledger: Ledger) -> None:
    shares = [Share(ledger.worker(n)) for n in range(3)]
    assert shares[0].most() >= NOBODY, "it takes no part yet"
    shares[0].join(5)
    assert shares[0].most() >= NOBODY, "the others do not"
    shares[1].join(7)
    shares[2].join(0)
    assert [each.most() for each in shares] == [most(0), most(0), most(5)]
    shares[2].tell(6)
    assert shares[0].most() == most(6)
    shares[2].leave()
    shares[2].tell(0)
    assert shares[0].most() == most(7)
    assert shares[2].most() >= NOBODY


def test_nothing_is_left_to_a_worker_that_hangs(ledger: Ledger) -> None:
    shares = [Share(ledger.worker(n)) for n in range(3)]
    for n, share in enumerate(shares):
        share.join(10 * n)
        ledger.worker(n)[Word.HEARTBEAT_NS] = NOW_NS
    ledger.worker(0)[Word.HEARTBEAT_NS] -= HUNG_NS
    shares[1].look(NOW_NS)
    assert shares[1].most() == most(20)
    ledger.worker(0)[Word.HEARTBEAT_NS] += 1
    shares[1].look(NOW_NS)
    assert shares[1].most() == most(0), "it goes on"


# --- the listener -----------------------------------------------------------------------------------------------------


class Others:
    """What the other workers see of the same socket: they watch it too, and accept nobody by themselves."""

    def __init__(self, rig: Rig) -> None:
        self._sock = rig.listener.sock
        self._epoll = select.epoll()
        self._epoll.register(self._sock, select.EPOLLIN | select.EPOLLET)

    def told(self) -> bool:
        """Whether they were woken since the last time, and somebody waits."""
        return bool(self._epoll.poll(0))

    def accept(self) -> socket.socket:
        return self._sock.accept()[0]

    def close(self) -> None:
        self._epoll.close()


@pytest.fixture
def rig(stack: contextlib.ExitStack) -> Rig:
    return rig_to(stack, tcp_target(stack))


@pytest.fixture
def others(rig: Rig, stack: contextlib.ExitStack) -> Others:
    made = Others(rig)
    stack.callback(made.close)
    return made


class Given(Share):
    """A share of so many, whatever the others have."""

    def __init__(self, rig: Rig, flows: int) -> None:
        super().__init__(rig.context.ledger)
        self._flows = flows

    def most(self) -> int:
        return self._flows


@pytest.fixture
def share(rig: Rig) -> Callable[[int], None]:
    """Say how many are the worker's share."""

    def share(flows: int) -> None:
        rig.context.share = Given(rig, flows)

    return share


def serve(rig: Rig) -> int:
    """Serve what is ready; how many flows there are."""
    for _ in range(3):
        rig.poller.serve()
    assert rig.bugs == []
    return len(rig.context.flows)


def take_left(rig: Rig) -> None:
    """What a worker does in its fast tick."""
    for take in list(rig.context.left):
        take()


def test_who_has_his_share_leaves_the_next_one_and_wakes_the_others(
    rig: Rig, others: Others, share: Callable[[int], None]
) -> None:
    share(1)
    rig.connect()
    assert (serve(rig), others.told()) == (1, False), "the first one is taken"
    rig.connect()
    assert (others.told(), others.told()) == (True, False)
    assert (serve(rig), others.told()) == (1, True), "whoever was not told of him is told now"
    rig.keep(others.accept())
    take_left(rig)
    assert serve(rig) == 1


def test_who_stands_back_accepts_again_as_soon_as_the_others_have_more(rig: Rig, share: Callable[[int], None]) -> None:
    share(1)
    rig.connect()
    rig.connect()
    assert serve(rig) == 1
    share(4)
    rig.connect()
    assert serve(rig) == 3, "the next one tells him of both"
    assert rig.context.left == set()


def test_who_is_left_is_taken_after_a_tick_if_nobody_else_did(stack: contextlib.ExitStack) -> None:
    rig = Rig(endpoint_row(targets=(tcp_target(stack, backlog=256).row,)), stack, flows=256)
    rig.context.share = Given(rig, 80)
    for _ in range(200):
        rig.connect()
    assert serve(rig) == 80
    assert len(rig.context.left) == 1
    take_left(rig)
    assert serve(rig) == 200, "also more of them than a burst"
    assert rig.context.left == set()
    rig.connect()
    assert serve(rig) == 200, "and it still stands back"


@pytest.mark.interpreted
def test_a_bug_at_one_of_those_who_are_left_leaves_the_others_to_the_next_tick(
    rig: Rig, share: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    share(0)
    for _ in range(2):
        rig.connect()
    assert serve(rig) == 0
    with monkeypatch.context() as broken:
        broken.setattr(rig.gate, "admit", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            take_left(rig)
    take_left(rig)
    assert serve(rig) == 1
    assert rig.context.left == set()


def test_who_is_far_ahead_does_not_hear_of_each(rig: Rig, share: Callable[[int], None]) -> None:
    share(-100)
    rig.connect()
    serve(rig)
    assert rig.poller._handlers[rig.listener.sock.fileno()] is None
    rig.connect()
    assert serve(rig) == 0
    take_left(rig)
    assert serve(rig) == 2
    assert rig.poller._handlers[rig.listener.sock.fileno()] is rig.listener


def test_a_pause_is_told_to_the_others_and_nobody_is_taken_in_it(
    rig: Rig, others: Others, share: Callable[[int], None]
) -> None:
    rig.connect()
    assert others.told()
    with no_descriptors():
        rig.until(lambda: rig.exhausted, "accepting fails")
    assert others.told()
    rig.listener.resume()
    share(0)
    serve(rig)
    assert rig.context.left
    rig.listener.pause()
    assert rig.context.left == set()
    rig.connect()
    assert serve(rig) == 0


def test_a_pause_in_the_tick_is_one(rig: Rig, share: Callable[[int], None]) -> None:
    share(0)
    rig.connect()
    serve(rig)
    with no_descriptors():
        take_left(rig)
    assert rig.exhausted == ["EMFILE"]
    assert serve(rig) == 0
    rig.listener.resume()
    share(1)
    assert serve(rig) == 1


def test_who_stands_back_finishes_like_any_other(rig: Rig, share: Callable[[int], None]) -> None:
    share(0)
    rig.connect()
    assert serve(rig) == 0
    rig.listener.finish()
    assert len(rig.context.flows) == 1
    assert rig.context.left == set()
