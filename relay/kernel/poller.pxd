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
    cdef list _soon, _closing

    cpdef watch(self, int fd, unsigned int interest, Handler handler)
    cpdef want(self, int fd, int before, int after, Handler handler)
    cdef _control(self, int how, int fd, unsigned int interest)
    cdef _set(self, int fd, Handler handler)
    cdef Handler _take(self, int fd)
    cpdef forget(self, int fd)
    cpdef close(self, BareSocket sock)
    cpdef soon(self, int fd, Handler handler)
    @cython.locals(ready=long, n=long, fd=int, wait_ms=int, deadline_ns="long long", handler=Handler)
    cpdef serve(self)
    cdef _tell(self, Handler handler, int fd, unsigned int events)
    @cython.locals(soon=list, fd=int, handler=Handler)
    cdef _tell_soon(self)
    @cython.locals(sock=BareSocket, closing=list)
    cpdef bury(self)
