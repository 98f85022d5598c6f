# Bytes from socket to socket.

cimport cython

from relay cimport calls
from relay.calls cimport word
from relay.dataplane cimport turns
from relay.dataplane.pipes cimport Pipe, PipePool
from relay.kernel.bare_socket cimport BareSocket
from relay.ledger.copying cimport CopyBuffer
from relay.ledger.ledger cimport WorkerLedger
from relay.ledger cimport layout

cdef int _LARGE


@cython.no_gc  # it is in no cycle
@cython.freelist(64)
cdef class Lane:
    cdef public BareSocket source, sink
    # int where it is enough: there are two of these for each connection.
    cdef public int source_fd, sink_fd, direction, error, full_turns, bytes_at, record, owner, held_bytes
    cdef public bint delays, eof, hup, fin, abandoned
    cdef public Pipe pipe
    cdef public long long total_bytes

    cpdef adopt(self, Pipe pipe, int held_bytes)
    cpdef finish(self)


cdef class Mover:
    cdef public PipePool _pool
    cdef WorkerLedger _ledger
    cdef word[::1] _words
    cdef Py_ssize_t _owner
    cdef public Pipe _scratch
    cdef CopyBuffer _buffer
    cdef public bint copies
    cdef long _room_bytes

    cpdef prepare(self)
    @cython.locals(result=int)
    cpdef int turn(self, Lane lane) except -1
    @cython.locals(came=long, went=long, left=long, buffer=CopyBuffer)
    cdef int _copy(self, Lane lane, Pipe pipe, int result) except -1
    @cython.locals(came=long, went=long, left=long)
    cdef int _splice(self, Lane lane, Pipe pipe, int result) except -1
    cdef long _left(self, Lane lane, long came, long went) except? -1
    cdef int _nothing_came(self, Lane lane, long came, int result) except -1
    cdef _hurry(self, Lane lane)
    cpdef abandon(self, Lane lane)
    cpdef discard(self, Lane lane)
    cpdef drop(self, Lane lane)
    cdef long _past_urgent(self, Lane lane, Pipe pipe) except? -1
    cdef _keep(self, Lane lane, Pipe pipe, long left)
    cdef Pipe _new_scratch(self)
    cdef int _sink_broken(self, Lane lane, long error, Pipe pipe) except -1
    @cython.locals(before=long, left=long, moved=long)
    cdef int _deliver_held(self, Lane lane) except -1


cpdef tuple lanes(BareSocket client, BareSocket target, Py_ssize_t counts_at, Py_ssize_t record)
@cython.locals(wanted=int)
cpdef int interest(Lane out, Lane back, bint starved) except? -2
