# The PROXY protocol.

cimport cython

from relay.address cimport unmap


cdef class Header:
    # A dataclass's fields, in their order.
    cdef readonly bytes src
    cdef readonly int src_port
    cdef readonly bytes dst
    cdef readonly int dst_port, length, version
    cdef readonly bytes tlvs
    cdef readonly bint is_local


cdef int _V2_LOCAL, _V2_PROXY, _V2_TCP4, _V2_TCP6, _V2_FIXED_BYTES


cpdef parse(bytes data)
cdef _parse_v1(bytes data)
@cython.locals(have=Py_ssize_t, command=int, family=int, rest_bytes=int, length=int, is_local=bint)
cdef _parse_v2(bytes data)
cdef bint _v2_known(int family) except -1
@cython.locals(dst=Py_ssize_t, ports=Py_ssize_t, src_port=int, dst_port=int)
cdef _v2_addresses(bytes data, Py_ssize_t host_bytes, Py_ssize_t length)
