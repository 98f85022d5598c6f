# From which address a loopback target is dialled.


cdef class SourceAddresses:
    cdef readonly bint in_use
    cdef dict _at

    cpdef str of(self, row, long long now_ns)
    cpdef str further(self, row, long long now_ns)
