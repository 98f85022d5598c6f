# The targets of one connection, in turn.

from relay.dataplane.gate cimport Gate


cdef class Route:
    cdef Gate _gate
    cdef object _now_ns, _pool, _place, _replaced, _tried
    cdef int _attempt
    cdef bint _is_joined, _is_held
    cdef double _until_s
    cdef public object target
    cdef public bint by_name
    cdef public long long dialled_ns
    cdef public int dials

    cpdef begin(self, client, peer)
    cdef _relay(self)
    cdef _own(self, client)
    cpdef reached(self, double took_s)
    cpdef join(self)
    cpdef part(self)
    cpdef leave(self, str cause, long long sent_bytes)
