# A message in the ledger, while it goes from one socket to the other.

cimport cython

from relay cimport calls
from relay.calls cimport length, word


cdef class CopyBuffer:
    cdef object _memory, _headers, _locked
    cdef readonly size_t memory_at
    cdef size_t _receive_at, _send_at, _bytes_at
    cdef word[::1] _words
    cdef length[::1] _lengths
    cdef unsigned long[::1] _sizes
    cdef Py_ssize_t _part_at, _owner, _received, _sent, _room, _going

    cpdef bint prepare(self) except -1
    cpdef long limit(self, long most_bytes) except? -1
    @cython.locals(done=long)
    cpdef long take_in(self, int source_fd, long owner) except? -1
    @cython.locals(done=long)
    cpdef long pass_on(self, int sink_fd) except? -1
    @cython.locals(gone=long, left=long, done=long)
    cpdef set_aside(self, int pipe_fd, long there_bytes=?)
    cpdef forget(self)
    cpdef bring_home(self)
