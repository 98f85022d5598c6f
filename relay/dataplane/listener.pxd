# The accept loop.

cimport cython

from relay.dataplane.context cimport Context
from relay.dataplane.flow cimport Flow
from relay.dataplane.gate cimport Gate
from relay.kernel.poller cimport Handler


cdef class Listener(Handler):
    cdef public Gate gate
    cdef public object sock
    cdef Context _context
    cdef public object _watched, _filter, _dropped_seen, _refused_said_s
    cdef bint _turned_away

    cdef _accept_some(self)
    cdef _hear(self)
    @cython.locals(context=Context, over=int)
    cdef bint _accept(self, most) except -1
    @cython.locals(context=Context, gate=Gate, flow=Flow)
    cpdef take(self, int fd, address, long long now_ns)
