# The accept loop.

cimport cython

from relay cimport calls
from relay.dataplane cimport greeting
from relay.dataplane.context cimport Context
from relay.dataplane.flow cimport Flow
from relay.dataplane.gate cimport Gate
from relay.dataplane.share cimport Share
from relay.kernel.bare_socket cimport BareSocket
from relay.kernel.poller cimport Handler
from relay.ledger cimport layout


cdef class Listener(Handler):
    cdef public Gate gate
    cdef public object sock
    cdef Context _context
    cdef public object _watched, _filter, _dropped_seen, _refused_said_s
    cdef bint _turned_away

    cdef _accept_some(self)
    cdef _hear(self)
    @cython.locals(context=Context, over=int, fd=int, listener_fd=int)
    cdef bint _accept(self, most) except -1
    @cython.locals(context=Context, gate=Gate, flow=Flow)
    cpdef take(self, int fd, str source, str peer, long long now_ns)
