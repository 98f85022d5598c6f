# What all flows of a worker share.

from relay.dataplane.denials cimport Denials
from relay.dataplane.gate cimport Gate
from relay.dataplane.share cimport Share
from relay.dataplane.source_addresses cimport SourceAddresses
from relay.dataplane.splice cimport Mover
from relay.kernel.clock cimport Clock
from relay.kernel.poller cimport Poller
from relay.ledger.ledger cimport WorkerLedger
from relay.log cimport Logger


cdef class Context:
    cdef public Poller poller
    cdef public Mover mover
    cdef public WorkerLedger ledger
    cdef public Logger log
    cdef public Denials denials
    cdef public object exhausted, unused_records, gates
    cdef public SourceAddresses sources
    cdef public list free_records, ended
    cdef public Clock clock
    cdef public set flows, waiting, lines, starved, left
    cdef public int relay_port
    cdef public Share share

    cpdef deny(self, Gate gate, str peer, str reason, str detail=*)
    cpdef long long now_ns(self) except? -1
    cpdef bint has_room(self) except -1
    cpdef closed(self)
