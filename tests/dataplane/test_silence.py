"""When a peer is dead, by numbers: no socket, no time that passes."""

import math
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.dataplane.silence import Silence, terms
from relay.kernel.sockets import Transmission
from tests.harness import examples

IDLE: Final = Transmission(0.0, 1, in_flight=False, unsent=False, resent=0, timeouts=0, probes=0)
FLYING: Final = IDLE._replace(in_flight=True)
CLOSED: Final = IDLE._replace(unsent=True)  # its window is
USUAL: Final = terms(15.0, 30.0)


@dataclass
class Looks:
    """One peer, who is looked at from time to time."""

    by: Any = USUAL
    silence: Silence = field(default_factory=Silence)
    now_s: float = 1000.0

    def after(self, after_s: float, told: Transmission, **keys: Any) -> bool:
        """Whether it is dead so much later."""
        self.now_s += after_s
        return self.silence.is_dead(told._replace(**keys), self.now_s, self.by)


def test_bytes_in_flight_that_nothing_acknowledges() -> None:
    looks = Looks()
    assert not looks.after(0, FLYING)
    for second in range(2, 30, 2):
        assert not looks.after(2, FLYING, silent_s=second, resent=second // 2, timeouts=second // 2)
    assert looks.after(2, FLYING, silent_s=30, resent=9, timeouts=7)


def test_whoever_acknowledges_is_alive_however_long_it_takes() -> None:
    looks = Looks()
    for n in range(100):
        assert not looks.after(29, FLYING, segments_in=n, silent_s=0.1, resent=5 * n, timeouts=0)


def test_what_came_counts_even_if_it_acknowledged_nothing() -> None:
    """While our receive buffer is full the kernel drops acknowledgements too, and knows only that something came."""
    looks = Looks()
    for n in range(100):
        assert not looks.after(2, FLYING, segments_in=n, silent_s=2 * n, resent=n, timeouts=n)
    assert not looks.after(27, FLYING, segments_in=99, silent_s=225, resent=105, timeouts=105)
    assert looks.after(3, FLYING, segments_in=99, silent_s=228, resent=106, timeouts=106)


def test_bytes_just_sent_after_a_long_silence_are_waited_for() -> None:
    """Without keepalive nobody has asked the peer anything."""
    looks = Looks(terms(None, 30.0))
    assert not looks.after(0, IDLE)
    assert not looks.after(3600, FLYING, silent_s=3600, resent=2)
    assert not looks.after(29.9, FLYING, silent_s=3629.9, resent=9)
    assert looks.after(0.1, FLYING, silent_s=3630, resent=9)


def test_what_flew_before_does_not_count() -> None:
    looks = Looks(terms(None, 30.0))
    assert not looks.after(0, FLYING)
    assert not looks.after(20, IDLE, silent_s=20)
    assert not looks.after(20, FLYING, silent_s=40, resent=5, timeouts=5)


def test_with_keepalive_the_silence_before_counts_in_part() -> None:
    """The kernel would have asked after 15 s, so bytes are in flight for the rest of the time at least."""
    looks = Looks()
    assert not looks.after(0, IDLE)
    assert not looks.after(14, FLYING, silent_s=14)
    assert not looks.after(15.9, FLYING, silent_s=29.9, resent=7, timeouts=5)
    assert looks.after(0.1, FLYING, silent_s=30, resent=7, timeouts=5)


def test_bytes_sent_while_keepalive_asks_in_vain() -> None:
    looks = Looks()
    assert not looks.after(0, IDLE)
    assert not looks.after(25, FLYING, silent_s=25, probes=4)
    assert looks.after(5, FLYING, silent_s=30, probes=4, resent=4, timeouts=4)


def test_a_reader_that_stands_still_answers() -> None:
    """The kernel asks ever more seldom, down to every two minutes, and each answer sets the count to nought."""
    looks = Looks()
    for n in range(10):
        assert not looks.after(2, CLOSED, segments_in=n, silent_s=0)
        assert not looks.after(116, CLOSED, segments_in=n, silent_s=118)
        assert not looks.after(2, CLOSED, segments_in=n, silent_s=120, probes=1)  # on its way


def test_one_answer_may_be_lost() -> None:
    looks = Looks()
    assert not looks.after(0, CLOSED)
    assert not looks.after(120, CLOSED, silent_s=120, probes=1)
    assert looks.after(120, CLOSED, silent_s=240, probes=2)


@pytest.mark.parametrize("counter", ["resent", "timeouts"])
def test_it_is_asked_twice_before_it_is_dead(counter: str) -> None:
    """Whose way is gone is sent nothing again, but the kernel counts that it wanted to; and the other way round."""
    looks = Looks()
    assert not looks.after(0, IDLE)
    assert not looks.after(2, FLYING, segments_in=2, **{counter: 5})
    assert not looks.after(31, FLYING, segments_in=2, silent_s=31, **{counter: 6})
    assert looks.after(1, FLYING, segments_in=2, silent_s=32, **{counter: 7})


def test_the_first_look_takes_the_kernels_word() -> None:
    """A successor knows nothing of its predecessor's. What was sent again in a row was in vain, what ever was may not be."""
    looks = Looks()
    assert not looks.after(0, FLYING, silent_s=100, resent=50, timeouts=4)
    assert looks.after(15, FLYING, silent_s=115, resent=50, timeouts=4)
    assert Looks().after(0, CLOSED, silent_s=100, probes=2)
    looks = Looks()
    assert not looks.after(0, FLYING, silent_s=100, resent=50)
    assert not looks.after(15, FLYING, silent_s=115, resent=50)


def test_nobody_is_dead_where_it_is_off() -> None:
    looks = Looks(terms(15.0, None))
    for _ in range(5):
        assert not looks.after(1e6, FLYING, silent_s=1e6, probes=9, resent=99, timeouts=99)


@pytest.mark.parametrize(
    ("keepalive_s", "dead_s", "idle_s", "every_s", "probes"),
    [
        (15.0, 30.0, 15, 3, 5),
        (1.0, 3.0, 1, 1, 2),
        (0.2, 0.5, 1, 1, 1),
        (15.0, 16.0, 15, 1, 1),
        (15.0, 46.0, 15, 4, 8),
        (15.0, 600.0, 15, 117, 5),
        (15.0, None, 15, 75, 9),
        (None, 30.0, 0, 6, 5),
        (None, None, 0, 75, 9),
        (86_000.0, 86_400.0, 32_767, 8939, 6),
    ],
)
def test_options(keepalive_s: float | None, dead_s: float | None, idle_s: int, every_s: int, probes: int) -> None:
    found = terms(keepalive_s, dead_s)
    assert (found.idle_s, found.probe_every_s, found.probes) == (idle_s, every_s, probes)


@examples(300)
@given(st.integers(1, 32_767), st.integers(1, 30_000))
def test_an_idle_peer_is_told_in_time_and_not_before(keepalive_s: int, more_s: int) -> None:
    found = terms(float(keepalive_s), float(keepalive_s + more_s))
    told_s = found.idle_s + found.probe_every_s * found.probes
    assert 0 <= told_s - (keepalive_s + more_s) <= 4


@examples(300)
@given(st.floats(0.002, 700.0))
def test_the_kernel_does_not_give_up_before(dead_s: float) -> None:
    """15 attempts (net.ipv4.tcp_retries2), whose pauses double from 200 ms up to the longest: tcp_model_timeout."""
    longest_s = terms(0.001, dead_s).resend_max_s
    doubles = int(math.log2(longest_s / 0.2))
    assert (2 ** (doubles + 1) - 1) * 0.2 + (15 - doubles) * longest_s > dead_s
    assert 1.0 <= longest_s <= 120.0, "what the kernel takes"
