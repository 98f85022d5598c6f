# Admission to one endpoint.

cimport cython

from relay.calls cimport word
from relay.ledger.ledger cimport WorkerLedger
from relay.ledger cimport layout


cdef class Gate:
    cdef public Py_ssize_t counts_at, hold_until_at
    cdef object _holder, _sources, _bits, _asked, _edges, _envelope
    cdef tuple _all_counts_at
    cdef public dict held
    cdef word[::1] _words
    cdef public dict _per_source, _names, _verdicts
    cdef WorkerLedger _ledger
    cdef public object pool, declared
    cdef readonly int slot
    cdef public bint cuts_down, is_brought, audits, dials_plainly, drops, has_edges, looks, sends_proxy
    cdef public double connect_s
    cdef public object own_target
    cdef bint _is_limited

    cpdef bint permits(self, str source) except -1
    cpdef admit(self, str source, double now_s)
    cpdef identify(self, str edge, str source, double now_s)
    cdef _admit(self, str source, double now_s)
    cpdef accepted(self)
    cpdef readmit(self, str source)
    cpdef release(self, str source, str cause)
    cpdef target_answered(self, long long dialled_ns)
    cpdef bint was_held(self) except -1
    cpdef bint is_held(self, long long now_ns) except -1
    cpdef denied(self, str reason, long count=*)
    @cython.locals(at=Py_ssize_t, count=long)
    cdef _enter(self, str source, long change)
    cdef _name(self, str source)
