# What outlives a worker.

cimport cython

from relay cimport calls
from relay.calls cimport integer, word
from relay.ledger cimport layout
from relay.ledger.copying cimport CopyBuffer

cdef int _INT, _RECORD_INTS, _SLOT, _TARGET, _CLIENT, _PIPES, _FLAGS, _TARGET_SLOT, _LOW_FLAGS
cdef Py_ssize_t _RECORD_WORDS, _STARTED, _BYTES


cdef class WorkerLedger:
    cdef public int index
    cdef public object words, numbers, memory, all_sources_at
    cdef public dict claims
    cdef public Py_ssize_t capacity_flows, records_at
    cdef readonly CopyBuffer copying
    cdef tuple _all_bases
    cdef object _bytes
    cdef word[::1] _words
    cdef integer[::1] _ints
    cdef Py_ssize_t _base, _high, _ending, _counts, _targets_from_base, _records

    cpdef observe_connect(self, Py_ssize_t at, double value_s)
    cpdef observe_duration(self, Py_ssize_t at, double value_s)
    @cython.locals(at=Py_ssize_t, word=Py_ssize_t, n=Py_ssize_t)
    cpdef begin(
        self, Py_ssize_t index, int state, int slot, int client_fd, int target_fd, long long started_ns, str peer,
        int target_slot=*
    )
    @cython.locals(at=Py_ssize_t)
    cpdef advance(self, Py_ssize_t index, int state, int target_fd)
    @cython.locals(at=Py_ssize_t)
    cpdef moved(self, Py_ssize_t index, long long received_bytes, long long sent_bytes)
    @cython.locals(at=Py_ssize_t)
    cpdef hold(self, Py_ssize_t index, int direction, tuple pipe)
    cpdef flag(self, Py_ssize_t index, int flags)
    cpdef identify(self, Py_ssize_t index, bytes who, int flags)
    cpdef aim(self, Py_ssize_t index, int target_slot)
    @cython.locals(at=Py_ssize_t)
    cpdef ending(self, Py_ssize_t index, str cause)
    @cython.locals(index=Py_ssize_t)
    cpdef end(self, indices)


cpdef Py_ssize_t owner_of(Py_ssize_t record, int direction) except? -1
@cython.locals(n=Py_ssize_t)
cdef Py_ssize_t _bucket(tuple bounds_s, double value_s) except -1
