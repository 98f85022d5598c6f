# A connection that was let in, and the stage in which it stands.

cimport cython

from relay cimport calls
from relay.dataplane.context cimport Context
from relay.dataplane.gate cimport Gate
from relay.dataplane.route cimport Route
from relay.kernel.bare_socket cimport BareSocket
from relay.kernel.poller cimport Handler
from relay.ledger cimport layout
from relay.ledger.ledger cimport WorkerLedger


cdef class Stage(Handler):
    cdef public Flow flow

    cpdef tick(self, double now_s)
    cpdef sweep(self, double now_s)
    cpdef watch(self)
    cpdef leave(self, str cause)


@cython.freelist(64)
cdef class Flow:
    cdef public Context context
    cdef public Gate gate
    cdef public BareSocket client
    cdef public object came_to
    cdef public int client_interest
    cdef public str source, peer_text, via, reason
    cdef public bint probe
    cdef public int asks, record, state
    cdef public Route route
    cdef public long long started_ns
    cdef public double connect_s
    cdef public Stage stage

    @cython.locals(ledger=WorkerLedger, record=Py_ssize_t, before=int)
    cpdef stand(self, Stage stage, int state, int target_fd=*, int target_slot=*, str cause=*)
    cpdef watch_client(self, int interest, Handler handler)
    cpdef tick_until(self, double timeout_s)
    @cython.locals(context=Context, route=Route)
    cpdef reached(self)
    @cython.locals(context=Context, stage=Stage, is_line=bint)
    cpdef cut(self, str cause)
    @cython.locals(context=Context, gate=Gate)
    cpdef account(self, str cause, tuple moved_bytes)
    cdef _say_end(self, str cause, double duration_s, tuple moved_bytes)


@cython.locals(us="long long")
cdef str _seconds(double duration_s)
