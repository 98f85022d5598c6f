# What all flows of a worker share.

from relay.dataplane.share cimport Share
from relay.dataplane.splice cimport Mover
from relay.kernel.poller cimport Poller
from relay.ledger.ledger cimport WorkerLedger


cdef class Context:
    cdef public Poller poller
    cdef public Mover mover
    cdef public WorkerLedger ledger
    cdef public object log, denials, exhausted, now_ns, unused_records, sources, gates
    cdef public list free_records, ended
    cdef public set flows, waiting, lines, starved, left
    cdef public int relay_port
    cdef public Share share

    cpdef bint has_room(self) except -1
    cpdef closed(self)
