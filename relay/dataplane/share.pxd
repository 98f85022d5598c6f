# Who has his share of all connections.

cimport cython

from relay.calls cimport word


cdef class Share:
    cdef word[::1] _words
    cdef Py_ssize_t _mine
    cdef dict _beats
    cdef list _others

    cpdef join(self, connections)
    cpdef leave(self)
    cpdef tell(self, long connections)
    @cython.locals(at=Py_ssize_t, there="long long", fewest="long long")
    cpdef long long most(self) except -1
    cpdef look(self, now_ns)
