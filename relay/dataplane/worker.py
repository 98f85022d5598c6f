"""A worker: it accepts, decides, dials and splices, and does nothing else. It works by the snapshot it has.

It is told about new snapshots by control (channel.py), and to drain by SIGTERM from the keeper; a second SIGTERM
stops it at once.
"""

import asyncio
import contextlib
import gc
import math
import os
import signal
import time
import traceback
from collections.abc import Callable
from typing import Any, Final

from relay.config.snapshot import LaterFormatError, Snapshot
from relay.dataplane.adopt import Adoption, free_records, held_by
from relay.dataplane.context import Context
from relay.dataplane.denials import Denials
from relay.dataplane.ending import Ending
from relay.dataplane.flow import Flow, Stage
from relay.dataplane.gate import Gate
from relay.dataplane.giving import Giving
from relay.dataplane.inherits import WorkerInherits, snapshot_in_force
from relay.dataplane.line import tell_all
from relay.dataplane.open_ports import OpenPorts
from relay.dataplane.pipes import PipePool
from relay.dataplane.redecision import Redecision
from relay.dataplane.splice import Mover
from relay.kernel import channel, memory, messages, process
from relay.kernel.loop import loop_factory
from relay.kernel.poller import Handler, Poller
from relay.kernel.sockets import other_descriptors
from relay.ledger.by_source import SourceCounts
from relay.ledger.layout import Count, Word
from relay.ledger.record import FlowRecord
from relay.log import Logger

WALK: Final = os.environ.get("RELAY_FAULT", "")  # of tests: faults.py
if WALK:  # before the keeper forks: each worker would spend longer on it than on all else
    from relay.dataplane import faults

TICK_S: Final = 1.0  # heartbeat, byte counts into the ledger, idle flows
FAST_TICK_S: Final = 0.05  # deadlines of stages, and pauses; runs only while there are any
SWEEP_PER_IDLE: Final = 4  # an idle timeout is noticed at most a quarter of itself too late
SWEEP_PER_LIFETIME: Final = 20  # a lifetime may be a tenth longer, and half of that is enough
SETTLE_S: Final = 2.0  # control's messages of one reload come within milliseconds of each other
STEADY_S: Final = 10.0  # a process that lived this long did not crash at its start: restart it at once
PAUSE_SAID_S: Final = 10.0  # a pause is logged no more often than this
PAUSE_S: Final = 0.1  # how long accepting rests when the machine has no more to give (trio waits as long)


