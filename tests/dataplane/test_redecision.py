"""What a reload costs a worker: 10,000 established connections are asked about, by 20,000 networks, and bytes move on.

Time is the thread's own (CPU), so that a machine that has other things to do fails nothing here.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Collection, Iterator
from dataclasses import replace
from typing import Final

import pytest

from relay.config.snapshot import TargetRow
from relay.dataplane.context import Context
from relay.dataplane.flow import Stage
from relay.dataplane.gate import Gate
from relay.envelope.rules import RuleRow, compile_rules
from relay.kernel.listening import open_listener
from relay.ledger.layout import Count
from tests.config.rig import endpoint_row
from tests.dataplane.running import Running
from tests.harness import heap_set_aside
from tests.ports import free_port

pytestmark = pytest.mark.alone
NETWORKS: Final = 20_000
FLOWS: Final = 10_000
GONE: Final = 500  # of them to an endpoint that goes
DECIDED_S: Final = 0.2
PAUSE_S: Final = 0.02
TURNS: Final = 5


class Stub:
    """A flow as the worker knows it (context.Flow), with the counts of a real one and no socket."""

    def __init__(self, context: Context, gate: Gate, source: str) -> None:
        self.gate = gate
        self.source = source
        self.via = ""
        self.brings_nobody = False
        self.stage = Stage()
        self._context = context
        self.causes: list[str] = []
        gate.readmit(source)
        context.flows.add(self)

    def is_with(self, hosts: Collection[str]) -> bool:
        """Whether the address that stands for its instance is one of these."""
        return f"to {self.source}" in hosts

    def cut(self, cause: str) -> None:
        """Count it out, for this cause."""
        self.causes.append(cause)
        self._context.flows.discard(self)
        self.gate.release(self.source, cause)


@contextlib.contextmanager
def callbacks_s(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The CPU time of every callback of the event loop meanwhile."""
    found: list[float] = []
    run = asyncio.Handle._run

    def timed(handle: asyncio.Handle) -> None:
        began_s = time.thread_time()
        run(handle)
        found.append(time.thread_time() - began_s)

    with heap_set_aside(), monkeypatch.context() as patch:
        patch.setattr(asyncio.Handle, "_run", timed)
        yield found


@pytest.fixture
async def running() -> AsyncIterator[Running]:
    """A worker to start. Nobody connects, so its target is nowhere."""
    with contextlib.ExitStack() as stack:
        made = Running(stack, TargetRow("nowhere", path="/nowhere"))
        try:
            yield made
        finally:
            await made.stop()


V4, V6, BOTH = (0,), (1,), (0, 1)
FAMILIES: Final = pytest.mark.parametrize("families", [V4, V6, BOTH])


def source(n: int, families: tuple[int, ...]) -> str:
    """The n-th client."""
    return f"2001:db8:{n:x}::9" if families[n % len(families)] else f"10.{n >> 8}.{n & 255}.9"


def network(n: int, families: tuple[int, ...]) -> str:
    """A network that holds the n-th client and no other."""
    return f"2001:db8:{n:x}::/48" if families[n % len(families)] else f"10.{n >> 8}.{n & 255}.0/24"


@FAMILIES
async def test_ten_thousand_connections_by_twenty_thousand_networks(
    running: Running, monkeypatch: pytest.MonkeyPatch, families: tuple[int, ...]
) -> None:
    gone = endpoint_row("web/gone", slot=1, listen_port=free_port())
    open_to_all = await running.start(running.row, gone)
    rules = tuple(RuleRow(False, network(3 * n, families), f"f:{n}") for n in range(NETWORKS))
    denying = replace(running.row, rules=rules, table=compile_rules(rules).to_bytes())
    strict = replace(open_to_all, endpoints=(denying,)).for_workers()
    expected = [["revoked"] if n < GONE or n % 3 == 0 else [] for n in range(FLOWS)]
    decided_s, pauses_s = [], []
    for turn in range(1, TURNS + 1):
        flows = established(running, families)
        with callbacks_s(monkeypatch) as spent_s:
            await running.put_in_force(replace(strict, generation=2 * turn))
        decided_s.append(sum(spent_s))
        pauses_s.append(max(spent_s))

        assert [flow.causes for flow in flows] == expected
        stay = [flow for flow in flows if not flow.causes]
        assert running.ledger.active(0) == len(running.working._context.flows) == len(stay) > FLOWS / 2
        assert running.closed()["revoked"] == turn * sum(map(len, expected[GONE:]))
        assert {running.ledger.total(1, count) for count in range(Count.END)} == {0}, "its counts went with it"
        for flow in stay:
            flow.cut("client_fin")
        await running.put_in_force(
            replace(open_to_all, generation=2 * turn + 1), {gone.listen: open_listener(gone, gone.listen_port)}
        )
    # The quickest of a few: other programs take the processor's caches from this one, and none gives it any.
    assert min(decided_s) < DECIDED_S, decided_s
    assert min(pauses_s) < PAUSE_S, pauses_s


def established(running: Running, families: tuple[int, ...]) -> list[Stub]:
    """So many connections, each from an address of its own, and each asked about before."""
    worker = running.working
    into, gone = worker._gates["web/in"], worker._gates["web/gone"]
    flows = [Stub(worker._context, gone if n < GONE else into, source(n, families)) for n in range(FLOWS)]
    assert all(flow.gate.permits(flow.source) for flow in flows)
    return flows
