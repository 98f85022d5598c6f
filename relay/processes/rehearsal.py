"""A whole start of a worker of this program, on a ledger of its own and without a port: for a live upgrade's trial."""

import json
import os
import select
import signal
import socket
import time
import traceback
from dataclasses import replace
from typing import Final

from relay import log as logging
from relay.config.snapshot import Snapshot
from relay.errors import OperatorError
from relay.kernel import channel, messages, process
from relay.kernel.sockets import descriptors
from relay.ledger.layout import Word
from relay.ledger.ledger import Ledger
from relay.log import Logger
from relay.processes.holder import EXIT_BUG, holder_of

_START_S: Final = 5.0  # it takes a tenth of a second
_LOOK_S: Final = 0.05  # whether the worker has ended without a word, and so its holder
_FLOWS: Final = 16
_LOG_BYTES: Final = 1 << 17
_WRONG: Final = ("crash", "bug", "not started")


def rehearse(snapshot: Snapshot) -> None:
    """Start a holder and a worker by this snapshot, have the worker come up, and end both.

    Raises OperatorError with what they say, or where the worker does not come up in time.
    """
    os.environ.pop("RELAY_FAULT", None)  # of the running daemon's workers, and not of this one
    rows = tuple(replace(row, port_count=0) for row in snapshot.for_workers().endpoints)
    ledger = Ledger.create(1, _FLOWS, time.time_ns())
    (sink, source), (worker, control) = logging.channel(), channel.pair()
    try:
        pid = os.fork()
        if not pid:
            _be_holder(replace(snapshot.for_workers(), endpoints=rows), ledger, sink, worker)
        try:
            if wrong := _what_is_wrong(control, source, pid):
                raise OperatorError(f"its worker does not start: {wrong}")
        finally:
            _end(pid, ledger)
    finally:
        for sock in (sink, source, worker, control):
            sock.close()
        os.close(ledger.fd)


def _be_holder(snapshot: Snapshot, ledger: Ledger, sink: socket.socket, worker: socket.socket) -> None:
    try:
        process.die_with_parent(os.getppid(), signal.SIGKILL)
        hand = channel.pair()
        holder_of(
            0,
            ledger,
            keeper_pid=os.getppid(),
            log_sink=sink,
            control=worker,
            hand=hand[1],
            snapshot=snapshot,
            baseline=descriptors(),
        ).run()
    except BaseException:
        Logger(sink, "holder", "error").event("error", "crash", message="holder", traceback=traceback.format_exc())
    finally:
        os._exit(EXIT_BUG)


def _what_is_wrong(control: socket.socket, source: socket.socket, holder_pid: int) -> str:
    """Why the worker does not come up; empty: it has."""
    deadline_s = time.monotonic() + _START_S
    poll = select.poll()
    poll.register(control, select.POLLIN)
    poll.register(source, select.POLLIN)
    while (left_s := deadline_s - time.monotonic()) > 0:
        is_over = process.has_ended(holder_pid)  # before the look
        found = {fd for fd, _ in poll.poll(min(left_s, _LOOK_S) * 1000)}
        if source.fileno() in found:  # first: a worker that comes up may have said that something is wrong
            for line in source.recv(_LOG_BYTES).splitlines():
                record = json.loads(line)
                if record["event"] == "died":
                    return f"it ends by {record['how']}"
                if record["event"] in _WRONG:
                    return str(record.get("traceback") or record["message"]).strip().rpartition("\n")[2]
        elif control.fileno() in found:
            received = channel.receive(control)
            if received is not None and messages.kind_of(received[0]) == messages.READY:
                return ""
        elif is_over:
            return "it ends at its start"
    return f"it gives no sign of life within {_START_S:g} s"


def _end(pid: int, ledger: Ledger) -> None:
    """End the holder, which starts no other worker meanwhile, and its worker."""
    os.kill(pid, signal.SIGSTOP)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if (worker_pid := ledger.worker(0)[Word.STARTED_PID]) and not process.has_ended(worker_pid):
        os.kill(worker_pid, signal.SIGKILL)
    if os.WIFSTOPPED(status):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
