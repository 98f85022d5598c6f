"""Any order of bytes, turns and reads: every byte arrives once."""

import contextlib
import hashlib
import socket
import struct

from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from relay.dataplane import turns
from tests.dataplane.lanes import Bench, Kind, new_bench
from tests.dataplane.rig import no_descriptors
from tests.harness import examples

STEPS = st.lists(st.one_of(st.integers(1, 200_000), st.just("turn"), st.just("read")), min_size=1, max_size=40)


@examples(60, suppress_health_check=[HealthCheck.too_slow])
@given(steps=STEPS, kind=st.sampled_from(["tcp", "unix"]), starve=st.booleans())
def test_any_chunks_and_any_pauses_arrive_intact(steps: list[int | str], kind: Kind, starve: bool) -> None:
    """Writes of any size, turns and reads in any order, and then all that is left."""
    with new_bench(kind) as bench:
        _any_steps(bench, steps, starve)


def _any_steps(bench: Bench, steps: list[int | str], starve: bool) -> None:
    bench.turn()  # takes the one pipe that there shall be
    with no_descriptors() if starve else contextlib.nullcontext():
        sent, arrived = hashlib.sha256(), hashlib.sha256()
        written = 0
        for number, step in enumerate(steps):
            if step == "turn":
                assert bench.turn() in (turns.SAME, turns.CHANGED)
            elif step == "read":
                arrived.update(bench.read())
            elif isinstance(step, int):
                data = struct.pack("<I", number) * (-(-step // 4))
                took = bench.write(data)
                sent.update(data[:took])
                written += took
        bench.source.shutdown(socket.SHUT_WR)
        while not bench.up.done:
            assert bench.turn() in (turns.SAME, turns.CHANGED)
            arrived.update(bench.read())
        bench.up.finish()
        arrived.update(bench.hear(written + 1))
        assert arrived.digest() == sent.digest()
        assert bench.up.total_bytes == written
