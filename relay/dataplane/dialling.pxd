# How a flow comes by its target.

cimport cython

from relay.dataplane.flow cimport Flow, Stage


cdef class Dialling(Stage):
    cdef public object _target, _watched, _retry, _holding, _fault
    cdef public double _deadline_s
    cdef str _not_begun

    @cython.locals(flow=Flow)
    cpdef start(self)
    @cython.locals(flow=Flow)
    cpdef bint _connect(self, row) except -1
    @cython.locals(flow=Flow)
    cpdef bint _connected(self, target) except -1
