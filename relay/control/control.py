"""The control process: configuration, admin API, metrics, and the log's pen. Forwarding goes on without it."""

import asyncio
import os
import signal
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from relay import __version__
from relay import log as logging
from relay.address import Address
from relay.config.roster import Member, difference
from relay.config.settings import Settings
from relay.config.snapshot import Snapshot
from relay.control import admin, answers, done, upgrade
from relay.control.delivery import Delivery
from relay.control.draining import told
from relay.control.explain import explain, find_endpoint, find_source, route, who_is_cut
from relay.control.holds import hold
from relay.control.in_force import InForce
from relay.control.lines import Lines
from relay.control.looking import Looker, forget_newcomers
from relay.control.metrics import LedgerCollector
from relay.control.name_service import Naming
from relay.control.registry_follower import Follower
from relay.control.reload import ConfigFiles, Prepared, follow, reload, service_of
from relay.control.routes import Discovery
from relay.control.senders import ToldStatus
from relay.control.status import busy, connections, is_draining, status, unguarded_text
from relay.control.upgrading import Upgrading
from relay.errors import ConfigError, OperatorError, ReplacedError, os_reason
from relay.kernel import channel, memory, messages
from relay.kernel.listening import close_all
from relay.kernel.loop import loop_factory
from relay.ledger.layout import DaemonWord, Word
from relay.ledger.ledger import Ledger
from relay.log import Logger

_TRIALS: Final = 5  # of an upgrade: what they were told may be old when they have come to their end
_AGAIN_S: Final = 5.0  # to the next try where the registry's own files cannot be read
_REFRESH_S: Final = 1.0  # a target that is down is looked at as often


@dataclass(frozen=True, slots=True)
class ControlInherits:
    """What the keeper gives a new control process."""

    files: ConfigFiles
    settings: Settings
    snapshot: Snapshot
    ledger: Ledger
    keeper: socket.socket
    workers: tuple[socket.socket, ...]
    log_sink: socket.socket
    log_source: socket.socket
    listeners: dict[str, socket.socket]  # by what is served there: admin, metrics, discovery


