# Pipes, pooled.

from relay.ledger.ledger cimport WorkerLedger


cdef class Pipe:
    cdef public int r, w
    cdef public long size_bytes


cdef class PipePool:
    cdef WorkerLedger _ledger
    cdef public list _spare
    cdef int _large

    cpdef Pipe take(self)
    cpdef Pipe adopt(self, int r, int w)
    cpdef give_back(self, Pipe pipe)
    cpdef discard(self, Pipe pipe)
