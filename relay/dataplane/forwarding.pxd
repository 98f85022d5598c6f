# Bytes flow, both ways.

cimport cython

from relay cimport calls
from relay.dataplane cimport splice, turns
from relay.dataplane.flow cimport Flow, Stage
from relay.dataplane.splice cimport Lane, Mover
from relay.kernel.bare_socket cimport BareSocket
from relay.ledger cimport layout

cdef int _TAKEN


cdef class Forwarding(Stage):
    cdef Mover _mover
    cdef public BareSocket _target
    cdef public object _peers
    cdef int _target_interest
    cdef public Lane _up, _down
    cdef public str _broken_by, _cause
    cdef public double _deadline_s, _idle_since_s
    cdef public long long _idle_mark, _unsent_mark

    cpdef start(self, long copied_bytes=*)
    @cython.locals(up=Lane, down=Lane, out=Lane, back=Lane, turn=int)
    cpdef ready(self, int fd, unsigned int events)
    cdef _more(self, Lane out, Lane back, unsigned int events)
    cdef _note(self, Lane lane, int turn)
    @cython.locals(flow=Flow, up=Lane, down=Lane, up_done=bint, down_done=bint)
    cpdef _settle(self)
    @cython.locals(flow=Flow, up=Lane, down=Lane, starved=bint, wanted=int)
    cpdef watch(self)
    cdef _watch_target(self, int interest)
    @cython.locals(flow=Flow, up=Lane, down=Lane)
    cpdef leave(self, str cause)
