"""The control process: configuration, admin API, metrics, and the log's pen. Forwarding goes on without it."""

import asyncio
import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final

from relay import log as logging
from relay.config.roster import Member, difference
from relay.control import admin, answers, done
from relay.control.admin_socket import AdminSocket
from relay.control.delivery import Delivery
from relay.control.draining import told
from relay.control.explain import explain_in, route_in
from relay.control.holds import hold
from relay.control.in_force import InForce
from relay.control.inherits import ControlInherits
from relay.control.lines import Lines
from relay.control.looking import Looker, forget_newcomers
from relay.control.metrics import LedgerCollector
from relay.control.name_service import Naming
from relay.control.registry_follower import Follower
from relay.control.reload import Prepared, back, follow, reload, service_of, weigh
from relay.control.replacing import Replacing
from relay.control.routes import Discovery
from relay.control.senders import ToldStatus
from relay.control.sources_follower import SourcesFollower
from relay.control.standing import STEADY_S, standing
from relay.control.status import busy, connections, is_draining, status
from relay.control.troubles import unserved
from relay.control.upgrading import Upgrading
from relay.control.weighing import keep, keep_in_force, weighed_now, with_one
from relay.errors import ConfigError, OperatorError, ReplacedError, os_reason
from relay.fleet.numbering import everybody
from relay.kernel import channel, messages
from relay.kernel.aside import aside
from relay.kernel.listening import close_all
from relay.kernel.loop import loop_factory
from relay.kernel.pace import to_next
from relay.ledger import clocks
from relay.ledger.layout import DaemonWord
from relay.log import Logger

_REFRESH_S: Final = 1.0  # a target that is down is looked at as often


