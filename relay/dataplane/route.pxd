# The targets of one connection, in turn.

cimport cython

from relay.dataplane.gate cimport Gate
from relay.kernel.bare_socket cimport BareSocket
from relay.kernel.clock cimport Clock


@cython.no_gc  # it is in no cycle
@cython.freelist(64)
cdef class Route:
    cdef Gate _gate
    cdef Clock _clock
    cdef object _pool, _place, _replaced, _tried
    cdef int _attempt
    cdef bint _is_joined, _is_held
    cdef double _until_s
    cdef public object target
    cdef public bint by_name
    cdef public long long dialled_ns
    cdef public int dials

    cpdef int slot(self) except? -1
    cpdef bint asks(self) except -1
    cpdef begin(self, BareSocket client, str peer)
    cdef _relay(self)
    cdef _own(self, BareSocket client)
    cpdef reached(self, double took_s)
    cpdef join(self)
    cpdef part(self)
    cpdef leave(self, str cause, long long sent_bytes)
