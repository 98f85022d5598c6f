"""`relay run`: put the parts together. The only place that knows both the data plane and control."""

import os
import resource
import socket
import time

# First: what a worker uses lies close together then. What comes after is control's, and stays shared with it untouched.
from relay.dataplane.inherits import flows_max
from relay.processes import handover
from relay.processes.handover import Handover
from relay.processes.inherited import Inherited
from relay.processes.keeper import Keeper

# isort: split
from relay import log as logging
from relay.config.load import SERVICE_FILE, SETTINGS_FILE
from relay.config.settings import Settings
from relay.control import control, upgrade
from relay.control.admin import open_admin_socket, open_tcp_socket
from relay.control.inherits import ControlInherits
from relay.control.reload import ConfigFiles, Prepared, start
from relay.kernel import channel, memory, process, surroundings
from relay.ledger import clocks, convert
from relay.ledger.layout import DaemonWord
from relay.ledger.ledger import Ledger
from relay.log import Logger
from relay.names.server import open_names_sockets
from relay.processes.rehearsal import rehearse

# What one ledger has room for, whatever RLIMIT_NOFILE says: 262,144 records are 32 MiB, taken only as they are used.
_FLOWS_MAX = 262_144
# Where memory is short: after a worker (processes/holder.py), and before what nobody can be without.
_SPARED_LESS_BY = 100
_SPARED_LESS_TO = 0
_NR_OPEN = 1_048_576  # what the kernel allows a process by default: proc(5), /proc/sys/fs/nr_open


def run(files: ConfigFiles) -> int:
    """Run the daemon until it is told to stop; its exit status. Raises OperatorError when it cannot start.

    Or go on running it, where this program has replaced another one (processes/handover.py).
    """
    left = os.environ.pop(handover.VARIABLE, None)
    if left is not None:
        before = handover.read(int(left))
        state, settings = _taken_over(before)
        service = None
    else:
        before = None
        surroundings.refuse_without()
        prepared = start(files)
        settings, service = prepared.settings, prepared.service
        state = _state(prepared, settings, _control_listeners(settings))
    workers = tuple(control_end for _, control_end in state.worker_ends)

    def control_main(state: Inherited) -> None:
        process.spare_less(_SPARED_LESS_BY, _SPARED_LESS_TO)
        for listener in state.listeners.values():
            listener.close()  # or its address would stay open as long as control lives
        control.main(
            ControlInherits(
                files=files,
                settings=settings,
                snapshot=state.snapshot,
                ledger=state.ledger,
                keeper=state.control_end,
                workers=workers,
                log_sink=state.log_sink,
                log_source=state.log_source,
                listeners=state.control_only,
                service=service,
                crashes=state.control_crashes,
            )
        )

    memory.share_with_children()
    return Keeper(state, control_main, before).run()


def trial(text: str) -> None:
    """`relay trial`: what a running daemon asks of this code before it goes over to it. Raises OperatorError."""
    upgrade.trial(text, rehearse)


def _control_listeners(settings: Settings) -> dict[str, socket.socket]:
    """Of the admin API; of the metrics, the discovery API and the names where they are on."""
    found = {"admin": open_admin_socket(settings.admin.socket)}
    if settings.metrics is not None:
        found["metrics"] = open_tcp_socket(settings.metrics.listen, "metrics")
    if settings.admin.listen is not None:
        found["discovery"] = open_tcp_socket(settings.admin.listen, "admin")
    if settings.names.listen is not None:
        names = settings.names.listen
        found["names/udp"], found["names/tcp"] = open_names_sockets(names.host, names.port)
    return found


def _taken_over(before: Handover) -> tuple[Inherited, Settings]:
    """What the replaced program left. Nothing is read or opened: it is all there, and was tried."""
    for fd in before.of_keeper():
        os.set_inheritable(fd, False)
    prepared = upgrade.take(before.prepared)
    os.close(before.prepared)
    ledger = convert.take_over(before.ledger)
    clocks.take_over(ledger.words)
    log_sink = _socket(before.log_sink)
    state = Inherited(
        snapshot=prepared.snapshot,
        listeners={address: _socket(fd) for address, fd in before.listeners.items()},
        ledger=ledger,
        log=Logger(log_sink, "keeper", prepared.snapshot.log_level),
        log_sink=log_sink,
        log_source=_socket(before.log_source),
        keeper_end=_socket(before.keeper_end),
        control_end=_socket(before.control_end),
        hand=(_socket(before.hand[0]), _socket(before.hand[1])),
        worker_ends=[(_socket(one), _socket(other)) for one, other in before.worker_ends],
        control_only={name: _socket(fd) for name, fd in before.control_only.items()},
        memory=before.memory,
        warnings=tuple(map(str, prepared.warnings)),
    )
    return state, prepared.settings


def _socket(fd: int) -> socket.socket:
    return socket.socket(fileno=fd)


def _state(prepared: Prepared, settings: Settings, control_only: dict[str, socket.socket]) -> Inherited:
    count = len(os.sched_getaffinity(0)) if settings.workers == "auto" else settings.workers
    flows = min(_FLOWS_MAX, flows_max(_raise_nofile()))
    ledger = Ledger.create(count, flows, time.time_ns())
    clocks.put_now(ledger.words, DaemonWord.STARTED_MONOTONIC_NS)
    clocks.put_now(ledger.words, DaemonWord.RELOAD_OK_AT_MONOTONIC_NS)
    if prepared.roster_at_ns:
        clocks.put_instant(ledger.words, DaemonWord.ROSTER_AT_MONOTONIC_NS, prepared.roster_at_ns)
    ledger.words[DaemonWord.RELOAD_OK] = 1
    log_sink, log_source = logging.channel()
    keeper_end, control_end = channel.pair()
    return Inherited(
        snapshot=prepared.snapshot,
        listeners=prepared.opened,
        ledger=ledger,
        log=Logger(log_sink, "keeper", prepared.snapshot.log_level),
        log_sink=log_sink,
        log_source=log_source,
        keeper_end=keeper_end,
        control_end=control_end,
        hand=channel.pair(),
        worker_ends=[channel.pair() for _ in range(count)],
        control_only=control_only,
        memory=memory.create("relay-handover"),
        warnings=(*map(str, prepared.warnings), *prepared.notes),
    )


def _raise_nofile() -> int:
    """Raise the soft limit of descriptors to the hard one, as far as the kernel lets us; what it is now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):  # a filter of system calls; an unlimited hard limit above the kernel's own
            return soft
    if hard == resource.RLIM_INFINITY:
        try:
            with open("/proc/sys/fs/nr_open", "rb") as file:
                return int(file.read())
        except OSError:  # ProcSubset=pid hides it
            return _NR_OPEN
    return hard


def config_files(service: str | None, settings: str | None, instance: str | None) -> ConfigFiles:
    """Where the configuration is: the command line first, then RELAY_SERVICE and RELAY_SETTINGS, then /etc/relay."""
    named = settings or os.environ.get("RELAY_SETTINGS")
    return ConfigFiles(
        service=service or os.environ.get("RELAY_SERVICE") or SERVICE_FILE,
        settings=named or SETTINGS_FILE,
        settings_required=named is not None,
        instance=instance,
    )