class Worker:
    """One worker process's state. `run` returns when it has drained or was told to stop."""

    def __init__(self, inherited: WorkerInherits, flows_max: int, left: set[int]) -> None:
        """Nothing of a predecessor's is touched or believed before `run`: it may still be at work."""
        self._inherited = inherited
        self._capacity = min(flows_max, inherited.ledger.capacity_flows)
        self._index = inherited.index
        self._ledger = inherited.ledger
        self._control = inherited.control
        self._program = inherited.program
        self._keeper_pid = inherited.keeper_pid
        self._drain_until = inherited.drain_until
        self._snapshot = inherited.snapshot
        self._log = Logger(inherited.log_sink, f"worker-{inherited.index}", self._snapshot.log_level)
        self._context: Context
        self._poller = Poller(self._on_error, lambda: self._context.closed())
        self._pool = PipePool(inherited.ledger)
        self._context = Context(
            poller=self._poller,
            mover=Mover(self._pool, inherited.ledger),
            ledger=inherited.ledger,
            log=self._log,
            denials=Denials(self._log),
            free_records=[],
            exhausted=self._pause,
        )
        self._sources = SourceCounts(inherited.ledger, self._log)
        self._left = left
        self._records: list[FlowRecord] = []  # a predecessor's
        self._ports = OpenPorts(self._context, self._on_error, self._after)
        self._gates: dict[str, Gate] = {}
        self._resume_at_s = 0.0
        self._fast_timer: asyncio.TimerHandle | None = None
        self._pause_said_s = -PAUSE_SAID_S
        self._ending = Ending(self._context, self._ports, lambda: self._snapshot.drain_s, self._cut, self._after)
        self._answer = messages.READY  # the first time
        self._redecision = Redecision(self._cut, self._after, self._decided)
        self._stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Work until drained."""
        loop = self._loop
        self._take_stock(self._inherited)
        self._ledger[Word.PID] = os.getpid()
        self._context.beat()
        self._ledger[Word.PIPES] = 0
        self._context.share.leave()  # until all are here
        self._make_gates()
        adopted = self._adopt()
        self._share()
        self._ledger[Word.PROGRAM] = self._program
        self._rewire()
        if not self._context.mover.copies:
            message = (
                "the kernel locks no memory (LimitMEMLOCK= of the unit): small messages are spliced, which costs more"
            )
            self._log.event("warning", "not copied", message=message)
        gc.freeze()
        gc.enable()  # see `main`
        if until_ns := self._drain_until():  # a predecessor was draining
            self._ending.begin(until_ns / 1e9)
        self._ending.follow_keeper(self._keeper_pid)
        # Not at once: the snapshot that wants them may still be on its way to us.
        loop.call_later(SETTLE_S, self._ports.close_unwanted)
        loop.add_signal_handler(signal.SIGTERM, self._ending.on_term)
        if (give := self._inherited.give) is not None:
            loop.add_signal_handler(signal.SIGUSR2, Giving(self._inherited.called, give, self._log).on_call)
            process.unblock()
        loop.add_reader(self._poller.fileno(), self._serve)
        loop.add_reader(self._control.fileno(), self._on_control)
        loop.call_later(STEADY_S, self._ledger.__setitem__, Word.CRASHES, 0)
        # Not at once: it looks at every flow, and the peers of those that were taken over have waited long enough.
        loop.call_later(FAST_TICK_S, self._tick)
        self._serve()
        # Only now: a message wakes the process that it is for, which may take this one's CPU.
        if self._ledger[Word.RESTARTS] or adopted["flows"]:
            self._log.event("info", "adopted", **adopted)
        self._apply()
        await self._stopped.wait()
        # An integer descriptor that is closed while registered aborts the process under uvloop: remove first.
        loop.remove_reader(self._poller.fileno())
        loop.remove_reader(self._control.fileno())
        self._ending.unfollow()
        self._poller.shut()
        self._log.flush()

    def _take_stock(self, inherited: WorkerInherits) -> None:
        """Find what a predecessor left, once it is this worker's."""
        self._left -= inherited.begins()
        if snapshot_fd := inherited.ledger[Word.SNAPSHOT_FD]:
            self._left.discard(snapshot_fd)
            self._snapshot = snapshot_in_force(inherited)
            self._log.level = self._snapshot.log_level
        self._records = list(inherited.ledger.flows())
        high, context = inherited.ledger[Word.FLOWS_HIGH], self._context
        context.free_records, context.unused_records = free_records(self._records, high, self._capacity)
        self._sources.clear()
        self._left -= self._ports.find(self._left - held_by(self._records))

    # --- the data plane -----------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._poller.serve()
        self._after()

    def _after(self) -> None:
        """After anything that may have changed what the ticks must look at."""
        self._poller.bury()
        self._log.flush()
        context = self._context
        is_paused = 0.0 < self._resume_at_s < math.inf
        if self._fast_timer is None and (context.waiting or context.starved or context.left or is_paused):
            self._fast_timer = self._loop.call_later(FAST_TICK_S, self._fast_tick)
        if self._ending.deadline_s is not None and self._ending.over(self._inbound()):
            self._stopped.set()

    def _fast_tick(self) -> None:
        self._fast_timer = None
        now_s = time.monotonic()
        for flow in list(self._context.waiting):
            self._guard(flow, flow.stage.tick, now_s)
        starved, self._context.starved = self._context.starved, set()
        for flow in starved:
            self._guard(flow, flow.stage.watch)
        for take in list(self._context.left):
            try:
                if take in self._context.left:  # a pause empties it
                    take()
            except Exception as error:  # of one connection, as in the poller; the next tick has the others
                self._on_error(take, error)
        if self._resume_at_s and now_s >= self._resume_at_s:
            self._resume_at_s = 0.0
            self._share()
            self._ports.resume()
        self._after()

    def _tick(self) -> None:
        now_s = time.monotonic()
        self._context.beat()
        dropped, self._log.dropped = self._log.dropped, 0
        self._ledger[Word.LOG_DROPPED] += dropped
        if self._index == 0 and not self._drain_until():  # from then on newcomers are dropped too, see `turn_away`
            for listener in self._ports.listeners.values():
                listener.count_dropped()
        self._context.share.look(time.monotonic_ns())
        self._context.denials.tick()
        for flow in list(self._context.flows):
            self._guard(flow, flow.stage.sweep, now_s)
        self._ending.look(now_s)
        self._after()
        waits = [(row.idle_s, SWEEP_PER_IDLE) for row in self._snapshot.endpoints]
        waits += [(row.lifetime_s, SWEEP_PER_LIFETIME) for row in self._snapshot.endpoints]
        shortest_s = min([TICK_S, *(time_s / parts for time_s, parts in waits if time_s is not None)])
        self._loop.call_later(max(FAST_TICK_S, shortest_s), self._tick)

    def _pause(self, why: str) -> None:
        """Stop accepting for a moment: `why` names what ran out."""
        now_s = time.monotonic()
        if not self._resume_at_s:
            self._ledger[Word.ACCEPT_PAUSES] += 1
            if now_s - self._pause_said_s >= PAUSE_SAID_S:
                self._pause_said_s = now_s
                self._log.event("warning", "accept paused", message=f"no more {why}", active=len(self._context.flows))
        self._resume_at_s = max(self._resume_at_s, now_s + PAUSE_S)
        self._share()  # before the others are woken
        self._ports.pause()

    def _share(self) -> None:
        """Have newcomers left to this worker, unless it takes none now."""
        if self._resume_at_s or self._ending.deadline_s is not None:
            self._context.share.leave()
        else:
            self._context.share.join(len(self._context.flows))

    # --- change -------------------------------------------------------------------------------------------------

    def _apply(self, *, came: bool = False) -> None:
        """Work by `self._snapshot` from now on, and ask about established connections again.

        `came`: it is a new one, and who is told that it is in force may open the ports that it has no use for.
        """
        self._log.level = self._snapshot.log_level
        self._make_gates()
        self._rewire()
        if came:
            self._ports.close_unwanted()
        self._redecision.begin(self._context.flows, self._declared(), self._snapshot.gone)

    def _declared(self) -> set[str]:
        return {row.name for row in self._snapshot.endpoints}

    def _cut(self, flow: Flow, cause: str) -> None:
        self._guard(flow, flow.cut, cause)

    def _decided(self) -> None:
        """Every connection is one that the snapshot in force lets in."""
        declared = self._declared()
        for name in [name for name in self._gates if name not in declared]:
            self._gates.pop(name).forget()
        self._ledger[Word.GENERATION] = self._snapshot.generation
        self._say_applied()

    def _make_gates(self) -> None:
        for row in self._snapshot.endpoints:
            if row.name in self._gates:
                self._gates[row.name].declare(row)
            else:
                self._gates[row.name] = Gate(row, self._ledger, self._sources)
        context, rows = self._context, self._snapshot.endpoints
        context.gates = {row.name: self._gates[row.name] for row in rows}
        context.relay_port = next((row.listen_port for row in rows if row.type == "relay"), 0)

    def _adopt(self) -> dict[str, Any]:
        """Take over what a predecessor left, at the first start nothing; what the log says of it."""
        everywhere = {address: self._gates[row.name] for row in self._snapshot.endpoints for address in row.listens}
        listeners = self._ports.unserved(everywhere)
        began_s = time.monotonic()
        gates = {gate.declared.slot: gate for gate in self._gates.values()}

        records, self._records = self._records, []
        serve = self._poller.serve  # and not `_serve`: accepting, ticks and the end of a drain wait until all are here
        here = self._context, self._pool, gates, listeners, records, self._left
        adopted = Adoption(*here, self._ports.find, serve, self._fail).run()
        return {"flows": adopted, "took_s": round(time.monotonic() - began_s, 6)}

    def _rewire(self) -> None:
        """Listen exactly where the snapshot says; while draining, at doors out that are still open."""
        draining = self._ending.deadline_s is not None
        rows = [row for row in self._snapshot.endpoints if row.leads_to or not draining]
        wanted = {address: self._gates[row.name] for row in rows for address in row.listens}
        missing = self._ports.serve(wanted)
        if draining or self._drain_until():  # a predecessor has closed it
            missing = []
        self._ledger[Word.UNSERVED] = len(missing)
        for address in missing:
            name = wanted[address].declared.name
            self._log.event("error", "bug", message=f"no socket for {address}, where {name} listens")
        if not self._resume_at_s:
            self._ports.resume()

    def _on_control(self) -> None:
        while (received := channel.receive(self._control)) is not None:
            message, fds = received
            if (kind := messages.kind_of(message)) == messages.LISTENERS:
                self._ports.add(message["addresses"], fds)
            elif kind == messages.SNAPSHOT:
                self._take_snapshot(fds)
            elif kind == messages.BUSY:
                tell_all(self._context)
        self._after()

    def _take_snapshot(self, fds: list[int]) -> None:
        try:
            snapshot = Snapshot.from_json(memory.read(fds[0]))
        except ValueError as error:  # of a control process that was replaced meanwhile; the next one sends its own
            os.close(fds[0])
            if isinstance(error, LaterFormatError):
                self._be_outdated()
            return
        if snapshot.generation > self._snapshot.generation:
            # The file stays open, so that a successor finds it. First the new one, then the old one goes.
            before, self._ledger[Word.SNAPSHOT_FD] = self._ledger[Word.SNAPSHOT_FD], fds[0]
            if before:
                os.close(before)
            self._snapshot = snapshot
            self._apply(came=True)
        else:
            os.close(fds[0])
            self._ports.close_unwanted()
            self._say_applied()

    def _be_outdated(self) -> None:
        """Let nobody in by rules that are not in force: control is of a later program, and this worker is to be replaced."""
        if self._resume_at_s != math.inf:
            message = (
                "this worker is of the program before, and cannot read the rules in force: it accepts nobody any more"
            )
            self._log.event("warning", "outdated", message=message)
        self._resume_at_s = math.inf
        self._share()
        self._ports.pause()

    def _say_applied(self) -> None:
        channel.send(self._control, messages.works(self._index, self._answer, self._snapshot.generation))
        self._answer = messages.APPLIED

    def _inbound(self) -> int:
        """How many connections are open that did not come by a door out."""
        gates = (gate for gate in self._gates.values() if not gate.declared.leads_to)
        return sum(self._ledger.words[gate.counts_at + Count.ACTIVE] for gate in gates)

    # --- trouble ------------------------------------------------------------------------------------------------

    def _guard(self, flow: Flow, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except Exception as error:
            self._fail(flow, error)

    def _on_error(self, handler: Handler | Callable[[], None], error: Exception) -> None:
        self._fail(handler.flow if isinstance(handler, Stage) else None, error)

    def _fail(self, flow: Flow | None, error: Exception) -> None:
        """A bug in the handling of one flow ends that flow, loudly, and no other."""
        text = "".join(traceback.format_exception(error))
        self._log.event("error", "bug", message="relay failed a connection; please report this", traceback=text)
        if flow is not None:
            with contextlib.suppress(Exception):
                flow.cut("error")


def main(inherited: WorkerInherits, flows: int) -> None:
    """Be a worker until drained. Runs in a process of its own, which shares its descriptors with its holder."""
    # While a worker takes flows over it makes thousands of objects, and the collector would look through them again and
    # again. None of them is garbage: `run` spares it looking at them at all.
    gc.disable()
    inherited.ledger[Word.HEARTBEAT_NS] = time.monotonic_ns()  # first of all: from here on it may hang
    # Before anything is opened here: what is open and not the holder's own was a predecessor's.
    left = other_descriptors(inherited.baseline)
    if WALK:
        faults.install(inherited.ledger, Logger(inherited.log_sink, f"worker-{inherited.index}", "error"), WALK)

    async def work() -> None:
        await Worker(inherited, flows, left).run()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work())
