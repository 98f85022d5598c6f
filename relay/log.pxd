# Where a process puts its lines.


cdef class Logger:
    cdef public object _sink
    cdef str _process, _second_text
    cdef public list _lines
    cdef long long _second
    cdef public long long dropped
    cdef public str level

    cpdef bint wants(self, str level) except -1
    cpdef add(self, str line)
    cpdef str now(self)
    cpdef flush(self)
    cdef _send(self, list lines)