class Control:
    """The control process's state. `run` returns on SIGTERM."""

    def __init__(self, inherited: ControlInherits) -> None:
        self._inherited = inherited
        self._in_force = InForce(service_of(inherited.snapshot), inherited.snapshot)
        self._ledger = inherited.ledger
        self._log = Logger(inherited.log_sink, "control", inherited.snapshot.log_level)
        self._loop = asyncio.get_running_loop()
        self._reloading = asyncio.Lock()
        self._delivery = Delivery(inherited.keeper, inherited.workers, inherited.ledger, self._log)
        self._said = ""  # to the keeper, last
        self._stopped = asyncio.Event()
        self._upgrading = Upgrading(inherited.ledger, self._loop.time, self._stopped)
        self._tasks: set[asyncio.Task[None]] = set()
        self._looker = Looker(inherited.ledger, self._log)
        self._lines = Lines(inherited.ledger, self._log, self._looker)
        self._discovery = Discovery(inherited.ledger, inherited.settings, self._in_force)
        self._naming = Naming(inherited.settings.names, inherited.ledger, self._log)
        self._follower: Follower | None = None

    async def run(self) -> None:
        """Serve until SIGTERM."""
        inherited, loop = self._inherited, self._loop
        loop.add_signal_handler(signal.SIGTERM, self._stopped.set)
        loop.add_reader(inherited.keeper.fileno(), self._on_keeper)
        for sock in inherited.workers:
            loop.add_reader(sock.fileno(), self._on_worker, sock)
        runners = [
            await admin.serve_admin(
                inherited.listeners["admin"],
                status=self._status,
                connections=self._connections,
                explain=self._explain,
                route=self._route,
                drain=self._drain,
                hold=partial(hold, self._ledger, self._in_force, self._log),
                reload=self._reload,
                dry_run=self._dry_run,
                upgrade=self._upgrade,
                discovery=self._discovery,
            )
        ]
        if (listener := inherited.listeners.get("discovery")) is not None:
            runners.append(await admin.serve_discovery(listener, self._discovery))
        if (listener := inherited.listeners.get("metrics")) is not None:
            collector = LedgerCollector(self._ledger, self._in_force)
            runners.append(await admin.serve_metrics(listener, collector))
        self._naming.follow(self._discovery.fleet())
        if "names/udp" in inherited.listeners:
            await self._naming.serve(inherited.listeners["names/udp"], inherited.listeners["names/tcp"])
        self._looker.follow(self._in_force.snapshot)
        self._lines.follow(self._in_force.snapshot)
        self._delivery.catch_up(self._in_force.snapshot)
        self._announce()
        await self._work_until_stopped()
        await self._looker.end()
        if self._follower is not None:
            await self._follower.close(leave=is_draining(self._ledger))
        await self._naming.end()
        for runner in runners:
            await runner.cleanup()
        for sock in (inherited.keeper, *inherited.workers):
            loop.remove_reader(sock.fileno())

    async def _work_until_stopped(self) -> None:
        """Carry on what changes by itself: health and names, and the roster where a registry tells it."""
        async with asyncio.TaskGroup() as group:
            going = [
                group.create_task(self._refresh(), name="refresh"),
                group.create_task(self._looker.run(), name="look at targets"),
                group.create_task(self._lines.run(), name="lines"),
                group.create_task(self._follow_registry(), name="follow the registry"),
            ]
            await self._stopped.wait()
            for task in going:
                task.cancel()

    async def _refresh(self) -> None:
        """Health stands in the ledger, where others write it, so it has to be looked for."""
        while True:
            await asyncio.sleep(_REFRESH_S)
            if not self._reloading.locked():
                self._announce()  # how the workers are
            self._naming.follow(self._discovery.fleet())

    # --- reload -------------------------------------------------------------------------------------------------

    async def _reload(self) -> done.Reloaded:
        """Put the files in force, also in the midst of an upgrade. Raises OperatorError, and then nothing has changed."""
        async with self._reloading:
            await self._upgrading.settle()
            if is_draining(self._ledger):
                raise OperatorError("relay is stopping; nothing is reloaded")
            self._tell_keeper(messages.plain(messages.RELOADING))
            try:
                prepared = await self._loop.run_in_executor(None, self._prepare)
                if is_draining(self._ledger):  # meanwhile
                    close_all(prepared.opened)
                    raise OperatorError("relay is stopping; nothing is reloaded")
                answer = await self._put_in_force(prepared)
                self._ledger.words[DaemonWord.RELOAD_OK_AT_NS] = time.time_ns()
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

    async def _dry_run(self) -> done.WouldReload:
        """What a reload would do. Raises OperatorError as the reload would."""
        return await self._loop.run_in_executor(None, self._would)

    def _would(self) -> done.WouldReload:
        prepared = self._prepare(dry_run=True)
        open_now = ((each["endpoint"], each["peer"]) for each in self._connections())
        flows = ((name, Address.parse(peer).host) for name, peer in open_now)
        old = self._in_force.snapshot
        return {**prepared.told(old.generation), "cut": who_is_cut(flows, prepared.snapshot, old)}

    def _failed(self, error: OperatorError) -> OperatorError:
        """Say everywhere that the former configuration stands."""
        self._ledger.words[DaemonWord.RELOAD_OK] = 0
        self._ledger.words[DaemonWord.RELOADS_FAILED] += 1
        self._announce()
        self._log.event("error", "reload failed", message=str(error), problems=_lines(error))
        return error

    def _prepare(self, *, dry_run: bool = False) -> Prepared:
        inherited = self._inherited
        return reload(inherited.files, inherited.settings, self._in_force, self._registered(), dry_run=dry_run)

    async def _put_in_force(self, prepared: Prepared) -> done.Reloaded:
        """Hand a prepared configuration to the keeper, which outlives us, and then to the workers."""
        snapshot = prepared.snapshot
        parcel = await self._delivery.pack(snapshot, prepared.opened)  # what can fail, before anything has changed
        # Before a worker can send one of them anybody.
        forget_newcomers(self._ledger, self._in_force.snapshot, snapshot)
        self._in_force.snapshot, self._in_force.loaded = snapshot, prepared.service
        late = await self._delivery.deliver(parcel)
        self._log.level = snapshot.log_level
        self._looker.follow(snapshot)
        self._lines.follow(snapshot)
        self._discovery.changed()
        self._naming.follow(self._discovery.fleet())
        return prepared.told(snapshot.generation, *self._upgrading.notes(late))

    # --- the roster ---------------------------------------------------------------------------------------------

    async def _roster(self, members: tuple[Member, ...], gone: tuple[str, ...]) -> str:
        """Put in force who is registered and which addresses are gone, by the files that are; why that cannot be, or ""."""
        trouble = ""
        async with self._reloading:
            if is_draining(self._ledger) or self._upgrading.is_being_replaced:
                return ""  # we are called again
            before = self._in_force.roster
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
        inherited, said = self._inherited, ""
        if inherited.settings.registry is None:
            return
        while self._follower is None:
            try:
                here = inherited.settings, self._in_force, os.getppid(), self._ledger, self._log
                self._follower = Follower.of(*here, self._roster)
            except OperatorError as error:  # its files were right when the daemon started
                if str(error) != said:
                    said = str(error)
                    self._log.event("error", "registry", message=f"{said}; the last roster stays in force")
                await asyncio.sleep(_AGAIN_S)
        await self._follower.run()

    def _registered(self) -> tuple[Member, ...]:
        """Whom the registry tells of. Before it has told anything, those who are there."""
        told = self._follower.members if self._follower is not None else ()
        return told or self._in_force.roster.members

    # --- live upgrade -------------------------------------------------------------------------------------------

    async def _upgrade(self) -> done.Upgrading:
        """Try the installed code out and let the keeper replace its program. Raises OperatorError: nothing has changed."""
        ledger = self._ledger
        if is_draining(ledger):
            raise OperatorError("relay is stopping; nothing is upgraded")
        if any(ledger.worker(n)[Word.UNSHARED] for n in range(ledger.workers)):
            what = "a worker has no shared descriptor table (see the log), so its connections would be cut"
            raise OperatorError(f"{what}; restart relay instead: it lets open connections end first")
        try:
            with self._upgrading.beginning():
                for _ in range(_TRIALS):
                    if (version := await self._try_out()) is not None:
                        return {"from": __version__, "to": version, "program": ledger.words[DaemonWord.PROGRAM] + 1}
            what = "the configuration changed again and again while the installed code was tried out"
            raise OperatorError(f"{what}; nothing has changed: upgrade again")
        except OperatorError as error:
            self._log.event("error", "upgrade failed", message=str(error))
            raise

    async def _try_out(self) -> str | None:
        """The version that is installed: it starts, and the keeper is asked to go over to it. None: the trial is too old.

        No reload waits for it, so another snapshot may be in force when it has come to its end. Raises OperatorError.
        """
        inherited, snapshot, result = self._inherited, self._in_force.snapshot, memory.create("relay-trial")
        try:
            told = upgrade.facts(inherited.files, snapshot, inherited.settings, self._ledger.fd, result)
            version = await upgrade.try_out(told)
            async with self._reloading:
                if self._in_force.snapshot is not snapshot:
                    return None
                # From here on the keeper may be of the new program, which does not read what this one writes.
                self._upgrading.asked()
                channel.send(inherited.keeper, messages.plain(messages.UPGRADE), (result,))
                return version
        finally:
            os.close(result)

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
            doing = {messages.RELOAD: self._reload, messages.UPGRADE: self._upgrade}.get(kind)
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

    def _tell_keeper(self, message: dict[str, Any]) -> None:
        channel.send(self._inherited.keeper, message)
        self._said = message.get("status", "")

    def _announce(self) -> None:
        """Tell the keeper, and through it systemd, how things stand, once all workers are at work."""
        snapshot = self._in_force.snapshot
        if is_draining(self._ledger) or self._delivery.behind(snapshot.generation) or self._upgrading.is_awaited:
            return
        text = f"{snapshot.instance}: {len(snapshot.endpoints)} endpoints open, generation {snapshot.generation}"
        if not self._ledger.words[DaemonWord.RELOAD_OK]:
            text += "; the last reload failed, the former configuration stands"
        text += self._upgrading.text() + unguarded_text(self._ledger)
        if text != self._said:
            self._tell_keeper(messages.ready(text))

    def _status(self) -> answers.Status:
        registry = self._follower.status(self._in_force.counted()) if self._follower is not None else None
        here = self._in_force.snapshot, os.getppid(), self._upgrading.program
        return status(self._ledger, *here, registry, self._told(), self._upgrading.failed)

    def _told(self) -> ToldStatus:
        return told(self._ledger, self._in_force, self._follower.told_busy if self._follower is not None else None)

    def _explain(self, endpoint: str, address: str | None, instance: str | None) -> answers.Explanation:
        snapshot = self._in_force.snapshot
        return explain(find_endpoint(snapshot, endpoint), find_source(snapshot, address, instance))

    def _route(self, endpoint: str, client: str) -> answers.RouteAnswer:
        return route(find_endpoint(self._in_force.snapshot, endpoint), self._ledger, client)

    def _drain(self, for_s: float) -> done.Busy:
        """Refuse the edges' probes for so long, so that they send nobody; 0: answer them again."""
        until_ns = time.time_ns() + int(for_s * 1e9) if for_s else 0
        self._ledger.words[DaemonWord.BUSY_UNTIL_NS] = until_ns
        self._log.event("info", "busy" if for_s else "not busy", for_s=for_s)
        for sock in self._inherited.workers:  # one that has no room for it looks by itself, within a second
            channel.send(sock, messages.plain(messages.BUSY))
        by_registry = self._follower is not None and self._follower.tells
        return busy(self._ledger, self._in_force.snapshot, self._told(), told=by_registry)

    def _connections(self) -> list[answers.Connection]:
        return connections(self._ledger, self._in_force.snapshot)


def _lines(error: OperatorError) -> list[str]:
    return [str(problem) for problem in error.problems] if isinstance(error, ConfigError) else [str(error)]


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
