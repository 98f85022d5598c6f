# Registrations by descriptor.

cimport cython

from relay cimport calls
from relay.kernel.bare_socket cimport BareSocket


cdef class Handler:
    cpdef ready(self, int fd, unsigned int events)


cdef class Poller:
    cdef object _on_error, _on_closed
    cdef int _epoll_fd
    cdef public list _handlers
    cdef list _closing

    cpdef watch(self, int fd, unsigned int interest, Handler handler)
    cpdef want(self, int fd, int before, int after, Handler handler)
    cdef _control(self, int how, int fd, unsigned int interest)
    cdef _set(self, int fd, Handler handler)
    cdef Handler _take(self, int fd)
    cpdef forget(self, int fd)
    cpdef close(self, BareSocket sock)
    @cython.locals(ready=long, n=long, fd=int, wait_ms=int, deadline_ns="long long", handler=Handler)
    cpdef serve(self)
    @cython.locals(sock=BareSocket, closing=list)
    cpdef bury(self)
