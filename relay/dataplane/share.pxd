# Who has his share of all connections.

from relay.calls cimport word


cdef class Share:
    cdef word[::1] _words
    cdef Py_ssize_t _mine
    cdef dict _beats
    cdef list _others

    cpdef join(self, connections)
    cpdef leave(self)
    cpdef tell(self, long connections)
    cpdef most(self)
    cpdef look(self, now_ns)
