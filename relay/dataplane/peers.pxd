# Whether both peers are alive.

cimport cython

from relay.dataplane.splice cimport Lane


@cython.no_gc  # it is in no cycle
@cython.freelist(64)
cdef class Peers:
    cdef _Side _target, _client
    cdef object _declared, _terms
    cdef long long _mark
    cdef bint _waits
    cdef double _look_at_s

    @cython.locals(target=_Side, client=_Side, mark="long long", target_is_dead=bint, client_is_dead=bint)
    cpdef dead(self, double began_s, declared, now_s)
    @cython.locals(side=_Side)
    cdef _declare(self, declared)


@cython.no_gc  # neither is it
@cython.freelist(64)
cdef class _Side:
    cdef Lane into
    cdef object _silence
    cdef long long _went, _came_bytes
    cdef bint waits

    cdef long long went(self) except -1
    @cython.locals(went="long long", came_bytes="long long")
    cdef bint is_dead(self, Lane out, double now_s, by) except -1
