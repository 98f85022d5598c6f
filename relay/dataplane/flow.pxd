# A connection that was let in, and the stage in which it stands.

from relay.dataplane.context cimport Context
from relay.dataplane.gate cimport Gate
from relay.dataplane.route cimport Route
from relay.kernel.poller cimport Handler


cdef class Stage(Handler):
    cdef public Flow flow

    cpdef tick(self, double now_s)
    cpdef sweep(self, double now_s)
    cpdef watch(self)
    cpdef leave(self, str cause)


cdef class Flow:
    cdef public Context context
    cdef public Gate gate
    cdef public object client, client_interest, peer, came_to
    cdef public str source, via, reason
    cdef public bint probe
    cdef public object asks
    cdef public Route route
    cdef public Py_ssize_t record
    cdef public long long started_ns
    cdef public double connect_s
    cdef public int state
    cdef public Stage stage

    cpdef watch_client(self, interest, Handler handler)
    cpdef tick_until(self, double timeout_s)
    cpdef reached(self)
    cpdef cut(self, str cause)
    cpdef account(self, str cause, tuple moved_bytes)
    cdef _say_end(self, str cause, double duration_s, tuple moved_bytes)
