# Who has his share of all connections.

cdef class Share:
    cdef object _words
    cdef object _mine
    cdef dict _beats
    cdef list _others

    cpdef join(self, connections)
    cpdef leave(self)
    cpdef tell(self, connections)
    cpdef most(self)
    cpdef look(self, now_ns)
