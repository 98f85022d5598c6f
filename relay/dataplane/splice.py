"""Moving bytes from socket to socket: what is large by splice(2), through a pipe; what is small through the ledger's page.

A `Lane` is one direction of a flow. It owns a pipe only while bytes stand in it. Two ways lead from its source to its
sink, and which one a turn takes, the lane sees by what came the last times:

* Copying (ledger/copying.py), as long as what comes is small: it costs two system calls where splicing costs two that
  are twice as dear.
* Splicing into the worker's scratch pipe and out of it, once two turns in a row have filled the buffer.

In the usual case all goes out again in the same turn. Only when the other socket takes less than came does the lane keep
the scratch pipe with the rest, and the worker takes another one. No byte becomes a Python object.

Where the bytes are is in the ledger at every moment, so that a worker that dies in the middle of a turn loses none: before
reading, whose bytes come into the scratch pipe or the buffer; before the scratch pipe changes, whose pipe it became.

Two rules make the rest simple (each learnt from a forwarder that broke it; sozu PR#1323, haproxy#2505):
* A lane reads only into an empty pipe. So EAGAIN from socket → pipe means "the socket is empty" and never "the pipe is out
  of slots", and what is held is bounded by one pipe, whatever is sent: backpressure is the kernel's.
* FIN goes on only after the pipe is empty. `done` says so.
"""

import errno
import os
from socket import IPPROTO_TCP, MSG_TRUNC, SO_OOBINLINE, SOL_SOCKET, TCP_NODELAY
from typing import Final

from relay import calls
from relay.dataplane import turns
from relay.dataplane.pipes import Pipe, PipePool
from relay.kernel.bare_socket import BareSocket
from relay.kernel.poller import UNWATCHED
from relay.ledger import layout
from relay.ledger.layout import COPY_BYTES, Word
from relay.ledger.ledger import NO_PIPE, WorkerLedger, owner_of

_LARGE: Final = 2  # turns in a row that filled the buffer: one alone is often the end of a message
_DISCARD_BYTES: Final = 8 * 1024 * 1024  # in one go: a peer that never stops sending keeps nobody else waiting
_NOWHERE: Final = bytearray(64 * 1024)


class Lane:
    """One direction of a flow: bytes of `source` go to `sink`."""

    __slots__ = (
        "abandoned", "bytes_at", "delays", "direction", "eof", "error", "fin", "full_turns", "held_bytes", "hup", "owner",
        "pipe", "record", "sink", "sink_fd", "source", "source_fd", "total_bytes",
    )  # fmt: skip

    def __init__(self, source: BareSocket, sink: BareSocket, bytes_at: int, record: int, direction: int) -> None:
        self.source = source
        self.sink = sink
        self.source_fd, self.sink_fd = self.source.fd, self.sink.fd
        self.bytes_at = bytes_at  # the ledger's word that counts this direction's bytes
        self.record = record  # of the flow, in the ledger
        self.direction = direction  # 0 to the target, 1 to the client
        self.owner = owner_of(record, direction)
        self.pipe: Pipe | None = None
        self.held_bytes = 0
        self.total_bytes = 0  # taken by the sink's socket
        self.full_turns = 0  # in a row that brought as much as the buffer takes
        self.delays = direction == 0  # accepted sockets have their listener's TCP_NODELAY, the target's not yet
        self.eof = False  # nothing more will be read
        self.error = 0  # what reading or writing failed with: a socket tells it once
        self.hup = False  # the source has reported that it is over, and epoll would say so again and again
        self.fin = False  # the sink has been told
        self.abandoned = False  # the sink is broken: what still comes is thrown away

    @property
    def done(self) -> bool:
        """All that came has been passed on, and no more will come."""
        return self.eof and not self.held_bytes

    def adopt(self, pipe: Pipe, held_bytes: int) -> None:
        """Take over a pipe that a predecessor left with bytes of this lane in it."""
        self.pipe, self.held_bytes = pipe, held_bytes

    def finish(self) -> None:
        """Pass the end of the stream on: shutdown(2) for writing. Only when `done`, and once."""
        self.fin = True
        # ENOTCONN: it was reset meanwhile. Its own lane finds that out, after what it sent has been read.
        calls.shut_write(self.sink_fd)