class Control:
    """The control process's state. `run` returns on SIGTERM."""

    def __init__(self, inherited: ControlInherits) -> None:
        self._inherited = inherited
        self._in_force = InForce(service_of(inherited.snapshot, inherited.service), inherited.snapshot)
        self._ledger = inherited.ledger
        # Also here: until now a control of the program before may have begun a drain.
        clocks.take_over(self._ledger.words)
        self._log = Logger(inherited.log_sink, "control", inherited.snapshot.log_level)
        self._loop = asyncio.get_running_loop()
        self._reloading = asyncio.Lock()
        self._trying = asyncio.Lock()  # each has a thread of its own, however many ask
        self._delivery = Delivery(inherited.keeper, inherited.workers, inherited.ledger, self._log)
        self._said = ""  # to the keeper, last
        self._stopped = asyncio.Event()
        self._began_s = self._loop.time()
        self._upgrading = Upgrading(inherited.ledger, self._loop.time, self._stopped)
        self._replacing = Replacing(inherited, self._in_force, self._upgrading, self._reloading, self._log)
        self._tasks: set[asyncio.Task[None]] = set()
        self._looker = Looker(inherited.ledger, self._log)
        self._lines = Lines(inherited.ledger, self._log, self._looker)
        self._discovery = Discovery(inherited.ledger, inherited.settings, self._in_force)
        self._naming = Naming(inherited.settings.names, inherited.ledger, self._log)
        self._follower: Follower | None = None
        here = inherited.settings, self._in_force, inherited.ledger, self._log
        self._sources = SourcesFollower(*here, partial(self._roster, None))

    async def run(self) -> None:
        """Serve until SIGTERM."""
        inherited, loop = self._inherited, self._loop
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        loop.add_reader(inherited.keeper.fileno(), self._on_keeper)
        for sock in inherited.workers:
            loop.add_reader(sock.fileno(), self._on_worker, sock)
        serving = [
            await admin.serve_admin(
                inherited.listeners["admin"],
                status=self._status,
                connections=self._connections,
                explain=partial(explain_in, self._in_force),
                route=partial(route_in, self._in_force, self._ledger),
                drain=self._drain,
                hold=partial(hold, self._ledger, self._in_force, self._log),
                weigh=self._weigh,
                reload=self._reload,
                dry_run=self._dry_run,
                upgrade=self._replacing.upgrade,
                discovery=self._discovery,
                log=self._log,
            )
        ]
        if (listener := inherited.listeners.get("discovery")) is not None:
            serving.append(await admin.serve_discovery(listener, self._discovery, self._log))
        if (listener := inherited.listeners.get("metrics")) is not None:
            collector = LedgerCollector(self._ledger, self._in_force, self._sources.status)
            serving.append(await admin.serve_metrics(listener, collector, self._log))
        self._admin_socket = AdminSocket(inherited.settings.admin.socket, serving[0], self._hand_socket, self._log)
        self._follow_names()
        if "names/udp" in inherited.listeners:
            await self._naming.serve(inherited.listeners["names/udp"], inherited.listeners["names/tcp"])
        self._looker.follow(self._in_force.snapshot)
        self._lines.follow(self._in_force.snapshot)
        self._sources.follow()
        self._delivery.catch_up(self._in_force.snapshot)
        self._announce()
        await self._work_until_stopped()
        await self._looker.end()
        if self._follower is not None:
            await self._follower.close(leave=is_draining(self._ledger))
        await self._naming.end()
        for each in serving:
            await each.cleanup()
        for sock in (inherited.keeper, *inherited.workers):
            loop.remove_reader(sock.fileno())

    async def _work_until_stopped(self) -> None:
        """Carry on what changes by itself: health and names, and the roster where a registry tells it."""
        async with asyncio.TaskGroup() as group:
            going = [
                group.create_task(self._refresh(), name="refresh"),
                group.create_task(self._admin_socket.run(), name="admin socket"),
                group.create_task(self._looker.run(), name="look at targets"),
                group.create_task(self._lines.run(), name="lines"),
                group.create_task(self._follow_registry(), name="follow the registry"),
                group.create_task(self._sources.run(), name="follow sources"),
                group.create_task(self._keep_weights(), name="keep weights"),
            ]
            await self._stopped.wait()
            for task in going:
                task.cancel()

    async def _refresh(self) -> None:
        """Health and crashes stand in the ledger, where others write them, so they have to be looked for."""
        while True:
            self._ledger.words[DaemonWord.CONTROL_BEAT_NS] = time.monotonic_ns()
            await asyncio.sleep(to_next(_REFRESH_S))
            if not self._reloading.locked():
                self._announce()
            self._follow_names()

    def _follow_names(self) -> None:
        if self._naming.is_wanted:
            self._naming.follow(self._discovery.fleet())

    # --- reload -------------------------------------------------------------------------------------------------

    async def _reload(self) -> done.Reloaded:
        """Put the files in force, also in the midst of an upgrade. Raises OperatorError, and then nothing has changed."""
        async with self._reloading:
            await self._upgrading.settle()
            if is_draining(self._ledger):
                raise OperatorError("relay is stopping; nothing is reloaded")
            self._tell_keeper(messages.plain(messages.RELOADING))
            self._admin_socket.look_soon()
            try:
                prepared = await aside(self._prepare)
                if is_draining(self._ledger):  # meanwhile
                    close_all(prepared.opened)
                    raise OperatorError("relay is stopping; nothing is reloaded")
                answer = await self._put_in_force(prepared)
                clocks.put_now(self._ledger.words, DaemonWord.RELOAD_OK_AT_MONOTONIC_NS)
                self._ledger.words[DaemonWord.RELOAD_OK] = 1
            except OSError as error:
                raise self._failed(OperatorError(f"cannot reload: {os_reason(error)}")) from error
            except OperatorError as error:
                raise self._failed(error) from None
            self._announce()
            self._log.event("info", "reloaded", **answer)
            for warning in (*prepared.warnings, *prepared.notes):  # as at the start: each time it is put in force
                self._log.event("warning", "configuration", message=str(warning))
            return answer

    async def _weigh(self, name: str, target: str, weight: int | None) -> done.Weighed:
        """Give a target of an endpoint this weight; None: the file's. Raises OperatorError, and then nothing has changed."""
        async with self._reloading:
            await self._upgrading.settle()
            if is_draining(self._ledger):
                raise OperatorError("relay is stopping; nothing is changed")
            snapshot, settings = self._in_force.snapshot, self._inherited.settings
            weights, found = with_one(snapshot, name, target, weight)
            await self._put_in_force(await aside(partial(weigh, settings, self._in_force, weights)))
            trouble = await aside(partial(keep, settings, snapshot.service, weights))
        self._announce()
        answer = weighed_now(self._in_force.snapshot, name, found, trouble)
        self._log.event("warning" if trouble else "info", "weight", **answer)
        return answer

    async def _keep_weights(self) -> None:
        """A control process before this one may have been killed when new weights were in force, and not written down yet."""
        words = self._ledger.words
        if not (words[DaemonWord.CONTROL_RESTARTS] or words[DaemonWord.PROGRAM]):
            return
        with contextlib.suppress(OperatorError):  # no thread is to be had now: the next control tries it again
            async with self._reloading:
                snapshot, settings = self._in_force.snapshot, self._inherited.settings
                if trouble := await aside(partial(keep_in_force, settings, snapshot)):
                    message = f"{trouble}. A restart of relay would forget the weights that were set by hand"
                    self._log.event("warning", "configuration", message=message)

    async def _dry_run(self) -> done.WouldReload:
        """What a reload would do. Raises OperatorError as the reload would."""
        async with self._trying:
            return await aside(self._would)

    def _would(self) -> done.WouldReload:
        prepared = self._prepare(dry_run=True)
        return prepared.would_be(self._in_force.snapshot, self._connections())

    def _failed(self, error: OperatorError) -> OperatorError:
        """Say everywhere that the former configuration stands."""
        self._ledger.words[DaemonWord.RELOAD_OK] = 0
        self._ledger.words[DaemonWord.RELOADS_FAILED] += 1
        self._announce()
        problems = error.problems if isinstance(error, ConfigError) else [error]
        self._log.event("error", "reload failed", message=str(error), problems=[str(each) for each in problems])
        return error

    def _prepare(self, *, dry_run: bool = False) -> Prepared:
        inherited = self._inherited
        return reload(inherited.files, inherited.settings, self._in_force, self._registered(), dry_run=dry_run)

    async def _put_in_force(self, prepared: Prepared) -> done.Reloaded:
        """Hand a prepared configuration to the keeper, which outlives us, and then to the workers."""
        before = self._in_force.snapshot, self._in_force.loaded
        late = await self._hand_out(prepared)
        if lost := unserved(self._ledger, prepared.snapshot.generation):
            await self._hand_out(back(self._inherited.settings, *before, prepared.snapshot, lost))
            raise OperatorError(f"{lost}. What stood before stands again")
        return prepared.told(prepared.snapshot.generation, *self._upgrading.notes(late))

    async def _hand_out(self, prepared: Prepared) -> list[int]:
        snapshot = prepared.snapshot
        parcel = await self._delivery.pack(snapshot, prepared.opened)  # what can fail, before anything has changed
        # Before a worker can send one of them anybody.
        forget_newcomers(self._ledger, self._in_force.snapshot, snapshot)
        self._in_force.snapshot, self._in_force.loaded = snapshot, prepared.service
        late = await self._delivery.deliver(parcel)
        self._log.level = snapshot.log_level
        self._looker.follow(snapshot)
        self._lines.follow(snapshot)
        self._sources.follow()
        self._discovery.changed()
        self._follow_names()
        return late

    # --- the roster ---------------------------------------------------------------------------------------------

    async def _roster(self, registered: tuple[Member, ...] | None, gone: tuple[str, ...] | None = None) -> str:
        """Put in force who is registered and which addresses are gone, by the files that are; why that cannot be, or "".

        None: as it is known. Who is there by names and files is as their follower has it.
        """
        trouble = ""
        async with self._reloading:
            if is_draining(self._ledger) or self._upgrading.is_being_replaced:
                return ""  # we are called again
            before, service = self._in_force.roster, self._in_force.service
            registered = self._registered() if registered is None else registered
            members = everybody(service, registered, self._sources.members(service))
            gone = self._in_force.snapshot.gone if gone is None else gone
            try:
                changed = partial(follow, self._inherited.settings, self._in_force, members, gone)
                prepared = await self._loop.run_in_executor(None, changed)
                if prepared is not None:
                    answer = await self._put_in_force(prepared)
                    facts = difference(before, self._in_force.roster, prepared.snapshot.gone)
                    self._log.event("info", "roster", generation=answer["generation"], **facts)
            except OperatorError as error:
                trouble = "; ".join(str(error).splitlines())
            except OSError as error:
                trouble = os_reason(error)
        self._announce()  # workers that began to work meanwhile were not heard
        return trouble

    async def _follow_registry(self) -> None:
        """Follow the registry that the settings name, if they name one."""
        inherited = self._inherited
        if inherited.settings.registry is not None:
            here = inherited.settings, self._in_force, os.getppid(), self._ledger, self._log
            self._follower = await Follower.begun(*here, self._roster)
            await self._follower.run()

    def _registered(self) -> tuple[Member, ...]:
        """Whom the registry tells of. Before it has told anything, those who are there."""
        told = self._follower.members if self._follower is not None else ()
        return told or self._in_force.roster.members

    # --- what others say ----------------------------------------------------------------------------------------

    def _on_worker(self, sock: socket.socket) -> None:
        while (received := channel.receive(sock)) is not None:
            message, _ = received
            self._delivery.heard(sock, message, self._in_force.snapshot)
        if not self._reloading.locked():
            self._announce()

    def _on_keeper(self) -> None:
        while (received := channel.receive(self._inherited.keeper)) is not None:
            message, _ = received
            kind = messages.kind_of(message)
            if kind == messages.HOLDS:
                self._delivery.keeper_holds()
            elif kind == messages.FAILED:
                self._upgrading.heard(message["message"])
                self._announce()
            doing = {messages.RELOAD: self._reload, messages.UPGRADE: self._replacing.upgrade}.get(kind)
            if doing is not None:
                task = self._loop.create_task(self._by_signal(doing), name=f"{kind} by signal")
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _by_signal(self, doing: Callable[[], Awaitable[object]]) -> None:
        try:
            await doing()
        except ReplacedError:
            self._tell_keeper(messages.plain(messages.RELOAD))  # for the next one
        except OperatorError:
            return  # logged and counted where it happened; a signal has nobody to answer to

    def _hand_socket(self, listener: socket.socket) -> bool:
        return channel.send(self._inherited.keeper, messages.serves("admin"), (listener.fileno(),))

    def _tell_keeper(self, message: dict[str, Any]) -> None:
        channel.send(self._inherited.keeper, message)
        self._said = message.get("status", "")

    def _announce(self) -> None:
        """Tell the keeper, and through it systemd, how things stand, once all workers are at work."""
        snapshot = self._in_force.snapshot
        starting = bool(self._delivery.behind(snapshot.generation)) or self._upgrading.is_awaited
        message = standing(self._ledger, snapshot, self._crashes(), self._upgrading.text(), starting=starting)
        if not is_draining(self._ledger) and message["status"] not in ("", self._said):
            self._tell_keeper(message)

    def _crashes(self) -> int:
        """How often in a row control has ended at its start; this one has not, once it has lived for a while."""
        return self._inherited.crashes if self._loop.time() - self._began_s < STEADY_S else 0

    def _status(self) -> answers.Status:
        registry = self._follower.status(self._in_force.counted()) if self._follower is not None else None
        here = self._in_force.snapshot, os.getppid(), self._upgrading.program
        failed, crashes = self._upgrading.failed, self._crashes()
        sources = self._sources.status()
        return status(self._ledger, *here, registry, self._told(), failed, control_crashes=crashes, sources=sources)

    def _told(self) -> ToldStatus:
        return told(self._ledger, self._in_force, self._follower.told_busy if self._follower is not None else None)

    def _drain(self, for_s: float) -> done.Busy:
        """Refuse the edges' probes for so long, so that they send nobody; 0: answer them again."""
        clocks.put_busy(self._ledger.words, int(for_s * 1e9))
        self._log.event("info", "busy" if for_s else "not busy", for_s=for_s)
        for sock in self._inherited.workers:  # one that has no room for it looks by itself, within a second
            channel.send(sock, messages.plain(messages.BUSY))
        by_registry = self._follower is not None and self._follower.tells
        return busy(self._ledger, self._in_force.snapshot, self._told(), told=by_registry)

    def _connections(self) -> list[answers.Connection]:
        return connections(self._ledger, self._in_force.snapshot)


def main(inherited: ControlInherits) -> None:
    """Be the control process until SIGTERM. Runs in a process of its own."""
    # The log's pen: a thread, because standard error may block and nothing else may wait for it.
    pen = threading.Thread(
        target=logging.copy_forever,
        args=(inherited.log_source, inherited.settings.log.format),
        name="log",
        daemon=True,
    )
    pen.start()

    async def work() -> None:
        await Control(inherited).run()

    with asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(work())
    logging.end(inherited.log_sink)
    pen.join(timeout=1.0)
