# A socket by its descriptor.

cimport cython

from relay cimport calls


@cython.no_gc  # it is in no cycle
@cython.freelist(64)
cdef class BareSocket:
    cdef readonly int fd
    cdef object _socket

    cpdef int fileno(self) except? -1
    cpdef close(self)