class Mover:
    """Turns lanes. One for each worker, because the scratch pipe is."""

    def __init__(self, pool: PipePool, ledger: WorkerLedger) -> None:
        self._pool = pool
        self._ledger = ledger
        self._words = ledger.numbers
        self._owner = ledger.word_index(Word.SCRATCH_OWNER)
        self._scratch: Pipe | None = None
        self._buffer = ledger.copying
        self.copies = False  # not before `prepare`, and not where the kernel locks no memory
        self._room_bytes = 0  # how much a copy takes at a time: no more than the scratch pipe

    def prepare(self) -> None:
        """Open the scratch pipe while there are descriptors for it. After adoption, which needs what the one before had."""
        self._new_scratch()
        self.copies = self._buffer.prepare()

    def turn(self, lane: Lane) -> int:
        """Deliver what the lane holds, then read once and deliver that: a bounded piece of work.

        Raises nothing; a socket's error is the turn's result.
        """
        result = turns.SAME
        if lane.held_bytes:
            result = self._deliver_held(lane)
            if lane.held_bytes or result == turns.SINK_BROKEN:
                return result
        if lane.eof:
            return result
        pipe = self._scratch
        if pipe is None:
            pipe = self._new_scratch()
            if pipe is None:
                return turns.STARVED
        if self.copies and lane.full_turns < _LARGE and not lane.error:
            return self._copy(lane, pipe, result)
        return self._splice(lane, pipe, result)

    def _copy(self, lane: Lane, pipe: Pipe, result: int) -> int:
        """Read once and deliver that by copying it. What the sink does not take goes into this pipe."""
        buffer = self._buffer
        came = buffer.take_in(lane.source_fd, lane.owner)
        if came < 0 and came != calls.AGAIN:
            # recvmmsg(2) tells of an error before what came before that (net/socket.c, do_recvmmsg), and only once.
            lane.error = -came
            return self._splice(lane, pipe, result)
        if came <= 0:
            return self._nothing_came(lane, came, result)
        lane.full_turns = lane.full_turns + 1 if came >= self._room_bytes else 0
        if lane.delays and lane.total_bytes:
            self._hurry(lane)
        went = buffer.pass_on(lane.sink_fd)
        if went < 0 and went != calls.AGAIN:
            return self._sink_broken(lane, went, None)
        left = self._left(lane, came, went)
        if not left:
            return result
        self._keep(lane, pipe, left)
        self._words[self._owner] = lane.owner  # before the bytes come
        buffer.set_aside(pipe.w)
        self._new_scratch()
        return turns.CHANGED

    def _splice(self, lane: Lane, pipe: Pipe, result: int) -> int:
        """Read once and deliver that by way of this pipe."""
        self._words[self._owner] = lane.owner  # before the bytes come
        came = calls.splice(lane.source_fd, pipe.w, pipe.size_bytes)
        if came == calls.AGAIN:
            came = self._past_urgent(lane, pipe)
        if came <= 0:
            return self._nothing_came(lane, came, result)
        lane.full_turns = lane.full_turns if came >= COPY_BYTES else 0
        if lane.delays and lane.total_bytes:
            self._hurry(lane)
        went = calls.splice(pipe.r, lane.sink_fd, came)
        if went < 0 and went != calls.AGAIN:
            return self._sink_broken(lane, went, pipe)
        left = self._left(lane, came, went)
        if not left:
            return result
        self._keep(lane, pipe, left)
        self._new_scratch()
        return turns.CHANGED

    def _left(self, lane: Lane, came: int, went: int) -> int:
        """Count what went of what came. How much is left."""
        if went < 0:  # EAGAIN: nothing did
            return came
        lane.total_bytes += went
        self._words[lane.bytes_at] += went
        return came - went

    def _nothing_came(self, lane: Lane, came: int, result: int) -> int:
        """What a turn comes to that has read nothing."""
        if came == calls.AGAIN:
            return result
        lane.eof = True
        lane.error = lane.error or -came
        return turns.SOURCE_BROKEN if lane.error else turns.CHANGED

    def _hurry(self, lane: Lane) -> None:
        """The first bytes wait for no acknowledgement, so a connection with one request does without TCP_NODELAY: tcp(7)."""
        calls.set_option(lane.sink_fd, IPPROTO_TCP, TCP_NODELAY, 1)
        lane.delays = False

    def abandon(self, lane: Lane) -> None:
        """The sink takes nothing any more: throw away what the lane holds. What still comes is for `discard`."""
        self.drop(lane)
        lane.eof = lane.fin = lane.abandoned = True

    def discard(self, lane: Lane) -> None:
        """Read away, up to a bound, what an abandoned lane's source has sent.

        Left unread it would fill the receive buffer, and a full one can make this kernel drop the peer's acknowledgements
        with the data they come with (Linux 6.18: zero window, peer's SND.NXT beyond it): then the other direction, whose
        bytes are still to be delivered, stands still for minutes.
        """
        left = _DISCARD_BYTES
        try:
            # MSG_TRUNC on a TCP socket: counted and freed, not copied (tcp(7)).
            while left > 0 and (count := lane.source.recv_into(_NOWHERE, 0, MSG_TRUNC)):
                left -= count
        except OSError:  # nothing there, or broken as well, which its own lane finds out
            return

    def drop(self, lane: Lane) -> None:
        """Throw away what the lane holds: nobody will take it."""
        if lane.pipe is not None:
            self._ledger.hold(lane.record, lane.direction, NO_PIPE)
            if lane.held_bytes:
                self._pool.discard(lane.pipe)
            else:
                self._pool.give_back(lane.pipe)
            lane.pipe = None
            lane.held_bytes = 0

    def _past_urgent(self, lane: Lane, pipe: Pipe) -> int:
        """splice found nothing. It stops before a byte of urgent data for good (tcp_read_sock), so take that one by hand.

        The byte goes on as an ordinary one, in its place. Returns as `calls.splice`: an error is told once.
        """
        try:
            lane.source.setsockopt(SOL_SOCKET, SO_OOBINLINE, 1)
            byte = lane.source.recv(1)
        except OSError as error:
            return -(error.errno or errno.EIO)
        return os.write(pipe.w, byte) if byte else calls.AGAIN

    def _keep(self, lane: Lane, pipe: Pipe, left: int) -> None:
        """The sink took less than came: the rest is in this pipe, or is about to be. It is the lane's until it is empty."""
        lane.pipe, lane.held_bytes = pipe, left
        # Before it stops being the scratch pipe; or before there is anything in it.
        self._ledger.hold(lane.record, lane.direction, (pipe.r, pipe.w))

    def _new_scratch(self) -> Pipe | None:
        pipe = self._scratch = self._pool.take()
        self._words[self._owner] = 0
        ledger = self._ledger
        if pipe is None:
            ledger[Word.SCRATCH_R] = ledger[Word.SCRATCH_W] = 0
        else:
            ledger[Word.SCRATCH_R], ledger[Word.SCRATCH_W] = pipe.r, pipe.w
            self._room_bytes = self._buffer.limit(pipe.size_bytes)
        return pipe

    def _sink_broken(self, lane: Lane, error: int, pipe: Pipe | None) -> int:
        """What was read and not sent is nobody's any more: in the buffer, or in this pipe, which is the scratch pipe."""
        lane.error = -error
        self._buffer.forget()
        if pipe is not None:
            self._words[self._owner] = 0
            self._pool.discard(pipe)
            self._new_scratch()  # at once: its descriptors have just become free
        return turns.SINK_BROKEN

    def _deliver_held(self, lane: Lane) -> int:
        pipe = lane.pipe
        assert pipe is not None  # held_bytes says so
        before = left = lane.held_bytes
        while left and (moved := calls.splice(pipe.r, lane.sink_fd, left)) > 0:
            left -= moved
        if left and moved < 0 and moved != calls.AGAIN:
            lane.error = -moved
            return turns.SINK_BROKEN
        lane.held_bytes = self._left(lane, before, before - left)
        if left:
            return turns.SAME
        lane.pipe = None
        self._ledger.hold(lane.record, lane.direction, NO_PIPE)  # before somebody else gets it
        self._pool.give_back(pipe)
        return turns.CHANGED


def lanes(client: BareSocket, target: BareSocket, counts_at: int, record: int) -> tuple[Lane, Lane]:
    """The two directions of a flow, (client to target, target to client), counted from the word `counts_at` on."""
    up = Lane(client, target, counts_at + layout.Count.RECEIVED, record, 0)
    return up, Lane(target, client, counts_at + layout.Count.SENT, record, 1)


def interest(out: Lane, back: Lane, starved: bool) -> int:
    """What a socket is watched for. `out` reads from it, `back` writes to it.

    Bytes that wait in `out`'s pipe mean "do not read"; bytes that wait in `back`'s mean "tell me when it takes more". A
    socket without either is still watched for its breaking, until it has reported that.
    """
    wanted = 0
    if not out.eof and not out.held_bytes and not starved:
        wanted |= calls.READ
    if back.held_bytes:
        wanted |= calls.WRITE
    return UNWATCHED if out.hup and not wanted else wanted
