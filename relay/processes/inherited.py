"""What stands: the keeper holds it, and every process that it starts begins with it."""

import os
import signal
import socket
from dataclasses import dataclass, field
from functools import partial

from relay import __version__
from relay.config.snapshot import Snapshot
from relay.kernel import channel, messages, process
from relay.kernel.sockets import descriptors
from relay.ledger import convert, lost
from relay.ledger.layout import Word
from relay.ledger.ledger import Ledger
from relay.log import Logger
from relay.processes import succession
from relay.processes.handover import Handover
from relay.processes.holder import EXIT_NOTHING_TAKEN, Holder, holder_of


@dataclass(slots=True)
class Inherited:
    """The descriptors and the few facts that must outlive every other process."""

    snapshot: Snapshot
    listeners: dict[str, socket.socket]  # by listening address
    ledger: Ledger
    log: Logger
    log_sink: socket.socket
    log_source: socket.socket
    keeper_end: socket.socket  # of the channel to control
    control_end: socket.socket
    hand: tuple[socket.socket, socket.socket]  # (keeper's, holders'): over which a holder is called to be succeeded
    worker_ends: list[tuple[socket.socket, socket.socket]]  # (worker's, control's) of each worker's channel
    control_only: dict[str, socket.socket]  # what control serves beside the endpoints: the admin API, metrics, names
    memory: int  # the memory file for a live upgrade, see handover.py
    warnings: tuple[str, ...]  # about the configuration that it starts with
    keeper_pid: int = field(default_factory=os.getpid)  # the keeper makes this value, in each of its programs
    control_crashes: int = 0  # times in a row that control has ended at its start

    def of_holders(self) -> dict[int, str]:
        """The descriptors that a holder has from its start, and what they are. All others in its table are its worker's."""
        ends = (sock.fileno() for pair in (self.hand, *self.worker_ends) for sock in pair)
        return descriptors({0, 1, 2, self.ledger.fd, self.log_sink.fileno(), self.log_source.fileno(), *ends})

    def hold_for_control(self, what: str, fd: int) -> None:
        """Control has made the socket of what it serves anew: the next control begins with this one."""
        if what in self.control_only:
            self.control_only[what].close()
        self.control_only[what] = socket.socket(fileno=fd)

    def handed_over(self, control_pid: int, holder_pids: tuple[int, ...], prepared: int) -> Handover:
        """The same for the program that takes this one's place; `prepared` is what its trial left."""
        return Handover(
            keeper_pid=os.getpid(),
            control_pid=control_pid,
            holder_pids=holder_pids,
            memory=self.memory,
            ledger=self.ledger.fd,
            log_sink=self.log_sink.fileno(),
            log_source=self.log_source.fileno(),
            keeper_end=self.keeper_end.fileno(),
            control_end=self.control_end.fileno(),
            hand=(self.hand[0].fileno(), self.hand[1].fileno()),
            worker_ends=tuple((one.fileno(), other.fileno()) for one, other in self.worker_ends),
            control_only={name: sock.fileno() for name, sock in self.control_only.items()},
            listeners={address: sock.fileno() for address, sock in self.listeners.items()},
            prepared=prepared,
            version=__version__,
        )


def be_holder(state: Inherited, index: int) -> None:
    """Be the holder of worker `index`, with nothing from before."""
    convert.finish(state.ledger, index)
    lost.cross_out(state.ledger.worker(index))
    _let_go(state)
    _holder(state, index).run()


def be_successor(
    state: Inherited, index: int, holder_pid: int, ours: socket.socket, theirs: socket.socket
) -> None:  # fmt: skip
    """Be the holder of worker `index` in place of that process, which holds the end `theirs`: see succession.py."""
    process.block()  # a stop must not end this process while it alone has the connections; `Holder.run` lets it come
    theirs.close()
    _let_go(state)
    holder = _holder(state, index)
    try:
        end = succession.take(ours, state.of_holders(), partial(os.kill, holder_pid, signal.SIGUSR2))
        holder.begin(end, partial(_conclude, state, index, end))
        succession.say_mine(end)
    except OSError as error:
        holder.abandon()
        # The keeper knows what it was for, and says so.
        channel.send(state.hand[1], messages.failed(error.strerror or str(error)))
        # Here: a return would close the channel first, and the holder would go on beside this table.
        os._exit(EXIT_NOTHING_TAKEN)
    # First: the keeper ends the other one, should that hang now.
    state.ledger.worker(index)[Word.HOLDER_PID] = os.getpid()
    _settle(state, index, end)
    holder.run()


def _settle(state: Inherited, index: int, end: socket.socket) -> None:
    """What a worker of this program finds: the other table is gone, and the ledger is in this program's layout."""
    succession.see_end(end)
    # Nobody writes there any more, and the next to do so is a worker of this program.
    convert.finish(state.ledger, index)
    state.ledger.worker(index)[Word.SNAPSHOT_FD] = 0  # the one before's, or in the old program's form


def _conclude(state: Inherited, index: int, end: socket.socket) -> None:
    """The same by the first worker, if its holder is dead. Raises OSError: the one before goes on with everything."""
    succession.say_mine(end)
    _settle(state, index, end)


def _let_go(state: Inherited) -> None:
    """No object in a holder may ever close a descriptor that is a connection's by then."""
    for sock in (state.keeper_end, state.control_end, *state.control_only.values()):
        sock.close()
    for listener in state.listeners.values():
        listener.detach()  # it stays open, for the worker


def _holder(state: Inherited, index: int) -> Holder:
    return holder_of(
        index,
        state.ledger,
        keeper_pid=state.keeper_pid,
        log_sink=state.log_sink,
        control=state.worker_ends[index][0],
        hand=state.hand[1],
        snapshot=state.snapshot,
        baseline=state.of_holders(),
    )
