# Log lines for refusals.

from relay.log cimport Logger


cdef class Denials:
    cdef Logger _log
    cdef public object _written, _left_out

    cpdef note(self, str endpoint, str peer, str reason, str detail=*, str event=*)
