# How a flow comes by its target.

cimport cython

from relay cimport calls
from relay.dataplane.flow cimport Flow, Stage
from relay.dataplane.forwarding cimport Forwarding
from relay.dataplane.source_addresses cimport SourceAddresses
from relay.kernel cimport connecting
from relay.kernel.bare_socket cimport BareSocket
from relay.ledger cimport layout

cdef int _NO_PORT_LEFT


cdef class Dialling(Stage):
    cdef public BareSocket _target
    cdef public int _watched
    cdef public object _retry, _holding, _fault
    cdef public double _deadline_s
    cdef str _not_begun

    @cython.locals(flow=Flow)
    cpdef start(self)
    @cython.locals(flow=Flow, sources=SourceAddresses, target=BareSocket, code=int)
    cpdef bint _connect(self, row) except -1
    @cython.locals(flow=Flow)
    cpdef bint _connected(self, BareSocket target) except -1
