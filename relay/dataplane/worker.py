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
from relay.dataplane.context import Context, OpenFlow, Stage
from relay.dataplane.denials import Denials
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
from relay.ledger.ledger import FlowRecord
from relay.log import Logger

TICK_S: Final = 1.0  # heartbeat, byte counts into the ledger, idle flows
FAST_TICK_S: Final = 0.05  # deadlines of stages, and pauses; runs only while there are any
SWEEP_PER_IDLE: Final = 4  # an idle timeout is noticed at most a quarter of itself too late
SETTLE_S: Final = 2.0  # control's messages of one reload come within milliseconds of each other
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
        self._sources = SourceCounts(inherited.ledger)
        self._left = left
        self._records: list[FlowRecord] = []  # a predecessor's
        self._ports = OpenPorts(self._context, self._on_error, self._after)
        self._gates: dict[str, Gate] = {}
        self._resume_at_s = 0.0
        self._fast_timer: asyncio.TimerHandle | None = None
        self._pause_said_s = -PAUSE_SAID_S
        self._drain_deadline_s: float | None = None
        self._answer = messages.READY  # the first time
        self._redecision = Redecision(self._cut, self._after, self._decided)
        self._stopped = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Work until drained."""
        loop = self._loop
        self._take_stock(self._inherited)
        self._ledger[Word.PID] = os.getpid()
        self._ledger[Word.HEARTBEAT_NS] = time.monotonic_ns()
        self._ledger[Word.PIPES] = 0
        self._context.share.leave()  # until all are here
        self._make_gates()
        adopted = self._adopt()
        self._share()
        self._ledger[Word.PROGRAM] = self._program
        self._rewire()
        gc.freeze()
        gc.enable()  # see `main`
        if until_ns := self._drain_until():  # a predecessor was draining
            self._drain(until_ns / 1e9)
        # Not at once: the snapshot that wants them may still be on its way to us.
        loop.call_later(SETTLE_S, self._ports.close_unwanted)
        loop.add_signal_handler(signal.SIGTERM, self._on_term)
        if (give := self._inherited.give) is not None:
            loop.add_signal_handler(signal.SIGUSR2, Giving(self._inherited.called, give, self._log).on_call)
            process.unblock()
        loop.add_reader(self._poller.fileno(), self._serve)
        loop.add_reader(self._control.fileno(), self._on_control)
        # Not at once: it looks at every flow, and the peers of those that were taken over have waited long enough.
        loop.call_later(FAST_TICK_S, self._tick)
        self._serve()
        # Only now: a message wakes the process that it is for, which may take this one's CPU.
        if self._ledger[Word.RESTARTS]:
            self._log.event("info", "adopted", **adopted)
        self._apply()
        await self._stopped.wait()
        # An integer descriptor that is closed while registered aborts the process under uvloop: remove first.
        loop.remove_reader(self._poller.fileno())
        loop.remove_reader(self._control.fileno())
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
        if self._drain_deadline_s is not None:
            # Who is still about to be let in may have to ask its database.
            if self._ports.listeners and not self._ports.closing and not self._inbound():
                self._ports.close(self._ports.listeners)
            if len(context.flows) == len(context.lines) and not self._ports.closing:
                for line in list(context.lines):
                    self._cut(line, "drain")
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
        self._ledger[Word.HEARTBEAT_NS] = time.monotonic_ns()
        dropped, self._log.dropped = self._log.dropped, 0
        self._ledger[Word.LOG_DROPPED] += dropped
        if self._index == 0 and not self._drain_until():  # from then on newcomers are dropped too, see `turn_away`
            for listener in self._ports.listeners.values():
                listener.count_dropped()
        self._context.share.look(time.monotonic_ns())
        self._context.denials.tick()
        for flow in list(self._context.flows):
            self._guard(flow, flow.stage.sweep, now_s)
        if self._drain_deadline_s is not None and now_s >= self._drain_deadline_s:
            self._cut_all("drain")
        self._after()
        idle = [row.idle_s for row in self._snapshot.endpoints if row.idle_s is not None]
        shortest_s = min([TICK_S, *(idle_s / SWEEP_PER_IDLE for idle_s in idle)])
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
        if self._resume_at_s or self._drain_deadline_s is not None:
            self._context.share.leave()
        else:
            self._context.share.join(len(self._context.flows))

    # --- change -------------------------------------------------------------------------------------------------

    def _apply(self) -> None:
        """Work by `self._snapshot` from now on, and ask about established connections again."""
        self._log.level = self._snapshot.log_level
        self._make_gates()
        self._rewire()
        self._redecision.begin(self._context.flows, self._declared(), self._snapshot.gone)

    def _declared(self) -> set[str]:
        return {row.name for row in self._snapshot.endpoints}

    def _cut(self, flow: OpenFlow, cause: str) -> None:
        self._guard(flow, flow.cut, cause)

    def _decided(self) -> None:
        """Every connection is one that the snapshot in force lets in."""
        declared = self._declared()
        for name in [name for name in self._gates if name not in declared]:
            self._ledger.clear(self._gates.pop(name).declared.slot)
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
        draining = self._drain_deadline_s is not None
        rows = [row for row in self._snapshot.endpoints if row.leads_to or not draining]
        wanted = {address: self._gates[row.name] for row in rows for address in row.listens}
        for address in self._ports.serve(wanted):
            if not draining and not self._drain_until():  # a predecessor has closed it
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
            self._apply()
        else:
            os.close(fds[0])
            self._say_applied()
        self._ports.close_unwanted()

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

    # --- the end ------------------------------------------------------------------------------------------------

    def _on_term(self) -> None:
        # The ledger says how long, and a second stop moves that into the past: signals may merge, a word does not. And a
        # worker that is just started may find the word before the signal comes, which then is still the first stop's.
        until_s, now_s = self._drain_until() / 1e9, time.monotonic()
        if self._drain_deadline_s is None:
            self._drain(until_s or now_s + self._snapshot.drain_s)
        elif until_s <= now_s:
            self._cut_all("drain")

    def _drain(self, until_s: float) -> None:
        """Accept no more, and end when the last connection has; cut those that are open at `until_s`.

        Doors out close when the last connection from outside has ended: who serves it may have to ask its database. But
        without a keeper all close at once, for the one that takes its place needs their ports.
        """
        self._drain_deadline_s = until_s
        tell_all(self._context)
        self._share()
        stay = bool(self._drain_until())
        open_now = self._ports.listeners.items()
        leaving = [at for at, each in open_now if not (stay and each.gate.declared.leads_to)]
        self._ports.close(leaving, at_once=not stay)
        self._loop.call_later(max(0.0, until_s - time.monotonic()), self._cut_all, "drain")
        self._after()

    def _inbound(self) -> int:
        """How many connections are open that did not come by a door out."""
        gates = (gate for gate in self._gates.values() if not gate.declared.leads_to)
        return sum(self._ledger.words[gate.counts_at + Count.ACTIVE] for gate in gates)

    def _cut_all(self, cause: str) -> None:
        for flow in list(self._context.flows):
            self._guard(flow, flow.cut, cause)
        self._after()

    # --- trouble ------------------------------------------------------------------------------------------------

    def _guard(self, flow: OpenFlow, step: Callable[..., None], *arguments: object) -> None:
        try:
            step(*arguments)
        except Exception as error:
            self._fail(flow, error)

    def _on_error(self, handler: Handler | Callable[[], None], error: Exception) -> None:
        owner = getattr(handler, "__self__", None)
        self._fail(owner.flow if isinstance(owner, Stage) else None, error)

    def _fail(self, flow: OpenFlow | None, error: Exception) -> None:
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
    # Before anything is opened here: what is open and not the holder's own was a predecessor's.
    left = other_descriptors(inherited.baseline)
    if walk := os.environ.get("RELAY_FAULT"):
        from relay.dataplane import faults

        faults.install(inherited.ledger, Logger(inherited.log_sink, f"worker-{inherited.index}", "error"), walk)

    async def work() -> None:
        await Worker(inherited, flows, left).run()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work())
