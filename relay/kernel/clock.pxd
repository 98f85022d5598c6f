# The clock that the data plane goes by.

from relay cimport calls


cdef class Clock:
    cpdef long long now_ns(self) except? -1
