"""The keeper: the main process. It starts the others, starts them again, and holds what must outlive them.

It holds the ledger, the snapshot in force, the listening sockets and both ends of every channel; it forks, so a new
worker or control has all of that, and everything imported, in a few milliseconds. It has no threads and no event loop, reads
no file and parses nothing from outside.

At a live upgrade it replaces its own program by execve(2) and stays the same process: its children, its descriptors and the
signals that came meanwhile are still there (handover.py). Then the new code replaces control, and the holders one by one,
each by a successor that it forks (succession.py).
"""

import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

from relay import ENGINE, __version__, systemd
from relay.config.snapshot import Snapshot
from relay.kernel import channel, memory, messages, process
from relay.ledger import convert
from relay.ledger.layout import DaemonWord, Word
from relay.processes import handover
from relay.processes.child import Phase
from relay.processes.children import Children
from relay.processes.handover import Handover
from relay.processes.holder import KILL_AFTER_S
from relay.processes.hung import Hung
from relay.processes.inherited import Inherited
from relay.processes.renewal import LOOK_S, Renewal


class Keeper:
    """Runs one control process and the workers until told to stop. `run` returns the daemon's exit status."""

    def __init__(
        self, state: Inherited, control_main: Callable[[Inherited], None], before: Handover | None = None
    ) -> None:
        """`before`: what the program that this one replaces left; None at a start from nothing."""
        self._state = state
        self._wake_r, self._wake_w = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._children = Children(state, control_main, (self._wake_r, self._wake_w), self._on_messages)
        self._control, self._workers = self._children.control, self._children.workers
        self._hung = Hung(state.ledger, state.log, self._children, time.monotonic())
        self._before = before
        self._renewal = Renewal(state.ledger, state.log, self._children, self._upgrade_failed)
        self._phase = Phase.STARTING
        self._exit_status = 0
        # Workers of the program before write as that one does.
        self._is_converting = bool(convert.pending(state.ledger))
        self._is_to_reload = False  # control is to be told, once it is of this program
        self._kill_at_s: float | None = None
        self._watchdog_s = systemd.watchdog_s()
        self._watchdog_at_s = time.monotonic()

    def run(self) -> int:
        """Keep everything running until SIGTERM or SIGINT."""
        process.name("relay")
        process.adopt_orphans()
        signals = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)
        for sig in signals:
            signal.signal(sig, lambda *_: None)
        signal.set_wakeup_fd(self._wake_w, warn_on_full_buffer=False)
        process.unblock()
        self._holds_by(self._state.snapshot)
        if self._before is None:
            self._log_start()
            for child in self._children:
                self._children.start(child)
        else:
            self._take_over(self._before)
        memory.release_text()
        poll = select.poll()
        poll.register(self._wake_r, select.POLLIN)
        poll.register(self._state.keeper_end, select.POLLIN)
        poll.register(self._state.hand[0], select.POLLIN)
        while not self._stopped():
            if poll.poll(self._wait_ms()):
                self._on_signals()
                self._on_messages()
            self._children.reap()
            self._have_reloaded()
            self._on_time()
            if self._phase is not Phase.DRAINING:  # then nobody is renewed any more
                self._renewal.step(time.monotonic())
            if self._is_converting:
                convert.refresh(self._state.ledger)
                self._is_converting = bool(convert.pending(self._state.ledger))
        self._end_control()
        return self._exit_status

    def _log_start(self) -> None:
        snapshot, log = self._state.snapshot, self._state.log
        log.event(
            "info",
            "starting",
            instance=snapshot.instance,
            service=snapshot.service,
            pid=os.getpid(),
            engine=str(ENGINE),
        )
        for warning in self._state.warnings:
            log.event("warning", "configuration", message=warning)
        for row in snapshot.endpoints:
            targets = row.targets if row.is_own else row.targets[:1]
            target = row.leads_to or ", ".join(each.text for each in targets)
            log.event("info", "listening", endpoint=row.name, listen=row.listen, target=target)

    # --- live upgrade -------------------------------------------------------------------------------------------

    def _upgrade(self, prepared: int) -> None:
        """Replace this program by the installed one, which has tried itself out and left `prepared`. See handover.py."""
        state = self._state
        pids = tuple(child.successor or child.pid for child in self._workers)
        stands = state.handed_over(self._control.pid, pids, prepared)
        stands.write()
        process.block()
        self._on_signals()  # those that came before that stand in a pipe, which the new program will not have
        if self._phase is Phase.DRAINING:
            process.unblock()
            os.close(prepared)
            return
        if self._is_to_reload:  # a reload that control was not told of yet: the new program gets the signal once more
            self._is_to_reload = False
            os.kill(os.getpid(), signal.SIGHUP)  # it is blocked, and stays pending over execve(2)
        try:
            handover.execute(sys.orig_argv[1:], stands.of_keeper(), {handover.VARIABLE: str(state.memory)})
        except OSError as error:
            process.unblock()
            os.close(prepared)
            why = f"the new program cannot be executed: {os.strerror(error.errno or 0)}; nothing has changed"
            state.log.event("error", "upgrade failed", message=why)
            self._upgrade_failed(why)

    def _upgrade_failed(self, why: str) -> None:
        """Tell control, which tells who has asked; nothing: it goes on after all."""
        self._tell_control(messages.failed(why))

    def _take_over(self, before: Handover) -> None:
        """In the new program: the children are still there, and run the old one."""
        self._phase = Phase.READY
        self._control.pid = before.control_pid
        for child, pid in zip(self._workers, before.holder_pids, strict=True):
            child.pid, child.replaced = pid, bool(pid)
        systemd.reloading()  # READY=1 follows from control, when every worker works by the new snapshot
        self._state.log.event("info", "upgrading", from_version=before.version, version=__version__, engine=str(ENGINE))
        ledger = self._state.ledger
        ledger.words[DaemonWord.PROGRAM] += 1
        self._renewal = Renewal(ledger, self._state.log, self._children, self._upgrade_failed, time.monotonic())
        for n in self._children.unguarded():
            ledger.worker(n)[Word.HOLDER_PID] = 0
        for child in self._children:
            child.started_s = time.monotonic()
            if not child.pid:
                self._children.start(child)
        if before.control_pid:
            self._control.replaced = True
            os.kill(before.control_pid, signal.SIGTERM)

    # --- what comes in ------------------------------------------------------------------------------------------

    def _on_signals(self) -> None:
        try:
            caught = os.read(self._wake_r, 64)
        except BlockingIOError:
            return
        for number in caught:
            if number in (signal.SIGTERM, signal.SIGINT):
                self._drain()
            elif number == signal.SIGHUP:
                self._is_to_reload = True
            elif number == signal.SIGUSR2:
                self._tell_control(messages.plain(messages.UPGRADE))

    def _on_messages(self) -> None:
        while (received := channel.receive(self._state.keeper_end)) is not None:
            message, fds = received
            self._on_message(message, fds)
        while (received := channel.receive(self._state.hand[0])) is not None:  # of a successor that ends
            self._renewal.hear(received[0]["message"])

    def _on_message(self, message: dict[str, Any], fds: list[int]) -> None:
        state = self._state
        match messages.kind_of(message):
            # What control says as long as it runs the replaced program may be in a form of that one's; and what stands is
            # newer: the trial has read the files.
            case messages.LISTENERS | messages.SNAPSHOT | messages.UPGRADE if self._control.replaced:
                for fd in fds:
                    os.close(fd)
            case messages.LISTENERS | messages.UPGRADE if self._phase is Phase.DRAINING:
                for fd in fds:
                    os.close(fd)
            case messages.LISTENERS:
                for address, fd in zip(message["addresses"], fds, strict=False):  # what has no room is left out
                    state.listeners[address] = socket.socket(fileno=fd)
            case messages.SNAPSHOT:
                state.snapshot = Snapshot.from_json(memory.read(fds[0]))
                os.close(fds[0])
                state.log.level = state.snapshot.log_level
                wanted = {address for row in state.snapshot.endpoints for address in row.listens}
                for address in [address for address in state.listeners if address not in wanted]:
                    state.listeners.pop(address).close()
                self._holds_by(state.snapshot)
                self._tell_control(messages.plain(messages.HOLDS))
            case messages.SERVES:
                state.hold_for_control(message["what"], fds[0])
            case messages.UPGRADE if self._phase is Phase.STARTING or any(child.successor for child in self._workers):
                os.close(fds[0])  # control's answer was too early, and does not come true
                which = [child.name for child in self._workers if child.successor] or ["the daemon"]
                self._upgrade_failed(f"{which[0]} is just being started; nothing has changed: upgrade again")
            case messages.UPGRADE:
                self._upgrade(fds[0])
            case messages.STATUS if self._phase is not Phase.DRAINING:
                systemd.notify(f"STATUS={message['status']}")
            case messages.READY if self._phase is Phase.STARTING and message.get("unserved"):
                self._fail(message["unserved"])
            case messages.READY:
                if self._phase is Phase.STARTING:
                    self._phase = Phase.READY
                if self._phase is Phase.READY:
                    systemd.notify("READY=1", f"STATUS={message['status']}")
            case messages.RELOADING:
                systemd.reloading()
            case messages.RELOAD:
                self._is_to_reload = True

    def _holds_by(self, snapshot: Snapshot) -> None:
        self._state.ledger.words[DaemonWord.GENERATION] = snapshot.generation

    def _have_reloaded(self) -> None:
        """Pass a reload on that was asked for; not to a control that is replaced, and might take it along to its end."""
        if self._is_to_reload and not self._control.replaced:
            self._is_to_reload = False
            self._tell_control(messages.plain(messages.RELOAD))

    def _tell_control(self, message: dict[str, Any]) -> None:
        channel.send(self._state.keeper_end, message)

    # --- time and the end ---------------------------------------------------------------------------------------

    def _wait_ms(self) -> int:
        now_s = time.monotonic()
        at_s = [*self._children.restarts_at_s(), self._hung.due_s]
        if self._kill_at_s is not None:
            at_s.append(self._kill_at_s)
        if self._watchdog_s is not None:
            at_s.append(self._watchdog_at_s)
        if self._is_converting:
            at_s.append(now_s + LOOK_S)
        if self._phase is not Phase.DRAINING and (renewal_s := self._renewal.at_s(now_s)) is not None:
            at_s.append(renewal_s)
        return max(0, int((min(at_s) - now_s) * 1000) + 1)

    def _on_time(self) -> None:
        now_s = time.monotonic()
        self._children.start_due(now_s)
        self._hung.step(now_s)
        if self._kill_at_s is not None and now_s >= self._kill_at_s:
            self._kill_at_s = now_s + KILL_AFTER_S
            self._children.kill()
        if self._watchdog_s is not None and now_s >= self._watchdog_at_s:
            self._watchdog_at_s = now_s + self._watchdog_s / 2
            if self._alive():
                systemd.notify("WATCHDOG=1")

    def _alive(self) -> bool:
        """Whether every worker's loop has turned lately. When one has not, systemd is not told that all is well.

        One that hangs is killed long before; this is for one that stays so in spite of that.
        """
        assert self._watchdog_s is not None  # only asked with a watchdog
        now_ns, ledger = time.monotonic_ns(), self._state.ledger
        beats = (ledger.worker(n)[Word.HEARTBEAT_NS] for n in range(ledger.workers))
        return self._phase is Phase.DRAINING or all(now_ns - beat < self._watchdog_s * 1e9 for beat in beats)

    def _drain(self) -> None:
        """The first time: accept no more, and let connections end. The second time: end them."""
        now_s = time.monotonic()
        if self._phase is Phase.DRAINING:
            self._kill_at_s = now_s + KILL_AFTER_S
            self._state.ledger.words[DaemonWord.DRAIN_UNTIL_NS] = 1  # long ago
        else:
            self._phase = Phase.DRAINING
            self._kill_at_s = now_s + self._state.snapshot.drain_s + KILL_AFTER_S
            until_ns = time.monotonic_ns() + int(self._state.snapshot.drain_s * 1e9)
            self._state.ledger.words[DaemonWord.DRAIN_UNTIL_NS] = until_ns  # before the signal: see worker._drain
            systemd.notify("STOPPING=1", "STATUS=draining")
            self._state.log.event("info", "draining", deadline_s=self._state.snapshot.drain_s)
            for listener in self._state.listeners.values():
                listener.close()
            self._state.listeners.clear()
        self._children.signal_holders(signal.SIGTERM)

    def _fail(self, why: str) -> None:
        """This is no start: end, with a status that tells whoever started it."""
        self._exit_status = 1
        self._state.log.event("error", "start failed", message=why)
        self._drain()
        systemd.notify(f"STATUS={why}")

    def _stopped(self) -> bool:
        return self._phase is Phase.DRAINING and not self._children.holder_pids()

    def _end_control(self) -> None:
        """Control goes last: it writes the log and answers `relay status` while the workers drain."""
        self._state.log.event("info", "stopped")
        if not self._control.pid:
            return
        os.kill(self._control.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + KILL_AFTER_S
        while os.waitpid(self._control.pid, os.WNOHANG)[0] == 0:
            if time.monotonic() >= deadline_s:
                os.kill(self._control.pid, signal.SIGKILL)
                deadline_s += KILL_AFTER_S
            select.select([], [], [], 0.01)
