# What comes before the dial.

cimport cython

from relay cimport calls
from relay.dataplane cimport first_bytes
from relay.dataplane.dialling cimport Dialling
from relay.dataplane.flow cimport Flow, Stage
from relay.envelope.proxyproto cimport Header
from relay.ledger cimport layout
from relay.ledger cimport record as records


cdef class Greeting(Stage):
    cdef public double _deadline_s
    cdef public long _looked_bytes, _looks
    cdef public str _protocol
    cdef public object _so_far

    @cython.locals(flow=Flow)
    cpdef expect(self, int state)
    @cython.locals(flow=Flow, header=Header)
    cdef _on_header(self, unsigned int events)
    @cython.locals(flow=Flow)
    cdef _identified(self, str source, str peer)
    @cython.locals(flow=Flow)
    cdef _on_first_bytes(self, unsigned int events)
    @cython.locals(flow=Flow, seen_bytes=long, come=long)
    cdef _judged(self, unsigned int events)
    cdef _refuse(self, str cause)


cpdef begin(Flow flow)
cdef _go_on(Flow flow)
